/* Typed access to GGUF metadata. nb_gguf_parse has checked that every value is whole. */
#include "io/meta.h"

#include <string.h>

const uint8_t nb_meta_bytes[NB_N_META_TYPES] = {
    [NB_META_U8] = 1,    [NB_META_I8] = 1,  [NB_META_U16] = 2, [NB_META_I16] = 2,
    [NB_META_U32] = 4,   [NB_META_I32] = 4, [NB_META_F32] = 4, [NB_META_BOOL] = 1,
    [NB_META_U64] = 8,   [NB_META_I64] = 8, [NB_META_F64] = 8, [NB_META_STRING] = 0,
    [NB_META_ARRAY] = 0,
};

/* The little-endian integer of nb_meta_bytes[type] bytes at p, sign-extended if the type is signed.
 * False for U64 above INT64_MAX and for types that are not integers. */
static bool read_int(nb_meta_type type, const uint8_t *p, int64_t *out)
{
    uint64_t u = 0;
    memcpy(&u, p, nb_meta_bytes[type]);
    switch (type) {
    case NB_META_U8:
    case NB_META_U16:
    case NB_META_U32:
    case NB_META_BOOL:
        *out = (int64_t)u;
        return true;
    case NB_META_U64:
        *out = (int64_t)u;
        return u <= INT64_MAX;
    case NB_META_I8:
        *out = (int8_t)u;
        return true;
    case NB_META_I16:
        *out = (int16_t)u;
        return true;
    case NB_META_I32:
        *out = (int32_t)u;
        return true;
    case NB_META_I64:
        *out = (int64_t)u;
        return true;
    case NB_META_F32:
    case NB_META_F64:
    case NB_META_STRING:
    case NB_META_ARRAY:
        break;
    }
    return false;
}

static bool read_float(nb_meta_type type, const uint8_t *p, double *out)
{
    if (type == NB_META_F64) {
        memcpy(out, p, sizeof *out);
        return true;
    }
    if (type == NB_META_F32) {
        float x;
        memcpy(&x, p, sizeof x);
        *out = (double)x;
        return true;
    }
    int64_t i;
    if (type == NB_META_BOOL || !read_int(type, p, &i)) return false;
    *out = (double)i;
    return true;
}

bool nb_meta_int(const nb_meta *m, int64_t *out) { return m && read_int(m->type, m->data, out); }

bool nb_meta_float(const nb_meta *m, double *out) { return m && read_float(m->type, m->data, out); }

bool nb_meta_bool(const nb_meta *m, bool *out)
{
    if (!m || m->type != NB_META_BOOL) return false;
    *out = m->data[0] != 0;
    return true;
}

bool nb_meta_string(const nb_meta *m, const char **s, size_t *n_bytes)
{
    if (!m || m->type != NB_META_STRING) return false;
    *s = (const char *)m->data;
    *n_bytes = m->n_bytes;
    return true;
}

/* NULL if m is no array of fixed-size elements or has no element i. */
static const uint8_t *element(const nb_meta *m, uint64_t i)
{
    if (!m || m->type != NB_META_ARRAY || nb_meta_bytes[m->elem] == 0 || i >= m->n) return NULL;
    return m->data + i * nb_meta_bytes[m->elem];
}

bool nb_meta_array_int(const nb_meta *m, uint64_t i, int64_t *out)
{
    const uint8_t *p = element(m, i);
    return p && read_int(m->elem, p, out);
}

bool nb_meta_array_float(const nb_meta *m, uint64_t i, double *out)
{
    const uint8_t *p = element(m, i);
    return p && read_float(m->elem, p, out);
}

bool nb_meta_next_string(const nb_meta *m, size_t *pos, const char **s, size_t *n_bytes)
{
    if (!m || m->type != NB_META_ARRAY || m->elem != NB_META_STRING) return false;
    if (*pos >= m->n_bytes) return false;
    uint64_t n;
    memcpy(&n, m->data + *pos, sizeof n);
    *s = (const char *)m->data + *pos + sizeof n;
    *n_bytes = (size_t)n;
    *pos += sizeof n + (size_t)n;
    return true;
}
