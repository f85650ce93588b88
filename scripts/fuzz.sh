#!/usr/bin/env bash
# Runs every fuzzer for a while, each on its own corpus; stops at the first finding, which is left
# in BUILD/fuzz/findings/.
#
#   scripts/fuzz.sh BUILD SECONDS [NAME...]
set -euo pipefail
cd "$(dirname "$0")/.."
build=$1 seconds=$2
shift 2
scripts/make_corpus.sh "$build"
mkdir -p "$build/fuzz/findings"

if (($# == 0)); then
    for source in fuzz/fuzz_*.c; do
        name=$(basename "$source" .c)
        set -- "$@" "${name#fuzz_}"
    done
fi
for name in "$@"; do
    log=$build/fuzz/$name.log
    status=0
    dict=()
    [[ ! -f fuzz/$name.dict ]] || dict=(-dict="fuzz/$name.dict")
    "$build/fuzz/fuzz_$name" "${dict[@]}" -max_total_time="$seconds" -max_len=65536 -timeout=10 \
        -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="$build/fuzz/findings/$name-" \
        "$build/fuzz/corpus/$name" >"$log" 2>&1 || status=$?
    if ((status != 0)); then
        tail -n 40 "$log"
        echo "fuzz_$name: found something; see $log and $build/fuzz/findings/"
        exit 1
    fi
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    coverage=$(grep -oE ' cov: [0-9]+' "$log" | tail -n 1 | tr -dc 0-9)
    echo "fuzz_$name: $runs inputs in $seconds s, $coverage edges, nothing found"
done
