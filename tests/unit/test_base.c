/* base/: random numbers against published and CPython values, arena, buffers, files, sizes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/arena.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/rng.h"
#include "base/size.h"
#include "base/strbuf.h"

/* random.seed(s); [random.randint(0, 999999) for _ in range(5)] in CPython. */
static void mt19937_is_cpython(void **state)
{
    NB_UNUSED(state);
    static const struct {
        uint32_t seed, want[5];
    } cases[] = {{2, {905035, 993869, 890298, 59298, 96033}},
                 {0, {885440, 403958, 794772, 933488, 441001}}};
    for (size_t c = 0; c < NB_COUNT(cases); c++) {
        nb_mt19937 r;
        nb_mt19937_seed(&r, cases[c].seed);
        for (int i = 0; i < 5; i++)
            assert_int_equal(nb_mt19937_below(&r, 1000000), cases[c].want[i]);
    }
}

/* The first outputs of SplitMix64 from state 1234567, as its authors publish them. */
static void splitmix_is_published(void **state)
{
    NB_UNUSED(state);
    nb_rng r = {1234567};
    assert_true(nb_rng_next(&r) == 6457827717110365317u);
    assert_true(nb_rng_next(&r) == 3203168211198807973u);
    double sum = 0, sq = 0;
    for (int i = 0; i < 100000; i++) {
        double x = nb_rng_normal(&r);
        sum += x;
        sq += x * x;
    }
    assert_true(sum / 100000 > -0.02 && sum / 100000 < 0.02); /* 6 standard errors */
    assert_true(sq / 100000 > 0.97 && sq / 100000 < 1.03);
}

static void sizes_are_checked(void **state)
{
    NB_UNUSED(state);
    size_t n;
    assert_false(nb_mul_size(SIZE_MAX, 2, &n));
    assert_false(nb_add_size(SIZE_MAX, 1, &n));
    int64_t big[] = {1LL << 40, 1LL << 40}, negative[] = {4, -1}, good[] = {3, 0, 5};
    assert_false(nb_count_dims(big, 2, &n));
    assert_false(nb_count_dims(negative, 2, &n));
    assert_true(nb_count_dims(good, 3, &n));
    assert_int_equal(n, 0);
    assert_true(nb_count_dims(NULL, 0, &n));
    assert_int_equal(n, 1);
}

static void arena_gives_zeroed_aligned_memory(void **state)
{
    NB_UNUSED(state);
    nb_arena *a;
    assert_int_equal(nb_arena_create(&a, NULL), NB_OK);
    char *last = NULL;
    for (size_t n = 0; n < 300000; n = n * 3 / 2 + 7) {
        char *p = nb_arena_alloc(a, n, 1);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 64, 0);
        for (size_t i = 0; i < n; i++) assert_int_equal(p[i], 0);
        memset(p, 0xAA, n);
        assert_ptr_not_equal(p, last);
        last = p;
    }
    assert_null(nb_arena_alloc(a, SIZE_MAX / 2, 3));
    assert_null(nb_arena_alloc(a, SIZE_MAX - 8, 1));
    assert_string_equal(nb_arena_printf(a, "%d-%s", 7, "x"), "7-x");
    assert_true(nb_arena_bytes(a) > 300000);
    nb_arena_reset(a);
    assert_int_equal(nb_arena_bytes(a), 0);
    assert_non_null(nb_arena_alloc(a, 10, 1));
    nb_arena_free(a);
    nb_arena_free(NULL);
}

#if defined __GLIBC__ && !defined __SANITIZE_ADDRESS__
static int64_t resident_bytes(void)
{
    long long pages;
    FILE *f = fopen("/proc/self/statm", "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%*d %lld", &pages), 1);
    fclose(f);
    return pages * sysconf(_SC_PAGESIZE);
}

/* Below a piece that lasts, too. */
static void free_heap_goes_back(void **state)
{
    NB_UNUSED(state);
    enum { N = 1000, BYTES = 1 << 16 };
    static char *piece[N];
    for (int i = 0; i < N; i++) {
        piece[i] = malloc(BYTES);
        assert_non_null(piece[i]);
        memset(piece[i], 1, BYTES);
    }
    int64_t full = resident_bytes();
    for (int i = 0; i < N - 1; i++) free(piece[i]);
    nb_heap_trim();
    assert_true(resident_bytes() < full - (int64_t)N * BYTES * 9 / 10);
    free(piece[N - 1]);
}
#endif

static void strbuf_keeps_its_maximum(void **state)
{
    NB_UNUSED(state);
    nb_strbuf b;
    char *text;
    size_t n;
    nb_error err;
    nb_strbuf_init(&b, 8);
    nb_strbuf_puts(&b, "abc");
    nb_strbuf_printf(&b, "%d", 12345);
    assert_int_equal(nb_strbuf_take(&b, &text, &n, &err), NB_OK);
    assert_string_equal(text, "abc12345");
    free(text);
    nb_strbuf_puts(&b, "123456789"); /* one too many */
    nb_strbuf_puts(&b, "x");         /* nothing happens after a failure */
    assert_int_equal(nb_strbuf_take(&b, &text, &n, &err), NB_ERESOURCE);
    assert_null(text);
}

static void files_appear_whole_or_not_at_all(void **state)
{
    NB_UNUSED(state);
    char dir[] = "/tmp/nibble-base-XXXXXX";
    assert_non_null(mkdtemp(dir));
    char *path = nb_path_join(dir, "f"), *sub = nb_path_join(dir, "sub"), *data;
    nb_outfile *f;
    nb_error err;
    size_t n;
    assert_int_equal(nb_outfile_open(&f, path, &err), NB_OK);
    assert_int_equal(nb_outfile_write(f, "hello", 5, &err), NB_OK);
    assert_false(nb_path_exists(path));
    assert_int_equal(nb_outfile_commit(f, &err), NB_OK);
    assert_int_equal(nb_file_bytes(path), 5);
    assert_int_equal(nb_outfile_open(&f, path, &err), NB_OK);
    assert_int_equal(nb_outfile_write(f, "other", 5, &err), NB_OK);
    nb_outfile_abort(f);
    assert_int_equal(nb_read_file(path, 100, &data, &n, &err), NB_OK);
    assert_string_equal(data, "hello");
    free(data);
    assert_int_equal(nb_read_file(path, 4, &data, &n, &err), NB_EINPUT);
    assert_non_null(strstr(err.message, "expected at most 4"));
    assert_int_equal(nb_make_dir(sub, &err), NB_OK);
    assert_int_equal(nb_make_dir(sub, &err), NB_OK);
    nb_map m;
    assert_int_equal(nb_map_open(&m, sub, &err), NB_EINPUT);
    assert_int_equal(nb_outfile_open(&f, "/nonexistent/x", &err), NB_EINPUT);
    assert_null(f);
    /* what a link points to is not ours to remove */
    char *link = nb_path_join(dir, "link");
    assert_int_equal(symlink(dir, link), 0);
    assert_int_equal(nb_remove_tree(link, &err), NB_OK);
    assert_false(nb_path_exists(link));
    assert_int_equal(nb_file_bytes(path), 5);
    free(link);
    assert_true(nb_disk_free(path) > 0 && nb_disk_free("no/such/dir") > 0);
    assert_int_equal(nb_remove_tree(dir, &err), NB_OK);
    assert_false(nb_path_exists(dir));
    assert_int_equal(nb_remove_tree(dir, &err), NB_OK);
    free(path);
    free(sub);
}

/* XXH3-128 of the empty input, from the xxHash specification's test vectors. */
static void hashes_are_xxh3(void **state)
{
    NB_UNUSED(state);
    char one[NB_HASH_CHARS], two[NB_HASH_CHARS];
    nb_hash(one, "", 0);
    assert_string_equal(one, "99aa06d3014798d86001c324468d497f");
    nb_hasher *h;
    nb_hash(one, "some bytes", 10);
    assert_int_equal(nb_hasher_create(&h, NULL), NB_OK);
    nb_hasher_add(h, "some ", 5);
    nb_hasher_add(h, "bytes", 5);
    nb_hasher_finish(h, two);
    assert_string_equal(one, two);
}

static void messages_nest(void **state)
{
    NB_UNUSED(state);
    nb_error err;
    nb_status st = nb_fail(&err, NB_EINPUT, "shape %d, expected %d", 3, 4);
    st = nb_wrap(&err, st, "blk.%d", 7);
    assert_int_equal(st, NB_EINPUT);
    assert_string_equal(err.message, "blk.7: shape 3, expected 4");
    char longer[600];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    nb_wrap(&err, st, "%s", longer); /* is cut, not overrun */
    assert_int_equal(strlen(err.message), sizeof err.message - 1);
    assert_int_equal(nb_fail(NULL, NB_EUSAGE, "no one listens"), NB_EUSAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mt19937_is_cpython),
        cmocka_unit_test(splitmix_is_published),
        cmocka_unit_test(sizes_are_checked),
        cmocka_unit_test(arena_gives_zeroed_aligned_memory),
#if defined __GLIBC__ && !defined __SANITIZE_ADDRESS__
        cmocka_unit_test(free_heap_goes_back),
#endif
        cmocka_unit_test(strbuf_keeps_its_maximum),
        cmocka_unit_test(files_appear_whole_or_not_at_all),
        cmocka_unit_test(hashes_are_xxh3),
        cmocka_unit_test(messages_nest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
