/* model/: what config.json may and may not say, rotary scaling, missing and misshapen tensors. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "model/family.h"

static char dir[] = "/tmp/nibble-model-XXXXXX";

static void put(const char *name, const char *text)
{
    char *path = nb_path_join(dir, name);
    assert_int_equal(nb_write_file(path, text, strlen(text), NULL), NB_OK);
    free(path);
}

/* One tensor is enough for the configuration to be read. */
static void put_embedding(int64_t rows, int64_t cols)
{
    float *w = calloc((size_t)(rows * cols), sizeof *w);
    nb_tensor t = {.name = "model.embed_tokens.weight",
                   .dtype = NB_F32,
                   .n_dims = 2,
                   .dims = {rows, cols},
                   .data = (const uint8_t *)w,
                   .n_bytes = (size_t)(rows * cols) * sizeof *w};
    char *path = nb_path_join(dir, "model.safetensors");
    assert_int_equal(nb_safetensors_write(path, &t, 1, NULL, 0, NULL), NB_OK);
    free(path);
    free(w);
}

static int setup(void **state)
{
    NB_UNUSED(state);
    if (!mkdtemp(dir)) return 1;
    put_embedding(16, 8);
    return 0;
}

static int teardown(void **state)
{
    NB_UNUSED(state);
    return nb_remove_tree(dir, NULL);
}

#define LLAMA                                                                                      \
    "\"model_type\":\"llama\",\"hidden_size\":8,\"num_hidden_layers\":1,\"intermediate_size\":12," \
    "\"num_attention_heads\":2,\"vocab_size\":16"

static void config_faults_are_named(void **state)
{
    NB_UNUSED(state);
    static const struct {
        const char *json, *message;
    } faults[] = {
        {"", "config.json"},
        {"[1]", "expected an object"},
        {"{\"hidden_size\":8,\"hidden_size\":8}", "duplicate"},
        {"{}", "model_type"},
        {"{\"model_type\":\"bert\"}", "expected one of llama, mistral, opt, qwen2, qwen3"},
        {"{\"model_type\":7}", "model_type: expected a string"},
        {"{\"model_type\":\"llama\"}", "layers missing or 0"},
        {"{" LLAMA ",\"hidden_size\":8}", "duplicate"},
        {"{" LLAMA ",\"num_key_value_heads\":-1}", "num_key_value_heads: expected an integer"},
        {"{" LLAMA ",\"num_key_value_heads\":3}", "2 heads are no multiple of 3 KV heads"},
        {"{" LLAMA ",\"head_dim\":99999999999}", "head_dim: expected an integer"},
        {"{" LLAMA ",\"head_dim\":3}", "even"},
        {"{" LLAMA ",\"head_dim\":16777216}", "heads x head size 33554432: expected at most"},
        {"{" LLAMA ",\"head_dim\":\"4\"}", "head_dim: expected an integer"},
        {"{" LLAMA ",\"rms_norm_eps\":-1}", "rms_norm_eps: expected a non-negative number"},
        {"{" LLAMA ",\"tie_word_embeddings\":1}", "tie_word_embeddings: expected true or false"},
        {"{" LLAMA ",\"hidden_act\":\"tanh\"}", "expected silu, relu or gelu"},
        {"{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2}}", "\"yarn\""},
        {"{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0.5}}", "factor 0.5"},
        {"{" LLAMA ",\"rope_scaling\":[1]}", "rope_scaling: expected an object"},
        {"{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,"
         "\"low_freq_factor\":4,\"high_freq_factor\":1}}",
         "low_freq_factor"},
        {"{" LLAMA ",\"rope_theta\":0}", "positive base"},
        {"{" LLAMA ",\"rope_interleave\":1}", "rope_interleave: expected true or false"},
        {"{" LLAMA ",\"rope_interleave\":\"true\"}", "rope_interleave: expected true or false"},
        {"{" LLAMA ",\"quantization_config\":{\"quant_method\":\"gptq\"}}", "expected \"nibble\""},
        {"{" LLAMA ",\"quantization_config\":{\"quant_method\":\"nibble\",\"format_version\":9}}",
         "format_version: 9, expected 1"},
        {"{" LLAMA ",\"quantization_config\":{\"quant_method\":\"nibble\",\"format_version\":1}}",
         "modules: expected an object"},
        {"{" LLAMA ",\"quantization_config\":{\"quant_method\":\"nibble\",\"format_version\":1,"
         "\"modules\":{\"x\":\"int9:row\"}}}",
         "int9:row"},
        {"{\"model_type\":\"opt\",\"hidden_size\":8,\"num_hidden_layers\":1,\"ffn_dim\":12,"
         "\"num_attention_heads\":2,\"vocab_size\":16}",
         "model.decoder.embed_tokens.weight"},
    };
    for (size_t i = 0; i < NB_COUNT(faults); i++) {
        put("config.json", faults[i].json);
        nb_source *s;
        nb_error err = {0};
        nb_status st = nb_source_open(&s, dir, &err);
        if (st != NB_EINPUT || !strstr(err.message, faults[i].message)) {
            fail_msg("%s\n  status %d: %s\n  expected: %s", faults[i].json, st, err.message,
                     faults[i].message);
        }
        assert_null(s);
    }
}

static void shapes_are_checked(void **state)
{
    NB_UNUSED(state);
    nb_source *s;
    nb_arena *a;
    nb_host_ends ends;
    nb_host_block block;
    nb_error err = {0};
    put("config.json", "{" LLAMA ",\"tie_word_embeddings\":true}");
    assert_int_equal(nb_source_open(&s, dir, &err), NB_OK);
    assert_int_equal(nb_arena_create(&a, &err), NB_OK);
    assert_int_equal(nb_source_ends(s, a, &ends, &err), NB_EINPUT);
    assert_non_null(strstr(err.message, "model.norm.weight is missing"));
    assert_int_equal(nb_source_block(s, 0, a, &block, &err), NB_EINPUT);
    assert_non_null(strstr(err.message, "model.layers.0.self_attn.q_proj.weight is missing"));
    nb_source_close(s);
    put("config.json", "{" LLAMA ",\"vocab_size\":16,\"x\":0}"); /* a duplicate is refused */
    assert_int_equal(nb_source_open(&s, dir, &err), NB_EINPUT);
    put_embedding(17, 8);
    put("config.json", "{" LLAMA ",\"tie_word_embeddings\":true}");
    assert_int_equal(nb_source_open(&s, dir, &err), NB_OK);
    assert_int_equal(nb_source_ends(s, a, &ends, &err), NB_EINPUT);
    assert_non_null(strstr(err.message, "shape [17, 8] (2 dimensions), expected [16, 8]"));
    nb_source_close(s);
    nb_arena_free(a);
    put_embedding(16, 8);
}

static void config_of(nb_config *c, const char *json)
{
    put("config.json", json);
    nb_source *s;
    nb_error err = {0};
    if (nb_source_open(&s, dir, &err) != NB_OK) fail_msg("%s", err.message);
    *c = *nb_source_config(s);
    nb_source_close(s);
}

/* Defaults are those of the Hugging Face configuration classes. */
static void defaults_are_those_of_transformers(void **state)
{
    NB_UNUSED(state);
    nb_config c;
    config_of(&c, "{" LLAMA "}");
    assert_int_equal(c.head_dim, 4);
    assert_int_equal(c.n_kv_heads, 2);
    assert_false(c.rope_interleaved);
    assert_int_equal(c.n_ctx, 2048);
    assert_true(c.norm_eps == 1e-6f && c.rope_theta == 10000.0f);
    assert_false(c.tied);
    assert_int_equal(c.window, 0);
    config_of(&c, "{\"model_type\":\"mistral\",\"hidden_size\":8,\"num_hidden_layers\":1,"
                  "\"intermediate_size\":12,\"num_attention_heads\":2,\"vocab_size\":16}");
    assert_int_equal(c.window, 4096);
    config_of(&c, "{\"model_type\":\"mistral\",\"hidden_size\":8,\"num_hidden_layers\":1,"
                  "\"intermediate_size\":12,\"num_attention_heads\":2,\"vocab_size\":16,"
                  "\"sliding_window\":null}");
    assert_int_equal(c.window, 0);
    config_of(&c, "{\"model_type\":\"qwen2\",\"hidden_size\":8,\"num_hidden_layers\":1,"
                  "\"intermediate_size\":12,\"num_attention_heads\":2,\"vocab_size\":16}");
    assert_true(c.qkv_bias && !c.o_bias);
    assert_int_equal(c.window, 0);
}

/* Llama 3.1's published parameters: high frequencies stay, low ones are divided by the factor,
 * and between them the blend is monotonous. */
static void llama3_scaling_blends(void **state)
{
    NB_UNUSED(state);
    nb_config c;
    config_of(&c, "{" LLAMA ",\"head_dim\":128,\"rope_theta\":500000,\"rope_scaling\":{"
                  "\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,"
                  "\"high_freq_factor\":4,\"original_max_position_embeddings\":8192}}");
    double div[64];
    nb_rope_divisors(&c, div);
    assert_true(div[0] == 1.0 && div[20] == 1.0);
    assert_true(div[63] == 8.0 && div[40] == 8.0);
    for (int i = 1; i < 64; i++) assert_true(div[i] >= div[i - 1]);
    /* channel 30 by hand: wavelength 2 pi 500000^(60/128) = 2946.99, smooth = (8192/2946.99 - 1)/3
     */
    double wavelength = 2 * 3.14159265358979 * pow(500000.0, 60.0 / 128);
    double smooth = (8192 / wavelength - 1) / 3;
    assert_true(fabs(1 / div[30] - ((1 - smooth) / 8 + smooth)) < 1e-12);
}

/* What a GGUF's metadata become reads back as the same configuration. */
static void written_config_reads_back(void **state)
{
    NB_UNUSED(state);
    nb_config c, d;
    config_of(&c, "{" LLAMA ",\"num_key_value_heads\":1,\"head_dim\":6,\"rope_theta\":100000,"
                  "\"rope_interleave\":true,\"tie_word_embeddings\":true,\"rms_norm_eps\":1e-5,"
                  "\"rope_scaling\":{"
                  "\"rope_type\":\"llama3\",\"factor\":32,\"low_freq_factor\":1,"
                  "\"high_freq_factor\":4,\"original_max_position_embeddings\":8192}}");
    char *json;
    assert_true(c.rope_interleaved);
    assert_int_equal(nb_config_write_json(&c, 1, 2, &json, NULL), NB_OK);
    config_of(&d, json);
    free(json);
    assert_memory_equal(&c, &d, sizeof c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(config_faults_are_named),
        cmocka_unit_test(shapes_are_checked),
        cmocka_unit_test(defaults_are_those_of_transformers),
        cmocka_unit_test(llama3_scaling_blends),
        cmocka_unit_test(written_config_reads_back),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
