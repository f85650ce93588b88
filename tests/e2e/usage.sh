#!/usr/bin/env bash
# What the command says about itself and about wrong arguments.
source "$(dirname "$0")/tap.bash"
model=tests/golden/llama-text

expect 0 "no argument prints the overview" "$NIBBLE"
contains "the overview names the verbs" "perplexity" "$out"
expect 0 "--version" "$NIBBLE" --version
contains "--version prints name and number" "nibble 0." "$out"
expect 0 "help" "$NIBBLE" help

for verb in quantize perplexity compare generate logits inspect verify; do
    expect 0 "$verb --help" "$NIBBLE" "$verb" --help
    contains "$verb --help shows the usage" "usage: nibble $verb MODEL" "$out"
    contains "$verb --help lists --json" "--json" "$out"
    page=$out
    expect 0 "help $verb" "$NIBBLE" help "$verb"
    same "help $verb prints the same page" "$page" "$out"
    expect 2 "$verb without MODEL" "$NIBBLE" "$verb"
    expect 2 "$verb with two MODELs" "$NIBBLE" "$verb" a b
done

# Every option of the help stands in the manual, and the manual has no other.
for verb in quantize perplexity compare generate logits inspect verify; do
    "$NIBBLE" "$verb" --help | grep -oE '^ +(-., )?--[a-z0-9-]+' | grep -oE -- '--[a-z0-9-]+'
done | sort -u >"$scratch/options"
grep -oE 'Fl -[a-z][a-z0-9-]+' docs/man/nibble.1 | sed 's/Fl /-/' | grep -vx -e '--version' -e '--opt' |
    sort -u >"$scratch/manual"
same "help and manual list the same options" "$(cat "$scratch/options")" "$(cat "$scratch/manual")"

expect 2 "unknown verb" "$NIBBLE" perplexty "$model"
contains "a slip in a verb is recognised" "did you mean 'perplexity'" "$err"
expect 2 "unknown option" "$NIBBLE" perplexity "$model" --windws 3
contains "a slip in an option is recognised" "did you mean --windows" "$err"
expect 2 "unknown short option" "$NIBBLE" inspect "$model" -x
expect 2 "option without a value" "$NIBBLE" perplexity "$model" --text
expect 2 "number out of range" "$NIBBLE" perplexity "$model" --text LICENSE --ctx=1
expect 2 "text where a number is due" "$NIBBLE" perplexity "$model" --text LICENSE --ctx many
expect 2 "number too large" "$NIBBLE" perplexity "$model" --text LICENSE --ctx 99999999999
expect 2 "flag with a value" "$NIBBLE" inspect "$model" --json=yes
expect 2 "unknown choice" "$NIBBLE" perplexity "$model" --text LICENSE --compute f16
expect 2 "malformed size" "$NIBBLE" quantize "$model" -o "$scratch/q" --weights int4:row --memory 4X
expect 2 "unknown device" "$NIBBLE" perplexity "$model" --text LICENSE --device abacus
expect 2 "perplexity without --text" "$NIBBLE" perplexity "$model"
expect 2 "compare without --against" "$NIBBLE" compare "$model" --text LICENSE
expect 2 "generate without a prompt" "$NIBBLE" generate "$model"
expect 2 "quantize without -o" "$NIBBLE" quantize "$model" --weights int4:row
expect 2 "quantize without formats" "$NIBBLE" quantize "$model" -o "$scratch/q"
expect 2 "a format of weights for the cache" "$NIBBLE" generate "$model" -p a --kv int4:g128
contains "it is named" "int4:g128" "$err"
expect 2 "an unknown order of rotary pairs" "$NIBBLE" quantize "$model" -o "$scratch/q" \
    --weights int4:row --rope neox
contains "the two orders are named" "half or interleaved" "$err"
expect 2 "an order of rotary pairs for OPT" "$NIBBLE" quantize tests/golden/opt -o "$scratch/q" \
    --weights int4:row --rope half
contains "OPT is named" "family opt" "$err"
expect 2 "an unknown format for the cache" "$NIBBLE" perplexity "$model" --text LICENSE --kv int9
expect 2 "--full-chunks is no option of generate" "$NIBBLE" generate "$model" -p a --full-chunks
expect 2 "unknown format" "$NIBBLE" quantize "$model" -o "$scratch/q" --weights int9:g128
contains "unknown format is named" "int9:g128" "$err"
expect 2 "unknown recipe" "$NIBBLE" quantize "$model" -o "$scratch/q" --recipe rtn-w4a16g129
contains "a slip in a recipe is recognised" "did you mean rtn-w4a16g128" "$err"
expect 3 "missing model" "$NIBBLE" inspect "$scratch/nothing"
contains "a missing model is named" "$scratch/nothing" "$err"
expect 3 "missing text" "$NIBBLE" perplexity "$model" --text "$scratch/nothing"
expect 3 "missing recipe file" "$NIBBLE" quantize "$model" -o "$scratch/q" --recipe "$scratch/a.yaml"

"$NIBBLE" inspect "$model" >/dev/full 2>"$scratch/err"
same "full standard output is status 4" 4 $?
"$NIBBLE" inspect "$model" 2>"$scratch/err" | head -n 1 >/dev/null
same "a reader that goes away is no failure" 0 "${PIPESTATUS[0]}"
same "and gives no message" "" "$(cat "$scratch/err")"
finish
