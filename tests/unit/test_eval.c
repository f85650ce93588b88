/* Sessions, sampling and quality figures, each against a direct computation from logits. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "eval/eval.h"
#include "run/session.h"

#define T 40

typedef struct fixture {
    nb_source *src;
    nb_backend *be;
    nb_net *net;
    int32_t ids[T];
    float *logits; /* [T, V] */
    int V;
} fixture;

static void open_fixture(fixture *f, const char *model, const char *device)
{
    nb_options opt = {.device = device, .cpumask = ~0u, .threads = 2};
    char path[128];
    nb_error err = {0};
    snprintf(path, sizeof path, "tests/golden/%s", model);
    nb_status st = nb_source_open(&f->src, path, &err);
    if (st == NB_OK) st = nb_backend_create(&f->be, &opt, &err);
    if (st == NB_OK) st = nb_net_create(&f->net, f->be, f->src, false, NULL, &err);
    if (st != NB_OK) fail_msg("%s", err.message);
    f->V = f->net->cfg.n_vocab;
    nb_rng r = {42};
    for (int i = 0; i < T; i++) f->ids[i] = (int32_t)(nb_rng_next(&r) % (uint64_t)f->V);
    f->logits = malloc((size_t)(T * f->V) * sizeof(float));
    st = nb_eval_logits(f->net, f->ids, T, f->logits, &err);
    if (st != NB_OK) fail_msg("%s", err.message);
}

static void close_fixture(fixture *f)
{
    free(f->logits);
    nb_net_free(f->net);
    nb_backend_free(f->be);
    nb_source_close(f->src);
}

static double log_sum_exp(const float *x, int n)
{
    double max = (double)x[0], sum = 0;
    for (int i = 1; i < n; i++) max = fmax(max, (double)x[i]);
    for (int i = 0; i < n; i++) sum += exp((double)x[i] - max);
    return max + log(sum);
}

static double nll_at(const fixture *f, int t)
{
    const float *row = f->logits + t * f->V;
    return log_sum_exp(row, f->V) - (double)row[f->ids[t + 1]];
}

static double distance(const float *a, const float *b, int n)
{
    double d = 0, s = 0;
    for (int i = 0; i < n; i++) {
        d += pow((double)a[i] - (double)b[i], 2);
        s += pow((double)b[i], 2);
    }
    return sqrt(d / s);
}

/* A prompt at once, in two parts and token by token ends in the same logits, for every kind of
 * positions and masks. Bound: the sums are the same but for order, 1e-5 is about 100 eps. */
static void session_equals_whole_forward(void **state)
{
    NB_UNUSED(state);
    static const char *const models[] = {
        "llama-gqa", "mistral-window",       "opt", "opt-350m", "qwen2",
        "qwen3",     "gguf-llama/model.gguf"};
    static const char *const devices[] = {"ref", "cpu"};
    for (size_t i = 0; i < NB_COUNT(models) * NB_COUNT(devices); i++) {
        fixture f;
        open_fixture(&f, models[i / 2], devices[i % 2]);
        for (int step = 1; step <= T; step += 13) {
            nb_session *s;
            const float *logits = NULL;
            assert_int_equal(nb_session_create(&s, f.net, T, NULL), NB_OK);
            for (int t = 0; t < T; t += step) {
                int n = T - t < step ? T - t : step;
                assert_int_equal(nb_session_append(s, f.ids + t, n, &logits, NULL), NB_OK);
                double d = distance(logits, f.logits + (t + n - 1) * f.V, f.V);
                if (!(d < 1e-5))
                    fail_msg("%s, step %d, position %d: %g", models[i / 2], step, t, d);
            }
            assert_int_equal(nb_session_length(s), T);
            nb_session_free(s);
        }
        close_fixture(&f);
    }
}

static void session_refuses_what_does_not_fit(void **state)
{
    NB_UNUSED(state);
    fixture f;
    nb_session *s;
    const float *logits;
    nb_error err;
    open_fixture(&f, "opt", "ref");
    assert_int_equal(nb_session_create(&s, f.net, 8, NULL), NB_OK);
    assert_int_equal(nb_session_append(s, f.ids, 0, &logits, &err), NB_EUSAGE);
    assert_int_equal(nb_session_append(s, f.ids, 9, &logits, &err), NB_ERESOURCE);
    assert_null(logits);
    int32_t bad = f.V;
    assert_int_equal(nb_session_append(s, &bad, 1, &logits, &err), NB_EUSAGE);
    assert_non_null(strstr(err.message, "expected 0 to"));
    nb_session_free(s);
    close_fixture(&f);
}

static void perplexity_is_its_definition(void **state)
{
    NB_UNUSED(state);
    fixture f;
    nb_perplexity_result r;
    nb_error err;
    open_fixture(&f, "llama-gqa", "cpu");
    nb_eval_options opt = {.ctx = T};
    assert_int_equal(nb_eval_perplexity(f.net, f.ids, T, &opt, (nb_watch){0}, &r, &err), NB_OK);
    double sum = 0;
    for (int t = 0; t < T - 1; t++) sum += nll_at(&f, t);
    assert_true(fabs(r.nll - sum / (T - 1)) < 1e-5);
    assert_true(fabs(r.perplexity - exp(r.nll)) < 1e-9);
    assert_int_equal(r.tokens, T - 1);
    opt.ctx = 10;
    assert_int_equal(nb_eval_perplexity(f.net, f.ids, T, &opt, (nb_watch){0}, &r, &err), NB_OK);
    assert_int_equal(r.windows, 4);
    assert_int_equal(r.tokens, 36);
    assert_true(r.error > 0);
    opt.n_windows = 3;
    assert_int_equal(nb_eval_perplexity(f.net, f.ids, T, &opt, (nb_watch){0}, &r, &err), NB_OK);
    assert_int_equal(r.windows, 3);
    opt.ctx = T + 1;
    assert_int_equal(nb_eval_perplexity(f.net, f.ids, T, &opt, (nb_watch){0}, &r, &err), NB_EUSAGE);
    close_fixture(&f);
}

static void compare_is_its_definition(void **state)
{
    NB_UNUSED(state);
    fixture m, ref;
    nb_compare_result r;
    open_fixture(&m, "llama-gqa", "cpu");
    open_fixture(&ref, "llama-mha", "cpu");
    assert_int_equal(m.V, ref.V);
    double kl = 0, diff = 0, same = 0;
    for (int t = 0; t < T - 1; t++) {
        const float *p = ref.logits + t * m.V, *q = m.logits + t * m.V;
        double lp = log_sum_exp(p, m.V), lq = log_sum_exp(q, m.V);
        int ip = 0, iq = 0;
        for (int i = 0; i < m.V; i++) {
            kl += exp((double)p[i] - lp) * (((double)p[i] - lp) - ((double)q[i] - lq));
            if (p[i] > p[ip]) ip = i;
            if (q[i] > q[iq]) iq = i;
        }
        same += ip == iq;
        diff += nll_at(&m, t) - nll_at(&ref, t);
    }
    nb_eval_options opt = {.ctx = T};
    const nb_net *nets[2] = {m.net, ref.net};
    nb_compare_result both[2];
    assert_int_equal(nb_eval_compare(nets, 2, ref.net, m.ids, T, &opt, (nb_watch){0}, both, NULL),
                     NB_OK);
    assert_true(both[1].kl_max < 1e-9 && both[1].perplexity == both[0].perplexity_reference);
    assert_int_equal(nb_eval_compare(nets, 1, ref.net, m.ids, T, &opt, (nb_watch){0}, &r, NULL),
                     NB_OK);
    assert_true(r.kl_mean == both[0].kl_mean && r.perplexity == both[0].perplexity);
    assert_true(fabs(r.kl_mean - kl / (T - 1)) < 1e-5);
    assert_true(fabs(r.top1_agreement - same / (T - 1)) < 1e-12);
    assert_true(fabs(r.perplexity_ratio - exp(diff / (T - 1))) < 1e-4);
    assert_true(r.kl_p99 >= r.kl_median && r.kl_max >= r.kl_p99);
    assert_int_equal(nb_eval_compare(nets, 1, m.net, m.ids, T, &opt, (nb_watch){0}, &r, NULL),
                     NB_OK);
    assert_true(r.kl_max < 1e-9 && r.top1_agreement == 1 && r.perplexity_ratio == 1);
    close_fixture(&m);
    close_fixture(&ref);
}

static bool stop_at_two(void *user, const nb_progress *p)
{
    NB_UNUSED(user);
    return p->done < 2;
}

static void evaluation_can_be_stopped(void **state)
{
    NB_UNUSED(state);
    fixture f;
    nb_perplexity_result r;
    open_fixture(&f, "llama-gqa", "ref");
    nb_eval_options opt = {.ctx = 10};
    nb_watch watch = {stop_at_two, NULL};
    assert_int_equal(nb_eval_perplexity(f.net, f.ids, T, &opt, watch, &r, NULL), NB_EINTERRUPTED);
    close_fixture(&f);
}

static void mean_error_by_hand(void **state)
{
    NB_UNUSED(state);
    const double x[] = {1, 2, 3, 6}; /* mean 3, variance 14/3, error sqrt(14/12) */
    double mean, error;
    nb_mean_error(x, 4, &mean, &error);
    assert_true(fabs(mean - 3) < 1e-12 && fabs(error - sqrt(14.0 / 12)) < 1e-12);
    nb_mean_error(x, 1, &mean, &error);
    assert_true(mean == 1 && error == 0);
}

/* Frequencies over many draws against the probabilities that the cuts leave. */
static void check_sampler(nb_sampler s, const float *logits, const double *want)
{
    enum { N = 20000, V = 5 };
    int count[V] = {0};
    for (int i = 0; i < N; i++) {
        int32_t id;
        assert_int_equal(nb_sampler_pick(&s, logits, V, &id, NULL), NB_OK);
        count[id]++;
    }
    for (int i = 0; i < V; i++) {
        double p = want[i], sd = sqrt(p * (1 - p) / N);
        if (p == 0) assert_int_equal(count[i], 0);
        assert_true(fabs((double)count[i] / N - p) <= 5 * sd);
    }
}

static void sampler_cuts_and_shapes(void **state)
{
    NB_UNUSED(state);
    const float l[] = {logf(0.1f), logf(0.4f), logf(0.05f), logf(0.25f), logf(0.2f)};
    nb_sampler plain = {1.0f, 0, 1.0f, 0.0f, {1}};
    check_sampler(plain, l, (double[]){0.1, 0.4, 0.05, 0.25, 0.2});
    nb_sampler k2 = {1.0f, 2, 1.0f, 0.0f, {2}};
    check_sampler(k2, l, (double[]){0, 0.4 / 0.65, 0, 0.25 / 0.65, 0});
    nb_sampler p60 = {1.0f, 0, 0.6f, 0.0f, {3}}; /* 0.4 + 0.25 reach 0.6 */
    check_sampler(p60, l, (double[]){0, 0.4 / 0.65, 0, 0.25 / 0.65, 0});
    nb_sampler min = {1.0f, 0, 1.0f, 0.3f, {4}}; /* below 0.3 * 0.4 = 0.12 goes */
    check_sampler(min, l, (double[]){0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85});
    nb_sampler cold = {0.5f, 2, 1.0f, 0.0f, {5}}; /* squares */
    check_sampler(cold, l, (double[]){0, 0.16 / 0.2225, 0, 0.0625 / 0.2225, 0});
    nb_sampler greedy = {0, 0, 1, 0, {6}};
    check_sampler(greedy, l, (double[]){0, 1, 0, 0, 0});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(session_equals_whole_forward),
        cmocka_unit_test(session_refuses_what_does_not_fit),
        cmocka_unit_test(perplexity_is_its_definition),
        cmocka_unit_test(compare_is_its_definition),
        cmocka_unit_test(evaluation_can_be_stopped),
        cmocka_unit_test(mean_error_by_hand),
        cmocka_unit_test(sampler_cuts_and_shapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
