# Sourced by the end-to-end scripts: checks that print "ok NAME" or "not ok NAME".
# $scratch is a folder of the script's own, gone when it ends.
set -uo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
n_failed=0

pass() { echo "ok $1"; }

fail() { # name, reason...
    echo "not ok $1"
    shift
    printf '    %s\n' "$@"
    n_failed=$((n_failed + 1))
}

# expect STATUS NAME COMMAND...: runs it; $out and $err hold what it wrote.
expect() {
    local want=$1 name=$2 got=0
    shift 2
    "$@" >"$scratch/out" 2>"$scratch/err" </dev/null || got=$?
    out=$(tr -d '\0' <"$scratch/out") err=$(tr -d '\0' <"$scratch/err")
    if ((got == want)); then pass "$name"
    else fail "$name" "status: expected $want, got $got" "command: $*" "${err:0:500}"; fi
}

# contains NAME TEXT WHERE: TEXT is part of WHERE.
contains() {
    if [[ $3 == *"$2"* ]]; then pass "$1"
    else fail "$1" "expected: $2" "in: ${3:0:500}"; fi
}

same() { # name, expected, got
    if [[ $2 == "$3" ]]; then pass "$1"
    else fail "$1" "expected: ${2:0:500}" "got: ${3:0:500}"; fi
}

finish() { ((n_failed == 0)); exit; }
