#!/usr/bin/env python3
"""How uneven the inputs of a model's linears are, and what that costs in 8 bits.

    nibble quantize MODEL -o DIR --weights f32 --method nearest
    bench/outliers.py DIR TEXT

For each kind of input, over all blocks and the first tokens of the text, at most 1024: the ratio of a token's largest
value to its root mean square, and the mean over tokens of the relative error of one scale per token, in INT8 (127
steps to each side) and in FP8 E4M3 (448 the largest value). LLaMA and OPT (pre-norm). Needs numpy and tokenizers.
"""
import json
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "spec"))
from read_nibble import read_model  # noqa: E402


def int8(x):
    scale = np.abs(x).max(-1, keepdims=True) / 127
    return np.rint(x / scale) * scale


def fp8(x):
    scale = np.abs(x).max(-1, keepdims=True) / 448
    y = x / scale
    exponent = np.maximum(np.floor(np.log2(np.maximum(np.abs(y), 2.0**-20))), -6)
    step = 2.0 ** (exponent - 3)
    return np.clip(np.rint(y / step) * step, -448, 448) * scale


class Inputs:
    """Ratios and errors of everything that a kind of linear reads."""

    def __init__(self):
        self.ratio, self.error = {}, {}

    def see(self, kind, x):
        x = x.astype(np.float64)
        rms = np.sqrt((x * x).mean(-1))
        self.ratio.setdefault(kind, []).append(np.abs(x).max(-1) / rms)
        error = [((f(x) - x) ** 2).sum(-1) / (x * x).sum(-1) for f in (int8, fp8)]
        self.error.setdefault(kind, []).append(np.sqrt(np.array(error)))

    def print_table(self):
        print("| input | largest / rms, median | 95 % | above 11 | INT8 error | FP8 error |")
        print("|---|--:|--:|--:|--:|--:|")
        for kind, parts in self.ratio.items():
            r, e = np.concatenate(parts), np.concatenate(self.error[kind], 1).mean(1)
            print(f"| {kind} | {np.median(r):.1f} | {np.quantile(r, 0.95):.1f} | "
                  f"{100 * (r > 11).mean():.0f} % | {100 * e[0]:.2f} % | {100 * e[1]:.2f} % |")


def attention(q, k, v, heads, kv_heads):
    n, d = q.shape[0], q.shape[1] // heads
    out = np.empty_like(q)
    hidden = np.triu(np.full((n, n), -np.inf, np.float32), 1)
    for h in range(heads):
        g = h * kv_heads // heads
        s = q[:, h * d:(h + 1) * d] @ k[:, g * d:(g + 1) * d].T / np.sqrt(d) + hidden
        s = np.exp(s - s.max(-1, keepdims=True))
        out[:, h * d:(h + 1) * d] = s / s.sum(-1, keepdims=True) @ v[:, g * d:(g + 1) * d]
    return out


def rotate(x, heads, theta):
    n, d = x.shape[0], x.shape[1] // heads
    angle = np.arange(n)[:, None] * theta ** (-np.arange(0, d, 2) / d)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    y = x.reshape(n, heads, d)
    a, b = y[..., : d // 2], y[..., d // 2:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1).reshape(n, -1).astype(np.float32)


def run_llama(w, c, ids, seen):
    def norm(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + c["rms_norm_eps"]) * w[name]

    heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
    theta = c.get("rope_theta") or c["rope_parameters"]["rope_theta"]
    x = w["model.embed_tokens.weight"][ids]
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        h = norm(x, p + "input_layernorm.weight")
        seen.see("q, k, v", h)
        q, k, v = (h @ w[p + f"self_attn.{s}_proj.weight"].T for s in "qkv")
        h = attention(rotate(q, heads, theta), rotate(k, kv, theta), v, heads, kv)
        seen.see("o", h)
        x = x + h @ w[p + "self_attn.o_proj.weight"].T
        h = norm(x, p + "post_attention_layernorm.weight")
        seen.see("gate, up", h)
        gate = h @ w[p + "mlp.gate_proj.weight"].T
        h = gate / (1 + np.exp(-gate)) * (h @ w[p + "mlp.up_proj.weight"].T)
        seen.see("down", h)
        x = x + h @ w[p + "mlp.down_proj.weight"].T


def run_opt(w, c, ids, seen):
    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w[name + ".weight"] + w[name + ".bias"]

    def linear(x, name):
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    heads, p = c["num_attention_heads"], "model.decoder."
    x = w[p + "embed_tokens.weight"][ids] + w[p + "embed_positions.weight"][2:len(ids) + 2]
    for i in range(c["num_hidden_layers"]):
        p = f"model.decoder.layers.{i}."
        h = norm(x, p + "self_attn_layer_norm")
        seen.see("q, k, v", h)
        h = attention(*(linear(h, p + f"self_attn.{s}_proj") for s in "qkv"), heads, heads)
        seen.see("o", h)
        x = x + linear(h, p + "self_attn.out_proj")
        h = norm(x, p + "final_layer_norm")
        seen.see("fc1", h)
        h = np.maximum(linear(h, p + "fc1"), 0)
        seen.see("fc2", h)
        x = x + linear(h, p + "fc2")


def main():
    directory, seen = Path(sys.argv[1]), Inputs()
    config = json.loads((directory / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    text = Path(sys.argv[2]).read_text()[:20000]  # more than enough for 1024 tokens
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    ids = np.array(ids[: min(1024, config["max_position_embeddings"])])
    run = run_opt if config["model_type"] == "opt" else run_llama
    run(read_model(directory), config, ids, seen)
    seen.print_table()


if __name__ == "__main__":
    main()
