#!/usr/bin/env bash
# Runs every end-to-end script here and counts their "ok" and "not ok" lines. A script that fails
# without such a line counts as one failure, one that passes without any as one pass.
#
#   tests/e2e/run.sh [FILE]      the two totals, passed and failed, are written to FILE
# NIBBLE: the command (build/nibble); BUILD: where the test programs lie (build).
set -uo pipefail
cd "$(dirname "$0")/../.."
export BUILD=${BUILD:-build}
export NIBBLE=${NIBBLE:-$BUILD/nibble}
export PYTHON=${PYTHON:-/usr/bin/python3}
NIBBLE=$(realpath "$NIBBLE")
[[ -x $NIBBLE ]] || { echo "e2e: no command at $NIBBLE" >&2; exit 2; }
passed=0 failed=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

for script in tests/e2e/*.sh; do
    [[ $script == */run.sh ]] && continue
    status=0
    bash "$script" >"$log" 2>&1 || status=$?
    ok=$(grep -c '^ok ' "$log")
    bad=$(grep -c '^not ok ' "$log")
    ((status == 0 && ok + bad == 0)) && ok=1
    ((status != 0 && bad == 0)) && bad=1
    passed=$((passed + ok)) failed=$((failed + bad))
    printf '%-28s %4d passed, %d failed\n' "${script##*/}" "$ok" "$bad"
    ((bad == 0)) || grep -v '^ok ' "$log" | tail -n 60
done
[[ -z ${1:-} ]] || echo "$passed $failed" >"$1"
((failed == 0))
