/* The whole decoder for a few rows in one call: what would be a dozen calls a layer, each with its cost in Python, is
made here from the same kernels in the same order, so that the numbers are the same to the last bit. */
#include "kernels.h"

void qv_linear_bf16(const bf16 *x, long ldx, const bf16 *w, const bf16 *bias, void *out, long ldo, long out_is_float,
                    long M, long N, long K, int threads);
void qv_linear_quantized(const bf16 *x, long ldx, const uint8_t *data, const uint16_t *scales, const uint16_t *zeros,
                         const bf16 *bias, void *out, long ldo, long out_is_float, long M, long N, long K, long group,
                         long bits, long exponent, int threads);
void qv_rms_norm(const bf16 *x, const bf16 *delta, const bf16 *weight, bf16 *sum, bf16 *out, long rows, long size,
                 long x_step, long delta_step, float eps, int threads);
void qv_silu_mul(const bf16 *gate, const bf16 *up, bf16 *out, long rows, long size, long gate_step, long up_step,
                 long out_step, int threads);
void qv_rotate(const bf16 *x, bf16 *out, const void *cosine, const void *sine, long tokens, long heads, long half,
               long x_token, long x_head, long out_token, long out_head, int wide, int threads);
void qv_attention(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *out, const int64_t *layout, long group,
                  long kv_heads, long size, long q_token, long q_head, long k_token, long k_head, long v_token,
                  long v_head, long causal, long window, float scale, int threads);

/* A weight as Python lists it. group 0: bfloat16 [N, K] in data; else packed integers. */
typedef struct {
    const void *data;
    const uint16_t *scales, *zeros;
    const bf16 *bias;
    int64_t N, K, group, bits, exponent;
} weight;

typedef struct {
    const bf16 *input_norm, *post_norm;
    weight q, k, v, o, gate, up, down;
    int64_t window;
} layer;

static void product(const weight *w, const bf16 *x, bf16 *out, long M, int threads) {
    if (w->group)
        qv_linear_quantized(x, w->K, w->data, w->scales, w->zeros, w->bias, out, w->N, 0, M, w->N, w->K, w->group, w->bits,
                            w->exponent, threads);
    else
        qv_linear_bf16(x, w->K, w->data, w->bias, out, w->N, 0, M, w->N, w->K, threads);
}

/* New keys or values [M, kv_heads, size] -> their places in a storage [kv_heads, room, size]. */
static void put(const bf16 *rows, bf16 *store, const int64_t *places, long M, long kv_heads, long room, long size) {
    for (long m = 0; m < M; m++)
        for (long h = 0; h < kv_heads; h++)
            memcpy(store + (h * room + places[m]) * size, rows + (m * kv_heads + h) * size, size * sizeof(bf16));
}

/* x [M, D] bf16 is overwritten by the sum of all branches; out [M, D] gets its norm. stores: keys and values of each
layer in turn. cosine and sine: float [M, size / 2]. layout: as qv_attention reads it. */
EXPORT void qv_few_rows(const layer *layers, long count, const bf16 *last_norm, float eps, bf16 *x, bf16 *out,
                        bf16 *const *stores, const int64_t *places, const int64_t *layout, const float *cosine,
                        const float *sine, long M, long heads, long kv_heads, long size, long room, float scale,
                        int threads) {
    const long D = layers[0].q.K, wide = layers[0].gate.N, H = heads * size, G = kv_heads * size;
    bf16 *q = scratch(sizeof(bf16) * M * (2 * H + 2 * G + 2 * wide + D));
    bf16 *k = q + M * H, *v = k + M * G, *attended = v + M * G, *gate = attended + M * H, *up = gate + M * wide;
    bf16 *branch = up + M * wide;
    for (long i = 0; i < count; i++) {
        const layer *l = layers + i;
        qv_rms_norm(x, i ? branch : NULL, l->input_norm, i ? x : NULL, out, M, D, D, i ? D : 0, eps, threads);
        product(&l->q, out, q, M, threads);
        product(&l->k, out, k, M, threads);
        product(&l->v, out, v, M, threads);
        qv_rotate(q, q, cosine, sine, M, heads, size / 2, H, size, H, size, 1, threads);
        qv_rotate(k, k, cosine, sine, M, kv_heads, size / 2, G, size, G, size, 1, threads);
        put(k, stores[2 * i], places, M, kv_heads, room, size);
        put(v, stores[2 * i + 1], places, M, kv_heads, room, size);
        qv_attention(q, stores[2 * i], stores[2 * i + 1], attended, layout, heads / kv_heads, kv_heads, size, H, size,
                     size, room * size, size, room * size, 1, l->window, scale, threads);
        product(&l->o, attended, branch, M, threads);
        qv_rms_norm(x, branch, l->post_norm, x, out, M, D, D, D, eps, threads);
        product(&l->gate, out, gate, M, threads);
        product(&l->up, out, up, M, threads);
        qv_silu_mul(gate, up, gate, M, wide, wide, wide, wide, threads);
        product(&l->down, gate, branch, M, threads);
    }
    qv_rms_norm(x, branch, last_norm, x, out, M, D, D, D, eps, threads);
    free(q);
}
