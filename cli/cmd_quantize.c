#include <stddef.h>

#include "commands.h"
#include "printer.h"
#include "recipes.h"

#define AT(field) offsetof(cli_args, field)
#define Q(field)  offsetof(cli_args, quantize.field)

static const cli_option options[] = {
    {"out", 'o', CLI_STRING, AT(out), 0, "DIR", "directory to make"},
    {"recipe", 0, CLI_STRING, AT(recipe), 0, "NAME|FILE.yaml", "how: formats and steps"},
    {"weights", 0, CLI_STRING, Q(weights), 0, "FORMAT", "of weights: int4:g128, mxfp4, ..."},
    {"acts", 0, CLI_STRING, Q(acts), 0, "FORMAT", "of activations"},
    {"kv", 0, CLI_STRING, Q(kv), 0, "FORMAT", "of the KV cache"},
    {"rope", 0, CLI_STRING, Q(rope), 0, "half|interleaved",
     "order of channels in the heads of q and k (the model's own)"},
    {"method", 0, CLI_STRING, Q(method), 0, "STEPS", "comma-separated: minmax,gptq"},
    {"calib", 0, CLI_LIST, AT(calib), 0, "FILE", "UTF-8 calibration text; repeatable"},
    {"samples", 0, CLI_INT, Q(samples), 1, "N", "calibration windows"},
    {"seqlen", 0, CLI_INT, Q(seqlen), 1, "N", "tokens per calibration window"},
    {"epochs", 0, CLI_INT, Q(epochs), 1, "N", "passes over them where a step learns"},
    {"batch", 0, CLI_INT, Q(batch), 1, "N", "windows per learning step"},
    {"seed", 's', CLI_INT64, Q(seed), 0, "N", "seed of windows and learning"},
    {0},
};

static const cli_option work_options[] = {
    {"memory", 0, CLI_SIZE, Q(memory), 0, "SIZE", "bytes that may be used, such as 4G (no limit)"},
    {"resume", 0, CLI_FLAG, Q(resume), 0, NULL, "go on where the same command was stopped"},
    {"dry-run", 0, CLI_FLAG, Q(dry_run), 0, NULL, "plan and estimate; write nothing"},
    {"force", 0, CLI_FLAG, Q(force), 0, NULL, "replace DIR if it is there"},
    {0},
};

static nb_status print_result(const nb_quantize_result *q, const cli_args *args, nb_error *err)
{
    bool plan = args->quantize.dry_run;
    cli_printer r;
    cli_print_begin(&r, args->json);
    cli_print_text(&r, "recipe", "recipe", q->recipe);
    cli_print_text(&r, "out", plan ? NULL : "written", args->out);
    cli_print_int(&r, "blocks", "blocks", q->n_blocks);
    cli_print_int(&r, "blocks_resumed", q->n_resumed ? "  taken over" : NULL, q->n_resumed);
    cli_print_int(&r, "quantized_weights", "quantized weights", q->n_quantized);
    cli_print_bytes(&r, "source_bytes", "size before", q->source_bytes);
    cli_print_bytes(&r, "bytes", plan ? "size after, estimated" : "size after", q->bytes);
    cli_print_real(&r, "bits_per_weight", "bits per weight", q->bits_per_weight, 4);
    cli_print_bytes(&r, "estimated_memory", plan ? "memory, estimated" : NULL, q->estimated_memory);
    cli_print_bytes(&r, "spilled_bytes", q->spilled_bytes ? "hidden states on disk" : NULL,
                    q->spilled_bytes);
    cli_print_bytes(&r, "peak_rss", plan ? NULL : "peak memory", q->peak_rss);
    cli_print_real(&r, "seconds", plan ? NULL : "seconds", q->seconds, 1);
    if (plan)
        cli_print_real(&r, "estimated_seconds", "seconds, estimated", q->estimated_seconds, 1);
    return cli_print_end(&r, err);
}

static nb_status check_args(const cli_args *args, nb_error *err)
{
    nb_status st = cli_require(args->out, "-o DIR", err);
    if (st != NB_OK || args->recipe || args->quantize.weights) return st;
    return cli_fail(err, NB_EUSAGE, "--recipe NAME or --weights FORMAT is missing");
}

static nb_status run(cli_args *args, nb_error *err)
{
    nb_quantize_options *q = &args->quantize;
    nb_quantize_result result = {0};
    char *recipe = NULL;
    nb_status st = check_args(args, err);
    if (st == NB_OK && args->recipe) st = cli_read_recipe(args->recipe, &recipe, err);
    if (st != NB_OK) return st;
    q->model = args->model;
    q->out = args->out;
    q->recipe = recipe;
    q->calib = args->calib.items;
    q->n_calib = args->calib.n;
    q->run = args->run;
    st = nb_quantize(q, &result, err);
    nb_free(recipe);
    if (st == NB_EINTERRUPTED) {
        return cli_fail(err, st,
                        "interrupted; the same command with --resume goes on from %s.partial",
                        args->out);
    }
    return st == NB_OK ? print_result(&result, args, err) : st;
}

const cli_command cmd_quantize = {
    .name = "quantize",
    .usage = "MODEL -o DIR (--recipe NAME|FILE.yaml | --weights FORMAT) [options]",
    .summary = "make a smaller model",
    .details =
        "Options override the recipe. Formats of weights, in groups along the input dimension:\n"
        "\n"
        "  integers        int4:g128 (groups of 128), int3:row, int8:g64:sym (no zero point)\n"
        "                  int3:g128:f32 (fp32 scales)\n"
        "  small floats    fp4:g256 fp4e3m0:g128 fp6:row fp6e3m2:g64 fp8:row fp8e5m2:row\n"
        "  by powers of 2  fp4:g64:m1 fp4:g256:m2\n"
        "  microscaling    mxfp4 mxfp6 mxfp6e3m2 mxfp8 mxfp8e5m2 mxint8\n"
        "  NVFP4           nvfp4 nvfp4:46\n"
        "  BlockDialect    dialect:b16 dialect:b32 dialect:b64 dialect:b128\n"
        "  left alone      f16 bf16 f32\n"
        "\n"
        "An unknown word is answered with the list of all.",
    .groups = {options, work_options, cli_run_options, cli_output_options},
    .run = run,
};
