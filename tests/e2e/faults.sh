#!/usr/bin/env bash
# Faults in numbers and formats: each has its status, says where it is, and leaves no output.
source "$(dirname "$0")/tap.bash"
damage=("$PYTHON" tests/spec/wide_model.py)
model=tests/golden/llama-text
block=model.layers.1
calibrated=(--method gptq --calib LICENSE --samples 2 --seqlen 32)

# damaged TENSOR INDEX VALUE: a copy of the model in $scratch/m.
damaged() {
    rm -rf "$scratch/m" "$scratch"/q*
    cp -r "$model" "$scratch/m"
    "${damage[@]}" poke "$scratch/m" "$@"
}

# refused STATUS NAME TEXT OPTION...: quantizing $scratch/m fails, the message has the text.
refused() {
    local status=$1 name=$2 text=$3
    shift 3
    expect "$status" "$name" "$NIBBLE" quantize "$scratch/m" -o "$scratch/q" "$@"
    contains "$name: message" "$text" "$err"
    [[ ! -e $scratch/q ]] && pass "$name: no output" || fail "$name: no output" "there is one"
}

# ---- weights and activations that are not finite ------------------------------------------------
for value in nan inf; do
    damaged $block.mlp.up_proj.weight 45 $value
    for format in dialect:b32 mxfp4 nvfp4 fp4:g16:m2 fp4:g16:m2:matrix int4:g16; do
        rm -rf "$scratch/q.partial"
        refused 5 "$value in a weight, $format" "block 1: $block.mlp.up_proj: weight [1, 5]" \
            --weights $format
    done
    expect 6 "$value in a weight: verify" "$NIBBLE" verify "$scratch/m"
    contains "$value in a weight: verify says where" "$block.mlp.up_proj.weight: row 1, column 5" "$err"

    damaged $block.input_layernorm.weight 5 $value
    refused 5 "$value in activations" "block 1: $block.self_attn.q_proj" --weights int4:g16 \
        "${calibrated[@]}"
    expect 5 "$value in activations: perplexity" "$NIBBLE" perplexity "$scratch/m" --text LICENSE \
        --ctx 32 --windows 2
done

# Dialects saturate such activations (by decision), and count them. Here they meet zeros alone.
damaged $block.post_attention_layernorm.weight 5 inf
"${damage[@]}" poke "$scratch/m" $block.mlp.gate_proj.weight all 0
"${damage[@]}" poke "$scratch/m" $block.mlp.up_proj.weight all 0
expect 0 "weights are finite" "$NIBBLE" quantize "$scratch/m" -o "$scratch/q" --weights dialect:b32 \
    --acts dialect:b32
expect 0 "infinite activations of dialects" "$NIBBLE" perplexity "$scratch/q" --text LICENSE --ctx 32 \
    --windows 2 --json
contains "they are counted: 64 tokens, gate and up" '"nonfinite_activations": 128' "$out"
expect 0 "counted in generating" "$NIBBLE" generate "$scratch/q" -p hi -n 4 --temp 0 --ignore-eos --json
prompt=$(grep -oP '"prompt_tokens": \K[0-9]+' <<<"$out")
contains "each token but the last, gate and up" "\"nonfinite_activations\": $((2 * (prompt + 3)))" "$out"

# ---- statistics without an inverse --------------------------------------------------------------
expect 0 "singular statistics" "$NIBBLE" quantize "$model" -o "$scratch/singular" --weights int4:g16 \
    --method gptq:damp=0 --calib LICENSE --samples 1 --seqlen 8
contains "singular statistics are reported" "rounded to nearest" "$(<"$scratch/singular/report.json")"

# ---- words --------------------------------------------------------------------------------------
rm -rf "$scratch/m" "$scratch"/q*
cp -r "$model" "$scratch/m"
for word in mxfp4:m2 nvfp4:m2 dialect:b32:m1 int4:g64:m2 fp8:row:m2 fp4:g64:m1:matrix fp4:token:m2 \
    dialect:b24 dialect:8x4 dialect:b256 dialect:b0 dialect fp5:row mxfp5 nvfp8 fp4:g7 int4:g12 int1:row; do
    refused 2 "no format: $word" "\"$word\"" --weights $word
    [[ ! -e $scratch/q.partial ]] && pass "no format: $word: nothing begun" ||
        fail "no format: $word: nothing begun" "q.partial is there"
done
refused 2 "activations of a format for weights" "int4:g64" --weights int4:g16 --acts int4:g64
refused 2 "blocks of several rows need nearest" "only minmax and nearest" --weights dialect:4x8 \
    --method mse,nearest
rm -rf "$scratch/q.partial"
expect 0 "blocks of several rows" "$NIBBLE" quantize "$model" -o "$scratch/tiles" --weights dialect:4x8 \
    --acts dialect:4x8
expect 0 "blocks of several rows: perplexity" "$NIBBLE" perplexity "$scratch/tiles" --text LICENSE --ctx 32 \
    --windows 2
refused 2 "an option that is none" "gptq" --weights int4:g16 --method gptq:damp=x

# ---- files of dialects --------------------------------------------------------------------------
expect 0 "a dialect model" "$NIBBLE" quantize "$model" -o "$scratch/dialect" --weights dialect:b16
scales=$block.mlp.down_proj.weight.scales
status_of() { [[ $1 == verify ]] && echo 6 || echo 3; } # of a damaged model, by verb
for plane in codes scales dialects; do
    rm -rf "$scratch/d"
    cp -r "$scratch/dialect" "$scratch/d"
    "${damage[@]}" narrow "$scratch/d" $block.mlp.down_proj.weight.$plane
    for verb in "inspect" "inspect --dialects" "verify" "perplexity --text LICENSE --ctx 32"; do
        expect "$(status_of $verb)" "short $plane: ${verb%% --text*}" \
            "$NIBBLE" ${verb%% *} "$scratch/d" ${verb#"${verb%% *}"}
        contains "short $plane: ${verb%% --text*} names it" "$block.mlp.down_proj.weight.$plane" "$err"
    done
done
rm -rf "$scratch/d"
cp -r "$scratch/dialect" "$scratch/d"
"${damage[@]}" poke "$scratch/d" $scales 9 255 # rows of 56: 4 blocks
for verb in "inspect" "verify" "perplexity --text LICENSE --ctx 32" "generate -p hi"; do
    expect "$(status_of $verb)" "a scale of NaN: ${verb%% *}" \
        "$NIBBLE" ${verb%% *} "$scratch/d" ${verb#"${verb%% *}"}
    contains "a scale of NaN: ${verb%% *} says where" "$scales: row 2, group 1" "$err"
done
for shard in "$scratch"/d/*.safetensors; do truncate -s -100 "$shard"; done
expect 3 "a truncated file" "$NIBBLE" inspect "$scratch/d"

# ---- a full disk --------------------------------------------------------------------------------
training=("$NIBBLE" quantize "$model" -o "$scratch/full" --weights int4:g16 --method
    omniquant:lwc,nearest --epochs 1 --calib LICENSE --samples 8 --seqlen 32)
expect 0 "what fits" "${training[@]}" --dry-run --json
training+=(--memory $(($(grep -oP '"estimated_memory": \K[0-9]+' <<<"$out") - 1)))
small_files() { (trap '' XFSZ && ulimit -f 4 && "$@"); }
expect 4 "no room for hidden states" small_files "${training[@]}"
contains "no room for hidden states: message" "full.partial/scratch.tmp: cannot make room" "$err"
same "no room for hidden states: nothing of them is left" journal.jsonl "$(ls "$scratch/full.partial")"
expect 0 "and goes on when there is" "${training[@]}" --resume

# ---- the cache ----------------------------------------------------------------------------------
expect 2 "a cache that is too small" "$NIBBLE" generate "$model" -p "the thing" -n 24 --ctx 8
contains "a cache that is too small: message" "context of 8" "$err"
expect 2 "no positions left in the model" "$NIBBLE" perplexity "$model" --text LICENSE --ctx 100000
finish
