#!/usr/bin/env bash
# docs/format.md is enough: a reader written from it alone gives the library's values, exactly.
# The cases are made first and compared at the end, by one run of Python.
source "$(dirname "$0")/tap.bash"
cases=$scratch/cases # case/q: the directory that quantize made; case/values: the library's reading
mkdir "$cases"

dump() { # case
    mkdir "$cases/$1/values"
    expect 0 "read $1" "$BUILD/tests/test_calib" "$cases/$1/q" "$cases/$1/values"
}

check() { # case, model, options of quantize
    mkdir "$cases/$1"
    expect 0 "quantize $1" "$NIBBLE" quantize "$2" -o "$cases/$1/q" -t 1 "${@:3}"
    dump "$1"
}

judge() { # Python that defines cases() and check(), its arguments
    "$PYTHON" -W ignore -c "
import sys
from pathlib import Path
sys.path.insert(0, 'tests/spec')
from read_nibble import *
$1
failed = 0
for name, case in cases():
    try:
        check(case)
        print('ok', name)
    except Exception as e:
        print(f'not ok {name}\n    {type(e).__name__}: {e}')
        failed += 1
sys.exit(failed > 0)" "${@:2}" || n_failed=$((n_failed + 1))
}

for bits in 2 3 4 5 6 7 8; do
    check "int$bits:g16" tests/golden/llama-text --weights "int$bits:g16"
    check "int$bits:row:sym" tests/golden/llama-text --weights "int$bits:row:sym"
done
check bf16 tests/golden/llama-text --weights bf16
check mse tests/golden/llama-text --weights int4:g24 --method mse,nearest
check gguf tests/golden/gguf-llama/model.gguf --weights int3:g128
check "gguf interleaved" tests/golden/gguf-llama/model.gguf --weights int3:g128 --rope interleaved
check "only interleaved" tests/golden/qwen3 --weights f16 --rope interleaved
printf 'weights: int4:g16\nembedding: int8:g8\n' >"$scratch/r.yaml"
check recipe tests/golden/llama-text --recipe "$scratch/r.yaml"
cat >"$scratch/r.yaml" <<'EOF'
weights: int4:g16
acts: int8:token
kv: dialect:b32
keys: fp8:token
query: fp8:token
probs: mxfp4
linears:
  q: {acts: none}
  v: {weights: f16}
  up: {weights: mxfp4, acts: mxfp8}
  down: {weights: bf16, acts: fp8:token}
EOF
check mixed tests/golden/llama-text --recipe "$scratch/r.yaml"
printf 'weights: fp4:g32\nembedding: int8:g8\nlinears:\n  v: {weights: f16}\n%s\n' \
    'method: [nearest, lorc:rank=3]' >"$scratch/r.yaml"
check lorc tests/golden/llama-text --recipe "$scratch/r.yaml"
check "lorc int8" tests/golden/llama-text --weights int3:g16:f32 --method nearest,lorc:rank=5:int8
check learned tests/golden/llama-text --weights int3:g16 --method awq,signround:iters=4 \
    --calib LICENSE --samples 2 --seqlen 32
printf 'weights: f16\nkv: fp8:token\n' >"$scratch/r.yaml"
check "kv alone" tests/golden/llama-bias --recipe "$scratch/r.yaml"

# Weights of 8 bits, rotated back: the matrices that were not rotated, but for their rounding.
check rotated tests/golden/qwen3 --weights int8:row --method hadamard:vo:down:qk,minmax,nearest
check stream tests/golden/qwen3 --weights int8:row --method hadamard:stream,minmax,nearest
check "not rotated" tests/golden/qwen3 --weights int8:row
judge '
def cases():
    return [("rotated back", Path(sys.argv[1]))]

def check(case):
    a, b = read_model(case / "rotated/q"), read_model(case / "not rotated/q")
    down, qk, stream = read_rotation(case / "rotated/q")
    assert (down, qk, stream) == (8, 16, 0)
    assert read_rotation(case / "not rotated/q") == (0, 0, 0)
    assert read_rotation(case / "stream/q") == (0, 0, 8)
    n = 0
    for name, w in b.items():
        back = a[name]
        if name.endswith("down_proj.weight"): back = hadamard(back, down)
        if name.endswith("o_proj.weight"): back = hadamard(back, 16)
        if name.endswith("v_proj.weight"): back = hadamard(back.T, 16).T
        error = np.abs(back - w).max() / np.abs(w).max()
        assert error < 0.02, f"{name}: {error}"
        n += back is not a[name]
    assert n == 6, f"{n} matrices rotated"' "$cases"

# Every family and option on rows of several groups, and on planes of any bytes.
"$PYTHON" tests/spec/wide_model.py make "$scratch/wide"
for word in int4:g64 int3:row:sym int3:g64:f32 int8:row:sym:f32 fp4:g256 fp4:g64:m1 fp4:g256:m2 \
    fp4:g24:m2:floor fp4:g64:m2:matrix fp4e3m0:g128 fp4e3m0:row:m1:ceil:paper fp6:row fp6e3m2:g64:paper fp8:row fp8:g64 fp8e5m2:row \
    mxfp4 mxfp4:ceil mxfp6 mxfp6e3m2 mxfp8 mxfp8e5m2 mxint8 nvfp4 nvfp4:46 nvfp4:matrix nvfp4:46:matrix \
    dialect:b16 dialect:b32 dialect:b64:2s dialect:b128:mse:bd5 \
    dialect:4x4 dialect:4x8:2s dialect:8x8; do
    check "wide $word" "$scratch/wide" --weights "$word"
    mkdir "$cases/any bytes $word"
    cp -r "$cases/wide $word/q" "$cases/any bytes $word"
done
"$PYTHON" tests/spec/wide_model.py scramble "$cases/any bytes "*/q
for dir in "$cases/any bytes "*; do dump "${dir##*/}"; done

judge '
def cases():
    return [(p.name, p) for p in sorted(Path(sys.argv[1]).iterdir())]

def check(case):
    mine, n = read_model(case / "q"), 0
    linears, attention = read_formats(case / "q")
    *lines, last = (case / "values/formats").read_text().splitlines()
    online = *attention, *map(str, read_rotation(case / "q"))
    assert tuple(last.split()) == online, f"attention and transforms {online}, expected {last}"
    found = {m: (w, a, b == "1") for m, w, a, b in map(str.split, lines)}
    assert linears == found, f"formats {linears}, expected {found}"
    for file in (case / "values").glob("*.f32"):
        name = file.name.removesuffix(".f32")
        assert name in mine, name + " is missing"
        a, b = mine[name].astype("<f4").ravel(), np.fromfile(file, "<f4")
        assert a.size == b.size, f"{name}: {a.size} values, expected {b.size}"
        differ = (a.view("<u4") != b.view("<u4")) & ~(np.isnan(a) & np.isnan(b))
        assert not differ.any(), f"{name}: {differ.sum()} of {a.size} values differ"
        n += 1
    assert n > 4, f"{n} matrices"' "$cases"

# The examples of section 5: word, values -> bytes of the planes.
judge '
def cases():
    return [(line.strip(), line) for line in Path("docs/format.md").read_text().splitlines()
            if "  ->  " in line]

def check(line):
    left, right = line.split("->")
    word, *values = left.split()
    specs, data, planes = plane_specs(word, len(values)), right.split("|"), {}
    assert len(data) == len(specs), f"{len(data)} planes, expected {len(specs)}"
    for (plane, (dtype, _)), raw in zip(specs.items(), data):
        planes[plane] = dtype, np.frombuffer(bytes.fromhex(raw), DTYPES[dtype])[None]
    got = dequantize(word, len(values), planes)[0].tolist()
    assert got == [float(v) for v in values], got'

# Bits per weight in docs/formats.md: first and last column of its table of six.
"$PYTHON" tests/spec/wide_model.py make "$scratch/holes" 1024
while read -r word bits; do
    expect 0 "plan $word" "$NIBBLE" quantize "$scratch/holes" -o "$scratch/plan" --weights "$word" \
        -t 1 --dry-run --json
    got=$(grep -oP '"bits_per_weight": \K[0-9.]+' <<<"$out")
    same "bits per weight of $word" "$bits" "${got%.0}"
done < <(awk -F ' *[|] *' 'NF == 8 && $2 ~ /^`.*`$/ { gsub("`", "", $2); print $2, $7 }' docs/formats.md)
finish
