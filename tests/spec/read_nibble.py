#!/usr/bin/env python3
"""A second reader of nibble's directories, written from docs/format.md alone.

    read_nibble.py DIR      prints every matrix and vector with its shape and range

read_model(DIR) gives a dict from Hugging Face tensor name to fp32 array (low-rank factors on their
own), read_formats(DIR) what is quantized at run time. numpy only.
"""
import json
import re
import struct
import sys
from pathlib import Path

import numpy as np

DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1", "I8": "i1", "F8_E4M3": "u1",
          "F8_E5M2": "u1"}


def read_safetensors(path):
    """name -> (dtype word, array); BF16 as uint16, 8-bit floats as uint8."""
    data = path.read_bytes()
    (n_header,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + n_header])
    out = {}
    for name, t in header.items():
        if name == "__metadata__":
            continue
        begin, end = t["data_offsets"]
        raw = data[8 + n_header + begin : 8 + n_header + end]
        out[name] = (t["dtype"], np.frombuffer(raw, DTYPES[t["dtype"]]).reshape(t["shape"]))
    return out


def to_fp32(dtype, a):
    if dtype == "BF16":
        return (a.astype(np.uint32) << 16).view(np.float32)
    return a.astype(np.float32)


# ---- section 3: format words --------------------------------------------------------------------

MINIFLOATS = {"e2m1": (2, 1), "e3m0": (3, 0), "e2m3": (2, 3), "e3m2": (3, 2), "e4m3": (4, 3),
              "e5m2": (5, 2)}
FLOAT_NAMES = {"fp4": "e2m1", "fp4e3m0": "e3m0", "fp6": "e2m3", "fp6e3m2": "e3m2", "fp8": "e4m3",
               "fp8e5m2": "e5m2"}
NAME = "|".join(FLOAT_NAMES)


def parse_word(word):
    """-> family, type of the codes, their bits, group (0: the whole row), option."""
    if m := re.fullmatch(r"int([2-8]):(row|g(\d+))((:sym)?(:f32)?)", word):
        return "int", "int", int(m[1]), int(m[3] or 0), m[4]
    if m := re.fullmatch(rf"({NAME}):(row|g(\d+))((:m1|:m2)(?:(?<=m2):matrix)?(:floor|:ceil)?)?"
                          r"(:paper)?", word):
        t = FLOAT_NAMES[m[1]]
        return "fp", t, 1 + sum(MINIFLOATS[t]), int(m[3] or 0), m[5] or ""
    if m := re.fullmatch(rf"mx({NAME}|int8)(:ceil)?", word):
        t = FLOAT_NAMES.get(m[1], "int8")
        if t != "e3m0":
            return "mx", t, 8 if t == "int8" else 1 + sum(MINIFLOATS[t]), 32, ""
    if re.fullmatch(r"nvfp4(:46)?(:matrix)?", word):
        return "nvfp4", "e2m1", 4, 16, ""
    if m := re.fullmatch(r"dialect:(b16|b32|b64|b128|4x4|4x8|8x8)(:mse|:2s)?(:bd5)?", word):
        return "dialect", "dialect", 4, int(re.split("[bx]", m[1])[1]), ""
    raise ValueError(f"unknown format {word}")


# ---- section 4: values --------------------------------------------------------------------------

DIALECTS = np.array([[0, 1, 2, 3, 4, *top] for top in (
    (6, 11, 15), (6, 9, 15), (6, 11, 14), (6, 9, 14), (6, 10, 13), (6, 8, 13), (6, 10, 12),
    (6, 8, 12), (6, 9, 11), (6, 7, 11), (6, 9, 10), (6, 7, 10), (6, 8, 9), (6, 7, 9), (6, 7, 8),
    (5, 6, 8))], np.float32)


def minifloat_values(t):
    """fp32 value of every code of the type."""
    e_bits, m_bits = MINIFLOATS[t]
    code = np.arange(1 << (1 + e_bits + m_bits))
    e, m = code >> m_bits & (1 << e_bits) - 1, code & (1 << m_bits) - 1
    bias = 2 ** (e_bits - 1) - 1
    value = np.where(e > 0, 1 + m / 2**m_bits, m / 2**m_bits) * 2.0 ** (np.maximum(e, 1) - bias)
    if t == "e4m3":
        value[code & 0x7F == 0x7F] = np.nan
    if t == "e5m2":
        value[e == 31] = np.where(m[e == 31] > 0, np.nan, np.inf)
    return np.where(code >> (e_bits + m_bits), -value, value).astype(np.float32)


def power_of_two(k):
    return np.ldexp(np.float32(1), k.astype(np.int32))


def e8m0(byte, bias):
    """2^(byte - bias); 255 is NaN."""
    return np.where(byte == 255, np.float32(np.nan), power_of_two(byte.astype(np.int32) - bias))


def code_values(t, codes):
    if t == "int8":
        return codes.view(np.int8).astype(np.float32) / np.float32(64)
    return minifloat_values(t)[codes]


def group_scales(family, option, planes, n_groups):
    """[n_out, n_groups] factors in fp32."""
    if family == "mx":
        return e8m0(planes["scales"], 127)
    if family == "nvfp4":
        return minifloat_values("e4m3")[planes["scales"]] * planes["bases"]
    if family == "dialect":
        return e8m0(planes["scales"], 128)
    if option == ":m1":
        return power_of_two(planes["exponents"])
    if option == ":m2":
        return np.ldexp(planes["bases"], -unpack_bits(planes["exponents"], 4, n_groups))
    return planes["scales"].astype(np.float32)


# ---- section 5: planes and bits -----------------------------------------------------------------


def unpack_bits(rows, bits, n):
    """[n_out, bytes] -> [n_out, n] integers of `bits` bits, lowest bit first."""
    stream = np.unpackbits(rows, axis=1, bitorder="little")[:, : n * bits]
    weights = 1 << np.arange(bits)
    return (stream.reshape(len(rows), n, bits) * weights).sum(axis=2).astype(np.int32)


def plane_specs(word, n_in):
    """Plane -> (dtype word, columns)."""
    family, t, bits, group, option = parse_word(word)
    n_groups = -(-n_in // group) if group else 1
    half = -(-n_groups // 2)
    out = {"codes": ({"e4m3": "F8_E4M3", "e5m2": "F8_E5M2", "int8": "I8"}.get(t, "U8"),
                     -(-n_in * bits // 8))}
    if family == "int" or (family == "fp" and not option):
        out["scales"] = ("F32" if ":f32" in option else "F16", n_groups)
    if family == "int" and ":sym" not in option:
        out["zeros"] = ("U8", -(-n_groups * bits // 8))
    if family in ("mx", "dialect"):
        out["scales"] = ("U8", n_groups)
    if family == "dialect":
        out["dialects"] = ("U8", half)
    if family == "nvfp4":
        out["scales"] = ("F8_E4M3", n_groups)
    if family == "fp" and option:
        out["exponents"] = ("I8", n_groups) if option == ":m1" else ("U8", half)
    if family == "nvfp4" or option == ":m2":
        out["bases"] = ("F32", 1)
    return out


def dequantize(word, n_in, planes):
    """planes: name -> (dtype word, array [n_out, columns])."""
    specs = plane_specs(word, n_in)
    found = {p: (dtype, a.shape[1]) for p, (dtype, a) in planes.items()}
    assert found == specs, f"{word}: planes {found}, expected {specs}"
    planes = {p: a for p, (_, a) in planes.items()}
    family, t, bits, group, option = parse_word(word)
    n_groups = -(-n_in // group) if group else 1
    g = np.arange(n_in) // group if group else np.zeros(n_in, int)
    code = unpack_bits(planes["codes"].view(np.uint8), bits, n_in)
    scale = group_scales(family, option, planes, n_groups)[:, g]
    if family == "int":
        zero = np.full((len(code), n_groups), 2 ** (bits - 1) - 1)
        if ":sym" not in option:
            zero = unpack_bits(planes["zeros"], bits, n_groups)
        return (code - zero[:, g]).astype(np.float32) * scale
    if family == "dialect":
        h = DIALECTS[unpack_bits(planes["dialects"], 4, n_groups)[:, g], code & 7]
        return np.where(code > 8, -h, h) * scale
    return code_values(t, code.astype(np.uint8)) * scale


# ---- sections 1 and 2: the directory ------------------------------------------------------------


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


def read_formats(directory):
    """Of every linear inside the blocks: (format of the weight, of its input, has a bias); and of
    attention: queries, keys, values, probabilities, and the order of rotary pairs."""
    directory = Path(directory)
    config = json.loads((directory / "config.json").read_text())
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    q = config.get("quantization_config", {"modules": {}})
    linears = {}
    for name in index["weight_map"]:
        module, found, _ = name.partition(".weight")
        if not found or not is_in_block(module) or "norm" in module:
            continue
        word = q["modules"].get(module, "none")
        act = q.get("acts", "none") if word != "none" else "none"
        act = q.get("act_modules", {}).get(module, act)
        linears[module] = word, act, f"{module}.bias" in index["weight_map"]
    kv = q.get("kv", "none")
    attention = q.get("query", "none"), q.get("keys", kv), kv, q.get("probs", "none")
    order = "interleaved" if config.get("rope_interleave") else "half"
    return linears, (*attention, order)


def read_rotation(directory):
    """Runs of the transforms that are online: of the last linear's input, of queries and keys, of
    the hidden state; 0: none."""
    config = json.loads((Path(directory) / "config.json").read_text())
    runs = config.get("quantization_config", {}).get("hadamard", {})
    assert set(runs) <= {"down", "qk", "stream"}, f"hadamard {runs}: a transform that is not known"
    return tuple(runs.get(key, 0) for key in ("down", "qk", "stream"))


def hadamard(x, run):
    """Section 1: each run of x's last axis times H, which is its own inverse."""
    i = np.arange(run)
    common = i[:, None] & i
    ones = sum((common >> bit) & 1 for bit in range(run.bit_length()))
    h = (1.0 - 2.0 * (ones % 2)) / np.sqrt(run)
    return (x.reshape(*x.shape[:-1], -1, run) @ h).reshape(x.shape)


def is_in_block(module):
    return ".layers." in module


def dequantize_factor(lorc, n_in, tensors):
    """One low-rank factor; tensors: plane -> (dtype word, array), "" the factor itself."""
    if lorc["format"] in ("f16", "bf16", "f32"):
        (dtype, a), = tensors.values()
        assert list(tensors) == [""] and dtype == lorc["format"].upper()
        out = to_fp32(dtype, a)
    else:
        out = dequantize(lorc["format"], n_in, tensors)
    assert out.shape == (lorc["rank"], n_in), f"factor {out.shape}"
    return out


def take(tensors, stem):
    """STEM and STEM.plane, out of the dict."""
    names = [n for n in tensors if n == stem or n.startswith(stem + ".")]
    return {n[len(stem) + 1:]: tensors.pop(n) for n in names}


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
        weight = module + ".weight"
        a, b = take(tensors, weight + ".lorc_a"), take(tensors, weight + ".lorc_b")
        w = out[weight] = dequantize(word, n_in_of(module, config), take(tensors, weight))
        if "lorc" in q and is_in_block(module):
            out[weight + ".lorc_a"] = dequantize_factor(q["lorc"], w.shape[0], a)
            out[weight + ".lorc_b"] = dequantize_factor(q["lorc"], w.shape[1], b)
        else:
            assert not a and not b, f"{module}: factors that the configuration does not tell of"
    for module in q.get("biases", []):
        assert f"{module}.bias" in tensors, f"{module}: its bias is missing"
    for name, (dtype, a) in tensors.items():
        assert dtype in ("F32", "F16", "BF16"), f"{name}: a plane of a module that is not listed"
        out[name] = to_fp32(dtype, a)
    return out


if __name__ == "__main__":
    for name, a in sorted(read_model(sys.argv[1]).items()):
        print(f"{name:60} {str(list(a.shape)):16} {a.min():12.6g} {a.max():12.6g}")
