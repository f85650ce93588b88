#!/usr/bin/env python3
"""GPTQ of one block of SmolLM2-135M's shapes in PyTorch, as its reference code goes: one Hessian per
linear, Cholesky, inverse, Cholesky, then columns one by one in blocks of 128. fp32, int4 per row.

  gptq_torch.py [windows of 2048 tokens [threads]]

The last line is for scripts: total, wall and CPU seconds."""
import sys
import time

import torch

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


def main():
    windows = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    torch.set_num_threads(int(sys.argv[2]) if len(sys.argv) > 2 else torch.get_num_threads())
    torch.set_grad_enabled(False)
    torch.manual_seed(1)
    x = torch.randn(T, F) + torch.randn(T, 1)
    statistics, rounding = [0.0, 0.0], [0.0, 0.0]
    for _, rows, columns in LINEARS:
        w, h, mine = torch.randn(rows, columns), torch.zeros(columns, columns), x[:, :columns].contiguous()
        t = time.perf_counter(), time.process_time()
        for n in range(windows):
            add_window(h, mine, n + 1)
        statistics = [statistics[0] + time.perf_counter() - t[0], statistics[1] + time.process_time() - t[1]]
        t = time.perf_counter(), time.process_time()
        round_columns(w, h)
        rounding = [rounding[0] + time.perf_counter() - t[0], rounding[1] + time.process_time() - t[1]]
    print(f"PyTorch {torch.__version__}, {windows} x {T} tokens, {torch.get_num_threads()} threads")
    for name, (wall, cpu) in ("statistics", statistics), ("factor, round", rounding):
        print(f"{name:13} {wall * 1e3:9.1f} ms {cpu * 1e3:9.1f} ms CPU")
    print(f"total {statistics[0] + rounding[0]:.6f} {statistics[1] + rounding[1]:.6f}")


main()
