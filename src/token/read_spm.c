/* tokenizer.model: the protobuf message ModelProto of SentencePiece (sentencepiece_model.proto),
 * as far as ids depend on it. Wire format: https://protobuf.dev/programming-guides/encoding/ */
#include <stdlib.h>
#include <string.h>

#include "token/read_json.h"

/* ---- protobuf ----------------------------------------------------------------------------- */

typedef struct message {
    const uint8_t *data;
    size_t n, pos;
} message;

typedef struct field {
    uint64_t number;
    int wire;       /* 0: varint, 1: 64 bits, 2: bytes, 5: 32 bits */
    uint64_t value; /* 0, 1, 5 */
    message bytes;  /* 2 */
} field;

static nb_status fail_at(const message *m, const char *what, nb_error *err)
{
    return nb_fail(err, NB_EINPUT, "tokenizer.model: %s at offset %zu of a message of %zu bytes",
                   what, m->pos, m->n);
}

static nb_status read_varint(message *m, uint64_t *out, nb_error *err)
{
    *out = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        if (m->pos == m->n) return fail_at(m, "truncated number", err);
        uint8_t b = m->data[m->pos++];
        *out |= (uint64_t)(b & 0x7f) << shift;
        if (!(b & 0x80)) return NB_OK;
    }
    return fail_at(m, "number of more than 64 bits", err);
}

static nb_status read_fixed(message *m, size_t n, uint64_t *out, nb_error *err)
{
    *out = 0;
    if (m->n - m->pos < n) return fail_at(m, "truncated number", err);
    for (size_t i = 0; i < n; i++) *out |= (uint64_t)m->data[m->pos + i] << (8 * i);
    m->pos += n;
    return NB_OK;
}

static nb_status read_field(message *m, field *f, nb_error *err)
{
    uint64_t key, n;
    *f = (field){0};
    NB_TRY(read_varint(m, &key, err));
    f->number = key >> 3;
    f->wire = (int)(key & 7);
    switch (f->wire) {
    case 0:
        return read_varint(m, &f->value, err);
    case 1:
        return read_fixed(m, 8, &f->value, err);
    case 5:
        return read_fixed(m, 4, &f->value, err);
    case 2:
        break;
    default:
        return fail_at(m, "unknown wire type", err);
    }
    NB_TRY(read_varint(m, &n, err));
    if (n > m->n - m->pos) return fail_at(m, "truncated field", err);
    f->bytes = (message){.data = m->data + m->pos, .n = (size_t)n};
    m->pos += (size_t)n;
    return NB_OK;
}

/* ---- ModelProto --------------------------------------------------------------------------- */

enum { PIECES = 1, TRAINER_SPEC = 2, NORMALIZER_SPEC = 3 };
enum { PIECE = 1, SCORE = 2, TYPE = 3 };
enum { MODEL_TYPE = 3, WHITESPACE_AS_SUFFIX = 24, UNK_ID = 40, BOS_ID = 41, EOS_ID = 42 };
enum { CHARSMAP = 2, ADD_DUMMY_PREFIX = 3, REMOVE_EXTRA_WHITESPACES = 4, ESCAPE_WHITESPACES = 5 };
enum { MODEL_TYPE_BPE = 2 };

typedef struct model {
    size_t n_pieces, n_read;
    float *scores;  /* [n_pieces] */
    uint8_t *types; /* [n_pieces] */
    uint64_t type;
    int32_t unk, bos, eos;
    bool as_suffix, prefix, squeeze, escape;
    size_t n_charsmap;
} model;

static nb_status read_piece(nb_tokenizer *t, model *x, message m, nb_error *err)
{
    nb_text text = {"", 0};
    uint8_t type = NB_TOKEN_NORMAL;
    float score = 0;
    while (m.pos < m.n) {
        field f;
        NB_TRY(read_field(&m, &f, err));
        if (f.number == PIECE && f.wire == 2) {
            text = (nb_text){(const char *)f.bytes.data, f.bytes.n};
        } else if (f.number == SCORE && f.wire == 5) {
            uint32_t bits = (uint32_t)f.value;
            memcpy(&score, &bits, sizeof score);
        } else if (f.number == TYPE && f.wire == 0) {
            if (f.value < NB_TOKEN_NORMAL || f.value > NB_TOKEN_BYTE) {
                return fail_at(&m, "unknown type of a piece", err);
            }
            type = (uint8_t)f.value;
        }
    }
    x->scores[x->n_read] = score;
    x->types[x->n_read] = type;
    return nb_table_set(&t->bpe.tokens, (int32_t)x->n_read++, text, err);
}

static nb_status read_trainer(model *x, message m, nb_error *err)
{
    while (m.pos < m.n) {
        field f;
        NB_TRY(read_field(&m, &f, err));
        if (f.wire != 0) continue;
        switch (f.number) {
        case MODEL_TYPE:
            x->type = f.value;
            break;
        case WHITESPACE_AS_SUFFIX:
            x->as_suffix = f.value != 0;
            break;
        case UNK_ID:
            x->unk = (int32_t)f.value;
            break;
        case BOS_ID:
            x->bos = (int32_t)f.value;
            break;
        case EOS_ID:
            x->eos = (int32_t)f.value;
            break;
        default:
            break;
        }
    }
    return NB_OK;
}

static nb_status read_normalizer(model *x, message m, nb_error *err)
{
    while (m.pos < m.n) {
        field f;
        NB_TRY(read_field(&m, &f, err));
        switch (f.number) {
        case CHARSMAP:
            x->n_charsmap = f.bytes.n;
            break;
        case ADD_DUMMY_PREFIX:
            x->prefix = f.value != 0;
            break;
        case REMOVE_EXTRA_WHITESPACES:
            x->squeeze = f.value != 0;
            break;
        case ESCAPE_WHITESPACES:
            x->escape = f.value != 0;
            break;
        default:
            break;
        }
    }
    return NB_OK;
}

/* Everything but the pieces, which are counted. */
static nb_status read_specs(model *x, message m, nb_error *err)
{
    *x = (model){.type = 1, .bos = 1, .eos = 2, .prefix = true, .squeeze = true, .escape = true};
    while (m.pos < m.n) {
        field f;
        NB_TRY(read_field(&m, &f, err));
        if (f.wire != 2) continue;
        x->n_pieces += f.number == PIECES;
        if (f.number == TRAINER_SPEC) NB_TRY(read_trainer(x, f.bytes, err));
        if (f.number == NORMALIZER_SPEC) NB_TRY(read_normalizer(x, f.bytes, err));
    }
    return NB_OK;
}

static nb_status check_specs(const model *x, nb_error *err)
{
    static const char *const types[] = {"?", "unigram", "BPE", "word", "char"};
    if (x->n_pieces == 0) return nb_fail(err, NB_EINPUT, "tokenizer.model: no pieces");
    if (x->type != MODEL_TYPE_BPE) {
        return nb_fail(err, NB_EINPUT,
                       "tokenizer.model: a model of kind %s is not supported (only BPE is)",
                       types[x->type < NB_COUNT(types) ? x->type : 0]);
    }
    if (x->n_charsmap) {
        return nb_fail(err, NB_EINPUT,
                       "tokenizer.model: a normalizer with a character map (%zu bytes) is not "
                       "supported (only \"identity\" is)",
                       x->n_charsmap);
    }
    if (x->as_suffix || !x->escape) {
        return nb_fail(err, NB_EINPUT,
                       "tokenizer.model: white space as a suffix or unescaped is not supported");
    }
    return NB_OK;
}

static nb_status read_pieces(nb_tokenizer *t, model *x, message m, nb_error *err)
{
    NB_TRY(nb_table_init(&t->bpe.tokens, t->arena, x->n_pieces, err));
    x->scores = nb_arena_alloc(t->arena, x->n_pieces, sizeof *x->scores);
    x->types = nb_arena_alloc(t->arena, x->n_pieces, sizeof *x->types);
    if (!x->scores || !x->types) return nb_fail_memory(err, "vocabulary", x->n_pieces * 5);
    while (m.pos < m.n) {
        field f;
        NB_TRY(read_field(&m, &f, err));
        if (f.number == PIECES && f.wire == 2) NB_TRY(read_piece(t, x, f.bytes, err));
    }
    return NB_OK;
}

/* Settings that transformers keeps outside the model, with Llama's defaults. */
typedef struct settings {
    bool add_bos, add_eos, legacy;
} settings;

static nb_status read_settings(settings *s, const char *config, size_t n_config, nb_error *err)
{
    *s = (settings){.add_bos = true, .legacy = true};
    if (!config) return NB_OK;
    json_t *root;
    NB_TRY(nb_json_load(&root, "tokenizer_config.json", config, n_config, err));
    nb_status st = nb_json_bool(root, "add_bos_token", true, &s->add_bos, err);
    if (st == NB_OK) st = nb_json_bool(root, "add_eos_token", false, &s->add_eos, err);
    if (st == NB_OK) st = nb_json_bool(root, "legacy", true, &s->legacy, err);
    json_decref(root);
    return nb_wrap(err, st, "tokenizer_config.json");
}

static int32_t valid_id(const nb_tokenizer *t, int32_t id)
{
    return id >= 0 && (size_t)id < t->bpe.tokens.n ? id : -1;
}

static nb_status read_all(nb_tokenizer *t, message m, const char *config, size_t n_config,
                          nb_error *err)
{
    model x;
    settings s;
    NB_TRY(read_specs(&x, m, err));
    NB_TRY(check_specs(&x, err));
    NB_TRY(read_settings(&s, config, n_config, err));
    NB_TRY(nb_wrap(err, read_pieces(t, &x, m, err), "tokenizer.model"));
    t->bos = valid_id(t, x.bos);
    t->eos = valid_id(t, x.eos);
    t->bpe.unk = valid_id(t, x.unk);
    NB_TRY(nb_tokenizer_set_spm(t, x.scores, x.types, x.prefix, x.squeeze, s.legacy, err));
    NB_TRY(nb_tokenizer_read_config(t, config, n_config, err));
    if (s.add_bos && t->bos >= 0) t->before[t->n_before++] = t->bos;
    if (s.add_eos && t->eos >= 0) t->after[t->n_after++] = t->eos;
    return NB_OK;
}

nb_status nb_tokenizer_from_spm(nb_tokenizer **out, const void *data, size_t n_bytes,
                                const char *config, size_t n_config, nb_error *err)
{
    *out = NULL;
    nb_tokenizer *t;
    NB_TRY(nb_tokenizer_create(&t, err));
    message m = {.data = data, .n = n_bytes};
    nb_status st = read_all(t, m, config, n_config, err);
    if (st == NB_OK) st = nb_tokenizer_finish(t, err);
    if (st != NB_OK)
        nb_tokenizer_free(t);
    else
        *out = t;
    return st;
}
