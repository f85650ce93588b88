/* GGUF names a pre-tokenizer instead of describing it ("tokenizer.ggml.pre"). What each name means
 * is taken from the tokenizer.json of the model that it was made for; the list of names, and the
 * meaning of "default", from llama.cpp (llama-vocab.cpp, 2025). */
#include <string.h>

#include "token/tokenizer.h"

typedef enum pre_style {
    STYLE_DEEPSEEK_CODER,
    STYLE_DEEPSEEK_LLM,
    STYLE_DEEPSEEK_V3,
    STYLE_DEFAULT,
    STYLE_DIGITS,
    STYLE_FALCON,
    STYLE_GEMMA4,
    STYLE_GPT2,
    STYLE_GPT4O,
    STYLE_LLAMA3,
    STYLE_MPT,
    STYLE_QWEN2,
    STYLE_QWEN35,
    STYLE_TEKKEN,
    N_STYLES
} pre_style;

/* A step: a split, or one of these two places of ByteLevel. */
#define BYTES      "bytes" /* bytes to characters */
#define GPT2_BYTES "gpt2"  /* GPT-2's split, then bytes to characters */

typedef struct pre_step {
    const char *pattern;
    nb_behavior behavior;
} pre_step;

typedef struct pre_rules {
    bool nfc;           /* normalizer NFC */
    bool ignore_merges; /* a word that is a token is that token */
    bool metaspace;     /* SentencePiece-like: spaces become U+2581, bytes fall back, no words */
    pre_step steps[8];
} pre_rules;

#define ISOLATED(p)                                                                                \
    {                                                                                              \
        p, NB_SPLIT_ISOLATED                                                                       \
    }
#define CONTIGUOUS(p)                                                                              \
    {                                                                                              \
        p, NB_SPLIT_CONTIGUOUS                                                                     \
    }

/* Pieces that several expressions share. */
#define SHORT_WORDS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define TAIL        "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define UPPER       "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER       "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define NO_LETTER   "[^\\r\\n\\p{L}\\p{N}]?"

/* Cased letters as deepseek-llm lists them: a fixed set, older than today's \p{LC}. */
#define CASED_LETTERS                                                                              \
    "\\x{41}-\\x{5a}\\x{61}-\\x{7a}\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}"          \
    "\\x{1bc}-\\x{1bf}\\x{1c4}-\\x{293}\\x{295}-\\x{2af}\\x{370}-\\x{373}\\x{376}\\x{377}"         \
    "\\x{37b}-\\x{37d}\\x{37f}\\x{386}\\x{388}-\\x{38a}\\x{38c}\\x{38e}-\\x{3a1}"                  \
    "\\x{3a3}-\\x{3f5}\\x{3f7}-\\x{481}\\x{48a}-\\x{52f}\\x{531}-\\x{556}"                         \
    "\\x{10a0}-\\x{10c5}\\x{13a0}-\\x{13f5}\\x{13f8}-\\x{13fd}\\x{1c90}-\\x{1cba}"                 \
    "\\x{1cbd}-\\x{1cbf}\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1d77}\\x{1d79}-\\x{1d9a}"                 \
    "\\x{1e00}-\\x{1f15}\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}\\x{1f48}-\\x{1f4d}"                 \
    "\\x{1f50}-\\x{1f57}\\x{1f59}\\x{1f5b}\\x{1f5d}\\x{1f5f}-\\x{1f7d}\\x{1f80}-\\x{1fb4}"         \
    "\\x{1fb6}-\\x{1fbc}\\x{1fbe}\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}\\x{1fd0}-\\x{1fd3}"        \
    "\\x{1fd6}-\\x{1fdb}\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}\\x{2102}"        \
    "\\x{2107}\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}\\x{2124}\\x{2126}\\x{2128}"          \
    "\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}\\x{2139}\\x{213c}-\\x{213f}\\x{2145}-\\x{2149}"        \
    "\\x{214e}\\x{2183}\\x{2184}\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}\\x{2ceb}-\\x{2cee}"         \
    "\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}"                  \
    "\\x{a771}-\\x{a787}\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}"                 \
    "\\x{fb13}-\\x{fb17}\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}\\x{10400}-\\x{1044f}"               \
    "\\x{104b0}-\\x{104d3}\\x{104d8}-\\x{104fb}\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}"         \
    "\\x{118a0}-\\x{118df}\\x{1e900}-\\x{1e943}"

static const pre_rules rules[N_STYLES] = {
    [STYLE_DEEPSEEK_CODER] =
        {.steps = {ISOLATED("[\\r\\n]"), ISOLATED("\\s?\\p{L}+"), ISOLATED("\\s?\\p{P}+"),
                   ISOLATED("[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+"),
                   ISOLATED("\\p{N}"), ISOLATED(BYTES)}},
    [STYLE_DEEPSEEK_LLM] =
        {.steps = {ISOLATED("[\\r\\n]"), ISOLATED("\\s?[" CASED_LETTERS "]+"),
                   ISOLATED("\\s?[!-/:-~！-／：-～‘-‟　-。]+"), ISOLATED("\\s+$"),
                   ISOLATED("[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+"),
                   ISOLATED("\\p{N}"), ISOLATED(BYTES)}},
    [STYLE_DEEPSEEK_V3] = {.steps = {ISOLATED("\\p{N}{1,3}"), ISOLATED("[一-龥\\x{3040}-ゟ゠-ヿ]+"),
                                     ISOLATED(
                                         "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
                                         "[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
                                         " ?[\\p{P}\\p{S}]+[\\r\\n]*|" TAIL),
                                     ISOLATED(BYTES)}},
    [STYLE_DEFAULT] = {.steps = {ISOLATED("[\\p{P}\\$\\+<=>\\^~\\|]+"), ISOLATED(nb_gpt2_pattern),
                                 ISOLATED("\\p{N}+"), ISOLATED("[0-9][0-9][0-9]"),
                                 ISOLATED(BYTES)}},
    [STYLE_DIGITS] = {.steps = {ISOLATED("\\p{N}"), ISOLATED(GPT2_BYTES)}},
    /* The two last steps see characters that stand for bytes: that is how Falcon was trained. */
    [STYLE_FALCON] = {.steps = {CONTIGUOUS("[\\p{P}!-/:-@\\[-`{-~]"), ISOLATED(GPT2_BYTES),
                                CONTIGUOUS("\\p{N}"), ISOLATED("[0-9][0-9][0-9]")}},
    [STYLE_GEMMA4] = {.metaspace = true},
    [STYLE_GPT2] = {.steps = {ISOLATED(GPT2_BYTES)}},
    [STYLE_GPT4O] = {.steps = {ISOLATED(NO_LETTER UPPER "*" LOWER "+" SHORT_WORDS
                                                        "?|" NO_LETTER UPPER "+" LOWER
                                                        "*" SHORT_WORDS "?|\\p{N}{1,3}|"
                                                        " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" TAIL),
                               ISOLATED(BYTES)}},
    [STYLE_LLAMA3] = {.ignore_merges = true,
                      .steps = {ISOLATED(SHORT_WORDS "|" NO_LETTER "\\p{L}+|\\p{N}{1,3}|"
                                                     " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" TAIL),
                                ISOLATED(BYTES)}},
    [STYLE_MPT] = {.nfc = true, .steps = {ISOLATED(GPT2_BYTES)}},
    [STYLE_QWEN2] = {.nfc = true,
                     .steps = {ISOLATED(SHORT_WORDS "|" NO_LETTER "\\p{L}+|\\p{N}|"
                                                    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" TAIL),
                               ISOLATED(BYTES)}},
    /* llama.cpp's reference ids for this name are those of text as it stands, without NFC. */
    [STYLE_QWEN35] = {.steps = {ISOLATED(SHORT_WORDS "|" NO_LETTER "[\\p{L}\\p{M}]+|\\p{N}|"
                                                     " ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" TAIL),
                                ISOLATED(BYTES)}},
    [STYLE_TEKKEN] = {.ignore_merges = true,
                      .steps = {ISOLATED(NO_LETTER UPPER "*" LOWER "+|" NO_LETTER UPPER "+" LOWER
                                                         "*|\\p{N}|"
                                                         " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" TAIL),
                                ISOLATED(BYTES)}},
};

static const struct {
    const char *name;
    pre_style style;
} names[] = {
    {"codeshell", STYLE_DIGITS},
    {"command-r", STYLE_DIGITS},
    {"dbrx", STYLE_LLAMA3},
    {"deepseek-coder", STYLE_DEEPSEEK_CODER},
    {"deepseek-llm", STYLE_DEEPSEEK_LLM},
    {"deepseek-r1-qwen", STYLE_QWEN2},
    {"deepseek-v3", STYLE_DEEPSEEK_V3},
    {"default", STYLE_DEFAULT},
    {"exaone", STYLE_DIGITS},
    {"falcon", STYLE_FALCON},
    {"falcon3", STYLE_LLAMA3},
    {"gemma4", STYLE_GEMMA4},
    {"gpt-2", STYLE_GPT2},
    {"gpt-4o", STYLE_GPT4O},
    {"llama-bpe", STYLE_LLAMA3},
    {"llama-v3", STYLE_LLAMA3},
    {"llama3", STYLE_LLAMA3},
    {"llama4", STYLE_GPT4O},
    {"megrez", STYLE_QWEN2},
    {"minerva-7b", STYLE_DIGITS},
    {"mpt", STYLE_MPT},
    {"olmo", STYLE_MPT},
    {"pixtral", STYLE_LLAMA3},
    {"qwen2", STYLE_QWEN2},
    {"qwen35", STYLE_QWEN35},
    {"refact", STYLE_DIGITS},
    {"smaug-bpe", STYLE_LLAMA3},
    {"smollm", STYLE_DIGITS},
    {"stablelm2", STYLE_QWEN2},
    {"starcoder", STYLE_DIGITS},
    {"tekken", STYLE_TEKKEN},
};

static nb_status add_step(nb_tokenizer *t, const pre_step *s, nb_error *err)
{
    if (strcmp(s->pattern, BYTES) == 0) return nb_add_byte_level(t, false, false, err);
    if (strcmp(s->pattern, GPT2_BYTES) == 0) return nb_add_byte_level(t, false, true, err);
    nb_pre_step *step;
    NB_TRY(nb_add_split(t, (nb_text){s->pattern, strlen(s->pattern)}, false, &step, err));
    step->behavior = s->behavior;
    return NB_OK;
}

static nb_status set_metaspace(nb_tokenizer *t, nb_error *err)
{
    t->bpe.byte_fallback = t->bpe.fuse_unk = true;
    t->decoder.byte_fallback = true;
    t->decoder.from = (nb_text){NB_METASPACE, 3};
    t->decoder.to = (nb_text){" ", 1};
    return nb_add_replace(t, (nb_text){" ", 1}, true, (nb_text){NB_METASPACE, 3}, err);
}

static nb_status apply(nb_tokenizer *t, const pre_rules *r, nb_error *err)
{
    if (r->metaspace) return set_metaspace(t, err);
    if (r->nfc) NB_TRY(nb_add_norm(t, NB_NORMALIZE_NFC, (nb_text){"", 0}, err));
    t->bpe.ignore_merges = r->ignore_merges;
    t->decoder.byte_level = true;
    for (const pre_step *s = r->steps; s->pattern; s++) NB_TRY(add_step(t, s, err));
    return NB_OK;
}

nb_status nb_add_pre_by_name(nb_tokenizer *t, const char *name, nb_error *err)
{
    if (!name) name = "default";
    for (size_t i = 0; i < NB_COUNT(names); i++) {
        if (strcmp(names[i].name, name) == 0) return apply(t, &rules[names[i].style], err);
    }
    return nb_fail(err, NB_EINPUT, "tokenizer.ggml.pre: pre-tokenizer \"%.60s\" is not known",
                   name);
}
