/* Hidden states on disk give the bytes that they give in memory; training that is killed goes on at
 * its last epoch and gives the bytes of one that was not; what is wrong with their files is said.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/hash.h"
#include "calib_util.h"
#include "model/states.h"

static int make_root(void **state)
{
    NB_UNUSED(state);
    snprintf(root, sizeof root, "/tmp/nibble-spill-XXXXXX");
    signal(SIGXFSZ, SIG_IGN); /* a file that gets too large is an error, no death */
    return mkdtemp(root) && tiny_model_write(in_root("model"), 1, NULL) &&
                   tiny_write_text(root, "text.txt")
               ? 0
               : -1;
}

static int remove_root(void **state)
{
    NB_UNUSED(state);
    return nb_remove_tree(root, NULL) == NB_OK ? 0 : -1;
}

/* Files that grow beyond n bytes cannot be written; 0: all can. */
static void limit_files(size_t n)
{
    struct rlimit r;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &r), 0);
    r.rlim_cur = n ? (rlim_t)n : r.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &r), 0);
}

/* ---- files without a name ------------------------------------------------------------------ */

static void test_scratch(void **state)
{
    NB_UNUSED(state);
    nb_scratch *a, *b;
    nb_error err;
    char back[8];
    const char *dir = in_root("model");
    int n = count_files(dir);
    assert_int_equal(nb_scratch_open(&a, dir, 100, &err), NB_OK);
    assert_int_equal(nb_scratch_open(&b, dir, 0, &err), NB_OK);
    assert_int_equal(count_files(dir), n);
    assert_int_equal(nb_scratch_write(a, 93, "seventh", 7, &err), NB_OK);
    assert_int_equal(nb_scratch_write(b, 93, "another", 7, &err), NB_OK);
    assert_int_equal(nb_scratch_read(a, 93, back, 7, &err), NB_OK);
    assert_memory_equal(back, "seventh", 7);
    assert_int_equal(nb_scratch_read(b, 96, back, 5, &err), NB_EINPUT);
    assert_non_null(strstr(err.message, NB_SCRATCH_NAME ": ends at byte 100, expected 1 more"));
    nb_scratch_close(a);
    nb_scratch_close(b);
    limit_files(4096);
    assert_int_equal(nb_scratch_open(&a, dir, 8192, &err), NB_ERESOURCE);
    assert_null(a);
    assert_non_null(strstr(err.message, "cannot make room: File too large"));
    limit_files(0);
    assert_int_equal(nb_scratch_open(&a, in_root("missing"), 0, &err), NB_EINPUT);
    assert_non_null(strstr(err.message, "missing/" NB_SCRATCH_NAME ": cannot create"));
    assert_int_equal(count_files(dir), n);
}

/* ---- states --------------------------------------------------------------------------------- */

enum { WINDOWS = 7, SEQ = 5, WIDE = 60000, VALUES = SEQ * WIDE }; /* two pieces for a window */

static double value_at(int window, int i) { return (double)(window + 1) / 3 + (double)i * 1e-9; }

static void write_windows(nb_backend *be, nb_states *s, int w0, int n)
{
    double *v = malloc((size_t)n * VALUES * sizeof *v);
    for (int i = 0; i < n * VALUES; i++) v[i] = value_at(w0 + i / VALUES, i % VALUES);
    be->ops->upload(be, nb_states_room(s, w0, n), v, NB_F64);
    assert_int_equal(nb_states_store(s, w0, n, NULL), NB_OK);
    free(v);
}

static void check_windows(nb_backend *be, nb_states *s, int w0, int n)
{
    nb_view x;
    bool rounded = be->ops->real == NB_F32;
    double *v = malloc((size_t)n * VALUES * sizeof *v);
    assert_int_equal(nb_states_load(s, w0, n, &x, NULL), NB_OK);
    assert_true(x.rows == n * SEQ && x.cols == WIDE);
    be->ops->download(be, x, v, NB_F64);
    for (int i = 0; i < n * VALUES; i++) {
        double want = value_at(w0 + i / VALUES, i % VALUES);
        assert_true(v[i] == (rounded ? (double)(float)want : want));
    }
    free(v);
}

/* Every bit, doubles included, in any order and number of windows. */
static void test_states(void **state)
{
    NB_UNUSED(state);
    static const char *const devices[] = {"cpu", "ref64"};
    for (int k = 0; k < 4; k++) {
        nb_options opt = {.device = devices[k / 2], .threads = 1, .cpumask = ~0u};
        nb_states_desc d = {WINDOWS, SEQ, WIDE, 2, k % 2 ? root : NULL};
        nb_backend *be;
        nb_states *s;
        assert_int_equal(nb_backend_create(&be, &opt, NULL), NB_OK);
        assert_int_equal(nb_states_create(&s, be, &d, NULL), NB_OK);
        for (int w = WINDOWS - 1; w >= 0; w -= 2) write_windows(be, s, w, 1);
        for (int w = 1; w < WINDOWS; w += 2) write_windows(be, s, w, 1);
        write_windows(be, s, 2, 2);
        check_windows(be, s, 0, 1);
        for (int w = 0; w + 1 < WINDOWS; w++) check_windows(be, s, w, 2);
        nb_states_free(s);
        nb_backend_free(be);
    }
}

static void test_states_refused(void **state)
{
    NB_UNUSED(state);
    nb_options opt = {.device = "cpu", .threads = 1, .cpumask = ~0u};
    nb_states_desc d = {WINDOWS, SEQ, WIDE, 2, root};
    nb_backend *be;
    nb_states *s;
    nb_view x;
    nb_error err;
    assert_int_equal(nb_backend_create(&be, &opt, NULL), NB_OK);
    limit_files((size_t)WINDOWS * VALUES * 4 - 1);
    assert_int_equal(nb_states_create(&s, be, &d, &err), NB_ERESOURCE);
    assert_null(s);
    limit_files((size_t)WINDOWS * VALUES * 4);
    assert_int_equal(nb_states_create(&s, be, &d, &err), NB_OK);
    limit_files((size_t)VALUES * 4); /* room was promised, and then there is none */
    nb_states_room(s, 1, 1);
    assert_int_equal(nb_states_store(s, 1, 1, &err), NB_ERESOURCE);
    assert_non_null(strstr(err.message, "cannot write"));
    assert_int_equal(nb_states_load(s, 0, 1, &x, &err), NB_OK);
    limit_files(0);
    nb_states_free(s);
    d.dir = in_root("text.txt");
    assert_int_equal(nb_states_create(&s, be, &d, &err), NB_EINPUT);
    assert_non_null(strstr(err.message, "cannot create"));
    nb_backend_free(be);
}

/* ---- runs ----------------------------------------------------------------------------------- */

/* Followed only, statistics of several passes, training, training and learned rounding. */
enum { FOLLOWED, STATISTICS, TRAINED, LEARNED, N_KINDS };

static void begin_kind(command *c, const char *out, int kind)
{
    static const char *const methods[N_KINDS] = {"nearest", "smooth,awq_clip,gptq",
                                                 "omniquant:lwc:let:aug,nearest",
                                                 "omniquant:lwc,signround:iters=14:batch=4"};
    begin_command(c, out);
    with_text(c);
    c->opt.samples = 6;
    c->opt.seqlen = 16;
    c->opt.method = methods[kind];
    c->opt.acts = kind == FOLLOWED ? NULL : "int6:token:asym";
    c->opt.recipe = "kv: int6:token:asym\n";
    if (kind < TRAINED) return;
    c->opt.epochs = 3;
    c->opt.batch = 1;
}

/* Hidden states no longer fit, and all else does. */
static void spill(command *c)
{
    c->opt.dry_run = true;
    must_run(c);
    assert_int_equal(c->result.spilled_bytes, 0);
    c->opt.memory = (size_t)c->result.estimated_memory - 1;
    must_run(c);
    assert_true(c->result.spilled_bytes >= (int64_t)2 * 6 * 16 * TINY_EMBD * 4);
    assert_true(c->result.estimated_memory <= (int64_t)c->opt.memory);
    c->opt.dry_run = false;
    c->calls = 0;
}

static void remove_out(const char *out)
{
    assert_int_equal(nb_remove_tree(in_root(out), NULL), NB_OK);
}

static void test_same_bytes(void **state)
{
    NB_UNUSED(state);
    static const char *const devices[] = {"cpu", "ref64"};
    for (int i = 0; i < 2 * N_KINDS; i++) {
        command c;
        for (int on_disk = 0; on_disk < 2; on_disk++) {
            begin_kind(&c, on_disk ? "disk" : "memory", i / 2);
            c.opt.run.device = devices[i % 2];
            c.opt.epochs = c.opt.epochs ? 1 : 0;
            if (on_disk) spill(&c);
            must_run(&c);
            assert_int_equal(c.result.spilled_bytes > 0, on_disk);
        }
        assert_same_dirs(in_root("memory"), in_root("disk"));
        remove_out("memory");
        remove_out("disk");
    }
}

/* Several windows in a step: as many come from the file at once. */
static void test_batches(void **state)
{
    NB_UNUSED(state);
    for (int on_disk = 0; on_disk < 2; on_disk++) {
        command c;
        begin_kind(&c, on_disk ? "disk" : "memory", TRAINED);
        c.opt.samples = 11;
        c.opt.batch = 4;
        if (on_disk) spill(&c);
        must_run(&c);
    }
    assert_same_dirs(in_root("memory"), in_root("disk"));
    remove_out("memory");
    remove_out("disk");
}

/* Below what is left in memory nothing helps. */
static void test_too_little(void **state)
{
    NB_UNUSED(state);
    command c;
    begin_kind(&c, "little", TRAINED);
    c.opt.memory = 1 << 20;
    must_fail(&c, NB_ERESOURCE, "memory: needs about", "with hidden states on disk");
}

static void interrupt_everywhere(int kind, bool on_disk)
{
    command whole;
    int stride = (kind == LEARNED ? 4 : 1) * (on_disk ? 13 : 3);
    begin_kind(&whole, "whole", kind);
    must_run(&whole);
    for (int k = 1; k <= whole.calls; k += stride) {
        command c;
        begin_kind(&c, "parts", kind);
        if (on_disk) spill(&c);
        c.stop_at = k;
        assert_int_equal(run_command(&c), NB_EINTERRUPTED);
        c.stop_at = 0;
        c.opt.resume = true;
        if (on_disk && k % 2) c.opt.memory = 0; /* and goes on in memory */
        must_run(&c);
        assert_same_dirs(whole.out, c.out);
        remove_out("parts");
    }
    remove_out("whole");
}

static void test_interrupt(void **state)
{
    NB_UNUSED(state);
    for (int kind = TRAINED; kind < N_KINDS; kind++) {
        interrupt_everywhere(kind, false);
        interrupt_everywhere(kind, true);
    }
}

/* ---- training that goes on ------------------------------------------------------------------ */

#define STATE "parts.partial/training/omniquant.state"

/* Lines of the journal: fingerprint, ends, finished blocks. */
static int count_lines(void)
{
    char *text;
    size_t n;
    int lines = 0;
    const char *path = in_root("parts.partial/journal.jsonl");
    if (nb_read_file(path, 1 << 24, &text, &n, NULL) != NB_OK) return 0;
    for (size_t i = 0; i < n; i++) lines += text[i] == '\n';
    free(text);
    return lines;
}

/* A run that has kept something of block `layer`, stopped in the middle of training. */
static void stop_in_training(command *c, int layer)
{
    int k = 1;
    do {
        assert_int_equal(nb_remove_tree(in_root("parts.partial"), NULL), NB_OK);
        begin_kind(c, "parts", TRAINED);
        c->stop_at = k;
        k += 4;
        assert_int_equal(run_command(c), NB_EINTERRUPTED);
    } while (count_lines() < layer + 2 || !nb_path_exists(in_root(STATE)));
    assert_int_equal(count_lines(), layer + 2);
    c->stop_at = c->calls = 0;
    c->opt.resume = true;
}

/* A whole run, one that is stopped, and the state [*n] that the latter left; the caller's. */
static char *stop_with_state(command *whole, command *c, int layer, size_t *n)
{
    char *text;
    begin_kind(whole, "whole", TRAINED);
    must_run(whole);
    stop_in_training(c, layer);
    assert_int_equal(nb_read_file(in_root(STATE), 1 << 24, &text, n, NULL), NB_OK);
    return text;
}

/* The stopped one goes on and gives the same bytes. */
static void end_like(const command *whole, command *c)
{
    must_run(c);
    assert_same_dirs(whole->out, c->out);
    remove_out("parts");
    remove_out("whole");
}

/* Epochs that were finished are not trained again. */
static void test_goes_on(void **state)
{
    NB_UNUSED(state);
    command whole, c;
    begin_kind(&whole, "whole", TRAINED);
    whole.opt.epochs = 40;
    must_run(&whole);
    begin_kind(&c, "parts", TRAINED);
    c.opt.epochs = 40;
    c.stop_at = whole.calls * 9 / 10; /* epoch 30 or so of the last block */
    assert_int_equal(run_command(&c), NB_EINTERRUPTED);
    assert_true(nb_path_exists(in_root(STATE)));
    c.stop_at = c.calls = 0;
    c.opt.resume = true;
    must_run(&c);
    assert_same_dirs(whole.out, c.out);
    /* a tenth of all, and the ways through the blocks that were finished: less than one block */
    assert_true(c.calls < whole.calls / 4);
    remove_out("parts");
    remove_out("whole");
}

/* Killed when all blocks were in the journal and their leavings not yet removed, or in the instant
 * in which a scratch file has a name: none of it gets into the output. */
static void test_leavings(void **state)
{
    NB_UNUSED(state);
    command whole, c;
    begin_kind(&whole, "whole", TRAINED);
    must_run(&whole);
    begin_kind(&c, "parts", TRAINED);
    c.stop_at = whole.calls;
    assert_int_equal(run_command(&c), NB_EINTERRUPTED);
    assert_int_equal(count_lines(), TINY_LAYERS + 2);
    assert_int_equal(nb_make_dir(in_root("parts.partial/training"), NULL), NB_OK);
    assert_true(tiny_write(in_root("parts.partial/training"), "omniquant.state", "what was"));
    assert_true(tiny_write(in_root("parts.partial"), NB_SCRATCH_NAME, ""));
    c.stop_at = 0;
    c.opt.resume = true;
    must_run(&c);
    assert_same_dirs(whole.out, c.out);
    assert_false(nb_path_exists(in_root("parts/training")));
    remove_out("parts");
    remove_out("whole");
}

/* A file that is left of a block that was finished counts for nothing. */
static void test_older_block(void **state)
{
    NB_UNUSED(state);
    command whole, c;
    char *text;
    size_t n;
    text = stop_with_state(&whole, &c, 0, &n);
    stop_in_training(&c, 1);
    assert_int_equal(nb_write_file(in_root(STATE), text, n, NULL), NB_OK);
    free(text);
    end_like(&whole, &c);
}

/* Cut short anywhere, or with one bit turned: said, kept, and the block begins anew without it. */
static void test_damaged(void **state)
{
    NB_UNUSED(state);
    command whole, c;
    char *text;
    size_t n;
    text = stop_with_state(&whole, &c, 1, &n);
    const size_t cuts[] = {0, 1, 31, 32, 64, n / 2, n - 33, n - 1};
    for (size_t i = 0; i < NB_COUNT(cuts); i++) {
        assert_int_equal(nb_write_file(in_root(STATE), text, cuts[i], NULL), NB_OK);
        must_fail(&c, NB_EVERIFY, "omniquant.state: is not what was written", "remove it");
    }
    text[n / 2] ^= 4;
    assert_int_equal(nb_write_file(in_root(STATE), text, n, NULL), NB_OK);
    must_fail(&c, NB_EVERIFY, "omniquant.state: is not what was written", "remove it");
    assert_int_equal(unlink(in_root(STATE)), 0);
    free(text);
    end_like(&whole, &c);
}

static void test_foreign(void **state)
{
    NB_UNUSED(state);
    command c;
    char *text;
    size_t n;
    stop_in_training(&c, 0);
    assert_int_equal(nb_read_file(in_root(STATE), 1 << 24, &text, &n, NULL), NB_OK);
    char *run = strstr(text, "\"run\":\"");
    assert_non_null(run);
    run[8] = run[8] == '0' ? '1' : '0';
    nb_hash(text + n - 32, text, n - 32); /* its NUL takes the place of the one behind the file */
    assert_int_equal(nb_write_file(in_root(STATE), text, n, NULL), NB_OK);
    must_fail(&c, NB_EUSAGE, "omniquant.state: is of another run", "remove it");
    free(text);
    assert_int_equal(nb_remove_tree(in_root("parts.partial"), NULL), NB_OK);
}

/* A disk that is full while a state is written: the older one stays, and the run goes on later. */
static void test_full_disk(void **state)
{
    NB_UNUSED(state);
    command whole, c;
    begin_kind(&whole, "whole", TRAINED);
    must_run(&whole);
    begin_kind(&c, "parts", TRAINED);
    spill(&c);
    limit_files(4096);
    must_fail(&c, NB_ERESOURCE, NB_SCRATCH_NAME, "cannot make room");
    limit_files(0);
    assert_false(nb_path_exists(in_root("parts.partial/" NB_SCRATCH_NAME)));

    stop_in_training(&c, 0);
    int64_t n = nb_file_bytes(in_root(STATE));
    limit_files((size_t)n - 1);
    must_fail(&c, NB_ERESOURCE, "omniquant.state.tmp", "cannot write");
    limit_files(0);
    assert_int_equal(nb_file_bytes(in_root(STATE)), n);
    must_run(&c);
    assert_same_dirs(whole.out, c.out);
    remove_out("parts");
    remove_out("whole");
}

/* Something is in the way of the file of hidden states. */
static void test_in_the_way(void **state)
{
    NB_UNUSED(state);
    command c;
    stop_in_training(&c, 0);
    command small = c;
    spill(&small);
    assert_int_equal(nb_make_dir(in_root("parts.partial/" NB_SCRATCH_NAME), NULL), NB_OK);
    c.opt.memory = small.opt.memory;
    must_fail(&c, NB_EINPUT, NB_SCRATCH_NAME, "cannot create");
    assert_int_equal(nb_remove_tree(in_root("parts.partial"), NULL), NB_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scratch),        cmocka_unit_test(test_states),
        cmocka_unit_test(test_states_refused), cmocka_unit_test(test_same_bytes),
        cmocka_unit_test(test_batches),        cmocka_unit_test(test_too_little),
        cmocka_unit_test(test_interrupt),      cmocka_unit_test(test_goes_on),
        cmocka_unit_test(test_leavings),       cmocka_unit_test(test_older_block),
        cmocka_unit_test(test_damaged),        cmocka_unit_test(test_foreign),
        cmocka_unit_test(test_full_disk),      cmocka_unit_test(test_in_the_way),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}
