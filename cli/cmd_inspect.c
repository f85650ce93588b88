#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "commands.h"
#include "printer.h"
#include "progress.h"

static const cli_option options[] = {
    {"tensor", 0, CLI_STRING, offsetof(cli_args, tensor), 0, "NAME",
     "distribution of one tensor's values"},
    {0},
};

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
    size_t width = 6;
    for (size_t i = 0; i < in->n_tensors; i++) {
        size_t n = strlen(in->tensors[i].name);
        if (n > width) width = n;
    }
    printf("\n%-*s  %-16s  %-20s  %12s  %6s\n", (int)width, "tensor", "format", "shape", "bytes",
           "bits");
    for (size_t i = 0; i < in->n_tensors; i++) {
        const nb_tensor_desc *t = &in->tensors[i];
        char shape[96];
        format_shape(t, shape, sizeof shape);
        printf("%-*s  %-16s  %-20s  %12lld  %6.3f\n", (int)width, t->name, t->format, shape,
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
    json_t *bins = json_array();
    for (int i = 0; i < NB_HISTOGRAM_BINS; i++) {
        json_array_append_new(bins, json_integer(s->histogram[i]));
    }
    cli_print_json(r, "histogram", bins);
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

static nb_status run(cli_args *args, nb_error *err)
{
    return args->tensor ? inspect_tensor(args, err) : inspect_model(args, err);
}

const cli_command cmd_inspect = {
    .name = "inspect",
    .usage = "MODEL [--tensor NAME] [options]",
    .summary = "what is in a model: configuration, formats, sizes",
    .groups = {options, cli_output_options},
    .run = run,
};
