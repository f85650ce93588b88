#!/usr/bin/env bash
# docs/format.md is enough: a reader written from it alone gives the library's values, exactly.
source "$(dirname "$0")/tap.bash"

compare() { # name, directory made by quantize
    mkdir "$scratch/values"
    "$BUILD/tests/test_calib" "$2" "$scratch/values" || fail "$1: dump" "test_calib failed"
    reason=$("$PYTHON" -c '
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, "tests/spec")
from read_nibble import read_model
mine, n = read_model(sys.argv[1]), 0
for file in Path(sys.argv[2]).iterdir():
    name = file.name.removesuffix(".f32")
    assert name in mine, name + " is missing"
    a, b = mine[name].astype("<f4").ravel(), np.fromfile(file, "<f4")
    assert a.size == b.size, f"{name}: {a.size} values, expected {b.size}"
    assert np.array_equal(a, b), f"{name}: {(a != b).sum()} of {a.size} values differ"
    n += 1
assert n > 4, f"{n} matrices"' "$2" "$scratch/values" 2>&1) && pass "$1" || fail "$1" "$reason"
    rm -rf "$scratch/values"
}

check() { # model, options of quantize
    local model=$1 name="${1##*/} ${*:2}"
    shift
    expect 0 "quantize $name" "$NIBBLE" quantize "$model" -o "$scratch/q" --force "$@"
    compare "$name" "$scratch/q"
}

for bits in 2 3 4 5 6 7 8; do
    check tests/golden/llama-text --weights "int$bits:g16"
    check tests/golden/llama-text --weights "int$bits:row:sym"
done
check tests/golden/llama-text --weights bf16
check tests/golden/llama-text --weights int4:g24 --method mse,nearest
check tests/golden/gguf-llama/model.gguf --weights int3:g128
printf 'weights: int4:g16\nembedding: int8:g8\n' >"$scratch/r.yaml"
check tests/golden/llama-text --recipe "$scratch/r.yaml"
finish
