/* Which integers and scales stand for the weights of a group. */
#include "linear.h"

enum { LONGEST = 1024 /* values in a group, at most */ };

typedef struct {
    const void *w;
    uint8_t *q;
    uint16_t *scales, *minima;
    long N, K, group, groups;
    int is_float;
} choice;

#define TO_HALF(x, rounding) \
    ((uint16_t)_mm_extract_epi16(_mm256_castsi256_si128(_mm512_cvtps_ph(_mm512_set1_ps(x), rounding)), 0))

static inline float from_half(uint16_t x) { return _mm512_cvtss_f32(_mm512_cvtph_ps(_mm256_set1_epi16((short)x))); }

static inline __m512 nearest(__m512 w, __m512 low, __m512 inverse, float last) {
    const __m512 t = _mm512_roundscale_ps(_mm512_mul_ps(_mm512_sub_ps(w, low), inverse), _MM_FROUND_TO_NEAREST_INT);
    return _mm512_min_ps(_mm512_max_ps(t, _mm512_setzero_ps()), _mm512_set1_ps(last));
}

/* w[k] ~ scale * q[k] + low, q in [0, last]. */
static void put_values(const float *w, long count, long group, float low, float scale, float last, uint8_t *q) {
    const __m512 inverse = _mm512_set1_ps(scale > 0 ? 1.0f / scale : 0.0f), from = _mm512_set1_ps(low);
    for (long k = 0; k < group; k += 16) {
        const __m512 t = nearest(_mm512_loadu_ps(w + k), from, inverse, last);
        _mm_storeu_si128((__m128i *)(q + k),
                         _mm512_maskz_cvtusepi32_epi8(first_of(count - k), _mm512_cvtps_epi32(t)));
    }
}

/* Squared error that the best line through (q, w) takes away, with that line's slope; w has the mean 0, and q is w
rounded within [low, low + 15 / inverse]. */
static float line(const float *w, long count, float low, float inverse, float *slope, float *mean_q) {
    __m512 q1 = _mm512_setzero_ps(), q2 = q1, qw = q1;
    for (long k = 0; k < count; k += 16) {
        const __m512 v = _mm512_loadu_ps(w + k);
        const __m512 t = _mm512_maskz_mov_ps(first_of(count - k),
                                             nearest(v, _mm512_set1_ps(low), _mm512_set1_ps(inverse), 15.0f));
        q1 = _mm512_add_ps(q1, t);
        q2 = _mm512_fmadd_ps(t, t, q2);
        qw = _mm512_fmadd_ps(t, v, qw);
    }
    const float sum = _mm512_reduce_add_ps(q1), product = _mm512_reduce_add_ps(qw);
    const float spread = _mm512_reduce_add_ps(q2) - sum * sum / (float)count;
    if (!(spread > 0.01f)) return -1.0f;
    *slope = product / spread;
    *mean_q = sum / (float)count;
    return product * *slope;
}

/* 4 bits: the range is shrunk step by step, each time with the best line through what it gives. */
static void choose_4(float *w, long count, float least, float most, float *scale, float *low) {
    __m512 total = _mm512_setzero_ps();
    for (long k = 0; k < count; k += 16) total = _mm512_add_ps(total, _mm512_loadu_ps(w + k));
    const float mean = _mm512_reduce_add_ps(total) / (float)count, range = most - least;
    float centred[LONGEST], best = -1.0f;
    for (long k = 0; k < count; k += 16)
        _mm512_storeu_ps(centred + k, _mm512_sub_ps(_mm512_loadu_ps(w + k), _mm512_set1_ps(mean)));
    *scale = range / 15.0f;
    *low = least;
    if (!(range > 1e-30f)) return;
    for (int step = 0; step < 10; step++) {
        const float kept = 1.0f - 0.04f * (float)step, from = least - mean + 0.5f * (1.0f - kept) * range;
        float slope = 0.0f, mean_q = 0.0f, gain = line(centred, count, from, 15.0f / (kept * range), &slope, &mean_q);
        if (gain > best && slope > 0) {
            best = gain;
            *scale = slope;
            *low = mean - slope * mean_q;
        }
    }
}

static void choose_row(void *context, long n) {
    const choice *c = context;
    float w[LONGEST];
    for (long g = 0; g < c->groups; g++) {
        const long k0 = g * c->group, at = n * c->groups + g, count = MIN(c->group, c->K - k0);
        __m512 least = _mm512_set1_ps(3e38f), most = _mm512_set1_ps(-3e38f);
        for (long k = 0; k < c->group; k += 16) {
            const __mmask16 left = first_of(count - k);
            const long from = n * c->K + k0 + k;
            const __m512 v = c->is_float ? _mm512_maskz_loadu_ps(left, (const float *)c->w + from)
                                         : maskz_load_bf16(left, (const bf16 *)c->w + from);
            _mm512_storeu_ps(w + k, v);
            least = _mm512_mask_min_ps(least, left, least, v);
            most = _mm512_mask_max_ps(most, left, most, v);
        }
        const float a = _mm512_reduce_min_ps(least), b = _mm512_reduce_max_ps(most);
        uint8_t *q = c->q + n * c->groups * c->group + k0;
        if (c->minima) {
            float scale, low;
            choose_4(w, count, a, b, &scale, &low);
            c->scales[at] = TO_HALF(scale, _MM_FROUND_TO_NEAREST_INT);
            c->minima[at] = TO_HALF(low, _MM_FROUND_TO_NEAREST_INT);
            put_values(w, count, c->group, from_half(c->minima[at]), from_half(c->scales[at]), 15.0f, q);
        } else {
            c->scales[at] = TO_HALF(MAX(-a, b) / 127.0f, _MM_FROUND_TO_POS_INF); /* up: nothing is cut off */
            const float scale = from_half(c->scales[at]);
            put_values(w, count, c->group, -128.0f * scale, scale, 255.0f, q);
        }
    }
}

/* w [N, K] float32 or bf16 -> q uint8 [N, groups * group], 0 where K is over, float16 scales and minima [N, groups];
minima NULL: 8 bits, w = scale * (q - 128); else 4 bits, w = scale * q + minimum. group: a multiple of 16, <= 1024. */
EXPORT void qv_quantize(const void *w, long is_float, uint8_t *q, uint16_t *scales, uint16_t *minima, long N, long K,
                        long group, int threads) {
    choice c = {w, q, scales, minima, N, K, group, (K + group - 1) / group, (int)is_float};
    share_out(choose_row, &c, N, threads);
}
