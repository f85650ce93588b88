#!/usr/bin/env bash
# Seeds for the fuzzers: BUILD/fuzz/corpus/NAME/ for each fuzz/fuzz_NAME.c, made of the good and
# bad files of the container tests, the tokenizers of tests/golden and of what lies in
# fuzz/seeds/NAME/. What fuzzing has found there before stays.
#
#   scripts/make_corpus.sh BUILD
set -euo pipefail
cd "$(dirname "$0")/.."
build=$1
corpus=$build/fuzz/corpus

for source in fuzz/fuzz_*.c; do
    name=$(basename "$source" .c)
    name=${name#fuzz_}
    mkdir -p "$corpus/$name"
    [[ ! -d fuzz/seeds/$name ]] || cp fuzz/seeds/"$name"/* "$corpus/$name/"
done

for file in tests/golden/tokenizer_files/*; do
    case $file in
    */cases.json) ;;
    *.json) cp "$file" "$corpus/tokenizer_json/" ;;
    *.model) cp "$file" "$corpus/spm/" ;;
    esac
done

for name in safetensors gguf; do
    "$build/tests/test_$name" "$corpus/$name"
    "$build/tests/test_$name" "$corpus/$name" valid
done

# The index files of the checkpoints, without the huge one.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$build/tests/test_checkpoint" "$scratch"
find "$scratch" -name model.safetensors.index.json -size -64k | while read -r file; do
    cp "$file" "$corpus/index/$(basename "$(dirname "$file")").json"
done
