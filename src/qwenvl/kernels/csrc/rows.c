/* Work on rows of activations: norms, gates, rotary turns. bf16 in and out, float32 between.

Rows may lie apart (strides in elements), their elements may not. Each row is computed by itself, in the same order
whatever lies beside it. */
#include "kernels.h"

#define PART_ELEMENTS 32768L /* work of one part; what fits two parts stays in the calling thread */

/* To the nearest bf16 and back. */
static inline __m512 rounded(__m512 x) {
    const __m512i bits = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

static inline __mmask16 lanes(long left) { return left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1); }

/* Calls work for rows [0, rows) of `size` elements in parts of about PART_ELEMENTS; step: rows of a part. */
static void share_rows(work_fn work, void *context, long rows, long size, long *step, int threads) {
    *step = MAX(1, PART_ELEMENTS / MAX(size, 1));
    if (rows <= 2 * *step || threads <= 1) *step = MAX(rows, 1);
    share_out(work, context, (rows + *step - 1) / *step, threads);
}

typedef struct {
    const bf16 *x, *delta, *weight;
    bf16 *sum, *out;
    long rows, size, x_step, delta_step, step;
    float eps;
} norm_job;

/* Sum of squares of a row of x; with delta of x + delta, which is rounded to bf16 and stored first. */
static float squares(const bf16 *x, const bf16 *delta, bf16 *sum, long size) {
    __m512 total[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    for (long i = 0, j = 0; i < size; i += 16, j = (j + 1) & 3) {
        const __mmask16 m = lanes(size - i);
        __m512 v = maskz_load_bf16(m, x + i);
        if (delta) {
            v = rounded(_mm512_add_ps(v, maskz_load_bf16(m, delta + i)));
            mask_store_bf16(sum + i, m, v);
        }
        total[j] = _mm512_fmadd_ps(v, v, total[j]);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(total[0], total[1]), _mm512_add_ps(total[2], total[3])));
}

static void norm_rows(void *context, long part) {
    const norm_job *j = context;
    for (long r = part * j->step; r < MIN(j->rows, (part + 1) * j->step); r++) {
        const bf16 *x = j->x + r * j->x_step;
        const float total = squares(x, j->delta ? j->delta + r * j->delta_step : NULL, j->sum + r * j->size, j->size);
        const __m512 factor = _mm512_set1_ps(1.0f / __builtin_sqrtf(total / (float)j->size + j->eps));
        const bf16 *source = j->delta ? j->sum + r * j->size : x;
        for (long i = 0; i < j->size; i += 16) {
            const __mmask16 m = lanes(j->size - i);
            const __m512 narrow = rounded(_mm512_mul_ps(maskz_load_bf16(m, source + i), factor));
            mask_store_bf16(j->out + r * j->size + i, m, _mm512_mul_ps(maskz_load_bf16(m, j->weight + i), narrow));
        }
    }
}

/* out = weight * bf16(x / rms(x)) [rows, size]; with delta (else NULL) of x + delta, which goes to sum. x_step and
delta_step: elements from row to row. */
EXPORT void qv_rms_norm(const bf16 *x, const bf16 *delta, const bf16 *weight, bf16 *sum, bf16 *out, long rows,
                        long size, long x_step, long delta_step, float eps, int threads) {
    norm_job j = {x, delta, weight, sum, out, rows, size, x_step, delta_step, 0, eps};
    share_rows(norm_rows, &j, rows, size, &j.step, threads);
}

typedef struct {
    const bf16 *gate, *up;
    bf16 *out;
    long rows, size, gate_step, up_step, out_step, step;
} gate_job;

static void gate_rows(void *context, long part) {
    const gate_job *j = context;
    const __m512 one = _mm512_set1_ps(1.0f), minus_log2e = _mm512_set1_ps(-1.4426950408889634f);
    for (long r = part * j->step; r < MIN(j->rows, (part + 1) * j->step); r++) {
        const bf16 *gate = j->gate + r * j->gate_step, *up = j->up + r * j->up_step;
        bf16 *out = j->out + r * j->out_step;
        for (long i = 0; i < j->size; i += 16) {
            const __mmask16 m = lanes(j->size - i);
            const __m512 g = maskz_load_bf16(m, gate + i);
            const __m512 silu = _mm512_div_ps(g, _mm512_add_ps(one, vector_exp2(_mm512_mul_ps(g, minus_log2e))));
            mask_store_bf16(out + i, m, _mm512_mul_ps(rounded(silu), maskz_load_bf16(m, up + i)));
        }
    }
}

/* out = bf16(silu(gate)) * up, rows of `size`; out may be gate or up. */
EXPORT void qv_silu_mul(const bf16 *gate, const bf16 *up, bf16 *out, long rows, long size, long gate_step, long up_step,
                        long out_step, int threads) {
    gate_job j = {gate, up, out, rows, size, gate_step, up_step, out_step, 0};
    share_rows(gate_rows, &j, rows, size, &j.step, threads);
}

typedef struct {
    const bf16 *x;
    bf16 *out;
    const void *cosine, *sine;
    long tokens, heads, half, x_token, x_head, out_token, out_head, step;
    int wide;
} turn_job;

static inline __m512 angle(const void *table, int wide, long at, __mmask16 m) {
    return wide ? _mm512_maskz_loadu_ps(m, (const float *)table + at) : maskz_load_bf16(m, (const bf16 *)table + at);
}

static void turn_tokens(void *context, long part) {
    const turn_job *j = context;
    for (long t = part * j->step; t < MIN(j->tokens, (part + 1) * j->step); t++)
        for (long i = 0; i < j->half; i += 16) {
            const __mmask16 m = lanes(j->half - i);
            const __m512 c = angle(j->cosine, j->wide, t * j->half + i, m);
            const __m512 s = angle(j->sine, j->wide, t * j->half + i, m);
            const bf16 *x = j->x + t * j->x_token + i;
            bf16 *out = j->out + t * j->out_token + i;
            for (long h = 0; h < j->heads; h++, x += j->x_head, out += j->out_head) {
                const __m512 a = maskz_load_bf16(m, x), b = maskz_load_bf16(m, x + j->half);
                mask_store_bf16(out, m, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
                mask_store_bf16(out + j->half, m, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)));
            }
        }
}

/* Turns the pairs (x[i], x[i + half]) of every head by the angles of its token; out may be x. cosine, sine: [tokens,
half], float32 (wide = 1) or bf16. */
EXPORT void qv_rotate(const bf16 *x, bf16 *out, const void *cosine, const void *sine, long tokens, long heads,
                      long half, long x_token, long x_head, long out_token, long out_head, int wide, int threads) {
    turn_job j = {x, out, cosine, sine, tokens, heads, half, x_token, x_head, out_token, out_head, 0, wide};
    share_rows(turn_tokens, &j, tokens, heads * half * 2, &j.step, threads);
}
