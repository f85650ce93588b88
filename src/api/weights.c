#include "api/weights.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

typedef struct list {
    nb_weight *items;
    size_t n, capacity;
    const nb_source *s;
    nb_arena *arena;
    nb_error *err;
} list;

/* "layers.2" before "layers.10". */
static int compare_natural(const char *a, const char *b)
{
    while (*a && *b) {
        if (isdigit((unsigned char)*a) && isdigit((unsigned char)*b)) {
            char *ea, *eb;
            unsigned long long x = strtoull(a, &ea, 10), y = strtoull(b, &eb, 10);
            if (x != y) return x < y ? -1 : 1;
            a = ea;
            b = eb;
        } else if (*a != *b) {
            return (unsigned char)*a < (unsigned char)*b ? -1 : 1;
        } else {
            a++;
            b++;
        }
    }
    return (*a != 0) - (*b != 0);
}

static int by_name(const void *a, const void *b)
{
    return compare_natural(((const nb_weight *)a)->name, ((const nb_weight *)b)->name);
}

static nb_status add_matrix(list *l, const char *module, const char *tail, const nb_matrix *m,
                            bool in_block)
{
    char *name = nb_arena_printf(l->arena, "%s.weight%s", module, tail);
    if (!name || l->n == l->capacity) return nb_fail_memory(l->err, "list of weights", l->n);
    l->items[l->n++] = (nb_weight){.name = name,
                                   .n_dims = 2,
                                   .dims = {m->n_out, m->n_in},
                                   .m = *m,
                                   .packed = true,
                                   .in_block = in_block,
                                   .factor = *tail != 0};
    return NB_OK;
}

static nb_status add_packed(list *l, const nb_host_linear *h, bool in_block)
{
    if (!h->name || !nb_format_is_quantized(&h->w.format)) return NB_OK;
    NB_TRY(add_matrix(l, h->name, "", &h->w, in_block));
    if (h->lorc.rank == 0) return NB_OK;
    NB_TRY(add_matrix(l, h->name, ".lorc_a", &h->lorc.a, in_block));
    return add_matrix(l, h->name, ".lorc_b", &h->lorc.b, in_block);
}

static nb_status add_all_packed(list *l)
{
    nb_host_ends e;
    NB_TRY(nb_source_ends(l->s, l->arena, &e, l->err));
    const nb_host_linear *ends[] = {&e.embed, &e.positions, &e.proj_in, &e.proj_out, &e.head};
    for (size_t i = 0; i < NB_COUNT(ends); i++) NB_TRY(add_packed(l, ends[i], false));
    for (int i = 0; i < nb_source_config(l->s)->n_layers; i++) {
        nb_host_block b;
        NB_TRY(nb_source_block(l->s, i, l->arena, &b, l->err));
        for (int r = 0; r < NB_N_ROLES; r++) NB_TRY(add_packed(l, &b.linear[r], true));
    }
    return NB_OK;
}

/* "MODULE.weight.PLANE" of a packed module, or "MODULE.weight.lorc_a.PLANE". */
static bool is_plane(const nb_source *s, const char *name)
{
    static const char tail[] = ".weight.";
    char module[256];
    const char *end = strstr(name, tail);
    size_t n = end ? (size_t)(end - name) : sizeof module;
    if (n >= sizeof module) return false;
    memcpy(module, name, n);
    module[n] = 0;
    return nb_source_format(s, module).family != NULL;
}

static void add_plain(list *l, const nb_tensor *t)
{
    nb_weight *w = &l->items[l->n++];
    *w = (nb_weight){.name = t->name, .n_dims = t->n_dims, .dtype = t->dtype};
    memcpy(w->dims, t->dims, sizeof w->dims);
    const nb_dtype_info *d = &nb_dtypes[t->dtype];
    w->m.n_out = 1;
    for (int i = 0; i + 1 < t->n_dims; i++) w->m.n_out *= t->dims[i];
    w->m.n_in = t->n_dims > 0 ? t->dims[t->n_dims - 1] : 1;
    if (!d->decode || w->m.n_in % d->block_elems != 0) return;
    w->m.format = nb_format_plain(t->dtype);
    w->m.plane[0] = t->data;
}

nb_status nb_weights_list(nb_weight **out, size_t *n, const nb_source *s, nb_arena *arena,
                          nb_error *err)
{
    const nb_checkpoint *c = nb_source_checkpoint(s);
    list l = {.capacity = nb_checkpoint_count(c), .s = s, .arena = arena, .err = err};
    l.items = nb_arena_alloc(arena, l.capacity, sizeof *l.items);
    if (!l.items) return nb_fail_memory(err, "list of weights", l.capacity * sizeof *l.items);
    if (nb_source_is_quantized(s)) NB_TRY(add_all_packed(&l));
    for (size_t i = 0; i < l.capacity; i++) {
        const nb_tensor *t = nb_checkpoint_at(c, i);
        if (is_plane(s, t->name)) continue;
        if (l.n == l.capacity) return nb_fail(err, NB_EINPUT, "%s: planes are missing", t->name);
        add_plain(&l, t);
    }
    qsort(l.items, l.n, sizeof *l.items, by_name);
    *out = l.items;
    *n = l.n;
    return NB_OK;
}
