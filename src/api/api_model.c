/* Public: models, text, quality figures. */
#include "api/api_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval/eval.h"
#include "model/family.h"

#define NB_VERSION "0.1.0"

const char *nb_version(void) { return NB_VERSION; }

void nb_free(void *p) { free(p); }

void nb_options_default(nb_options *o)
{
    *o = (nb_options){.device = "cpu", .compute = NB_COMPUTE_F32, .cpumask = ~0u};
}

/* ---- life ------------------------------------------------------------------------------- */

static nb_status parse_kv(const char *word, nb_format *out, nb_error *err)
{
    NB_TRY(nb_format_parse(out, word, err));
    if (!out->family || out->family->uses(out) & NB_FOR_KV) return NB_OK;
    return nb_fail(err, NB_EUSAGE, "format \"%s\": not one of a KV cache", out->word);
}

static nb_status open_parts(nb_model *m, const char *path, nb_error *err)
{
    NB_TRY(nb_source_open(&m->source, path, err));
    NB_TRY(nb_source_tokenizer(m->source, &m->tokenizer, err));
    NB_TRY(nb_backend_create(&m->backend, &m->opt, err));
    if (m->opt.kv) NB_TRY(parse_kv(m->opt.kv, &m->kv, err));
    return nb_net_create(&m->net, m->backend, m->source, m->opt.simulate, m->opt.kv ? &m->kv : NULL,
                         err);
}

nb_status nb_model_open(nb_model **out, const char *path, const nb_options *opt, nb_error *err)
{
    *out = NULL;
    nb_model *m = calloc(1, sizeof *m);
    if (!m) return nb_fail_memory(err, "model", sizeof *m);
    m->opt = *opt;
    nb_status st = open_parts(m, path, err);
    if (st != NB_OK) {
        nb_model_close(m);
        return st;
    }
    *out = m;
    return NB_OK;
}

void nb_model_close(nb_model *m)
{
    if (!m) return;
    nb_net_free(m->net);
    nb_backend_free(m->backend);
    nb_tokenizer_free(m->tokenizer);
    nb_source_close(m->source);
    free(m);
}

static int64_t count_params(const nb_config *c)
{
    int64_t q = (int64_t)c->n_heads * c->head_dim, kv = (int64_t)c->n_kv_heads * c->head_dim;
    int64_t ffn = c->family->linear[NB_GATE] ? 3 : 2;
    int64_t block = c->n_embd * (2 * q + 2 * kv + ffn * c->n_ffn);
    int64_t width = c->embd_proj ? c->embd_proj : c->n_embd;
    return block * c->n_layers + width * c->n_vocab * (c->tied ? 1 : 2);
}

/* The words are those of `attn`. */
static void describe_kv(const nb_config *c, const nb_attn_formats *attn, nb_model_info *out)
{
    nb_kv_desc d = {.n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim, .formats = *attn};
    size_t n = 2 * (size_t)c->n_layers * (size_t)c->n_kv_heads * (size_t)c->head_dim;
    out->kv_keys = attn->k.family ? attn->k.word : "f32";
    out->kv_values = attn->v.family ? attn->v.word : "f32";
    out->kv_bytes_per_token = (size_t)ceil(c->n_layers * nb_kv_token_bytes(&d));
    out->kv_bytes_per_token_f16 = n * 2;
}

void nb_describe_source(const nb_source *s, nb_model_info *out)
{
    const nb_config *c = nb_source_config(s);
    *out = (nb_model_info){
        .family = c->family->name,
        .rope = !c->family->rotary    ? NULL
                : c->rope_interleaved ? "interleaved"
                                      : "half",
        .n_layers = c->n_layers,
        .n_embd = c->n_embd,
        .n_ffn = c->n_ffn,
        .n_heads = c->n_heads,
        .n_kv_heads = c->n_kv_heads,
        .head_dim = c->head_dim,
        .n_vocab = c->n_vocab,
        .n_ctx = c->n_ctx,
        .n_params = count_params(c),
    };
    describe_kv(c, nb_source_attn(s), out);
    nb_rotation rotation = nb_source_rotation(s);
    out->hadamard_down = rotation.down;
    out->hadamard_qk = rotation.qk;
    out->hadamard_stream = rotation.stream;
}

void nb_model_describe(const nb_model *m, nb_model_info *out)
{
    nb_describe_source(m->source, out);
    describe_kv(nb_source_config(m->source), &m->net->attn, out);
    out->weight_bytes = m->net->weight_bytes;
    out->has_tokenizer = m->tokenizer != NULL;
}

/* ---- text ------------------------------------------------------------------------------- */

static nb_status need_tokenizer(const nb_model *m, nb_error *err)
{
    if (m->tokenizer) return NB_OK;
    return nb_fail(err, NB_EUSAGE, "%s: no tokenizer.json or tokenizer.model: only token ids work",
                   nb_checkpoint_path(nb_source_checkpoint(m->source)));
}

nb_status nb_tokenize(const nb_model *m, const char *text, size_t n_bytes, bool bos, bool special,
                      int32_t **tokens, size_t *n_tokens, nb_error *err)
{
    *tokens = NULL;
    *n_tokens = 0;
    NB_TRY(need_tokenizer(m, err));
    unsigned flags = (bos ? NB_ENCODE_BOS : 0) | (special ? NB_ENCODE_SPECIAL : 0);
    return nb_tokenizer_encode(m->tokenizer, text, n_bytes, flags, tokens, n_tokens, err);
}

nb_status nb_detokenize(const nb_model *m, const int32_t *tokens, size_t n_tokens, bool special,
                        char **text, size_t *n_bytes, nb_error *err)
{
    *text = NULL;
    *n_bytes = 0;
    NB_TRY(need_tokenizer(m, err));
    nb_strbuf b;
    nb_strbuf_init(&b, (size_t)1 << 30);
    nb_status st = nb_tokenizer_decode(m->tokenizer, tokens, n_tokens, !special, &b, err);
    if (st == NB_OK) return nb_strbuf_take(&b, text, n_bytes, err);
    nb_strbuf_fini(&b);
    return st;
}

/* ---- quality ---------------------------------------------------------------------------- */

void nb_eval_options_default(nb_eval_options *o) { *o = (nb_eval_options){.ctx = 2048}; }

static nb_watch watch_of(const nb_model *m)
{
    return (nb_watch){m->opt.progress, m->opt.progress_user};
}

nb_status nb_perplexity(nb_model *m, const int32_t *tokens, size_t n_tokens,
                        const nb_eval_options *opt, nb_perplexity_result *out, nb_error *err)
{
    return nb_eval_perplexity(m->net, tokens, n_tokens, opt, watch_of(m), out, err);
}

nb_status nb_compare(nb_model *const *models, size_t n_models, nb_model *reference,
                     const int32_t *tokens, size_t n_tokens, const nb_eval_options *opt,
                     nb_compare_result *out, nb_error *err)
{
    if (n_models == 0) return nb_fail(err, NB_EUSAGE, "compare: no model to compare");
    const nb_net **nets = calloc(n_models, sizeof *nets);
    if (!nets) return nb_fail_memory(err, "models", n_models * sizeof *nets);
    for (size_t i = 0; i < n_models; i++) nets[i] = models[i]->net;
    nb_status st = nb_eval_compare(nets, n_models, reference->net, tokens, n_tokens, opt,
                                   watch_of(models[0]), out, err);
    free(nets);
    return st;
}

nb_status nb_logits(nb_model *m, const int32_t *tokens, size_t n_tokens, float *out, nb_error *err)
{
    return nb_eval_logits(m->net, tokens, (int64_t)n_tokens, out, err);
}
