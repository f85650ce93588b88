#!/usr/bin/env bash
# Runs every unit test in BUILD/tests and every end-to-end script, and prints how many tests passed
# and failed. With TOTALS=FILE the two numbers are appended there.
#
#   scripts/test.sh BUILD [unit|all]
set -uo pipefail
cd "$(dirname "$0")/.."
build=$1 what=${2:-all}
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-1000} # as the command: cores may be busy with other work
log=$(mktemp)
trap 'rm -f "$log"' EXIT
passed=0 failed=0

# cmocka sums up in two lines; a test program that died before them counts as one failure.
run_unit() {
    local program=$1 ok bad status=0
    "$program" >"$log" 2>&1 || status=$?
    ok=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test(s).*/\1/p' "$log" | awk '{ n += $1 } END { print n + 0 }')
    bad=$(sed -n 's/^\[  FAILED  \] \([0-9]*\) test(s), listed below.*/\1/p' "$log" |
        awk '{ n += $1 } END { print n + 0 }')
    ((status != 0 && bad == 0)) && bad=1
    ((status == 0 && ok == 0)) && bad=1 # ran nothing
    passed=$((passed + ok)) failed=$((failed + bad))
    printf '%-28s %4d passed, %d failed\n' "${program##*/}" "$ok" "$bad"
    ((bad == 0)) || grep -vE '^\[ (RUN |      OK )' "$log" | tail -n 60
}

for source in tests/unit/test_*.c; do
    name=${source##*/}
    run_unit "$build/tests/${name%.c}"
done

if [[ $what == all ]]; then
    NIBBLE=$build/nibble BUILD=$build tests/e2e/run.sh "$log"
    read -r ok bad <"$log"
    passed=$((passed + ok)) failed=$((failed + bad))
fi

[[ -z ${TOTALS:-} ]] || echo "$passed $failed" >>"$TOTALS"
echo "$build: $passed passed, $failed failed"
((failed == 0 && passed > 0))
