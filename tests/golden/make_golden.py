#!/usr/bin/env python3
"""Makes the golden models beside this file: one tiny random model per family and variant, with the
fp32 logits that Hugging Face transformers gives for it.

    python3 make_golden.py [NAME...]        (all, or the named ones)

Needs torch and transformers 4.45 (numpy, safetensors; gguf for the GGUF ones). CI does not run it:
what it writes is committed and read by tests/unit/test_golden.c. A directory holds

    config.json, model*.safetensors (or NAME.gguf)    the model
    tokens.txt                                        ids of one sequence, comma-separated
    logits.npy                                        fp32 [tokens, vocab]

Weights are drawn so that a mistake shows: norm weights are not 1, biases not 0, attention not
uniform, logits have a spread above 1. They are rounded to the storage type before the forward pass.
"""

import json
import os
import shutil
import sys

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import (
    LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM,
    OPTConfig, OPTForCausalLM, Qwen2Config, Qwen2ForCausalLM,
)

HERE = os.path.dirname(os.path.abspath(__file__))
N_TOKENS = 32
VOCAB = 80
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# Widths are no multiples of 32 or of each other: a transposed or swapped dimension cannot pass.
BASE = dict(vocab_size=VOCAB, hidden_size=40, intermediate_size=56, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=256, bos_token_id=1, eos_token_id=2,
            pad_token_id=None, tie_word_embeddings=False)
OPT = dict(vocab_size=VOCAB, hidden_size=40, ffn_dim=72, num_hidden_layers=2,
           num_attention_heads=4, word_embed_proj_dim=40, max_position_embeddings=48, dropout=0.0)
# With 10 channels a head and theta 500 the wavelengths are 6, 22, 75, 261, 905: above, inside and
# below the band 16..64 where the llama3 rule interpolates.
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)


# ---- models ----------------------------------------------------------------------------------

class HeadNorm(torch.nn.Module):
    """A projection whose output is RMS-normalised over each head: Qwen3's q_norm and k_norm, which
    stand between projection and rotation (Qwen3Attention.forward)."""

    def __init__(self, linear, head_dim, eps):
        super().__init__()
        self.linear, self.eps = linear, eps
        self.norm = torch.nn.Parameter(torch.ones(head_dim))

    def forward(self, x):
        y = self.linear(x)
        h = y.view(*y.shape[:-1], -1, self.norm.numel())
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps) * self.norm
        return h.view_as(y)


def qwen3(config):
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    for layer in model.model.layers:
        a = layer.self_attn
        a.q_proj = HeadNorm(a.q_proj, a.head_dim, config.rms_norm_eps)
        a.k_proj = HeadNorm(a.k_proj, a.head_dim, config.rms_norm_eps)
    return model


def qwen2_sliding(config):
    """Window from layer max_window_layers on, as transformers 4.48 and later do in every attention
    implementation (config.layer_types); 4.45 honours it in flash attention only."""
    model = Qwen2ForCausalLM._from_config(config, attn_implementation="eager")
    for layer in model.model.layers[config.max_window_layers:]:
        plain = layer.forward

        def windowed(hidden, attention_mask=None, plain=plain, **kw):
            q, k = (torch.arange(n) for n in attention_mask.shape[-2:])
            outside = k[None, :] <= q[:, None] - config.window_for_test
            floor = torch.finfo(attention_mask.dtype).min
            return plain(hidden, attention_mask=attention_mask.masked_fill(outside, floor), **kw)

        layer.forward = windowed
    return model


def plain(cls):
    return lambda config: cls._from_config(config, attn_implementation="eager")


llama, mistral, qwen2, opt = map(
    plain, (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, OPTForCausalLM))


# ---- variants: name -> (make, config, storage type, what to do to config.json, how to store) ----

def new_style(c):
    """config.json as transformers 5 writes it."""
    rope = dict(c.pop("rope_scaling", None) or {"rope_type": "default"})
    rope["rope_theta"] = c.pop("rope_theta")
    c["rope_parameters"] = rope
    c["dtype"] = c.pop("torch_dtype")


def legacy_linear(c):
    c["rope_scaling"] = {"type": "linear", "factor": c["rope_scaling"]["factor"]}


def as_qwen3(c):
    c.update(model_type="qwen3", architectures=["Qwen3ForCausalLM"], use_sliding_window=False,
             sliding_window=None, max_window_layers=c["num_hidden_layers"])
    c.pop("mlp_bias", None)
    c.pop("pretraining_tp", None)


def as_qwen3_new(c):
    as_qwen3(c)
    new_style(c)
    c["layer_types"] = ["full_attention"] * c["num_hidden_layers"]


def qwen2_window(c):
    c.update(use_sliding_window=True, sliding_window=c.pop("window_for_test"))


def minimal_opt(c):
    """The hub's config.json of OPT leaves every default out."""
    for key in ("enable_bias", "layer_norm_elementwise_affine", "do_layer_norm_before"):
        c.pop(key)


VARIANTS = {
    "llama-mha": (llama, LlamaConfig(**BASE), "float16", None, "one"),
    "llama-gqa": (llama, LlamaConfig(**BASE, num_key_value_heads=2), "float32", None, "sharded"),
    "llama-tied": (llama, LlamaConfig(**{**BASE, "tie_word_embeddings": True},
                                      num_key_value_heads=1), "bfloat16", new_style, "one"),
    "llama-rope-linear": (llama, LlamaConfig(**BASE, rope_theta=500.0, num_key_value_heads=2,
                                             rope_scaling={"rope_type": "linear", "factor": 3.0}),
                          "float16", legacy_linear, "one"),
    "llama-rope-llama3": (llama, LlamaConfig(**BASE, rope_theta=500.0, num_key_value_heads=2,
                                             rope_scaling={"rope_type": "llama3", **LLAMA3}),
                          "bfloat16", None, "one"),
    "llama-rope-llama3-new": (llama, LlamaConfig(**BASE, rope_theta=500.0, num_key_value_heads=4,
                                                 rope_scaling={"rope_type": "llama3", **LLAMA3}),
                              "float16", new_style, "one"),
    "llama-bias": (llama, LlamaConfig(**BASE, attention_bias=True, mlp_bias=True,
                                      num_key_value_heads=2), "float16", None, "one"),
    "llama-head-dim": (llama, LlamaConfig(**BASE, head_dim=20, num_key_value_heads=2),
                       "float16", None, "one"),
    "mistral-window": (mistral, MistralConfig(**BASE, num_key_value_heads=2, sliding_window=12),
                       "bfloat16", None, "one"),
    "mistral-full": (mistral, MistralConfig(**BASE, num_key_value_heads=2, sliding_window=None,
                                            rms_norm_eps=1e-5), "float16", new_style, "one"),
    "qwen2": (qwen2, Qwen2Config(**BASE, num_key_value_heads=2, rope_theta=1e6), "bfloat16",
              None, "one"),
    "qwen2-tied": (qwen2, Qwen2Config(**{**BASE, "tie_word_embeddings": True},
                                      num_key_value_heads=1), "float16", None, "one"),
    "qwen2-window": (qwen2_sliding, Qwen2Config(**{**BASE, "num_hidden_layers": 3},
                                                num_key_value_heads=2, max_window_layers=1,
                                                window_for_test=9), "float16", qwen2_window, "one"),
    "qwen3": (qwen3, LlamaConfig(**BASE, head_dim=16, num_key_value_heads=2, rope_theta=1e6),
              "bfloat16", as_qwen3, "one"),
    "qwen3-new": (qwen3, LlamaConfig(**{**BASE, "tie_word_embeddings": True}, head_dim=16,
                                     num_key_value_heads=4), "float16", as_qwen3_new, "one"),
    "opt": (opt, OPTConfig(**OPT), "float16", minimal_opt, "one"),
    "opt-350m": (opt, OPTConfig(**{**OPT, "word_embed_proj_dim": 28}, do_layer_norm_before=False),
                 "bfloat16", None, "one"),
    "opt-nobias": (opt, OPTConfig(**OPT, enable_bias=False, layer_norm_elementwise_affine=False,
                                  activation_function="gelu"), "float16", None, "one"),
    "opt-nofinal": (opt, OPTConfig(**OPT, _remove_final_layer_norm=True), "float16", None, "one"),
    # with a tokenizer: for the end-to-end tests of the command
    "llama-text": (llama, LlamaConfig(**{**BASE, "vocab_size": 272},
                                      num_key_value_heads=2), "float16", None, "text"),
    # GGML's blocks hold 32 values of a row
    "gguf-llama": (llama, LlamaConfig(**{**BASE, "hidden_size": 64, "intermediate_size": 96},
                                      num_key_value_heads=2), "float32", None, "gguf"),
    "gguf-qwen2": (qwen2, Qwen2Config(**{**BASE, "hidden_size": 64, "intermediate_size": 96,
                                         "tie_word_embeddings": True},
                                      num_key_value_heads=2, rope_theta=1e6), "float32", None,
                   "gguf"),
}


# ---- weights ---------------------------------------------------------------------------------

def fill(name, p, generator):
    noise = torch.randn(p.shape, generator=generator)
    if p.dim() == 1:
        is_norm = "norm" in name and not name.endswith("bias")
        return 1 + 0.3 * noise if is_norm else 0.3 * noise
    if "embed" in name:
        return 0.8 * noise
    gain = 2.0 if "q_proj" in name or "k_proj" in name or "lm_head" in name else 1.0
    return gain * noise / p.shape[1] ** 0.5


def gguf_type(name, shape):
    """Storage of one GGUF tensor: every kind that both sides can write."""
    import gguf
    t = gguf.GGMLQuantizationType
    if len(shape) == 1:
        return t.F32
    for key, kind in (("embed", t.Q8_0), ("down", t.Q4_0), ("gate", t.Q4_1), ("up", t.Q5_0),
                      ("q_proj", t.F16), ("k_proj", t.BF16), ("o_proj", t.Q5_1)):
        if key in name:
            return kind
    return t.F16


def round_gguf(name, w):
    import gguf
    kind = gguf_type(name, w.shape)
    return torch.from_numpy(gguf.dequantize(gguf.quantize(w.numpy(), kind), kind).copy())


def randomize(model, dtype, store, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            w = fill(name, p, generator)
            p.copy_(round_gguf(name, w) if store == "gguf" else w.to(dtype).float())


# ---- files -----------------------------------------------------------------------------------

def state_of(model, dtype):
    """Tensors under the names of the family's own checkpoints, a tied head left out."""
    out = {}
    for name, w in model.state_dict().items():
        if "rotary" in name or (name == "lm_head.weight" and model.config.tie_word_embeddings):
            continue
        name = name.replace("_proj.linear.", "_proj.").replace("q_proj.norm", "q_norm.weight")
        out[name.replace("k_proj.norm", "k_norm.weight")] = w.to(dtype).contiguous()
    return out


def save_sharded(state, folder):
    names, half = sorted(state), len(state) // 2
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    where = {n: files[i >= half] for i, n in enumerate(names)}
    for f in files:
        part = {n: state[n] for n in names if where[n] == f}
        save_file(part, os.path.join(folder, f), metadata={"format": "pt"})
    total = sum(w.numel() * w.element_size() for w in state.values())
    write_json(os.path.join(folder, "model.safetensors.index.json"),
               {"metadata": {"total_size": total}, "weight_map": where})


def write_json(path, value):
    with open(path, "w") as f:
        json.dump(value, f, indent=2, sort_keys=True)
        f.write("\n")


def save_hf(model, folder, dtype_name, edit, store):
    state = state_of(model, DTYPES[dtype_name])
    if store == "sharded":
        save_sharded(state, folder)
    else:
        save_file(state, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    c = model.config.to_diff_dict()
    full = model.config.to_dict()
    for key in ("rope_theta", "rope_scaling", "num_key_value_heads", "num_hidden_layers",
                "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size",
                "max_position_embeddings", "tie_word_embeddings", "rms_norm_eps", "hidden_act",
                "head_dim", "sliding_window", "max_window_layers", "do_layer_norm_before",
                "enable_bias", "layer_norm_elementwise_affine", "ffn_dim", "activation_function",
                "word_embed_proj_dim"):
        if key in full:
            c[key] = full[key]
    c.update(architectures=[type(model).__name__], torch_dtype=dtype_name,
             model_type=model.config.model_type)
    if edit:
        edit(c)
    write_json(os.path.join(folder, "config.json"), c)


def rotary_order(w, n_heads):
    """Rows of Q and K as GGUF's llama stores them: pairs adjacent instead of half a head apart."""
    shape = w.shape
    return w.reshape(n_heads, 2, shape[0] // n_heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


GGUF_NAMES = (("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"),
              ("lm_head", "output"), ("model.layers.", "blk."),
              ("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"),
              ("self_attn.v_proj", "attn_v"), ("self_attn.o_proj", "attn_output"),
              ("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"),
              ("mlp.down_proj", "ffn_down"), ("input_layernorm", "attn_norm"),
              ("post_attention_layernorm", "ffn_norm"))


def save_gguf(model, path):
    import gguf
    c, arch = model.config, model.config.model_type
    w = gguf.GGUFWriter(path, arch)
    w.add_block_count(c.num_hidden_layers)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_rope_freq_base(c.rope_theta)
    w.add_vocab_size(c.vocab_size)
    if arch == "llama":
        w.add_rope_dimension_count(c.hidden_size // c.num_attention_heads)
    for name, t in state_of(model, torch.float32).items():
        x, kind = t.numpy(), gguf_type(name, t.shape)
        q = gguf.quantize(x, kind)
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            q = rotary_order(q, c.num_attention_heads if "q_proj" in name
                             else c.num_key_value_heads)
        for old, new in GGUF_NAMES:
            name = name.replace(old, new)
        w.add_tensor(name, q, raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


MERGES = ("Ġ t", "h e", "Ġt he", "i n", "e r", "Ġ a", "o n", "r e", "Ġ s", "a t", "e n", "in g",
          "Ġa n")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
          "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


def byte_characters():
    """GPT-2's names of the 256 bytes: printable ones stand for themselves, the others follow."""
    plain_ones = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain_ones]
    return [chr(b) for b in plain_ones] + [chr(256 + i) for i in range(len(others))]


def save_tokenizer(folder):
    """Byte-level BPE: specials, the 256 bytes, a few merges; 272 ids in all."""
    tokens = [*SPECIAL, *byte_characters(), *(m.replace(" ", "") for m in MERGES)]
    assert len(tokens) == len(set(tokens)) == 272
    added = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for i, t in enumerate(SPECIAL)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": True}
    write_json(os.path.join(folder, "tokenizer.json"), {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None, "pre_tokenizer": byte_level, "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False,
                  "vocab": {t: i for i, t in enumerate(tokens)}, "merges": list(MERGES)}})
    write_json(os.path.join(folder, "tokenizer_config.json"), {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>", "chat_template": CHATML})


def make(name, seed):
    build, config, dtype_name, edit, store = VARIANTS[name]
    folder = os.path.join(HERE, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    model = build(config).float().eval()
    randomize(model, DTYPES[dtype_name], store, seed)
    model.tie_weights()
    ids = np.random.default_rng(seed).integers(3, config.vocab_size, N_TOKENS)
    with torch.no_grad():
        logits = model(torch.from_numpy(ids)[None], use_cache=False).logits[0].float().numpy()
    if store == "gguf":
        save_gguf(model, os.path.join(folder, "model.gguf"))
    else:
        save_hf(model, folder, dtype_name, edit, store)
    if store == "text":
        save_tokenizer(folder)
    with open(os.path.join(folder, "tokens.txt"), "w") as f:
        f.write(",".join(map(str, ids)) + "\n")
    np.save(os.path.join(folder, "logits.npy"), np.ascontiguousarray(logits, dtype=np.float32))
    size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
    print(f"{name:24} {size / 1024:6.0f} KiB   logits std {logits.std():.2f}", flush=True)


def main():
    names = sys.argv[1:] or list(VARIANTS)
    for name in names:
        make(name, 1000 + list(VARIANTS).index(name))


if __name__ == "__main__":
    main()
