#!/usr/bin/env bash
# Every verb on a tiny model: results, JSON keys, exit statuses, determinism.
source "$(dirname "$0")/tap.bash"
model=tests/golden/llama-text
measure=(--text LICENSE --ctx 64 --windows 10)

# value KEY: of the JSON object in $out.
value() { "$PYTHON" -c 'import json, sys; print(json.loads(sys.argv[1])[sys.argv[2]])' "$out" "$1"; }

# has_keys NAME KEY...: $out is one JSON object, and each of these is there and, if a number, finite.
has_keys() {
    local name=$1 reason
    shift
    reason=$("$PYTHON" -c '
import json, math, sys
o = json.loads(sys.argv[1])
bad = [k for k in sys.argv[2:] if k not in o or o[k] is None]
bad += [k for k, v in o.items() if isinstance(v, float) and not math.isfinite(v)]
sys.exit("missing or not finite: " + ", ".join(bad) if bad else 0)' "$out" "$@" 2>&1) &&
        pass "$name" || fail "$name" "$reason"
}

close() { # name, expected, got, relative tolerance
    if "$PYTHON" -c 'import sys; a, b, t = map(float, sys.argv[1:]); sys.exit(abs(a - b) > t * abs(a))' \
        "$2" "$3" "$4"; then pass "$1"; else fail "$1" "expected $2 within $4, got $3"; fi
}

# Perplexity of 10 windows of 64 from transformers 4.45.2 in fp32 on the same files.
expect 0 "perplexity" "$NIBBLE" perplexity "$model" "${measure[@]}" --json
has_keys "perplexity: keys" perplexity error tokens windows seconds tokens_per_second
close "perplexity is that of transformers" 2888.702 "$(value perplexity)" 1e-4
same "perplexity counts all tokens but the first of each window" 630 "$(value tokens)"
expect 0 "perplexity as text" "$NIBBLE" perplexity "$model" "${measure[@]}"
contains "perplexity as text shows an error" "±" "$out"
for option in --device=ref --threads=1 --cpumask=0; do
    expect 0 "perplexity $option" "$NIBBLE" perplexity "$model" "${measure[@]}" --json $option
    close "perplexity $option agrees" 2888.702 "$(value perplexity)" 1e-4
done
bf16=("$NIBBLE" perplexity "$model" "${measure[@]}" --json --compute bf16)
if [[ $("${bf16[@]}" 2>&1) == *"no bf16 product"* ]]; then
    expect 2 "perplexity --compute bf16 on a CPU without it" "${bf16[@]}"
else
    expect 0 "perplexity --compute bf16" "${bf16[@]}"
    close "perplexity --compute bf16 is near" 2888.702 "$(value perplexity)" 0.05
fi
expect 2 "a text shorter than one window" "$NIBBLE" perplexity "$model" --text LICENSE --ctx 100000000
printf 'ab\xff\xfecd' >"$scratch/bytes"
expect 3 "a text that is not UTF-8" "$NIBBLE" perplexity "$model" --text "$scratch/bytes" --ctx 2
expect 2 "a model without a tokenizer" "$NIBBLE" perplexity tests/golden/llama-mha "${measure[@]}"

expect 0 "logits of a list" "$NIBBLE" logits tests/golden/llama-mha --tokens 5,6,7 -o "$scratch/a.npy"
expect 0 "logits of a file" "$NIBBLE" logits tests/golden/llama-mha \
    --tokens tests/golden/llama-mha/tokens.txt -o "$scratch/b.npy" --json
has_keys "logits: keys" tokens vocab out
reason=$("$PYTHON" -c '
import sys, numpy as np
a, b = (np.load(f).astype(float) for f in sys.argv[1:])
assert a.shape == b.shape, (a.shape, b.shape)
e = np.linalg.norm(a - b) / np.linalg.norm(b)
assert e < 1e-3, e' "$scratch/b.npy" tests/golden/llama-mha/logits.npy 2>&1) &&
    pass "logits are those of transformers" || fail "logits are those of transformers" "$reason"
expect 2 "logits of an id outside the vocabulary" "$NIBBLE" logits "$model" --tokens 272 -o "$scratch/c.npy"
expect 2 "logits of no ids" "$NIBBLE" logits "$model" --tokens , -o "$scratch/c.npy"
expect 3 "logits to a folder that is not there" "$NIBBLE" logits "$model" --tokens 1 -o "$scratch/no/c.npy"

expect 0 "inspect" "$NIBBLE" inspect "$model" --json
has_keys "inspect: keys" bytes source_bytes bits_per_weight seconds peak_rss tensors
contains "inspect has recipe" '"recipe": null' "$out"
expect 0 "inspect as text" "$NIBBLE" inspect tests/golden/gguf-llama/model.gguf
contains "inspect shows formats" "q4_1" "$out"
expect 0 "inspect --tensor" "$NIBBLE" inspect "$model" --tensor model.norm.weight --json
has_keys "inspect --tensor: keys" values min max mean std kurtosis histogram
expect 2 "inspect --tensor of an unknown name" "$NIBBLE" inspect "$model" --tensor model.nrm.weight

quantize=("$NIBBLE" quantize "$model" --weights int4:g16 --method minmax,nearest)
expect 0 "quantize --dry-run" "${quantize[@]}" -o "$scratch/q" --dry-run --json
has_keys "quantize --dry-run: keys" bytes bits_per_weight estimated_memory estimated_seconds
planned=$(value bytes)
same "quantize --dry-run writes nothing" "" "$(ls "$scratch" | grep '^q')"
expect 4 "quantize in too little memory" "${quantize[@]}" -o "$scratch/q" --memory 1K
expect 0 "quantize" "${quantize[@]}" -o "$scratch/q" --json
has_keys "quantize: keys" bytes source_bytes bits_per_weight recipe seconds peak_rss
# the plan sets 8 KiB aside for the header of each of the three shards, of which these use a part
close "quantize --dry-run foretold the size" "$(value bytes)" "$planned" 0.25
bits=$(value bits_per_weight)
same "quantize leaves no partial directory" "q" "$(ls "$scratch" | grep '^q')"
expect 2 "quantize onto a directory that is there" "${quantize[@]}" -o "$scratch/q"
expect 0 "quantize --force" "${quantize[@]}" -o "$scratch/q" --force
expect 0 "quantize by a recipe's name" "$NIBBLE" quantize "$model" -o "$scratch/r" --recipe rtn-w4a16g128
expect 0 "quantize a GGUF file" "$NIBBLE" quantize tests/golden/gguf-qwen2/model.gguf -o "$scratch/g" \
    --weights int8:row
expect 0 "inspect a quantized model" "$NIBBLE" inspect "$scratch/q" --json
contains "inspect shows the format" "int4:g16" "$out"
close "inspect and quantize agree on bits per weight" "$bits" "$(value bits_per_weight)" 1e-9

# Rows of 40 are 3 blocks of 16: half a byte of each row of dialects is none. Tiles count once.
cat >"$scratch/r.yaml" <<'EOF'
weights: dialect:b16
linears:
  v: {weights: int4:g8}
  o: {weights: dialect:8x8}
  down: {weights: dialect:4x8}
EOF
expect 0 "quantize to dialects" "$NIBBLE" quantize "$model" -o "$scratch/dialects" --recipe "$scratch/r.yaml"
expect 0 "inspect --dialects" "$NIBBLE" inspect "$scratch/dialects" --dialects --json
table=$("$NIBBLE" inspect "$scratch/dialects" --dialects)
reason=$("$PYTHON" -c '
import json, sys
from pathlib import Path
sys.path.insert(0, "tests/spec")
from read_nibble import *
directory, got, table = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
config = json.loads((directory / "config.json").read_text())
planes = {}
for file in directory.glob("*.safetensors"): planes.update(read_safetensors(file))
want, total = {}, np.zeros(16, int)
for module, word in config["quantization_config"]["modules"].items():
    if not word.startswith("dialect"): continue
    _, ids = planes[module + ".weight.dialects"]
    rows, cols = {"dialect:b16": (1, 16), "dialect:8x8": (8, 8), "dialect:4x8": (4, 8)}[word]
    blocks = unpack_bits(ids[::rows], 4, -(-n_in_of(module, config) // cols))
    want[module + ".weight"] = word, blocks.size, np.bincount(blocks.ravel(), minlength=16).tolist()
    total += want[module + ".weight"][2]
found = {t["name"]: (t["format"], t["blocks"], t["dialects"]) for t in got["tensors"]}
assert len(want) == 12 and found == want, f"{found}, expected {want}"
assert all(sum(c) == n for _, n, c in found.values()) and 0 not in total, total
assert (got["blocks"], got["dialects"]) == (total.sum(), total.tolist()), got["dialects"]
lines = {line.split()[0]: line.split()[1:] for line in table.splitlines()[3:]}
assert lines.keys() == {*want, "all"}, lines.keys()
for name, (_, n, count) in (want | {"all": ("", total.sum(), total)}).items():
    assert lines[name] == [str(n), *(f"{100 * c / n:.1f}" for c in count)], lines[name]
' "$scratch/dialects" "$out" "$table" 2>&1) && pass "inspect --dialects counts what the file holds" ||
    fail "inspect --dialects counts what the file holds" "$reason"
tensor=model.layers.1.mlp.down_proj.weight
expect 0 "inspect --dialects of one tensor" "$NIBBLE" inspect "$scratch/dialects" --dialects --tensor $tensor --json
same "its 10 rows of 7 tiles" "70 1" "$(value blocks) $(grep -c '"name"' <<<"$out")"
expect 2 "inspect --dialects of a tensor without" "$NIBBLE" inspect "$scratch/dialects" --dialects \
    --tensor model.layers.1.self_attn.v_proj.weight
expect 2 "inspect --dialects of a model without" "$NIBBLE" inspect "$scratch/q" --dialects
contains "it is named" "$scratch/q: no tensor is in a dialect format" "$err"

expect 0 "verify" "$NIBBLE" verify "$scratch/q" --json
has_keys "verify: keys" tensors checksums bytes

expect 0 "compare" "$NIBBLE" compare "$scratch/q" --against "$model" "${measure[@]}" --json
has_keys "compare: keys" kl_mean kl_mean_error kl_p99 kl_p99_error top1_agreement \
    top1_agreement_error perplexity perplexity_error perplexity_reference \
    perplexity_reference_error perplexity_ratio perplexity_ratio_error
close "compare measures the reference" 2888.702 "$(value perplexity_reference)" 1e-4
packed=$(value perplexity)
expect 0 "perplexity --simulate" "$NIBBLE" perplexity "$scratch/q" "${measure[@]}" --simulate --json
close "packed kernels and fake quantization agree" "$(value perplexity)" "$packed" 1e-3
expect 0 "compare with itself" "$NIBBLE" compare "$model" --against "$model" "${measure[@]}" --json
same "a model does not differ from itself" "0.0 1.0" "$(value kl_mean) $(value top1_agreement)"
single=$("$NIBBLE" compare "$scratch/q" --against "$model" "${measure[@]}" --json | python3 -c \
    'import json, sys; print(json.load(sys.stdin)["kl_mean"])')
expect 0 "compare several" "$NIBBLE" compare "$model" "$scratch/q" --against "$model" "${measure[@]}" --json
same "each as by itself" "0.0 $single" "$(python3 -c '
import json, sys
print(*(m["kl_mean"] for m in json.load(sys.stdin)["models"]))' <<<"$out")"
expect 2 "two models for a verb of one" "$NIBBLE" perplexity "$model" "$model" "${measure[@]}"
expect 2 "compare with another vocabulary" "$NIBBLE" compare "$model" --against tests/golden/llama-mha \
    "${measure[@]}"

say=("$NIBBLE" generate "$model" -p "the thing" -n 24 --ignore-eos --json)
expect 0 "generate" "${say[@]}" --seed 7
has_keys "generate: keys" text tokens prompt_tokens_per_second decode_tokens_per_second
same "generate stops at -n" 24 "$(value tokens)"
first=$(value text)
expect 0 "generate again" "${say[@]}" --seed 7 --threads 1
same "the same seed gives the same text" "$first" "$(value text)"
expect 0 "generate with another seed" "${say[@]}" --seed 8
[[ $(value text) != "$first" ]] && pass "another seed gives another text" ||
    fail "another seed gives another text" "$first"
expect 0 "generate greedily" "${say[@]}" --temp 0 --seed 1
first=$(value text)
expect 0 "generate greedily with another seed" "${say[@]}" --temp 0 --seed 2
same "greedy text has no seed" "$first" "$(value text)"
expect 0 "generate --chat" "$NIBBLE" generate "$model" --chat -p hi -n 4
contains "generate prints its speed on standard error" "per second" "$err"
expect 0 "generate from a quantized model" "$NIBBLE" generate "$scratch/q" -p hi -n 4 --temp 0

# One flipped byte in the weights: verify finds it.
shard=$(ls "$scratch"/q/*.safetensors | head -n 1)
"$PYTHON" -c 'import sys
f = open(sys.argv[1], "r+b"); f.seek(-1, 2); b = f.read(1)[0]; f.seek(-1, 2); f.write(bytes([b ^ 1]))' "$shard"
expect 6 "verify finds a flipped bit" "$NIBBLE" verify "$scratch/q"

# SIGINT as soon as work shows: status 130.
for _ in $(seq 60); do cat LICENSE; done >"$scratch/long"
"$NIBBLE" perplexity "$model" --text "$scratch/long" --ctx 64 --device ref >/dev/null 2>"$scratch/progress" &
pid=$!
for _ in $(seq 600); do
    [[ -s $scratch/progress ]] && break
    sleep 0.1
done
kill -INT $pid
wait $pid
same "SIGINT ends with status 130" 130 $?
contains "SIGINT is reported" "stopped" "$(tail -n 1 "$scratch/progress")"
finish
