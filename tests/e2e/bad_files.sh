#!/usr/bin/env bash
# Malformed containers: the unit tests of the parsers write each of their bad files into a folder;
# the command must answer every one with status 3 and a message that names the file.
source "$(dirname "$0")/tap.bash"

for test in test_safetensors test_gguf test_checkpoint; do
    mkdir "$scratch/$test"
    "$BUILD/tests/$test" "$scratch/$test" >"$scratch/log" 2>&1 ||
        fail "$test writes its bad files" "$(tail -n 5 "$scratch/log")"
done

n=0
while read -r path; do
    n=$((n + 1))
    name="${path#"$scratch"/}"
    expect 3 "inspect $name" "$NIBBLE" inspect "$path"
    [[ $err == "nibble: $path"*": "?* ]] || fail "$name is explained" "message: $err"
done < <(find "$scratch" -mindepth 2 -maxdepth 2 | sort)
if ((n >= 40)); then pass "at least 40 bad files"
else fail "at least 40 bad files" "found $n"; fi
finish
