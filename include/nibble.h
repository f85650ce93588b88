/* nibble: low-bit language models in C.
 *
 * The whole public interface: opaque handles, plain option structs, a status and a message.
 * The library never exits, prints or reads the environment.
 *
 * Rules that hold everywhere:
 *   - the out-handle comes first and is NULL after a failure; `err` comes last and may be NULL;
 *   - what a function hands out belongs to the caller and goes back with the named free/close;
 *   - `free(NULL)` and `close(NULL)` are legal;
 *   - option structs are set to their defaults by `nb_..._default` before a field is changed. */
#ifndef NIBBLE_H
#define NIBBLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define NB_API               __attribute__((visibility("default")))
#define NB_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define NB_API
#define NB_PRINTF(fmt, args)
#endif

/* ---- status ---------------------------------------------------------------------------- */

/* The numbers are the exit statuses of the command; they never change. */
typedef enum nb_status {
    NB_OK = 0,
    NB_EUSAGE = 2,         /* an argument or option that makes no sense                       */
    NB_EINPUT = 3,         /* the input is unreadable or malformed                            */
    NB_ERESOURCE = 4,      /* out of memory or disk                                           */
    NB_ENUMERIC = 5,       /* NaN, divergence; the message names block and step               */
    NB_EVERIFY = 6,        /* a checksum or structure differs from what was recorded          */
    NB_EINTERRUPTED = 130, /* the progress callback asked to stop; the work can be resumed    */
} nb_status;

typedef struct nb_error {
    nb_status status;
    char message[500]; /* what, where, expected, got; UTF-8, no newline at the end */
} nb_error;

NB_API const char *nb_version(void);

/* Frees memory that the library handed out (arrays of tokens, strings). */
NB_API void nb_free(void *p);

/* ---- progress -------------------------------------------------------------------------- */

typedef struct nb_progress {
    const char *phase;   /* "quantize", "perplexity", ...: valid during the call              */
    int64_t done, total; /* in units of the phase (blocks, windows)                           */
    const char *note;    /* one line about this step, or NULL: "blk 3: ppl so far 21.7"       */
} nb_progress;

/* Return false to stop: the call in progress then ends with NB_EINTERRUPTED. */
typedef bool (*nb_progress_fn)(void *user, const nb_progress *p);

/* ---- options --------------------------------------------------------------------------- */

typedef enum nb_compute {
    NB_COMPUTE_F32,  /* fp32 everywhere: the reference for quality figures                    */
    NB_COMPUTE_BF16, /* inputs of matrix products in bf16, sums and everything else in fp32   */
} nb_compute;

typedef struct nb_options {
    const char *device; /* "cpu" (default), "ref": the scalar reference, "cuda", "cuda:1"     */
    int threads;        /* 0 (default): as many as the process may use                        */
    nb_compute compute;
    bool simulate;    /* unpack quantized weights to fp32 when loading: fake-quant reference  */
    const char *kv;   /* format of the KV cache; NULL (default): as the model says            */
    unsigned cpumask; /* CPU features that may be used; default ~0u, 0: scalar kernels        */
    nb_progress_fn progress;
    void *progress_user;
} nb_options;

NB_API void nb_options_default(nb_options *o);

/* ---- models ---------------------------------------------------------------------------- */

typedef struct nb_model nb_model; /* weights, tokenizer, backend: immutable once open */

/* Opens a Hugging Face directory (safetensors), a nibble directory or a .gguf file.
 * Errors: NB_EINPUT (unreadable, malformed, unknown family), NB_ERESOURCE. */
NB_API nb_status nb_model_open(nb_model **out, const char *path, const nb_options *opt,
                               nb_error *err);
NB_API void nb_model_close(nb_model *m);

typedef struct nb_model_info {
    const char *family; /* "llama", "opt", ...: static */
    int n_layers, n_embd, n_ffn, n_heads, n_kv_heads, head_dim, n_vocab, n_ctx;
    int64_t n_params;
    size_t weight_bytes;             /* as held in memory by the packed or float linears    */
    const char *rope;                /* rotary pairs: "half", "interleaved"; NULL: none     */
    const char *kv_keys, *kv_values; /* formats of the KV cache: "f32", "dialect:b32"     */
    size_t kv_bytes_per_token;       /* of a session on this model, without its last chunk */
    size_t kv_bytes_per_token_f16;   /* what they would take in fp16                       */
    /* Walsh-Hadamard transforms that run online, in runs of so many channels; 0: none. Of what
     * enters the last linear of a block; of each head of queries and keys; of the hidden state,
     * behind the embedding and back before the final norm. */
    int hadamard_down, hadamard_qk, hadamard_stream;
    bool has_tokenizer;
} nb_model_info;

NB_API void nb_model_describe(const nb_model *m, nb_model_info *out);

/* Text to token ids. `special`: special tokens written in the text ("<|im_end|>") become their
 * ids, otherwise they are ordinary text; `bos`: begin as the tokenizer's own settings say.
 * *tokens goes back with nb_free. NB_EUSAGE if the model has no tokenizer. */
NB_API nb_status nb_tokenize(const nb_model *m, const char *text, size_t n_bytes, bool bos,
                             bool special, int32_t **tokens, size_t *n_tokens, nb_error *err);

/* Token ids to bytes (exact inverse for ordinary tokens; may end inside a UTF-8 sequence).
 * *text is NUL-terminated and goes back with nb_free. */
NB_API nb_status nb_detokenize(const nb_model *m, const int32_t *tokens, size_t n_tokens,
                               bool special, char **text, size_t *n_bytes, nb_error *err);

/* ---- quality --------------------------------------------------------------------------- */

typedef struct nb_eval_options {
    int ctx;           /* tokens per window, default 2048; windows do not overlap             */
    int64_t n_windows; /* 0 (default): all whole windows; N: the first N                      */
    /* Values of a KV cache with blocks along the sequence: quantize every full block for every
     * query, as papers evaluate; default: only those before the query's own, as generation sees
     * them. */
    bool full_chunks;
} nb_eval_options;

NB_API void nb_eval_options_default(nb_eval_options *o);

/* exp of the mean negative log-likelihood over all positions but the first of each window
 * (OmniQuant, section 4.1); `error` is one standard error over windows, by the delta method. */
typedef struct nb_perplexity_result {
    double perplexity, error;
    double nll; /* mean, nats per token */
    int64_t tokens, windows;
    double seconds, tokens_per_second;
    int64_t nonfinite_activations; /* Inf and NaN that the format of activations saturated */
} nb_perplexity_result;

NB_API nb_status nb_perplexity(nb_model *m, const int32_t *tokens, size_t n_tokens,
                               const nb_eval_options *opt, nb_perplexity_result *out,
                               nb_error *err);

/* All models see the same windows; KL(reference || model) in nats per token. */
typedef struct nb_compare_result {
    double kl_mean, kl_mean_error, kl_p99, kl_p99_error, kl_max, kl_median;
    double top1_agreement, top1_agreement_error;
    double perplexity, perplexity_error, perplexity_reference, perplexity_reference_error;
    double perplexity_ratio, perplexity_ratio_error; /* exp of the paired difference */
    int64_t tokens, windows;
    double seconds, tokens_per_second;
    int64_t nonfinite_activations; /* of the model that is measured */
} nb_compare_result;

/* out [n_models], at least one. The reference runs once for all of them. Progress goes to the first
 * model's callback; `seconds` is of the whole. */
NB_API nb_status nb_compare(nb_model *const *models, size_t n_models, nb_model *reference,
                            const int32_t *tokens, size_t n_tokens, const nb_eval_options *opt,
                            nb_compare_result *out, nb_error *err);

/* Logits of one sequence: out is [n_tokens, n_vocab] fp32 row-major, caller's memory. */
NB_API nb_status nb_logits(nb_model *m, const int32_t *tokens, size_t n_tokens, float *out,
                           nb_error *err);

/* ---- generation ------------------------------------------------------------------------ */

typedef struct nb_generate_options {
    int n_predict;     /* tokens to generate at most, default 128                             */
    float temperature; /* 0: greedy; default 0.8                                              */
    int top_k;         /* 0: off; default 40                                                  */
    float top_p;       /* 1: off; default 0.95                                                */
    float min_p;       /* 0: off; default 0.05                                                */
    uint64_t seed;     /* default 0                                                           */
    bool chat;         /* wrap the prompt as one user message of the model's chat template    */
    bool ignore_eos;   /* go on after an end token                                            */
    int n_ctx;         /* KV cache capacity; 0 (default): what prompt and n_predict need      */
} nb_generate_options;

NB_API void nb_generate_options_default(nb_generate_options *o);

typedef struct nb_generate_result {
    int64_t prompt_tokens, tokens;
    double prompt_tokens_per_second, decode_tokens_per_second;
    size_t kv_bytes;               /* of the KV cache: memory taken at the end           */
    size_t kv_bytes_per_token;     /* of its tokens, as in nb_model_info                 */
    int64_t nonfinite_activations; /* as in nb_perplexity_result */
} nb_generate_result;

/* Called with whole UTF-8 characters as they become known; return false to stop early. */
typedef bool (*nb_text_fn)(void *user, const char *text, size_t n_bytes);

NB_API nb_status nb_generate(nb_model *m, const char *prompt, size_t n_bytes,
                             const nb_generate_options *opt, nb_text_fn on_text, void *user,
                             nb_generate_result *out, nb_error *err);

/* ---- quantizing ------------------------------------------------------------------------ */

typedef struct nb_quantize_options {
    const char *model, *out; /* source; directory to make                                     */
    const char *recipe;      /* text of a YAML recipe, or NULL                                */
    /* Each of these overrides the recipe where set (NULL, 0 or -1: leave). */
    const char *weights, *acts, *kv, *method; /* format words; comma-separated steps          */
    const char
        *rope; /* channels of a rotary pair: "half" (i, i + D/2), "interleaved" (2i, 2i + 1) */
    int samples, seqlen, epochs, batch;
    int64_t seed;
    const char *const *calib; /* UTF-8 text files                                             */
    size_t n_calib;
    size_t memory; /* bytes that may be used; 0: no limit. Hidden states that do not fit go to
                      disk; the result is the same                                            */
    bool resume;   /* go on where an earlier run of the same command was killed               */
    bool dry_run;  /* plan and estimate only: nothing is written                              */
    bool force;    /* replace `out` if it is there                                            */
    nb_options run;
} nb_quantize_options;

NB_API void nb_quantize_options_default(nb_quantize_options *o);

typedef struct nb_quantize_result {
    char recipe[64];
    int64_t bytes, source_bytes; /* all weight files                                          */
    int64_t n_quantized;         /* weights in quantized linears                              */
    double bits_per_weight;      /* of the quantized linears, scales and metadata included    */
    double seconds;
    int64_t peak_rss;         /* bytes, of the whole process                                  */
    int64_t estimated_memory; /* bytes: filled by dry_run as well                             */
    int64_t spilled_bytes;    /* of hidden states on disk, while it works; 0: they fit        */
    double estimated_seconds; /* dry_run only                                                 */
    int n_blocks, n_resumed;  /* blocks in all; blocks taken over from an earlier run         */
} nb_quantize_result;

/* Makes out.partial and renames it to `out` in the last step. Same input, recipe and seed give
 * the same bytes for any thread count and after any number of kills and resumes. */
NB_API nb_status nb_quantize(const nb_quantize_options *opt, nb_quantize_result *out,
                             nb_error *err);

/* ---- looking inside -------------------------------------------------------------------- */

typedef struct nb_tensor_desc {
    const char *name;   /* as in the file, without the plane suffix of a quantized linear     */
    const char *format; /* format word: "int4:g128", "bf16", "q4_1"                           */
    int n_dims;
    int64_t dims[4]; /* outermost first */
    int64_t bytes;
    double bits_per_weight;
    bool quantized; /* a packed linear of a nibble directory */
} nb_tensor_desc;

typedef struct nb_inspection {
    const char *container; /* "safetensors", "gguf", "nibble" */
    nb_model_info info;
    const char *recipe;          /* name of the recipe of a nibble directory, or NULL         */
    int64_t bytes, source_bytes; /* weight files here; of the source, where recorded          */
    double bits_per_weight;      /* of quantized linears; of all tensors where there are none */
    size_t n_tensors;
    const nb_tensor_desc *tensors;
} nb_inspection;

NB_API nb_status nb_inspect(nb_inspection **out, const char *path, nb_error *err);
NB_API void nb_inspection_free(nb_inspection *i);

/* Blocks of tensors[tensor], tensor < n_tensors, by their dialect, 0 .. 15 (BlockDialect, figure 4:
 * 2k and 2k + 1 reach to 7.5 - k/2 units). A block of several rows counts once, and one of zeros
 * has dialect 0. Returns the number of blocks; 0, and zeros in `count`, for any other format. */
#define NB_DIALECTS 16
NB_API int64_t nb_inspection_dialects(const nb_inspection *i, size_t tensor,
                                      int64_t count[NB_DIALECTS]);

/* Distribution of one tensor's values, decoded to fp32. */
#define NB_HISTOGRAM_BINS 32
typedef struct nb_tensor_stats {
    int64_t n, n_zero, n_nonfinite;
    double min, max, mean, std, absmax;
    double kurtosis;                      /* of a normal distribution: 3 */
    int64_t histogram[NB_HISTOGRAM_BINS]; /* equal bins over [min, max]  */
} nb_tensor_stats;

NB_API nb_status nb_inspect_tensor(const char *path, const char *name, nb_tensor_stats *out,
                                   nb_error *err);

typedef struct nb_verify_result {
    int64_t n_tensors, n_checksums, bytes;
} nb_verify_result;

/* Structure, every recorded checksum, finiteness of every value. NB_EVERIFY at the first fault. */
NB_API nb_status nb_verify(const char *path, const nb_options *opt, nb_verify_result *out,
                           nb_error *err);

/* ---- files ----------------------------------------------------------------------------- */

/* Reads a whole file; *data is NUL-terminated and goes back with nb_free. */
NB_API nb_status nb_file_read(const char *path, char **data, size_t *n_bytes, nb_error *err);

/* Writes [n_rows, n_cols] fp32 as a NumPy .npy file (version 1.0), atomically. */
NB_API nb_status nb_npy_write(const char *path, const float *data, int64_t n_rows, int64_t n_cols,
                              nb_error *err);

#ifdef __cplusplus
}
#endif
#endif
