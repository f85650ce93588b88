#!/usr/bin/env bash
# SIGKILL at twenty random moments: after each, --resume goes on, and what comes out in the end is
# what an undisturbed run gives, byte for byte.
source "$(dirname "$0")/tap.bash"
seed=${SEED:-$RANDOM}
RANDOM=$seed
echo "# SEED=$seed"
"$PYTHON" scripts/make_random_model.py "$scratch/model" --shape small >/dev/null

quantize=("$NIBBLE" quantize "$scratch/model" --weights int3:g64 --method mse,nearest)
now() { date +%s%N; }
began=$(now)
expect 0 "undisturbed" "${quantize[@]}" -o "$scratch/whole"
took=$((($(now) - began) / 1000)) # microseconds

kills=0 rounds=0
while ((kills < 20 && rounds < 200)); do
    rounds=$((rounds + 1))
    "${quantize[@]}" -o "$scratch/parts" --resume >/dev/null 2>"$scratch/err" &
    pid=$!
    # Anywhere in what a run takes; several kills may hit the same run of the loop.
    wait_us=$((RANDOM * 32768 + RANDOM))
    sleep "$(printf '0.%06d' $((wait_us % (took < 999999 ? took : 999999))))"
    kill -KILL $pid 2>/dev/null
    wait $pid 2>/dev/null
    status=$?
    if ((status == 137)); then
        kills=$((kills + 1))
    elif ((status != 0)); then
        fail "resumed after $kills kills" "status $status" "$(<"$scratch/err")"
        finish
    else # finished before the signal: compare, and begin another
        reason=$(diff -r "$scratch/whole" "$scratch/parts") || fail "after $kills kills" "$reason"
        rm -rf "$scratch/parts"
    fi
done
same "kills" 20 $kills
expect 0 "resumed after the last kill" "${quantize[@]}" -o "$scratch/parts" --resume
reason=$(diff -r "$scratch/whole" "$scratch/parts") && pass "the same bytes after 20 kills" ||
    fail "the same bytes after 20 kills" "$reason"
same "nothing else is left" "err model out parts whole" "$(ls "$scratch" | tr '\n' ' ' | sed 's/ $//')"
finish
