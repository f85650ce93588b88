#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "printer.h"
#include "progress.h"

static const cli_option options[] = {
    {"tensor", 0, CLI_STRING, offsetof(cli_args, tensor), 0, "NAME",
     "distribution of one tensor's values"},
    {"dialects", 0, CLI_FLAG, offsetof(cli_args, dialects), 0, NULL,
     "how often blocks use each of the 16 dialects"},
    {0},
};

static json_t *counts_json(const int64_t *count, int n)
{
    json_t *list = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(list, json_integer(count[i]));
    return list;
}

static int name_width(const nb_inspection *in)
{
    size_t width = 6;
    for (size_t i = 0; i < in->n_tensors; i++) {
        size_t n = strlen(in->tensors[i].name);
        if (n > width) width = n;
    }
    return (int)width;
}

/* ---- the whole model -------------------------------------------------------------------- */

static void print_config(const nb_model_info *m, cli_printer *r)
{
    cli_print_text(r, "family", "family", m->family);
    cli_print_int(r, "layers", "layers", m->n_layers);
    cli_print_int(r, "hidden", "hidden size", m->n_embd);
    cli_print_int(r, "ffn", "feed-forward size", m->n_ffn);
    cli_print_int(r, "heads", "heads", m->n_heads);
    cli_print_int(r, "kv_heads", "key/value heads", m->n_kv_heads);
    cli_print_int(r, "head_dim", "head size", m->head_dim);
    cli_print_text(r, "rope", "rotary pairs", m->rope);
    cli_print_int(r, "vocab", "vocabulary", m->n_vocab);
    cli_print_int(r, "ctx", "context", m->n_ctx);
    cli_print_int(r, "parameters", "parameters", m->n_params);
    cli_print_text(r, "kv_keys", "keys in the KV cache", m->kv_keys);
    cli_print_text(r, "kv_values", "values in the KV cache", m->kv_values);
    cli_print_bytes(r, "kv_bytes_per_token", "KV cache per token", (int64_t)m->kv_bytes_per_token);
    cli_print_bytes(r, "kv_bytes_per_token_f16", "  in fp16", (int64_t)m->kv_bytes_per_token_f16);
    cli_print_int(r, "hadamard_down", "Hadamard before down, channels", m->hadamard_down);
    cli_print_int(r, "hadamard_qk", "Hadamard on q and k, channels", m->hadamard_qk);
    cli_print_int(r, "hadamard_stream", "Hadamard on the hidden state, channels",
                  m->hadamard_stream);
    cli_print_bool(r, "tokenizer", "tokenizer", m->has_tokenizer);
}

static json_t *tensor_json(const nb_tensor_desc *t)
{
    json_t *shape = json_array();
    for (int i = 0; i < t->n_dims; i++) json_array_append_new(shape, json_integer(t->dims[i]));
    return json_pack("{s:s, s:s, s:o, s:I, s:f, s:b}", "name", t->name, "format", t->format,
                     "shape", shape, "bytes", (json_int_t)t->bytes, "bits_per_weight",
                     t->bits_per_weight, "quantized", (int)t->quantized);
}

static void format_shape(const nb_tensor_desc *t, char *out, size_t n)
{
    size_t used = 0;
    out[0] = 0;
    for (int i = 0; i < t->n_dims && used < n; i++) {
        used +=
            (size_t)snprintf(out + used, n - used, "%s%lld", i ? " x " : "", (long long)t->dims[i]);
    }
}

static void print_tensor_table(const nb_inspection *in)
{
    int width = name_width(in);
    printf("\n%-*s  %-16s  %-20s  %12s  %6s\n", width, "tensor", "format", "shape", "bytes",
           "bits");
    for (size_t i = 0; i < in->n_tensors; i++) {
        const nb_tensor_desc *t = &in->tensors[i];
        char shape[96];
        format_shape(t, shape, sizeof shape);
        printf("%-*s  %-16s  %-20s  %12lld  %6.3f\n", width, t->name, t->format, shape,
               (long long)t->bytes, t->bits_per_weight);
    }
}

static void print_tensors(const nb_inspection *in, cli_printer *r)
{
    if (!r->object) {
        print_tensor_table(in);
        return;
    }
    json_t *list = json_array();
    for (size_t i = 0; i < in->n_tensors; i++) {
        json_array_append_new(list, tensor_json(&in->tensors[i]));
    }
    cli_print_json(r, "tensors", list);
}

static nb_status inspect_model(const cli_args *args, nb_error *err)
{
    double begin = cli_now();
    nb_inspection *in = NULL;
    nb_status st = nb_inspect(&in, args->model, err);
    if (st != NB_OK) return st;
    cli_printer r;
    cli_print_begin(&r, args->json);
    cli_print_text(&r, "container", "container", in->container);
    cli_print_text(&r, "recipe", "recipe", in->recipe);
    print_config(&in->info, &r);
    cli_print_bytes(&r, "bytes", "size", in->bytes);
    /* a model that is no quantized one is its own source */
    cli_print_bytes(&r, "source_bytes", in->source_bytes ? "size of the source" : NULL,
                    in->source_bytes ? in->source_bytes : in->bytes);
    cli_print_real(&r, "bits_per_weight", "bits per weight", in->bits_per_weight, 4);
    cli_print_real(&r, "seconds", NULL, cli_now() - begin, 0);
    cli_print_int(&r, "peak_rss", NULL, cli_peak_rss());
    print_tensors(in, &r);
    nb_inspection_free(in);
    return cli_print_end(&r, err);
}

/* ---- one tensor ------------------------------------------------------------------------- */

static void draw_histogram(const nb_tensor_stats *s)
{
    static const char bar[] = "##################################################";
    int64_t top = 1;
    for (int i = 0; i < NB_HISTOGRAM_BINS; i++) {
        if (s->histogram[i] > top) top = s->histogram[i];
    }
    double width = (s->max - s->min) / NB_HISTOGRAM_BINS;
    putchar('\n');
    for (int i = 0; i < NB_HISTOGRAM_BINS; i++) {
        int n = (int)((double)s->histogram[i] / (double)top * (double)(sizeof bar - 1));
        printf("%12.5g %10lld %.*s\n", s->min + i * width, (long long)s->histogram[i], n, bar);
    }
}

static void print_histogram(const nb_tensor_stats *s, cli_printer *r)
{
    if (!r->object) {
        draw_histogram(s);
        return;
    }
    cli_print_json(r, "histogram", counts_json(s->histogram, NB_HISTOGRAM_BINS));
}

static nb_status inspect_tensor(const cli_args *args, nb_error *err)
{
    nb_tensor_stats s;
    nb_status st = nb_inspect_tensor(args->model, args->tensor, &s, err);
    if (st != NB_OK) return st;
    cli_printer r;
    cli_print_begin(&r, args->json);
    cli_print_text(&r, "tensor", "tensor", args->tensor);
    cli_print_int(&r, "values", "values", s.n);
    cli_print_int(&r, "zeros", "zeros", s.n_zero);
    cli_print_int(&r, "nonfinite", "not finite", s.n_nonfinite);
    cli_print_real(&r, "min", "smallest", s.min, 6);
    cli_print_real(&r, "max", "largest", s.max, 6);
    cli_print_real(&r, "absmax", "largest magnitude", s.absmax, 6);
    cli_print_real(&r, "mean", "mean", s.mean, 6);
    cli_print_real(&r, "std", "standard deviation", s.std, 6);
    cli_print_real(&r, "kurtosis", "kurtosis (normal: 3)", s.kurtosis, 3);
    print_histogram(&s, &r);
    return cli_print_end(&r, err);
}

/* ---- dialects --------------------------------------------------------------------------- */

typedef struct dialect_use {
    int64_t blocks; /* 0: no tensor of dialects, or not the one that is asked for */
    int64_t count[NB_DIALECTS];
} dialect_use;

/* use [n_tensors + 1]: the last one is of all tensors together. */
static void count_dialects(const nb_inspection *in, const char *only, dialect_use *use)
{
    dialect_use *all = &use[in->n_tensors];
    for (size_t i = 0; i < in->n_tensors; i++) {
        if (only && strcmp(only, in->tensors[i].name) != 0) continue;
        use[i].blocks = nb_inspection_dialects(in, i, use[i].count);
        all->blocks += use[i].blocks;
        for (int id = 0; id < NB_DIALECTS; id++) all->count[id] += use[i].count[id];
    }
}

static void print_use(const char *name, int width, const dialect_use *u)
{
    printf("%-*s  %10lld ", width, name, (long long)u->blocks);
    for (int id = 0; id < NB_DIALECTS; id++) {
        printf(" %4.1f", 100.0 * (double)u->count[id] / (double)u->blocks);
    }
    putchar('\n');
}

static void print_use_table(const nb_inspection *in, const dialect_use *use)
{
    int width = name_width(in);
    printf("percent of blocks by dialect\n\n%-*s  %10s ", width, "tensor", "blocks");
    for (int id = 0; id < NB_DIALECTS; id++) printf(" %4d", id);
    putchar('\n');
    for (size_t i = 0; i < in->n_tensors; i++) {
        if (use[i].blocks > 0) print_use(in->tensors[i].name, width, &use[i]);
    }
    print_use("all", width, &use[in->n_tensors]);
}

static void print_use_json(const nb_inspection *in, const dialect_use *use, cli_printer *r)
{
    json_t *list = json_array();
    for (size_t i = 0; i < in->n_tensors; i++) {
        if (use[i].blocks == 0) continue;
        const nb_tensor_desc *t = &in->tensors[i];
        json_array_append_new(list, json_pack("{s:s, s:s, s:I, s:o}", "name", t->name, "format",
                                              t->format, "blocks", (json_int_t)use[i].blocks,
                                              "dialects", counts_json(use[i].count, NB_DIALECTS)));
    }
    const dialect_use *all = &use[in->n_tensors];
    cli_print_int(r, "blocks", NULL, all->blocks);
    cli_print_json(r, "dialects", counts_json(all->count, NB_DIALECTS));
    cli_print_json(r, "tensors", list);
}

static nb_status fail_without(const cli_args *args, nb_error *err)
{
    if (!args->tensor) {
        return cli_fail(err, NB_EUSAGE, "%s: no tensor is in a dialect format", args->model);
    }
    return cli_fail(err, NB_EUSAGE, "tensor \"%.200s\": not in %s, or in no dialect format",
                    args->tensor, args->model);
}

static nb_status print_dialects(const nb_inspection *in, const cli_args *args, nb_error *err)
{
    size_t n = in->n_tensors;
    dialect_use *use = calloc(n + 1, sizeof *use);
    if (!use) return cli_fail(err, NB_ERESOURCE, "out of memory: dialects of %zu tensors", n);
    count_dialects(in, args->tensor, use);
    nb_status st = NB_OK;
    if (use[n].blocks == 0) {
        st = fail_without(args, err);
    } else if (args->json) {
        cli_printer r;
        cli_print_begin(&r, true);
        print_use_json(in, use, &r);
        st = cli_print_end(&r, err);
    } else {
        print_use_table(in, use);
    }
    free(use);
    return st;
}

static nb_status inspect_dialects(const cli_args *args, nb_error *err)
{
    nb_inspection *in = NULL;
    nb_status st = nb_inspect(&in, args->model, err);
    if (st == NB_OK) st = print_dialects(in, args, err);
    nb_inspection_free(in);
    return st;
}

static nb_status run(cli_args *args, nb_error *err)
{
    if (args->dialects) return inspect_dialects(args, err);
    return args->tensor ? inspect_tensor(args, err) : inspect_model(args, err);
}

const cli_command cmd_inspect = {
    .name = "inspect",
    .usage = "MODEL [--tensor NAME] [--dialects] [options]",
    .summary = "what is in a model: configuration, formats, sizes",
    .groups = {options, cli_output_options},
    .run = run,
};
