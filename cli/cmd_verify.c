#include <stddef.h>

#include "commands.h"
#include "printer.h"

static nb_status run(cli_args *args, nb_error *err)
{
    nb_verify_result v;
    cli_printer r;
    nb_status st = nb_verify(args->model, &args->run, &v, err);
    if (st != NB_OK) return st;
    cli_print_begin(&r, args->json);
    cli_print_int(&r, "tensors", "tensors", v.n_tensors);
    cli_print_int(&r, "checksums", "checksums that hold", v.n_checksums);
    cli_print_bytes(&r, "bytes", "read", v.bytes);
    return cli_print_end(&r, err);
}

const cli_command cmd_verify = {
    .name = "verify",
    .usage = "MODEL [options]",
    .summary = "check structure, every checksum and that all values are finite",
    .details = "Exit status 6 at the first fault.",
    .groups = {cli_run_options, cli_output_options},
    .run = run,
};
