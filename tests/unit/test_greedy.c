/* 200 greedy tokens are the same whether the prompt goes in at once or token by token (spec:
 * BlockDialect D16). Without arguments on a tiny model of the full path, on both backends;
 *
 *   test_greedy MODEL [DEVICE [KV]]
 *
 * does it on any model. On "cpu" that holds where weights and inputs of all linears are dialects:
 * others add up many rows in another order than few. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "run/session.h"
#include "tiny_model.h"

enum { PROMPT = 40, GREEDY = 200, N = PROMPT + GREEDY };

static struct {
    char dir[40], model[80];
    const char *path, *device, *kv;
} at;

static const char full_path[] = "name: full\nweights: dialect:b16\nacts: dialect:b16\n"
                                "kv: dialect:b16\nquery: dialect:b16\nprobs: dialect:b16\n"
                                "method: [minmax, nearest]\n";

static int make_model(void **state)
{
    NB_UNUSED(state);
    if (at.path) return 0;
    strcpy(at.dir, "/tmp/nb_test_greedy_XXXXXX");
    if (!mkdtemp(at.dir)) return 1;
    char source[80];
    snprintf(source, sizeof source, "%s/source", at.dir);
    snprintf(at.model, sizeof at.model, "%s/model", at.dir);
    if (!tiny_model_write(source, 11, NULL)) return 1;
    nb_quantize_options o;
    nb_quantize_result r;
    nb_quantize_options_default(&o);
    o.model = source;
    o.out = at.path = at.model;
    o.recipe = full_path;
    return nb_quantize(&o, &r, NULL) == NB_OK ? 0 : 1;
}

static int remove_model(void **state)
{
    NB_UNUSED(state);
    return !at.dir[0] || nb_remove_tree(at.dir, NULL) == NB_OK ? 0 : 1;
}

/* ids [0, PROMPT) are given, the others found; the prompt goes in by pieces. */
static void generate(const nb_net *net, int32_t *ids, int piece)
{
    nb_session *s;
    nb_sampler greedy = {0};
    const float *logits = NULL;
    assert_int_equal(nb_session_create(&s, net, N, NULL), NB_OK);
    for (int i = 0; i < PROMPT; i += piece) {
        int n = PROMPT - i < piece ? PROMPT - i : piece;
        assert_int_equal(nb_session_append(s, ids + i, n, &logits, NULL), NB_OK);
    }
    for (int i = PROMPT; i < N; i++) {
        assert_int_equal(nb_sampler_pick(&greedy, logits, net->cfg.n_vocab, &ids[i], NULL), NB_OK);
        if (i + 1 < N) assert_int_equal(nb_session_append(s, ids + i, 1, &logits, NULL), NB_OK);
    }
    nb_session_free(s);
}

static void check_same_tokens(const char *device)
{
    nb_options o;
    nb_error err = {0};
    nb_backend *be;
    nb_source *src;
    nb_net *net;
    nb_format kv;
    nb_options_default(&o);
    o.device = device;
    if (at.kv) assert_int_equal(nb_format_parse(&kv, at.kv, NULL), NB_OK);
    assert_int_equal(nb_backend_create(&be, &o, NULL), NB_OK);
    assert_int_equal(nb_source_open(&src, at.path, NULL), NB_OK);
    if (nb_net_create(&net, be, src, false, at.kv ? &kv : NULL, &err) != NB_OK) {
        fail_msg("%s", err.message);
    }
    int32_t all[N], one[N];
    for (int i = 0; i < PROMPT; i++) all[i] = one[i] = (40 + i * 7) % net->cfg.n_vocab;
    generate(net, all, PROMPT);
    generate(net, one, 1);
    for (int i = PROMPT; i < N; i++) {
        if (all[i] != one[i]) fail_msg("token %d: %d and %d", i - PROMPT, all[i], one[i]);
    }
    nb_net_free(net);
    nb_source_close(src);
    nb_backend_free(be);
}

static void test_same_tokens(void **state)
{
    NB_UNUSED(state);
    if (at.device) {
        check_same_tokens(at.device);
        return;
    }
    check_same_tokens("ref");
    check_same_tokens("cpu");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_tokens)};
    if (argc > 1) at.path = argv[1];
    if (argc > 2) at.device = argv[2];
    if (argc > 3) at.kv = argv[3];
    return cmocka_run_group_tests(tests, make_model, remove_model);
}
