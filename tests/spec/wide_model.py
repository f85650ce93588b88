#!/usr/bin/env python3
"""A small random LLaMA for tests/e2e/format.sh, and damage for tests/e2e/faults.sh.

    wide_model.py make DIR [N]   rows of 584, 299 and 64 inputs: several groups of 256, an odd end;
                                 N: all rows of N inputs, all zeros, a file of holes
    wide_model.py scramble DIR ...   random bytes in every plane of directories that nibble made;
                                 no NaN among the scales of one byte
    wide_model.py poke DIR TENSOR I VALUE   element I of a tensor (F32, F16 or U8), or all, becomes VALUE
    wide_model.py narrow DIR TENSOR         a matrix loses its last column: shape and bytes agree
"""
import json
import struct
import sys
from pathlib import Path

import numpy as np


def shapes(config):
    h, f = config["hidden_size"], config["intermediate_size"]
    a = config["num_attention_heads"] * config["head_dim"]
    out = {"model.embed_tokens": (config["vocab_size"], h), "model.norm": (h,)}
    for name in "q_proj", "k_proj", "v_proj":
        out[f"model.layers.0.self_attn.{name}"] = (a, h)
    out["model.layers.0.self_attn.o_proj"] = (h, a)
    out["model.layers.0.mlp.gate_proj"] = out["model.layers.0.mlp.up_proj"] = (f, h)
    out["model.layers.0.mlp.down_proj"] = (h, f)
    out["model.layers.0.input_layernorm"] = (h,)
    out["model.layers.0.post_attention_layernorm"] = (h,)
    return {f"{name}.weight": shape for name, shape in out.items()}


def make(directory, n):
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8,
              "hidden_size": n or 584, "intermediate_size": n or 299, "num_attention_heads": 4,
              "num_key_value_heads": 4, "head_dim": n // 4 or 16, "num_hidden_layers": 1,
              "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 64,
              "tie_word_embeddings": True}
    header, at = {}, 0
    for name, shape in shapes(config).items():
        end = at + 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    with open(directory / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        if n:
            file.truncate(8 + len(text) + at)
        else:  # rows and single values of very different size, one row of zeros
            rng = np.random.default_rng(1)
            w = rng.standard_t(3, at // 2) * np.exp2(rng.integers(-6, 3, at // 2))
            w[8 * 584 : 10 * 584] = 0
            file.write(np.clip(w, -6e4, 6e4).astype("<f2").tobytes())


def scramble(directory):
    rng = np.random.default_rng(2)
    for path in sorted(directory.glob("*.safetensors")):
        data = bytearray(path.read_bytes())
        begin = 8 + struct.unpack("<Q", data[:8])[0]
        for name, t in json.loads(data[8:begin]).items():
            if ".weight." in name:
                a, b = t["data_offsets"]
                raw = rng.bytes(b - a)
                if name.endswith(".scales") and t["dtype"] == "U8":  # 255: readers refuse it
                    raw = raw.replace(b"\xff", b"\xfe")
                data[begin + a : begin + b] = raw
        path.write_bytes(data)


def find(directory, name):
    """-> path, header, data behind the header of the file that holds the tensor."""
    for path in directory.glob("*.safetensors"):
        data = path.read_bytes()
        begin = 8 + struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8:begin])
        if name in header:
            return path, header, bytearray(data[begin:])
    sys.exit(f"{directory}: no tensor {name}")


def write(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def poke(directory, name, index, value):
    path, header, data = find(directory, name)
    t = header[name]
    raw = np.array([value]).astype({"F32": "<f4", "F16": "<f2", "U8": "u1"}[t["dtype"]]).tobytes()
    a, b = t["data_offsets"]
    if index == "all":
        data[a:b] = raw * ((b - a) // len(raw))
    else:
        a += int(index) * len(raw)
        data[a : a + len(raw)] = raw
    write(path, header, data)


def narrow(directory, name):
    path, header, data = find(directory, name)
    (a, b), shape = header[name]["data_offsets"], header[name]["shape"]
    size = (b - a) // (shape[0] * shape[1])
    rows = np.frombuffer(bytes(data[a:b]), "u1").reshape(shape[0], -1)[:, :-size]
    data[a:b] = rows.tobytes()
    shape[1] -= 1
    for key, t in header.items():
        if key != "__metadata__" and t["data_offsets"][0] >= b:
            t["data_offsets"] = [x - shape[0] * size for x in t["data_offsets"]]
    header[name]["data_offsets"] = [a, a + rows.size]
    write(path, header, data)


if __name__ == "__main__":
    verb, directory, rest = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    if verb == "make":
        make(directory, int(rest[0]) if rest else 0)
    elif verb == "poke":
        poke(directory, rest[0], rest[1], float(rest[2]))
    elif verb == "narrow":
        narrow(directory, rest[0])
    else:
        for name in sys.argv[2:]:
            scramble(Path(name))
