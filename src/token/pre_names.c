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

#define ISOLATED(p)   {p, NB_SPLIT_ISOLATED}
#define CONTIGUOUS(p) {p, NB_SPLIT_CONTIGUOUS}

/* Pieces that several expressions share. */
#define SHORT_WORDS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define TAIL        "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define UPPER       "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER       "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define NO_LETTER   "[^\\r\\n\\p{L}\\p{N}]?"

/* Cased letters as deepseek-llm lists them: a fixed set, older than today's \p{LC}. */
#define CASED_LETTERS \
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽ" \
    "ᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-" \
    "Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-" \
    "ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"

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
    [STYLE_DEEPSEEK_V3] =
        {.steps = {ISOLATED("\\p{N}{1,3}"), ISOLATED("[一-龥\\x{3040}-ゟ゠-ヿ]+"),
                   ISOLATED("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
                            "[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
                            " ?[\\p{P}\\p{S}]+[\\r\\n]*|" TAIL),
                   ISOLATED(BYTES)}},
    [STYLE_DEFAULT] =
        {.steps = {ISOLATED("[\\p{P}\\$\\+<=>\\^~\\|]+"), ISOLATED(nb_gpt2_pattern),
                   ISOLATED("\\p{N}+"), ISOLATED("[0-9][0-9][0-9]"), ISOLATED(BYTES)}},
    [STYLE_DIGITS] = {.steps = {ISOLATED("\\p{N}"), ISOLATED(GPT2_BYTES)}},
    /* The two last steps see characters that stand for bytes: that is how Falcon was trained. */
    [STYLE_FALCON] =
        {.steps = {CONTIGUOUS("[\\p{P}!-/:-@\\[-`{-~]"), ISOLATED(GPT2_BYTES),
                   CONTIGUOUS("\\p{N}"), ISOLATED("[0-9][0-9][0-9]")}},
    [STYLE_GEMMA4] = {.metaspace = true},
    [STYLE_GPT2] = {.steps = {ISOLATED(GPT2_BYTES)}},
    [STYLE_GPT4O] =
        {.steps = {ISOLATED(NO_LETTER UPPER "*" LOWER "+" SHORT_WORDS "?|" NO_LETTER UPPER
                            "+" LOWER "*" SHORT_WORDS "?|\\p{N}{1,3}|"
                            " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" TAIL),
                   ISOLATED(BYTES)}},
    [STYLE_LLAMA3] =
        {.ignore_merges = true,
         .steps = {ISOLATED(SHORT_WORDS "|" NO_LETTER "\\p{L}+|\\p{N}{1,3}|"
                            " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" TAIL),
                   ISOLATED(BYTES)}},
    [STYLE_MPT] = {.nfc = true, .steps = {ISOLATED(GPT2_BYTES)}},
    [STYLE_QWEN2] =
        {.nfc = true,
         .steps = {ISOLATED(SHORT_WORDS "|" NO_LETTER "\\p{L}+|\\p{N}|"
                            " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" TAIL),
                   ISOLATED(BYTES)}},
    /* llama.cpp's reference ids for this name are those of text as it stands, without NFC. */
    [STYLE_QWEN35] =
        {.steps = {ISOLATED(SHORT_WORDS "|" NO_LETTER "[\\p{L}\\p{M}]+|\\p{N}|"
                            " ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" TAIL),
                   ISOLATED(BYTES)}},
    [STYLE_TEKKEN] =
        {.ignore_merges = true,
         .steps = {ISOLATED(NO_LETTER UPPER "*" LOWER "+|" NO_LETTER UPPER "+" LOWER "*|\\p{N}|"
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
