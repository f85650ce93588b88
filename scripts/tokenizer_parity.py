#!/usr/bin/env python3
"""Compare nibble's token ids with Hugging Face `tokenizers`.

usage: tokenizer_parity.py DRIVER TEXT MODEL...

DRIVER is the test program `test_vocab` (make build/tests/test_vocab), TEXT a UTF-8 file, each MODEL
a GGUF file or a directory with tokenizer files. For each MODEL the text is encoded as one string by
nibble, by `tokenizers` from the tokenizer.json that nibble writes for the model, and by the model's
own tokenizer.json, or its GGUF loader in transformers, or SentencePiece, where there is one.
Needs: pip install tokenizers transformers gguf sentencepiece. Status 1 if any ids differ.
"""
import array
import os
import subprocess
import sys
import tempfile

from tokenizers import Tokenizer


def reference_ids(model, text):
    """(name, ids) of every independent tokenizer that can read the model."""
    if os.path.isdir(model):
        path = os.path.join(model, "tokenizer.json")
        if os.path.exists(path):
            yield "tokenizer.json", Tokenizer.from_file(path).encode(text, add_special_tokens=False).ids
        path = os.path.join(model, "tokenizer.model")
        if os.path.exists(path):
            import sentencepiece

            yield "sentencepiece", sentencepiece.SentencePieceProcessor(path).encode(text)
        return
    from transformers import AutoTokenizer

    try:
        hf = AutoTokenizer.from_pretrained(os.path.dirname(model), gguf_file=os.path.basename(model))
    except Exception as e:  # families that its loader does not know
        print(f"  transformers cannot read it: {str(e)[:100]}")
        return
    yield "transformers gguf", hf.backend_tokenizer.encode(text, add_special_tokens=False).ids


def compare(name, got, want):
    if got == want:
        print(f"  {name}: {len(want)} ids identical")
        return True
    at = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
    print(f"  {name}: DIFFERENT at {at}: {got[at:at + 8]} expected {want[at:at + 8]} "
          f"({len(got)} and {len(want)} ids)")
    return False


def check(driver, text_path, text, model):
    print(model)
    with tempfile.TemporaryDirectory() as d:
        out = os.path.join(d, "ids")
        r = subprocess.run([driver, "--ids", model, text_path, out], check=True, capture_output=True, text=True)
        print("  nibble:", r.stdout.strip())
        ids = array.array("i")
        with open(out, "rb") as f:
            ids.frombytes(f.read())
        ids = ids.tolist()
        subprocess.run([driver, "--export", model, d], check=True)
        hf = Tokenizer.from_file(os.path.join(d, "tokenizer.json"))
        ok = compare("tokenizers, exported", ids, hf.encode(text, add_special_tokens=False).ids)
        n = len(ids)
        decoded = hf.decode(ids[: n // 8], skip_special_tokens=False)
        if not text.startswith(decoded.lstrip(" ")[:1000]) and not text.lstrip(" ").startswith(decoded.lstrip(" ")[:1000]):
            print("  note: decoded text differs from the input (a normalizer changes it)")
    for name, want in reference_ids(model, text):
        ok &= compare(name, ids, want)
    return ok


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    driver, text_path = sys.argv[1:3]
    with open(text_path, encoding="utf-8", newline="") as f:
        text = f.read()
    results = [check(driver, text_path, text, m) for m in sys.argv[3:]]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
