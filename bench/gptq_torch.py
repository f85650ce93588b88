#!/usr/bin/env python3
"""GPTQ in PyTorch, as its reference code goes: window by window, one Hessian per linear, Cholesky,
inverse, Cholesky, then columns one by one in blocks of 128. fp32, int4 per row.

  gptq_torch.py [windows of 2048 tokens [threads]]
  gptq_torch.py windows threads DIR [blocks]

The first is the statistics and rounding of one block of SmolLM2-135M's shapes. The second is a run
over DIR, a LLaMA in safetensors, or its first blocks: forward of all windows with hooks at the
linears, rounding, forward through the rounded block. Weights are DIR's; hidden states in front of the
first block are random, for times do not depend on them. Loading is not counted.

The last line is for scripts: total, wall and CPU seconds."""
import json
import os
import struct
import sys
import time

import torch
from torch import nn

T, C, F, KV, BLOCK = 2048, 576, 1536, 192, 128
LINEARS = [("q", C, C), ("k", KV, C), ("v", KV, C), ("o", C, C), ("gate", F, C), ("up", F, C), ("down", C, F)]


def add_window(h, x, n):
    """H <- H (n-1)/n + 2/n X^T X"""
    h *= (n - 1) / n
    x = (2 / n) ** 0.5 * x.t().float()
    h += x.matmul(x.t())


def round_columns(w, h, damp=0.01):
    columns = w.shape[1]
    h = h.clone()
    lo, hi = w.amin(1).clamp(max=0), w.amax(1).clamp(min=0)
    scale = (hi - lo) / 15
    zero = torch.round(-lo / scale)
    h.diagonal().add_(damp * torch.mean(torch.diag(h)))
    h = torch.linalg.cholesky(h)
    h = torch.cholesky_inverse(h)
    u = torch.linalg.cholesky(h, upper=True)
    q = torch.zeros_like(w)
    for b0 in range(0, columns, BLOCK):
        b1 = min(b0 + BLOCK, columns)
        part, errors, block = w[:, b0:b1].clone(), torch.zeros(w.shape[0], b1 - b0), u[b0:b1, b0:b1]
        for i in range(b1 - b0):
            x = part[:, i]
            code = torch.clamp(torch.round(x / scale) + zero, 0, 15)
            back = scale * (code - zero)
            q[:, b0 + i] = back
            e = (x - back) / block[i, i]
            part[:, i:] -= e.unsqueeze(1).matmul(block[i, i:].unsqueeze(0))
            errors[:, i] = e
        w[:, b1:] -= errors.matmul(u[b0:b1, b1:])
    return q


class Clock:
    """Wall and CPU seconds of what runs inside "with"."""

    def __init__(self):
        self.wall = self.cpu = 0.0

    def __enter__(self):
        self.began = time.perf_counter(), time.process_time()

    def __exit__(self, *_):
        self.wall += time.perf_counter() - self.began[0]
        self.cpu += time.process_time() - self.began[1]


def one_block(windows):
    torch.manual_seed(1)
    x = torch.randn(T, F) + torch.randn(T, 1)
    clocks = {"statistics": Clock(), "factor, round": Clock()}
    for _, rows, columns in LINEARS:
        w, h, mine = torch.randn(rows, columns), torch.zeros(columns, columns), x[:, :columns].contiguous()
        with clocks["statistics"]:
            for n in range(windows):
                add_window(h, mine, n + 1)
        with clocks["factor, round"]:
            round_columns(w, h)
    return clocks


class Norm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.empty(config["hidden_size"])), config["rms_norm_eps"]

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def rotate(x, cos, sin):
    """x [1, heads, T, size], cos and sin [T, size]: channels i and i + size/2 are a pair"""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


def turns(config):
    """cos and sin [T, size of a head]"""
    size = config["head_dim"]
    step = config["rope_theta"] ** (-torch.arange(0, size, 2) / size)
    angle = torch.outer(torch.arange(T).float(), step)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.kv = config["num_attention_heads"], config["num_key_value_heads"]
        self.size = config["head_dim"]
        hidden = config["hidden_size"]
        self.q_proj = nn.Linear(hidden, self.heads * self.size, bias=False)
        self.k_proj = nn.Linear(hidden, self.kv * self.size, bias=False)
        self.v_proj = nn.Linear(hidden, self.kv * self.size, bias=False)
        self.o_proj = nn.Linear(self.heads * self.size, hidden, bias=False)
        self.turns, self.mask = turns(config), torch.full((T, T), float("-inf")).triu(1)

    def split(self, x, heads):
        return x.view(1, T, heads, self.size).transpose(1, 2)

    def forward(self, x):
        q = rotate(self.split(self.q_proj(x), self.heads), *self.turns)
        k = rotate(self.split(self.k_proj(x), self.kv), *self.turns)
        v = self.split(self.v_proj(x), self.kv)
        k, v = (t.repeat_interleave(self.heads // self.kv, dim=1) for t in (k, v))
        p = torch.softmax(q.matmul(k.transpose(2, 3)) / self.size ** 0.5 + self.mask, dim=-1)
        return self.o_proj(p.matmul(v).transpose(1, 2).reshape(1, T, -1))


class Mlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Names are those of the checkpoint."""

    def __init__(self, config):
        super().__init__()
        self.input_layernorm, self.self_attn = Norm(config), Attention(config)
        self.post_attention_layernorm, self.mlp = Norm(config), Mlp(config)

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


def load_file(path, prefix):
    """fp32 tensors of a safetensors file whose names begin with the prefix, which is cut off"""
    with open(path, "rb") as f:
        size = struct.unpack("<Q", f.read(8))[0]
        for name, entry in json.loads(f.read(size)).items():
            if not name.startswith(prefix):
                continue
            if entry["dtype"] != "F32":
                raise SystemExit(f"{path}: {name}: expected F32, got {entry['dtype']}")
            begin, end = entry["data_offsets"]
            f.seek(8 + size + begin)
            data = bytearray(f.read(end - begin))
            yield name[len(prefix):], torch.frombuffer(data, dtype=torch.float32).view(entry["shape"])


def load_block(folder, config, i):
    block, tensors = Block(config), {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            tensors.update(load_file(os.path.join(folder, name), f"model.layers.{i}."))
    block.load_state_dict(tensors)
    return block


def forward_all(block, states, out):
    for j in range(len(states)):
        out[j] = block(states[j].unsqueeze(0))[0]


def collect(block, states, out):
    """Forward of all windows; the Hessian of each linear, by a hook at its input."""
    linears = [m for m in block.modules() if isinstance(m, nn.Linear)]
    hessians = {m: torch.zeros(m.in_features, m.in_features) for m in linears}
    seen = dict.fromkeys(linears, 0)

    def add(m, inputs, _):
        seen[m] += 1
        add_window(hessians[m], inputs[0][0], seen[m])

    hooks = [m.register_forward_hook(add) for m in linears]
    forward_all(block, states, out)
    for hook in hooks:
        hook.remove()
    return hessians


def run(windows, folder, blocks):
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    torch.manual_seed(1)
    states = torch.randn(windows, T, config["hidden_size"])
    out = torch.zeros_like(states)
    clocks = {"first forward": Clock(), "factor, round": Clock(), "second forward": Clock()}
    for i in range(min(blocks, config["num_hidden_layers"])):
        block = load_block(folder, config, i)
        with clocks["first forward"]:
            hessians = collect(block, states, out)
        with clocks["factor, round"]:
            for linear, h in hessians.items():
                linear.weight.copy_(round_columns(linear.weight.clone(), h))
        with clocks["second forward"]:
            forward_all(block, states, out)
        states, out = out, states
    return clocks


def main():
    windows = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    torch.set_num_threads(int(sys.argv[2]) if len(sys.argv) > 2 else torch.get_num_threads())
    torch.set_grad_enabled(False)
    if len(sys.argv) > 3:
        clocks = run(windows, sys.argv[3], int(sys.argv[4]) if len(sys.argv) > 4 else sys.maxsize)
    else:
        clocks = one_block(windows)
    print(f"PyTorch {torch.__version__}, {windows} x {T} tokens, {torch.get_num_threads()} threads")
    for name, clock in clocks.items():
        print(f"{name:14} {clock.wall * 1e3:9.1f} ms {clock.cpu * 1e3:9.1f} ms CPU")
    print(f"total {sum(c.wall for c in clocks.values()):.6f} {sum(c.cpu for c in clocks.values()):.6f}")


main()
