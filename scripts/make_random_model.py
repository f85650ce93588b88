#!/usr/bin/env python3
"""Makes a random LLaMA checkpoint, sharded, in bf16: for measuring memory and speed.

    make_random_model.py OUT [--shape 7b|1b|small] [--seed N]

Weights are written as they are drawn, so it needs little memory and as much disk as the model:
13 GB for 7b. numpy only.
"""
import argparse
import json
import struct
from pathlib import Path

import numpy as np

SHAPES = {  # hidden, ffn, layers, heads, kv heads, vocabulary
    "7b": (4096, 11008, 32, 32, 32, 32000),
    "1b": (2048, 5632, 22, 32, 4, 32000),
    "small": (256, 704, 16, 4, 2, 1000),
}
SHARD_BYTES = 2 << 30
PIECE = 1 << 22  # values drawn at a time


def tensors(hidden, ffn, layers, heads, kv_heads, vocab):
    """Names and shapes in file order."""
    kv = hidden // heads * kv_heads
    yield "model.embed_tokens.weight", (vocab, hidden)
    for i in range(layers):
        p = f"model.layers.{i}."
        yield p + "input_layernorm.weight", (hidden,)
        yield p + "self_attn.q_proj.weight", (hidden, hidden)
        yield p + "self_attn.k_proj.weight", (kv, hidden)
        yield p + "self_attn.v_proj.weight", (kv, hidden)
        yield p + "self_attn.o_proj.weight", (hidden, hidden)
        yield p + "post_attention_layernorm.weight", (hidden,)
        yield p + "mlp.gate_proj.weight", (ffn, hidden)
        yield p + "mlp.up_proj.weight", (ffn, hidden)
        yield p + "mlp.down_proj.weight", (hidden, ffn)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocab, hidden)


def split(all_tensors):
    shards, size = [[]], 0
    for name, shape in all_tensors:
        n = 2 * int(np.prod(shape))
        if size + n > SHARD_BYTES and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append((name, shape))
        size += n
    return shards


def write_values(f, shape, rng):
    n = int(np.prod(shape))
    std = shape[-1] ** -0.5
    while n > 0:
        m = min(n, PIECE)
        if len(shape) == 1:
            v = np.ones(m, np.float32)
        else:
            v = rng.standard_normal(m, np.float32) * np.float32(std)
        f.write((v.view(np.uint32) >> 16).astype("<u2").tobytes())  # truncated to bf16
        n -= m


def write_shard(path, shard, rng):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shard:
        n = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, shape in shard:
            write_values(f, shape, rng)
    return at


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    hidden, ffn, layers, heads, kv_heads, vocab = SHAPES[args.shape]
    args.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(args.seed)
    shards = split(tensors(*SHAPES[args.shape]))
    weight_map, total = {}, 0
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        total += write_shard(args.out / file, shard, rng)
        weight_map.update({name: file for name, _ in shard})
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (args.out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocab, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }
    (args.out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    print(f"{args.out}: {total} bytes in {len(shards)} files")


if __name__ == "__main__":
    main()
