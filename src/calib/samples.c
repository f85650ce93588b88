#include "calib/samples.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/rng.h"
#include "base/strbuf.h"

#define TEXT_MAX_BYTES ((size_t)1 << 30)

static nb_status join_texts(const nb_quantize_options *opt, char **text, size_t *n_bytes,
                            nb_error *err)
{
    nb_strbuf b;
    nb_strbuf_init(&b, TEXT_MAX_BYTES);
    for (size_t i = 0; i < opt->n_calib; i++) {
        char *one;
        size_t n;
        nb_status st = nb_read_file(opt->calib[i], TEXT_MAX_BYTES, &one, &n, err);
        if (st != NB_OK) {
            nb_strbuf_fini(&b);
            return st;
        }
        if (i > 0) nb_strbuf_puts(&b, "\n\n");
        nb_strbuf_append(&b, one, n);
        free(one);
    }
    return nb_strbuf_take(&b, text, n_bytes, err);
}

static nb_status tokenize(const nb_source *source, const char *text, size_t n_bytes, int32_t **ids,
                          size_t *n_ids, nb_error *err)
{
    nb_tokenizer *t;
    NB_TRY(nb_source_tokenizer(source, &t, err));
    if (!t)
        return nb_fail(err, NB_EUSAGE, "calibration text needs a tokenizer; the model has none");
    /* BOS once, at the very start, as tokenizers do when they are given the whole text. */
    nb_status st = nb_tokenizer_encode(t, text, n_bytes, NB_ENCODE_BOS, ids, n_ids, err);
    nb_tokenizer_free(t);
    return st == NB_OK ? NB_OK : nb_wrap(err, st, "calibration text");
}

static nb_status draw(nb_samples *s, const nb_recipe *recipe, const int32_t *ids, size_t n_ids,
                      nb_error *err)
{
    size_t seqlen = (size_t)recipe->seqlen, n = (size_t)recipe->samples;
    if (n_ids <= seqlen || n_ids >= UINT32_MAX) {
        return nb_fail(err, NB_EUSAGE,
                       "calibration text: %zu tokens, expected more than a window of %zu", n_ids,
                       seqlen);
    }
    s->ids = malloc(n * seqlen * sizeof *s->ids);
    if (!s->ids) return nb_fail_memory(err, "calibration windows", n * seqlen * sizeof *s->ids);
    nb_mt19937 rng;
    nb_mt19937_seed(&rng, (uint32_t)recipe->seed);
    for (size_t i = 0; i < n; i++) {
        size_t start = nb_mt19937_below(&rng, (uint32_t)(n_ids - seqlen));
        memcpy(s->ids + i * seqlen, ids + start, seqlen * sizeof *ids);
    }
    s->n = recipe->samples;
    s->seqlen = recipe->seqlen;
    s->n_tokens = (int64_t)n_ids;
    return NB_OK;
}

nb_status nb_samples_load(nb_samples *s, const nb_source *source, const nb_recipe *recipe,
                          const nb_quantize_options *opt, nb_error *err)
{
    *s = (nb_samples){0};
    if (opt->n_calib == 0) return NB_OK;
    char *text = NULL;
    int32_t *ids = NULL;
    size_t n_bytes, n_ids;
    nb_status st;
    NB_GOTO(st, join_texts(opt, &text, &n_bytes, err));
    nb_hash(s->hash, text, n_bytes);
    NB_GOTO(st, tokenize(source, text, n_bytes, &ids, &n_ids, err));
    NB_GOTO(st, draw(s, recipe, ids, n_ids, err));
done:
    free(text);
    free(ids);
    return st;
}

void nb_samples_fini(nb_samples *s)
{
    free(s->ids);
    *s = (nb_samples){0};
}
