#!/usr/bin/env bash
# Token ids of every vocabulary that llama.cpp carries with test texts and reference ids
# (models/ggml-vocab-*.gguf with .inp and .out; the ids come from Hugging Face tokenizers). Prints a
# table; the status is 1 if any id of a supported vocabulary differs.
#
#   scripts/vocab_test.sh DRIVER [DIR]
#
# DRIVER is the test program test_vocab (make build/tests/test_vocab). DIR holds the vocabularies;
# without it they are taken from the source distribution of llama-cpp-python (PyPI, 75 MB), which
# needs python3 with venv and network.
set -euo pipefail
driver=$1 dir=${2:-}
if [[ -z $dir ]]; then
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    python3 -m venv "$scratch/venv"
    "$scratch/venv/bin/pip" install -q scikit-build-core cmake ninja
    "$scratch/venv/bin/pip" download -q --no-deps --no-build-isolation --no-binary :all: \
        -d "$scratch" llama-cpp-python
    tar -xzf "$scratch"/llama_cpp_python-*.tar.gz -C "$scratch" \
        --wildcards '*/vendor/llama.cpp/models/ggml-vocab-*'
    dir=$(echo "$scratch"/llama_cpp_python-*/vendor/llama.cpp/models)
fi
"$driver" "$dir"/ggml-vocab-*.gguf
