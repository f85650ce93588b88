#!/usr/bin/env python3
"""A second reader of nibble's directories, written from docs/format.md alone.

    read_nibble.py DIR      prints every matrix and vector with its shape and range

read_model(DIR) gives a dict from Hugging Face tensor name to fp32 array. numpy only.
"""
import json
import re
import struct
import sys
from pathlib import Path

import numpy as np


def read_safetensors(path):
    """name -> (dtype word, array); BF16 as uint16."""
    data = path.read_bytes()
    (n_header,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + n_header])
    types = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1"}
    out = {}
    for name, t in header.items():
        if name == "__metadata__":
            continue
        begin, end = t["data_offsets"]
        raw = data[8 + n_header + begin : 8 + n_header + end]
        out[name] = (t["dtype"], np.frombuffer(raw, types[t["dtype"]]).reshape(t["shape"]))
    return out


def to_fp32(dtype, a):
    if dtype == "BF16":
        return (a.astype(np.uint32) << 16).view(np.float32)
    return a.astype(np.float32)


def unpack_bits(rows, bits, n):
    """[n_out, bytes] -> [n_out, n] integers of `bits` bits, lowest bit first."""
    stream = np.unpackbits(rows, axis=1, bitorder="little")[:, : n * bits]
    weights = 1 << np.arange(bits)
    return (stream.reshape(len(rows), n, bits) * weights).sum(axis=2).astype(np.int32)


def parse_word(word):
    """'int4:g128:sym' -> bits, group (0: the whole row), sym."""
    m = re.fullmatch(r"int([2-8]):(row|g(\d+))(:sym)?", word)
    if not m:
        raise ValueError(f"unknown format {word}")
    return int(m[1]), int(m[3] or 0), m[4] is not None


def dequantize(word, n_in, codes, scales, zeros):
    bits, group, sym = parse_word(word)
    n_groups = -(-n_in // group) if group else 1
    assert codes.shape[1] == -(-n_in * bits // 8) and scales.shape[1] == n_groups
    code = unpack_bits(codes, bits, n_in)
    if sym:
        zero = np.full(scales.shape, 2 ** (bits - 1) - 1, np.int32)
    else:
        assert zeros.shape[1] == -(-n_groups * bits // 8)
        zero = unpack_bits(zeros, bits, n_groups)
    g = np.arange(n_in) // group if group else np.zeros(n_in, int)
    return (code - zero[:, g]).astype(np.float32) * scales.astype(np.float32)[:, g]


def n_in_of(module, config):
    """Inputs of a quantized matrix, from the configuration."""
    hidden = config["hidden_size"]
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    ffn = config.get("intermediate_size") or config.get("ffn_dim")
    last = module.split(".")[-1]
    if last in ("o_proj", "out_proj"):
        return heads * head_dim
    if last in ("down_proj", "fc2"):
        return ffn
    if last in ("embed_tokens", "lm_head"):
        return config.get("word_embed_proj_dim") or hidden
    return hidden


def read_model(directory):
    directory = Path(directory)
    config = json.loads((directory / "config.json").read_text())
    q = config.get("quantization_config", {"modules": {}})
    if q["modules"]:
        assert q["quant_method"] == "nibble" and q["format_version"] == 1
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    tensors = {}
    for file in sorted(set(index["weight_map"].values())):
        tensors.update(read_safetensors(directory / file))
    assert set(tensors) == set(index["weight_map"])
    out = {}
    for module, word in q["modules"].items():
        planes = [tensors.pop(f"{module}.weight.{p}", (None, None))[1]
                  for p in ("codes", "scales", "zeros")]
        out[module + ".weight"] = dequantize(word, n_in_of(module, config), *planes)
    for name, (dtype, a) in tensors.items():
        assert dtype != "U8", f"{name}: a plane of a module that is not listed"
        out[name] = to_fp32(dtype, a)
    return out


if __name__ == "__main__":
    for name, a in sorted(read_model(sys.argv[1]).items()):
        print(f"{name:60} {str(list(a.shape)):16} {a.min():12.6g} {a.max():12.6g}")
