/* Configuration from config.json (Hugging Face, old and new spellings) or GGUF metadata. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/family.h"

/* Real models are far below. A block has at most 7 MAX_WIDTH^2 weights, all blocks MAX_LAYERS
 * times as many: these bounds keep every such product inside 63 bits. */
#define MAX_DIM    (1 << 24)
#define MAX_WIDTH  (1 << 21)
#define MAX_LAYERS (1 << 14)

/* ---- config.json ------------------------------------------------------------------------ */

typedef struct reader {
    const json_t *obj;
    nb_error *err;
    nb_status st; /* first failure; later reads do nothing */
} reader;

static const json_t *get(const reader *r, const char *key)
{
    const json_t *v = json_object_get(r->obj, key);
    return json_is_null(v) ? NULL : v;
}

static int read_int(reader *r, const char *key, int absent, int max)
{
    const json_t *v = get(r, key);
    if (!v || r->st != NB_OK) return absent;
    json_int_t i = json_integer_value(v);
    if (!json_is_integer(v) || i < 0 || i > max) {
        r->st = nb_fail(r->err, NB_EINPUT, "config.json: %s: expected an integer from 0 to %d", key,
                        max);
        return absent;
    }
    return (int)i;
}

static float read_float(reader *r, const char *key, float absent)
{
    const json_t *v = get(r, key);
    if (!v || r->st != NB_OK) return absent;
    double x = json_number_value(v);
    if (!json_is_number(v) || !isfinite(x) || x < 0) {
        r->st = nb_fail(r->err, NB_EINPUT, "config.json: %s: expected a non-negative number", key);
        return absent;
    }
    return (float)x;
}

static bool read_bool(reader *r, const char *key, bool absent)
{
    const json_t *v = get(r, key);
    if (!v || r->st != NB_OK) return absent;
    if (!json_is_boolean(v)) {
        r->st = nb_fail(r->err, NB_EINPUT, "config.json: %s: expected true or false", key);
        return absent;
    }
    return json_is_true(v);
}

static const char *read_string(reader *r, const char *key, const char *absent)
{
    const json_t *v = get(r, key);
    if (!v || r->st != NB_OK) return absent;
    if (!json_is_string(v)) {
        r->st = nb_fail(r->err, NB_EINPUT, "config.json: %s: expected a string", key);
        return absent;
    }
    return json_string_value(v);
}

static nb_act_kind read_act(reader *r, const nb_family *f)
{
    const char *name = read_string(r, f->key_act, f->default_act);
    if (strcmp(name, "silu") == 0 || strcmp(name, "swish") == 0) return NB_ACT_SILU;
    if (strcmp(name, "relu") == 0) return NB_ACT_RELU;
    if (strcmp(name, "gelu") == 0) return NB_ACT_GELU;
    if (r->st == NB_OK) {
        r->st =
            nb_fail(r->err, NB_EINPUT, "config.json: %s: \"%.40s\": expected silu, relu or gelu",
                    f->key_act, name);
    }
    return NB_ACT_SILU;
}

/* `rope_scaling` (with `rope_theta` beside it) until 2025, then both in `rope_parameters`. */
static void read_rope(reader *r, nb_config *c)
{
    c->rope_interleaved = read_bool(r, NB_KEY_INTERLEAVED, false);
    c->rope_theta = read_float(r, "rope_theta", 10000.0f);
    const json_t *v = get(r, "rope_parameters");
    if (!v) v = get(r, "rope_scaling");
    if (!v || r->st != NB_OK) return;
    if (!json_is_object(v)) {
        r->st = nb_fail(r->err, NB_EINPUT, "config.json: rope_scaling: expected an object");
        return;
    }
    reader s = {.obj = v, .err = r->err};
    c->rope_theta = read_float(&s, "rope_theta", c->rope_theta);
    const char *type = read_string(&s, "rope_type", NULL);
    if (!type) type = read_string(&s, "type", "default");
    c->rope_factor = read_float(&s, "factor", 1.0f);
    c->rope_low_freq = read_float(&s, "low_freq_factor", 1.0f);
    c->rope_high_freq = read_float(&s, "high_freq_factor", 4.0f);
    c->rope_original_ctx = read_int(&s, "original_max_position_embeddings", c->n_ctx, MAX_DIM);
    if (strcmp(type, "linear") == 0) {
        c->rope_scaling = NB_ROPE_LINEAR;
    } else if (strcmp(type, "llama3") == 0) {
        c->rope_scaling = NB_ROPE_LLAMA3;
    } else if (strcmp(type, "default") != 0 && s.st == NB_OK) {
        s.st =
            nb_fail(r->err, NB_EINPUT,
                    "config.json: rope type \"%.40s\": expected default, linear or llama3", type);
    }
    r->st = s.st;
}

static void read_window(reader *r, const nb_family *f, nb_config *c)
{
    bool silent = !json_object_get(r->obj, "sliding_window");
    int window = read_int(r, "sliding_window", silent ? f->default_window : 0, 1 << 30);
    if (f->window_is_flag && !read_bool(r, "use_sliding_window", false)) window = 0;
    c->window = window;
    if (f->window_is_flag) c->window_layers = read_int(r, "max_window_layers", 28, MAX_LAYERS);
}

static void read_opt(reader *r, nb_config *c)
{
    c->post_norm = !read_bool(r, "do_layer_norm_before", true);
    c->final_norm = !c->post_norm && !read_bool(r, "_remove_final_layer_norm", false);
    c->norm_affine = read_bool(r, "layer_norm_elementwise_affine", true);
    c->embd_proj = read_int(r, "word_embed_proj_dim", c->n_embd, MAX_DIM);
    if (c->embd_proj == c->n_embd) c->embd_proj = 0;
    bool bias = read_bool(r, "enable_bias", true);
    c->qkv_bias = c->o_bias = c->mlp_bias = bias;
}

static nb_status from_object(nb_config *c, const json_t *root, nb_error *err)
{
    reader r = {.obj = root, .err = err};
    const char *type = read_string(&r, "model_type", "");
    NB_TRY(r.st);
    const nb_family *f = c->family = nb_family_by_model_type(type);
    if (!f) {
        char list[200];
        nb_family_list(list, sizeof list);
        return nb_fail(err, NB_EINPUT, "config.json: model_type \"%.60s\": expected one of %s",
                       type, list);
    }
    c->n_layers = read_int(&r, "num_hidden_layers", 0, MAX_LAYERS);
    c->n_embd = read_int(&r, "hidden_size", 0, MAX_DIM);
    c->n_ffn = read_int(&r, f->key_ffn, 0, MAX_DIM);
    c->n_heads = read_int(&r, "num_attention_heads", 0, MAX_DIM);
    c->n_kv_heads = read_int(&r, "num_key_value_heads", c->n_heads, MAX_DIM);
    int head_dim = f->default_head_dim               ? f->default_head_dim
                   : c->n_heads > 0 && c->n_embd > 0 ? c->n_embd / c->n_heads
                                                     : 0;
    c->head_dim = read_int(&r, "head_dim", head_dim, MAX_DIM);
    c->n_vocab = read_int(&r, "vocab_size", 0, MAX_DIM);
    c->n_ctx = read_int(&r, "max_position_embeddings", 2048, MAX_DIM);
    c->norm_eps = read_float(&r, "rms_norm_eps", f->default_eps);
    c->tied = read_bool(&r, "tie_word_embeddings", f->default_tied);
    c->act = read_act(&r, f);
    c->final_norm = c->norm_affine = true;
    if (f->position_offset) {
        read_opt(&r, c);
    } else {
        c->qkv_bias = f->qkv_bias || read_bool(&r, "attention_bias", false);
        c->o_bias = !f->qkv_bias && c->qkv_bias;
        c->mlp_bias = read_bool(&r, "mlp_bias", false);
    }
    if (f->rotary) read_rope(&r, c);
    if (f->default_window || get(&r, "sliding_window")) read_window(&r, f, c);
    return r.st;
}

static nb_status from_json(nb_config *c, const char *text, size_t n_bytes, nb_error *err)
{
    json_error_t je;
    json_t *root = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &je);
    if (!json_is_object(root)) {
        nb_status st = nb_fail(err, NB_EINPUT, "config.json: line %d: %s", je.line,
                               root ? "expected an object" : je.text);
        json_decref(root);
        return st;
    }
    nb_status st = from_object(c, root, err);
    json_decref(root);
    return st;
}

/* ---- GGUF ------------------------------------------------------------------------------- */

static const nb_meta *arch_meta(const nb_checkpoint *ck, const nb_family *f, const char *key)
{
    char full[128];
    snprintf(full, sizeof full, "%s.%s", f->gguf, key);
    return nb_checkpoint_meta(ck, full);
}

static nb_status meta_int(const nb_checkpoint *ck, const nb_family *f, const char *key, int absent,
                          int *out, nb_error *err)
{
    const nb_meta *m = arch_meta(ck, f, key);
    int64_t v = absent;
    if ((m && !nb_meta_int(m, &v)) || v < 0 || v > MAX_DIM) {
        return nb_fail(err, NB_EINPUT, "%s: %s.%s: expected an integer from 0 to %d",
                       nb_checkpoint_path(ck), f->gguf, key, MAX_DIM);
    }
    *out = (int)v;
    return NB_OK;
}

static nb_status meta_float(const nb_checkpoint *ck, const nb_family *f, const char *key,
                            float absent, float *out, nb_error *err)
{
    const nb_meta *m = arch_meta(ck, f, key);
    double v = absent;
    if ((m && !nb_meta_float(m, &v)) || !isfinite(v) || v < 0) {
        return nb_fail(err, NB_EINPUT, "%s: %s.%s: expected a non-negative number",
                       nb_checkpoint_path(ck), f->gguf, key);
    }
    *out = (float)v;
    return NB_OK;
}

/* Llama 3 files store the divisors themselves; the parameters behind them are public constants
 * but for the factor, which is the largest divisor. */
static nb_status gguf_rope_factors(nb_config *c, const nb_checkpoint *ck, nb_error *err)
{
    const nb_tensor *t = nb_checkpoint_find(ck, NB_GGUF_ROPE_FACTORS);
    if (!t) return NB_OK;
    int64_t n = c->head_dim / 2;
    if (t->dtype != NB_F32 || t->n_dims != 1 || t->dims[0] != n) {
        return nb_fail(err, NB_EINPUT, "%s: expected %lld fp32 values", t->name, (long long)n);
    }
    float *stored = malloc((size_t)n * sizeof *stored);
    double *mine = malloc((size_t)n * sizeof *mine);
    nb_status st = NB_OK;
    if (!stored || !mine) {
        st = nb_fail_memory(err, t->name, (size_t)n * 12);
    } else {
        memcpy(stored, t->data, (size_t)n * sizeof *stored);
        c->rope_scaling = NB_ROPE_LLAMA3;
        c->rope_factor = c->rope_low_freq = 1.0f;
        c->rope_high_freq = 4.0f;
        c->rope_original_ctx = 8192;
        for (int64_t i = 0; i < n; i++) {
            if (stored[i] > c->rope_factor) c->rope_factor = stored[i];
        }
        nb_rope_divisors(c, mine);
        for (int64_t i = 0; i < n && st == NB_OK; i++) {
            if (!(fabs(stored[i] - mine[i]) <= 1e-3 * mine[i])) { /* NaN is no match either */
                st = nb_fail(err, NB_EINPUT, "%s[%lld]: %g, expected %g as Llama 3 scales", t->name,
                             (long long)i, (double)stored[i], mine[i]);
            }
        }
    }
    free(stored);
    free(mine);
    return st;
}

static nb_status gguf_rope(nb_config *c, const nb_checkpoint *ck, nb_error *err)
{
    const nb_family *f = c->family;
    NB_TRY(meta_float(ck, f, "rope.freq_base", 10000.0f, &c->rope_theta, err));
    NB_TRY(meta_float(ck, f, "rope.scaling.factor", 1.0f, &c->rope_factor, err));
    int rot;
    NB_TRY(meta_int(ck, f, "rope.dimension_count", c->head_dim, &rot, err));
    if (rot != c->head_dim) {
        return nb_fail(err, NB_EINPUT, "%s.rope.dimension_count: %d, expected the head size %d",
                       f->gguf, rot, c->head_dim);
    }
    const char *s;
    size_t n;
    const nb_meta *type = arch_meta(ck, f, "rope.scaling.type");
    if (nb_meta_string(type, &s, &n)) {
        bool linear = n == 6 && memcmp(s, "linear", 6) == 0;
        bool none = n == 4 && memcmp(s, "none", 4) == 0;
        if (!linear && !none) {
            return nb_fail(err, NB_EINPUT,
                           "%s.rope.scaling.type: \"%.*s\": expected none or linear", f->gguf,
                           n < 40 ? (int)n : 40, s);
        }
        if (linear) c->rope_scaling = NB_ROPE_LINEAR;
    }
    return gguf_rope_factors(c, ck, err);
}

static bool has_tensor(const nb_checkpoint *ck, const char *pattern, const char *suffix)
{
    char module[64], name[96];
    snprintf(module, sizeof module, pattern, 0);
    snprintf(name, sizeof name, "%s.%s", module, suffix);
    return nb_checkpoint_find(ck, name) != NULL;
}

static nb_status gguf_family(nb_config *c, const nb_checkpoint *ck, nb_error *err)
{
    const char *s;
    size_t n;
    if (!nb_meta_string(nb_checkpoint_meta(ck, "general.architecture"), &s, &n)) {
        return nb_fail(err, NB_EINPUT, "%s: general.architecture: missing", nb_checkpoint_path(ck));
    }
    char arch[64], list[200];
    snprintf(arch, sizeof arch, "%.*s", n < 63 ? (int)n : 63, s);
    c->family = nb_family_by_gguf(arch);
    if (c->family) return NB_OK;
    nb_family_list(list, sizeof list);
    return nb_fail(err, NB_EINPUT, "%s: general.architecture \"%s\": expected one of %s",
                   nb_checkpoint_path(ck), arch, list);
}

static nb_status from_gguf(nb_config *c, const nb_checkpoint *ck, nb_error *err)
{
    NB_TRY(gguf_family(c, ck, err));
    const nb_family *f = c->family;
    NB_TRY(meta_int(ck, f, "block_count", 0, &c->n_layers, err));
    NB_TRY(meta_int(ck, f, "embedding_length", 0, &c->n_embd, err));
    NB_TRY(meta_int(ck, f, "feed_forward_length", 0, &c->n_ffn, err));
    NB_TRY(meta_int(ck, f, "attention.head_count", 0, &c->n_heads, err));
    NB_TRY(meta_int(ck, f, "attention.head_count_kv", c->n_heads, &c->n_kv_heads, err));
    int head_dim = c->n_heads > 0 ? c->n_embd / c->n_heads : 0;
    NB_TRY(meta_int(ck, f, "attention.key_length", head_dim, &c->head_dim, err));
    NB_TRY(meta_int(ck, f, "context_length", 2048, &c->n_ctx, err));
    NB_TRY(meta_int(ck, f, "attention.sliding_window", 0, &c->window, err));
    NB_TRY(
        meta_float(ck, f, "attention.layer_norm_rms_epsilon", f->default_eps, &c->norm_eps, err));
    const nb_tensor *embed = nb_checkpoint_find(ck, NB_GGUF_EMBED ".weight");
    if (!embed || embed->n_dims != 2 || embed->dims[0] > MAX_DIM) {
        return nb_fail(err, NB_EINPUT, "%s: " NB_GGUF_EMBED ".weight: missing, or not a matrix",
                       nb_checkpoint_path(ck));
    }
    c->n_vocab = (int)embed->dims[0];
    c->tied = !nb_checkpoint_find(ck, NB_GGUF_HEAD ".weight");
    c->act = NB_ACT_SILU;
    c->final_norm = c->norm_affine = true;
    c->qkv_bias = has_tensor(ck, nb_gguf_linear[NB_Q], "bias");
    c->o_bias = has_tensor(ck, nb_gguf_linear[NB_O], "bias");
    c->mlp_bias = has_tensor(ck, nb_gguf_linear[NB_UP], "bias");
    return gguf_rope(c, ck, err);
}

/* ---- both ------------------------------------------------------------------------------- */

static nb_status check_widths(const nb_config *c, nb_error *err)
{
    const struct {
        const char *name;
        int64_t value;
    } widths[] = {{"hidden size", c->n_embd},
                  {"FFN width", c->n_ffn},
                  {"heads x head size", (int64_t)c->n_heads * c->head_dim}};
    for (size_t i = 0; i < NB_COUNT(widths); i++) {
        if (widths[i].value > MAX_WIDTH) {
            return nb_fail(err, NB_EINPUT, "configuration: %s %lld: expected at most %d",
                           widths[i].name, (long long)widths[i].value, MAX_WIDTH);
        }
    }
    return NB_OK;
}

nb_status nb_config_check(const nb_config *c, nb_error *err)
{
    const struct {
        const char *name;
        int value;
    } positive[] = {{"layers", c->n_layers},     {"hidden size", c->n_embd},
                    {"FFN width", c->n_ffn},     {"heads", c->n_heads},
                    {"KV heads", c->n_kv_heads}, {"head size", c->head_dim},
                    {"vocabulary", c->n_vocab},  {"context length", c->n_ctx}};
    for (size_t i = 0; i < NB_COUNT(positive); i++) {
        if (positive[i].value <= 0) {
            return nb_fail(err, NB_EINPUT, "configuration: %s missing or 0", positive[i].name);
        }
    }
    NB_TRY(check_widths(c, err));
    if (c->n_heads % c->n_kv_heads != 0) {
        return nb_fail(err, NB_EINPUT, "configuration: %d heads are no multiple of %d KV heads",
                       c->n_heads, c->n_kv_heads);
    }
    if (c->family->rotary && (c->head_dim % 2 != 0 || !(c->rope_theta > 0))) {
        return nb_fail(err, NB_EINPUT,
                       "configuration: head size %d and rotary base %g: expected an "
                       "even size and a positive base",
                       c->head_dim, (double)c->rope_theta);
    }
    if (c->rope_scaling != NB_ROPE_NONE && !(c->rope_factor >= 1)) {
        return nb_fail(err, NB_EINPUT, "configuration: rotary scaling factor %g: expected >= 1",
                       (double)c->rope_factor);
    }
    if (c->rope_scaling == NB_ROPE_LLAMA3 &&
        !(c->rope_low_freq > 0 && c->rope_high_freq > c->rope_low_freq &&
          c->rope_original_ctx > 0)) {
        return nb_fail(err, NB_EINPUT,
                       "configuration: llama3 rotary scaling: expected "
                       "0 < low_freq_factor < high_freq_factor and an original context length");
    }
    if (c->post_norm && c->final_norm) {
        return nb_fail(err, NB_EINPUT, "configuration: a post-norm model has no final norm");
    }
    return NB_OK;
}

nb_status nb_config_from_checkpoint(nb_config *out, const nb_checkpoint *c, nb_error *err)
{
    *out = (nb_config){0};
    if (nb_checkpoint_container(c) == NB_GGUF) {
        NB_TRY(from_gguf(out, c, err));
        return nb_config_check(out, err);
    }
    size_t n;
    const char *text = nb_checkpoint_config(c, &n);
    if (!text) {
        return nb_fail(err, NB_EINPUT, "%s: config.json is missing", nb_checkpoint_dir(c));
    }
    nb_status st = from_json(out, text, n, err);
    if (st == NB_OK) st = nb_config_check(out, err);
    return st == NB_OK ? st : nb_wrap(err, st, "%s", nb_checkpoint_dir(c));
}
