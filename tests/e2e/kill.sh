#!/usr/bin/env bash
# SIGKILL at random moments: after each, --resume goes on, and what comes out in the end is what an
# undisturbed run gives, byte for byte; with one step per linear, with steps on whole blocks that
# look at a text, and with one that trains while its hidden states lie on disk.
source "$(dirname "$0")/tap.bash"
seed=${SEED:-$RANDOM}
RANDOM=$seed
echo "# SEED=$seed"
"$PYTHON" scripts/make_random_model.py "$scratch/model" --shape small >/dev/null
cp tests/golden/llama-text/tokenizer.json "$scratch/model"
cat docs/*.md >"$scratch/text"
now() { date +%s%N; }
limit=() # options of the runs that are killed, beside those of all

# Random moments within what a run takes; several may hit the same run of the loop.
kill_often() { # name, kills, options of quantize
    local name=$1 want=$2 quantize=("$NIBBLE" quantize "$scratch/model" "${@:3}")
    local began took kills=0 rounds=0 pid wait_us status reason
    began=$(now)
    expect 0 "$name: undisturbed" "${quantize[@]}" -o "$scratch/whole"
    took=$((($(now) - began) / 1000)) # microseconds
    while ((kills < want && rounds < 10 * want)); do
        rounds=$((rounds + 1))
        "${quantize[@]}" -o "$scratch/parts" --resume "${limit[@]}" >/dev/null 2>"$scratch/err" &
        pid=$!
        wait_us=$(((RANDOM * 32768 + RANDOM) % (took < 999999 ? took : 999999)))
        sleep "$(printf '0.%06d' $wait_us)"
        kill -KILL $pid 2>/dev/null
        wait $pid 2>/dev/null
        status=$?
        if ((status == 137)); then
            kills=$((kills + 1))
        elif ((status != 0)); then
            fail "$name: resumed after $kills kills" "status $status" "$(<"$scratch/err")"
            return
        else # finished before the signal: compare, and begin another
            reason=$(diff -r "$scratch/whole" "$scratch/parts") ||
                fail "$name: after $kills kills" "$reason"
            rm -rf "$scratch/parts"
        fi
    done
    same "$name: kills" $want $kills
    expect 0 "$name: resumed after the last kill" "${quantize[@]}" -o "$scratch/parts" --resume "${limit[@]}"
    reason=$(diff -r "$scratch/whole" "$scratch/parts") && pass "$name: the same bytes" ||
        fail "$name: the same bytes" "$reason"
    same "$name: nothing else is left" "err model out parts text whole" \
        "$(ls "$scratch" | tr '\n' ' ' | sed 's/ $//')"
    rm -r "$scratch/parts" "$scratch/whole"
}

kill_often "linears" 20 --weights int3:g64 --method mse,nearest
kill_often "blocks" 10 --weights int4:g64 --acts int8:token --method smooth,minmax,gptq \
    --calib "$scratch/text" --samples 4 --seqlen 64
train=(--weights int4:g64 --acts int8:token --method omniquant:lwc:let,nearest
    --calib "$scratch/text" --samples 4 --seqlen 32 --epochs 6)
expect 0 "what training needs" "$NIBBLE" quantize "$scratch/model" "${train[@]}" -o "$scratch/plan" \
    --dry-run --json
fits=$(grep -oP '"estimated_memory": \K[0-9]+' <<<"$out")
limit=(--memory $((fits - 1)))
expect 0 "a byte less" "$NIBBLE" quantize "$scratch/model" "${train[@]}" -o "$scratch/plan" --dry-run \
    --json "${limit[@]}"
contains "spills" '"spilled_bytes": 524288' "$out" # 4 streams of 4 windows of 32 tokens, 256 wide
kill_often "training" 20 "${train[@]}"
finish
