/* Public: text generation. */
#include <stdlib.h>
#include <string.h>

#include "api/api_model.h"
#include "base/clock.h"
#include "run/session.h"

void nb_generate_options_default(nb_generate_options *o)
{
    *o = (nb_generate_options){
        .n_predict = 128, .temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f};
}

typedef struct run {
    nb_model *m;
    const nb_generate_options *opt;
    nb_session *session;
    nb_sampler sampler;
    nb_stream stream;
    nb_strbuf piece;
    nb_text_fn on_text;
    void *user;
    nb_generate_result *out;
    nb_error *err;
} run;

static nb_status check(const nb_model *m, const nb_generate_options *o, nb_error *err)
{
    if (!m->tokenizer) return nb_fail(err, NB_EUSAGE, "generate: the model has no tokenizer");
    if (o->n_predict < 0)
        return nb_fail(err, NB_EUSAGE, "n_predict %d: expected >= 0", o->n_predict);
    if (!(o->temperature >= 0)) {
        return nb_fail(err, NB_EUSAGE, "temperature %g: expected >= 0", (double)o->temperature);
    }
    if (!(o->top_p > 0 && o->top_p <= 1)) {
        return nb_fail(err, NB_EUSAGE, "top_p %g: expected > 0 and <= 1", (double)o->top_p);
    }
    if (!(o->min_p >= 0 && o->min_p < 1)) {
        return nb_fail(err, NB_EUSAGE, "min_p %g: expected >= 0 and < 1", (double)o->min_p);
    }
    return NB_OK;
}

/* The prompt's ids: plain text, or one user message in the model's chat template. */
static nb_status prompt_ids(run *r, const char *prompt, size_t n_bytes, int32_t **ids, size_t *n)
{
    nb_tokenizer *t = r->m->tokenizer;
    if (!r->opt->chat) {
        return nb_tokenizer_encode(t, prompt, n_bytes, NB_ENCODE_BOS | NB_ENCODE_SPECIAL, ids, n,
                                   r->err);
    }
    char *content = strndup(prompt, n_bytes), *text = NULL;
    if (!content) return nb_fail_memory(r->err, "prompt", n_bytes);
    nb_strbuf b;
    nb_strbuf_init(&b, (size_t)1 << 30);
    nb_message message = {.role = "user", .content = content};
    size_t n_text;
    nb_status st = nb_tokenizer_chat(t, &message, 1, &b, r->err);
    if (st == NB_OK) st = nb_strbuf_take(&b, &text, &n_text, r->err);
    if (st == NB_OK) st = nb_tokenizer_encode(t, text, n_text, NB_ENCODE_SPECIAL, ids, n, r->err);
    nb_strbuf_fini(&b);
    free(text);
    free(content);
    return st;
}

/* Hands what is known of the text to the caller; false: it wants no more. */
static nb_status flush(run *r, bool *go_on)
{
    *go_on = true;
    if (r->piece.failed) return nb_fail_memory(r->err, "generated text", r->piece.n_bytes);
    if (r->piece.n_bytes && r->on_text) {
        *go_on = r->on_text(r->user, r->piece.data, r->piece.n_bytes);
    }
    r->piece.n_bytes = 0;
    return NB_OK;
}

static nb_status decode(run *r, const float *logits)
{
    double start = nb_now();
    int32_t n_vocab = r->m->net->cfg.n_vocab;
    bool go_on = true;
    for (int i = 0; i < r->opt->n_predict && go_on; i++) {
        int32_t id;
        NB_TRY(nb_sampler_pick(&r->sampler, logits, n_vocab, &id, r->err));
        if (nb_tokenizer_is_end(r->m->tokenizer, id) && !r->opt->ignore_eos) break;
        NB_TRY(nb_tokenizer_stream(r->m->tokenizer, &r->stream, id, &r->piece, r->err));
        r->out->tokens++;
        NB_TRY(flush(r, &go_on));
        if (i + 1 < r->opt->n_predict && go_on) {
            NB_TRY(nb_session_append(r->session, &id, 1, &logits, r->err));
        }
    }
    double seconds = nb_now() - start;
    if (r->out->tokens > 0) r->out->decode_tokens_per_second = (double)r->out->tokens / seconds;
    if (!go_on) return NB_OK;
    nb_tokenizer_stream_end(&r->stream, &r->piece);
    return flush(r, &go_on);
}

static nb_status prompt_and_decode(run *r, const int32_t *ids, size_t n)
{
    int64_t need = (int64_t)n + r->opt->n_predict;
    if (n == 0) return nb_fail(r->err, NB_EUSAGE, "the prompt has no tokens");
    if (r->opt->n_ctx > 0 && need > r->opt->n_ctx) {
        return nb_fail(r->err, NB_EUSAGE,
                       "%zu prompt tokens and %d to generate: more than the "
                       "context of %d",
                       n, r->opt->n_predict, r->opt->n_ctx);
    }
    NB_TRY(nb_session_create(&r->session, r->m->net, r->opt->n_ctx > 0 ? r->opt->n_ctx : need,
                             r->err));
    const float *logits;
    double start = nb_now();
    NB_TRY(nb_session_append(r->session, ids, (int64_t)n, &logits, r->err));
    r->out->prompt_tokens = (int64_t)n;
    r->out->prompt_tokens_per_second = (double)n / (nb_now() - start);
    NB_TRY(decode(r, logits));
    nb_model_info info;
    nb_model_describe(r->m, &info);
    r->out->kv_bytes = nb_session_kv_bytes(r->session);
    r->out->kv_bytes_per_token = info.kv_bytes_per_token;
    return NB_OK;
}

nb_status nb_generate(nb_model *m, const char *prompt, size_t n_bytes,
                      const nb_generate_options *opt, nb_text_fn on_text, void *user,
                      nb_generate_result *out, nb_error *err)
{
    *out = (nb_generate_result){0};
    NB_TRY(check(m, opt, err));
    run r = {.m = m, .opt = opt, .on_text = on_text, .user = user, .out = out, .err = err};
    r.sampler = (nb_sampler){opt->temperature, opt->top_k, opt->top_p, opt->min_p, {opt->seed}};
    nb_strbuf_init(&r.piece, (size_t)1 << 20);
    int32_t *ids = NULL;
    size_t n;
    nb_status st = prompt_ids(&r, prompt, n_bytes, &ids, &n);
    if (st == NB_OK) st = prompt_and_decode(&r, ids, n);
    nb_session_free(r.session);
    nb_strbuf_fini(&r.piece);
    free(ids);
    return st;
}
