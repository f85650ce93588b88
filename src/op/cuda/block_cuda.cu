/* Formats with blocks: what kernels need to know of them, and rows of inputs. */
#include <string.h>

#include "op/cuda/block_cuda.h"

/* The least positive value is 2^(e_min - m_bits). */
static spec float_grid(int m_bits, int e_min, float max)
{
    spec s = {};
    s.m_bits = m_bits;
    s.e_min = e_min;
    s.span = max;
    return s;
}

/* The tables on the device, and the count, once; false: fault. */
static bool open_book(nb_backend *be)
{
    nb_cuda *c = nb_cuda_of(be);
    if (c->book && c->saturated) return true;
    dialect_book book;
    memcpy(book.round, be->host->dialect_round, sizeof book.round);
    memcpy(book.benefit, be->host->dialect_benefit, sizeof book.benefit);
    nb_error err;
    nb_status st = NB_OK;
    if (!c->book) st = nb_cuda_alloc(be, sizeof book, "dialects", &c->book, &err);
    if (st == NB_OK) {
        st = nb_cuda_alloc(be, sizeof *c->saturated, "count", (void **)&c->saturated, &err);
    }
    if (st != NB_OK) {
        nb_cuda_fail(be, st, err.message);
        return false;
    }
    cudaError_t e = cudaMemcpyAsync(c->book, &book, sizeof book, cudaMemcpyDefault, c->stream);
    if (e == cudaSuccess) e = cudaMemsetAsync(c->saturated, 0, sizeof *c->saturated, c->stream);
    if (e == cudaSuccess) e = cudaStreamSynchronize(c->stream);
    return nb_cuda_ok(be, e, "dialects");
}

static bool describe_dialect(nb_backend *be, blocks *b, const nb_format *f, nonfinite_rule rule)
{
    bool narrow = strstr(f->word, ":bd5");
    if (!open_book(be)) return false;
    b->kind = BLOCK_DIALECT;
    b->second = strstr(f->word, ":mse");
    b->se_min = narrow ? NB_DIALECT_SE_MIN_BD5 : NB_DIALECT_SE_MIN;
    b->se_max = narrow ? NB_DIALECT_SE_MAX_BD5 : NB_DIALECT_SE_MAX;
    b->book = (const dialect_book *)nb_cuda_of(be)->book;
    if (rule == NONFINITE_SATURATES) b->saturated = nb_cuda_of(be)->saturated;
    return true;
}

static void describe_mx(blocks *b, const nb_format *f)
{
    static const struct {
        const char *word;
        int m_bits, e_min;
    } types[] = {{"mxfp4", 1, 0},
                 {"mxfp6", 3, 0},
                 {"mxfp6e3m2", 2, -2},
                 {"mxfp8", 3, -6},
                 {"mxfp8e5m2", 2, -14}};
    nb_grid g = {};
    nb_qparam any = {};
    f->family->grid(f, &any, &g);
    size_t n = strcspn(f->word, ":");
    b->kind = BLOCK_MX;
    b->second = strstr(f->word, ":ceil");
    b->emax = ilogbf(g.span);
    b->whole = true;
    b->value.span = g.span;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (strlen(types[i].word) != n || strncmp(types[i].word, f->word, n) != 0) continue;
        b->value = float_grid(types[i].m_bits, types[i].e_min, g.span);
        b->whole = false;
    }
}

bool nb_cuda_describe_blocks(nb_backend *be, blocks *b, const nb_format *f, nonfinite_rule rule)
{
    memset(b, 0, sizeof *b);
    if (!is_quantized(f) || f->group <= 0) return false;
    b->group = f->group;
    b->tile = f->tile > 1 ? f->tile : 1;
    if (f->family->fit_online) return describe_dialect(be, b, f, rule);
    if (strcmp(f->family->name, "mx") == 0) {
        describe_mx(b, f);
        return true;
    }
    if (strcmp(f->family->name, "nvfp4") != 0) return false;
    b->kind = BLOCK_NVFP4;
    b->second = strstr(f->word, ":46");
    b->value = float_grid(1, 0, 6);
    b->scale = float_grid(3, -6, 448);
    return true;
}

void nb_cuda_round_blocks(nb_backend *be, const blocks *b, mat to, mat from, int64_t rows,
                          int64_t cols)
{
    int64_t tile = b->tile;
    each_record(be, b, (rows + tile - 1) / tile, [=] __device__(const blocks &s, int64_t i) {
        int64_t first = i * tile, n = rows - first < tile ? rows - first : tile;
        auto load = [=](int64_t r, int64_t c) { return from.at(first + r, c); };
        auto store = [=](int64_t r, int64_t c, float y) { to.at(first + r, c) = y; };
        round_record(s, n, cols, load, store);
    });
}
