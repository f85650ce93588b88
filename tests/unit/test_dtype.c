/* Storage types: golden blocks against gguf-py, known values of the scalar types, the table. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/hash.h"
#include "format/dtype.h"
#include "format/half.h"

/* One random block per type, its values 0, n/2 + 1 and n - 1, and the XXH3-128 of all n values as
 * fp32, computed by gguf-py (gguf.quants.dequantize). */
static const struct golden {
    nb_dtype dtype;
    const char *block;
    float sample[3];
    const char *hash;
} goldens[] = {
    {NB_Q4_0,
     "c028f3d8c0bd504c52e3143a3c82e9c239b9",
     {-0x1.7cp-3f, 0x1.7cp-3f, 0x1.c8p-4f},
     "a8d91a457b1bd42b9f32af0f6f3f534b"},
    {NB_Q4_1,
     "c028c1b21a9d9a43d8403c255b0fd0627a3c10d6",
     {0x1.47c000p-3f, 0x1.f78000p-4f, 0x1.15e000p-2f},
     "d46399936b6e12bb947f97e08f93adc9"},
    {NB_Q5_0,
     "c02856d6be12fbe5f8932ff6eb9a7fb618decfd220c6",
     {-0x1.7cp-3f, 0x1.0ap-1f, -0x1.30p-3f},
     "8abc28a2bf3692903d9d1b385ba8654c"},
    {NB_Q5_1,
     "c028c1b2ddf306c2face47adc4d6c90fece963fb5dfec9ff",
     {0x1.81f000p-1f, 0x1.a7f000p-1f, 0x1.e0f000p-1f},
     "1693567a9f5de986055fce525d642863"},
    {NB_Q8_0,
     "c028a8daf94ae753dce2a595621451625b4816db33f6ca2868542dc2e072324e877b",
     {-0x1.a2p+1f, -0x1.5f8000p+0f, 0x1.242000p+2f},
     "c8e4a7a181184a54c26f9f1a0c88067e"},
    {NB_Q2_K,
     "04f0ab44cfaf67d7090ca05240a592ec9f8d93ae800afdeac3a2460b930d8b30a225c7e96c9ac111"
     "0b49f62ab51e70e44b836a49dab97ef8ccdc126f235fbbdc4d09ad391b120783b0ec37238e053a14"
     "c028c1b2",
     {0x1.c8p-2f, 0x1.008000p+0f, 0x1.7a3800p+1f},
     "e5505ed1aa2c67857258c5e8481c5484"},
    {NB_Q3_K,
     "340902bffb06ea11680509c19ea94ee78c219aee63f3f4bb7ab0c78823fcde8b80ca526f5254a818"
     "bbffbf3f10cd5bdd5cf1fe410a6b44ebf084032913c0a2f902817c2afdadb7bf6845d1f9b6fe515c"
     "c9d9ad7031c38a5b7b306a4d020fe42a9c8e264b21477515949a9643c028",
     {0x1.7cp+1f, 0x1.8fp-1f, -0.0f},
     "13b09db91622f85307efe872141f43b4"},
    {NB_Q4_K,
     "c028c1b2704e3b9dc4c143a5a0e0795008e5a2cbafb6c056ac1fb7e538a25261044c251793fe3604"
     "c0716d0c2828f17c060aa5f4ffdea244b093ec5a5ed202a9be50cc01cedd30c2196c27d6950ee968"
     "7b917884680cb64dea28d8c185f826000d9e3ac194fcfd351021a5bb6f79817a0f0d084278e762c7"
     "75c351372a044c00116d371ad33792f260f5ffaaac3e2e4a",
     {0x1.e30400p+3f, 0x1.9aba00p+3f, 0x1.91e500p+3f},
     "d06b97a0f5649d26c94bd1428f54d99a"},
    {NB_Q5_K,
     "c028c1b2925a6bc61545000f4c409d4edc0c5f9cdab3398907006777e5fe7fb8e94055284b08badc"
     "6e2b083fa1951a8e20ea81b825e9192f360557e1b170257666155eca8dc077cb1afd5ee84a32dbf1"
     "67802e8cdf3e5e5b1bd8a76be4177f9b992281416013a97a08f1571778da079fb283b55c300a47dd"
     "9a00802a0efa8f4ac7c14e54fd8457878cfabd91a187dd3c020c9d7c5e17b46ef9573b414a99f145"
     "f4c7bb74344b853cbd63fbe40589a9cf",
     {0x1.1baa00p+2f, 0x1.6f8800p+2f, 0x1.051080p+6f},
     "36c1bc4356867b5a9ebc1742f0b10b18"},
    {NB_Q6_K,
     "a5cb6c4387ce4c96c2fb10891a374d2ffea6c33e3cee057c5e9b485eba077155dea5185c14cf4464"
     "5da211774c45eabe93ddea7bae1460e925a923d51c6838b59b985312d7183c51c0117f1dd84ce996"
     "f53119dd72856a59ab07ae50d83c69bfccace33b4c71fe0f93c4ec836dae140ee2b068effa609e55"
     "82589d05c737bdca6eb117a101b0a85fa8e321232f6bf6dd5f0292ecdfe545868d2472612a767f5e"
     "ccaf81614850565641f3086bae3b781cfc801225c4783c24d1016541b1fe4290867bc667450e6575"
     "4ca5a38b5fdc4302c028",
     {-0x1.6a3000p+4f, 0x1.0ec000p+6f, 0x1.c8p-1f},
     "98f5d973916c2f7d67310c59e6b30da6"},
    {NB_IQ4_NL,
     "c028a88437c01bd54bb5c8d9f98cdf3d0a23",
     {0x1.30p-5f, 0x1.30p-5f, -0x1.8a4000p+1f},
     "5aaf5c5128de19b45a7fea5179fc5c53"},
    {NB_MXFP4,
     "7a1ba906a7ae65bdaef772e7fa46b1a9f5",
     {-0x1.80p-5f, -0x1.00p-5f, -0x1.80p-3f},
     "07a847ea6fa416fd4173e8870b640fcc"},
};

static size_t from_hex(uint8_t *out, const char *hex)
{
    size_t n = strlen(hex) / 2;
    for (size_t i = 0; i < n; i++) {
        char byte[3] = {hex[2 * i], hex[2 * i + 1], 0};
        out[i] = (uint8_t)strtoul(byte, NULL, 16);
    }
    return n;
}

static void test_golden_blocks(void **state)
{
    NB_UNUSED(state);
    for (size_t i = 0; i < NB_COUNT(goldens); i++) {
        const struct golden *g = &goldens[i];
        const nb_dtype_info *d = &nb_dtypes[g->dtype];
        uint8_t block[256];
        float x[256];
        char hash[NB_HASH_CHARS];
        assert_int_equal(from_hex(block, g->block), d->block_bytes);
        d->decode(block, d->block_elems, x);
        assert_true(x[0] == g->sample[0]);
        assert_true(x[d->block_elems / 2 + 1] == g->sample[1]);
        assert_true(x[d->block_elems - 1] == g->sample[2]);
        nb_hash(hash, x, d->block_elems * sizeof *x);
        assert_string_equal(hash, g->hash);
    }
}

/* Two blocks at an odd address give the same as one block twice: strides and alignment. */
static void test_blocks_in_a_row(void **state)
{
    NB_UNUSED(state);
    for (size_t i = 0; i < NB_COUNT(goldens); i++) {
        const nb_dtype_info *d = &nb_dtypes[goldens[i].dtype];
        uint8_t *two = malloc(2 * d->block_bytes + 1u);
        float one[256], x[512];
        from_hex(two + 1, goldens[i].block);
        memcpy(two + 1 + d->block_bytes, two + 1, d->block_bytes);
        d->decode(two + 1, d->block_elems, one);
        d->decode(two + 1, 2 * d->block_elems, x);
        assert_memory_equal(x, one, d->block_elems * sizeof *x);
        assert_memory_equal(x + d->block_elems, one, d->block_elems * sizeof *x);
        free(two);
    }
}

static const struct scalar {
    nb_dtype dtype;
    uint8_t bytes[8]; /* little-endian */
    float value;
} scalars[] = {
    {NB_F32, {0x00, 0x00, 0x80, 0xbf}, -1},
    {NB_F64, {0, 0, 0, 0, 0, 0, 0xe0, 0x3f}, 0.5f},
    {NB_F16, {0x01, 0x00}, 0x1p-24f},
    {NB_F16, {0xff, 0x83}, -0x3ffp-24f},
    {NB_F16, {0x00, 0x04}, 0x1p-14f},
    {NB_F16, {0xff, 0x7b}, 65504},
    {NB_F16, {0x00, 0xfc}, -INFINITY},
    {NB_F16, {0x01, 0x7c}, NAN},
    {NB_BF16, {0x49, 0x40}, 3.140625f},
    {NB_BF16, {0x80, 0xff}, -INFINITY},
    {NB_F8_E4M3, {0x01}, 0x1p-9f},
    {NB_F8_E4M3, {0x88}, -0x1p-6f},
    {NB_F8_E4M3, {0x38}, 1},
    {NB_F8_E4M3, {0x7e}, 448},
    {NB_F8_E4M3, {0xff}, NAN},
    {NB_F8_E5M2, {0x01}, 0x1p-16f},
    {NB_F8_E5M2, {0xbc}, -1},
    {NB_F8_E5M2, {0x7b}, 57344},
    {NB_F8_E5M2, {0x7c}, INFINITY},
    {NB_F8_E5M2, {0x7e}, NAN},
    {NB_I8, {0x80}, -128},
    {NB_U8, {0xff}, 255},
    {NB_I16, {0x00, 0x80}, -32768},
    {NB_I32, {0xfe, 0xff, 0xff, 0xff}, -2},
};

/* Each value many times over, at an odd address: vector body and tail of the loop agree. */
static void test_scalars(void **state)
{
    NB_UNUSED(state);
    enum { N = 37 };
    for (size_t i = 0; i < NB_COUNT(scalars); i++) {
        const nb_dtype_info *d = &nb_dtypes[scalars[i].dtype];
        uint8_t bytes[1 + 8 * N];
        float x[N];
        for (int k = 0; k < N; k++) {
            memcpy(bytes + 1 + k * d->block_bytes, scalars[i].bytes, d->block_bytes);
        }
        d->decode(bytes + 1, N, x);
        for (int k = 0; k < N; k++) {
            bool both_nan = isnan(scalars[i].value) && isnan(x[k]);
            assert_true(both_nan || x[k] == scalars[i].value);
        }
    }
}

/* Every fp16 comes back from fp32; NaN stays NaN. */
static void test_f16_round_trip(void **state)
{
    NB_UNUSED(state);
    for (uint32_t h = 0; h < 65536; h++) {
        float x = nb_f16_to_f32((uint16_t)h);
        if ((h & 0x7fffu) > 0x7c00u) {
            assert_true(isnan(x) && (signbit(x) != 0) == (h >> 15 != 0));
        } else {
            assert_int_equal(nb_f16_from_f32(x), h);
        }
    }
}

static void test_table(void **state)
{
    NB_UNUSED(state);
    for (int i = 0; i < NB_N_DTYPES; i++) {
        const nb_dtype_info *d = &nb_dtypes[i];
        assert_int_equal(nb_dtype_by_name(d->name), i);
        if (d->safetensors) assert_int_equal(nb_dtype_by_safetensors(d->safetensors), i);
        if (d->ggml >= 0) assert_int_equal(nb_dtype_by_ggml(d->ggml), i);
        assert_true(d->block_elems > 0 && d->block_bytes > 0);
        assert_true(d->safetensors || d->ggml >= 0);
    }
    assert_int_equal(nb_dtype_by_name("q4_2"), -1);
    assert_int_equal(nb_dtype_by_safetensors("F8"), -1);
    assert_int_equal(nb_dtype_by_ggml(-1), -1);
    assert_int_equal(nb_dtype_by_ggml(4), -1);
    assert_int_equal(nb_dtype_by_ggml((int64_t)1 << 32), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_blocks), cmocka_unit_test(test_blocks_in_a_row),
        cmocka_unit_test(test_scalars),       cmocka_unit_test(test_f16_round_trip),
        cmocka_unit_test(test_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
