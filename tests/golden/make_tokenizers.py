#!/usr/bin/env python3
"""Make the tokenizer fixtures and what Hugging Face says about them.

    pip install tokenizers==0.20.3 transformers==4.45.2 sentencepiece jinja2
    python tests/golden/make_tokenizers.py

Writes tokenizer_files/: small trained tokenizers of each kind and cases.json (texts with the ids
and the decoded text that `tokenizers` and SentencePiece give); and chat_templates/cases.json (what
transformers' apply_chat_template makes of each *.jinja there). The tests read these files; nothing
here runs in CI.
"""
import json
import os

import sentencepiece
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers,
                        processors, trainers)
from transformers import PreTrainedTokenizerFast

HERE = os.path.dirname(os.path.abspath(__file__))
FILES = os.path.join(HERE, "tokenizer_files")
CHAT = os.path.join(HERE, "chat_templates")

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps through 1234 winters.",
    "She said: \"we'll see what they've done; I'm sure it's fine\" and they'd gone home.",
    "Größe und Maß: drei Füße, vier Straßen. Привет, мир! 你好，世界。 naïve café résumé",
    "int main(void)\n{\n    return 0;\n}\n\n\tfor (i = 0; i < 10; i++) total += values[i];",
    "numbers 3 33 333 3333 and ½ of them; e-mail me@example.com \U0001f999 llama",
] * 4

TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n \n\t",
    "a",
    "Hello world",
    " Hello  world ",
    "The quick brown fox's dog'll run, won't it? WE'LL SEE",
    "3 33 333 3333 33333333 ½² ١٢٣",
    "int main(void)\n{\n    return 0;\n}\n",
    "Größe Straße naïve cafe\u0301 café \ufb01 ª",
    "Привет мир 你好世界 こんにちは \U0001f999\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "tabs\tand\r\nnewlines\r\n\r\n  end   ",
    "zero\u0000byte \u180e\u00a0\u3000spaces\u0085here",
    "<s>special</s> <tool> x <tool><tool>word<tool>s",
    "a <mask>  b<mask>c",
    "thethethe lstrip <l> rstrip <r> z",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "Ġ▁ literal ▁▁ metaspace",
    "qqq\U00010348zzz",
]

GPT2_LIKE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def add_tokens(t):
    t.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in ("<s>", "</s>")])
    t.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True, normalized=False)])
    t.add_tokens([AddedToken("<tool>", single_word=True, normalized=True),
                  AddedToken("<l>", lstrip=True, normalized=True),
                  AddedToken("<r>", rstrip=True, normalized=False)])


def template(t):
    return processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> <s> $B </s>",
        special_tokens=[(x, t.token_to_id(x)) for x in ("<s>", "</s>")])


def byte_level(pre, normalizer=None, n=400, **model):
    t = Tokenizer(models.BPE(**model))
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer = pre
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=n, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    add_tokens(t)
    t.post_processor = template(t)
    return t


def metaspace(legacy, n=420):
    t = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    if legacy:
        t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                       decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                       decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = ["<unk>"] + [f"<0x{b:02X}>" for b in range(256)]
    words = [w for line in CORPUS for w in line.replace(" ", " ▁").split(" ")]
    trainer_only = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    trainer_only.train_from_iterator(words, trainers.BpeTrainer(
        vocab_size=n, special_tokens=special, limit_alphabet=50, show_progress=False))
    t.model = models.BPE(**model_arguments(trainer_only))
    add_tokens(t)
    t.post_processor = template(t)
    return t


def model_arguments(t):
    m = json.loads(t.to_str())["model"]
    return dict(vocab=m["vocab"], merges=[tuple(x) if isinstance(x, list) else tuple(x.split(" "))
                                          for x in m["merges"]],
                byte_fallback=True, fuse_unk=True, unk_token="<unk>")


def make_json():
    s = pre_tokenizers
    return {
        "gpt2": byte_level(s.ByteLevel(add_prefix_space=False)),
        "prefix": byte_level(s.ByteLevel(add_prefix_space=True), n=310),
        "digits": byte_level(s.Sequence([s.Digits(individual_digits=True),
                                         s.ByteLevel(add_prefix_space=False)]), n=310),
        "llama3": byte_level(s.Sequence([s.Split(Regex(GPT2_LIKE), "isolated"),
                                         s.ByteLevel(add_prefix_space=False, use_regex=False)]),
                             ignore_merges=True),
        "qwen": byte_level(s.Sequence([s.Split(Regex(GPT2_LIKE.replace("{1,3}", "")), "isolated"),
                                       s.ByteLevel(add_prefix_space=False, use_regex=False)]),
                           normalizer=normalizers.NFC(), n=310),
        "falcon": byte_level(s.Sequence([s.Punctuation("contiguous"), s.ByteLevel(add_prefix_space=False),
                                         s.Digits(individual_digits=False),
                                         s.Split(Regex("[0-9][0-9][0-9]"), "isolated")]), n=310),
        "behaviors": byte_level(s.Sequence([s.Split(" ", "merged_with_previous"),
                                            s.Split(Regex("[a-m]+"), "merged_with_next"),
                                            s.Split("o", "removed"),
                                            s.Split(Regex(r"\p{L}+"), "isolated", invert=True),
                                            s.Split(Regex(r"(?=\d)"), "isolated"),
                                            s.ByteLevel(add_prefix_space=False, use_regex=False)]),
                                normalizer=normalizers.Sequence(
                                    [normalizers.NFKC(), normalizers.Replace(Regex("[xy]+"), "z")]), n=310),
        "legacy": metaspace(True),
        "metaspace": metaspace(False),
        "split": metaspace_split(),
    }


def metaspace_split():
    t = metaspace(False)
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    t.decoder = decoders.Metaspace(prepend_scheme="always", split=True)
    return t


def write_json(name, data):
    with open(name, "w", encoding="utf-8") as f:
        json.dump(data, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")


def compact(path):
    with open(path, encoding="utf-8") as f:
        data = json.load(f)
    write_json(path, data)


def json_cases(cases):
    for name, t in make_json().items():
        path = os.path.join(FILES, name + ".json")
        t.save(path)
        compact(path)
        t = Tokenizer.from_file(path)
        rows = []
        for text in TEXTS:
            ids = t.encode(text, add_special_tokens=False).ids
            t.encode_special_tokens = True
            plain = t.encode(text, add_special_tokens=False).ids
            t.encode_special_tokens = False
            assert t.encode(text).ids == [t.token_to_id("<s>")] + ids + [t.token_to_id("</s>")]
            row = {"text": text, "ids": ids, "decoded": t.decode(ids, skip_special_tokens=False)}
            visible = t.decode(ids, skip_special_tokens=True)
            if plain != ids:  # special tokens taken for text
                row["plain"] = plain
            if visible != row["decoded"]:  # special tokens left out
                row["visible"] = visible
            rows.append(row)
        cases[name + ".json"] = rows


def spm_cases(cases):
    os.chdir(FILES)  # the models record the names that the trainer was given
    corpus = "corpus.txt"
    with open(corpus, "w", encoding="utf-8") as f:
        f.write("\n".join(line.replace("\n", " ") for line in CORPUS))
    for name, options in {"identity": dict(remove_extra_whitespaces=False),
                          "squeeze": dict(user_defined_symbols=["<tool>"])}.items():
        sentencepiece.SentencePieceTrainer.train(
            input=corpus, model_prefix=name, model_type="bpe", vocab_size=440, byte_fallback=True,
            normalization_rule_name="identity", character_coverage=0.98, split_digits=True,
            num_threads=1, allow_whitespace_only_pieces=True, **options)
        os.remove(name + ".vocab")
        sp = sentencepiece.SentencePieceProcessor(model_file=name + ".model")
        rows = []
        for text in TEXTS:
            # Tokens in the text are cut out differently there, and NUL ends a text.
            if "<" in text or "\0" in text or "▁" in text:
                continue
            ids = sp.encode(text)
            rows.append({"text": text, "ids": ids, "decoded": sp.decode(ids)})
        cases[name + ".model"] = rows
    os.remove(corpus)


CONVERSATIONS = [
    [("user", "Hello")],
    [("system", "Be brief."), ("user", "  Hi there \n")],
    [("user", "Hello"), ("assistant", "Hi. "), ("user", "Bye")],
    [("system", "Sys"), ("user", "a"), ("assistant", "<think>\nhm\n</think>\n\nb"), ("user", "c"),
     ("assistant", "d"), ("user", "e")],
]


def chat_cases():
    t = PreTrainedTokenizerFast(tokenizer_file=os.path.join(FILES, "gpt2.json"), bos_token="<s>",
                                eos_token="</s>")
    cases = {}
    for name in sorted(os.listdir(CHAT)):
        if not name.endswith(".jinja"):
            continue
        with open(os.path.join(CHAT, name), encoding="utf-8", newline="") as f:
            t.chat_template = f.read()
        rows = []
        for conversation in CONVERSATIONS:
            messages = [{"role": r, "content": c} for r, c in conversation]
            try:
                prompt = t.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            except Exception:  # the template refuses the conversation
                prompt = None
            rows.append({"messages": messages, "prompt": prompt})
        cases[name] = rows
    write_json(os.path.join(CHAT, "cases.json"), cases)


def main():
    os.makedirs(FILES, exist_ok=True)
    cases = {}
    json_cases(cases)
    spm_cases(cases)
    write_json(os.path.join(FILES, "cases.json"), cases)
    chat_cases()


if __name__ == "__main__":
    main()
