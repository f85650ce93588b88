#!/usr/bin/env bash
# The whole tool on a real model: fetch SmolLM2-135M-Instruct, quantize it in two ways, measure
# what that cost, and let all three talk. `make demo` calls this after installing and building.
#
#   scripts/demo.sh [NIBBLE]
# DEMO_CTX and DEMO_WINDOWS: tokens per window and windows of WikiText-2 test that are measured.
set -euo pipefail
cd "$(dirname "$0")/.."
nibble=${1:-build/nibble}
python=${PYTHON:-/usr/bin/python3}
model=models/SmolLM2-135M-Instruct.Q4_1.gguf
text=models/wiki.test.raw
work=models/demo
ctx=${DEMO_CTX:-512} windows=${DEMO_WINDOWS:-8}
prompt="Explain in two sentences why the sky is blue."
begin=$SECONDS

say() { printf '\n== %s\n' "$*"; }

say "model and text"
"$python" scripts/fetch.py
mkdir -p "$work"
ls -sh "$model" "$text"

say "quantize"
quantize() { # name, options...
    local name=$1
    shift
    echo "$nibble quantize $model -o $work/$name $*"
    "$nibble" quantize "$model" -o "$work/$name" --force --json "$@" >"$work/$name.json"
}
quantize w4g128 --recipe rtn-w4a16g128
quantize w4g64 --weights int4:g64 --method minmax,nearest
"$nibble" verify "$work/w4g128"

say "measure: first $windows windows of $ctx tokens of WikiText-2 test"
for name in w4g128 w4g64; do
    "$nibble" compare "$work/$name" --against "$model" --text "$text" --ctx "$ctx" \
        --windows "$windows" --json >"$work/$name.compare.json"
done
"$nibble" inspect "$model" --json >"$work/source.json"

"$python" - "$work" <<'PY'
import json, sys

work = sys.argv[1]
read = lambda name: json.load(open(f"{work}/{name}.json"))
row = "{:<22}{:>12}{:>14}{:>20}{:>21}{:>14}".format
print()
print(row("model", "size, MiB", "bits/weight", "perplexity", "KL divergence", "same top-1"))
source, first = read("source"), read("w4g128.compare")
# of the source's linears, as for the quantized models: its embedding has another format
linears = [t for t in source["tensors"] if t["name"].startswith("blk.") and len(t["shape"]) == 2]
bits = 8 * sum(t["bytes"] for t in linears) / sum(t["shape"][0] * t["shape"][1] for t in linears)
print(row("SmolLM2-135M (GGUF)", f"{source['bytes'] / 2**20:.1f}",
          f"{bits:.2f}",
          f"{first['perplexity_reference']:.3f} ± {first['perplexity_reference_error']:.3f}",
          "0", "100 %"))
for name, label in (("w4g128", "int4, groups of 128"), ("w4g64", "int4, groups of 64")):
    q, c = read(name), read(name + ".compare")
    print(row(label, f"{q['bytes'] / 2**20:.1f}", f"{q['bits_per_weight']:.2f}",
              f"{c['perplexity']:.3f} ± {c['perplexity_error']:.3f}",
              f"{c['kl_mean']:.4f} ± {c['kl_mean_error']:.4f}",
              f"{100 * c['top1_agreement']:.1f} %"))
PY

for name in "$model" "$work/w4g128" "$work/w4g64"; do
    say "$name says"
    "$nibble" generate "$name" --chat -p "$prompt" -n 80 --temp 0
done
say "done in $((SECONDS - begin)) seconds"
