/* Which integers, scales and zeros stand for the weights of a group: w ~ 2^exponent * scale * (q - zero). */
#include <math.h>

#include "linear.h"

enum { LONGEST = 1024 /* values in a group, at most */, CUTS = 4, REFINED = 2, RANGES_8 = 10 };
static const float CUT = 0.05f;         /* 4 bits: so much of the range is cut off at an end, 0 to CUTS - 1 times */
static const float STEP = 0.04f;        /* 8 bits: each range is so much of the whole smaller than the one before */
static const float SMALLEST = 0x1p-24f; /* float16 above 0 */

typedef struct {
    const void *w;
    const float *counts;
    uint8_t *q;
    uint16_t *scales, *zeros;
    long N, K, group, groups;
    float unit; /* 2^-exponent */
    int is_float, search;
} choice;

/* A group of a row: its values, how much each counts (0 where the row is over), and the ends of its range. */
typedef struct {
    float w[LONGEST];
    const float *counts;
    long count, group;
    float least, most;
} values;

static inline uint16_t to_half(float x) {
    return (uint16_t)_mm_extract_epi16(
        _mm256_castsi256_si128(_mm512_cvtps_ph(_mm512_set1_ps(x), _MM_FROUND_TO_NEAREST_INT)), 0);
}

static inline float from_half(uint16_t x) { return _mm512_cvtss_f32(_mm512_cvtph_ps(_mm256_set1_epi16((short)x))); }

/* float16 above 0 and near x, with its value in x. */
static inline uint16_t scale_of(float *x) {
    const uint16_t rounded = to_half(MAX(*x, SMALLEST));
    *x = from_half(rounded);
    return rounded;
}

static inline __m512 nearest(__m512 w, __m512 zero, __m512 inverse, float last) {
    const __m512 t = _mm512_roundscale_ps(_mm512_fmadd_ps(w, inverse, zero), _MM_FROUND_TO_NEAREST_INT);
    return _mm512_min_ps(_mm512_max_ps(t, _mm512_setzero_ps()), _mm512_set1_ps(last));
}

static void put_values(const values *v, float scale, float zero, float last, uint8_t *q) {
    const __m512 inverse = _mm512_set1_ps(1.0f / scale), from = _mm512_set1_ps(zero);
    for (long k = 0; k < v->group; k += 16) {
        const __m512 t = nearest(_mm512_loadu_ps(v->w + k), from, inverse, last);
        _mm_storeu_si128((__m128i *)(q + k),
                         _mm512_maskz_cvtusepi32_epi8(first_of(v->count - k), _mm512_cvtps_epi32(t)));
    }
}

/* Squared error of the nearest integers. */
static float error_of(const values *v, float scale, float zero, float last) {
    const __m512 s = _mm512_set1_ps(scale), inverse = _mm512_set1_ps(1.0f / scale), from = _mm512_set1_ps(zero);
    __m512 error = _mm512_setzero_ps();
    for (long k = 0; k < v->count; k += 16) {
        const __m512 w = _mm512_loadu_ps(v->w + k), t = nearest(w, from, inverse, last);
        const __m512 missed = _mm512_fnmadd_ps(_mm512_sub_ps(t, from), s, w);
        error = _mm512_fmadd_ps(_mm512_mul_ps(missed, missed), _mm512_loadu_ps(v->counts + k), error);
    }
    return _mm512_reduce_add_ps(error);
}

/* Squared error that the best line through (q, w) takes away, with that line: w ~ slope * (q - zero). q is w rounded
within the range that begins at -zero / inverse; w has the mean 0. */
static float line(const values *v, float *zero, float inverse, float *slope) {
    __m512 n = _mm512_setzero_ps(), q1 = n, q2 = n, qw = n;
    for (long k = 0; k < v->count; k += 16) {
        const __m512 w = _mm512_loadu_ps(v->w + k), i = _mm512_loadu_ps(v->counts + k);
        const __m512 t = nearest(w, _mm512_set1_ps(*zero), _mm512_set1_ps(inverse), 15.0f), it = _mm512_mul_ps(i, t);
        n = _mm512_add_ps(n, i);
        q1 = _mm512_add_ps(q1, it);
        q2 = _mm512_fmadd_ps(it, t, q2);
        qw = _mm512_fmadd_ps(it, w, qw);
    }
    const float count = _mm512_reduce_add_ps(n), sum = _mm512_reduce_add_ps(q1), product = _mm512_reduce_add_ps(qw);
    const float spread = _mm512_reduce_add_ps(q2) - sum * sum / count;
    if (!(spread > 0.01f)) return -1.0f;
    *slope = product / spread;
    *zero = sum / count;
    return product * *slope;
}

/* 4 bits: ranges with more or less cut off at both ends, each time with the best line through what it gives; the best
of these is rounded to anew, and the line found again. What float16 cannot tell apart is added to the range at both
ends: a zero far away is rounded to steps of many. */
static void choose_4(const values *v, uint16_t *scale, uint16_t *zero) {
    const float slack = MAX(-v->least, v->most) * 0x1p-11f, least = v->least - slack, range = v->most + slack - least;
    *scale = *zero = 0;
    if (!(range > 0)) return;
    float n = 0.0f, total = 0.0f, best = -1.0f, slope = 0.0f, middle = 0.0f;
    for (long k = 0; k < v->count; k++) n += v->counts[k], total += v->counts[k] * v->w[k];
    const float mean = total / n;
    values centred;
    centred.counts = v->counts, centred.count = v->count;
    for (long k = 0; k < v->group; k++) centred.w[k] = v->w[k] - mean;
    for (int cut = 0; cut < CUTS * CUTS; cut++) {
        const float below = CUT * (float)(cut / CUTS), above = CUT * (float)(cut % CUTS);
        const float inverse = 15.0f / ((1.0f - below - above) * range);
        float found = 0.0f, at = (mean - least - below * range) * inverse;
        const float gain = line(&centred, &at, inverse, &found);
        if (gain > best && found > 0) best = gain, slope = found, middle = at;
    }
    for (int again = 0; again < REFINED && best > 0; again++) {
        float found = 0.0f, at = middle;
        const float gain = line(&centred, &at, 1.0f / slope, &found);
        if (!(gain > best && found > 0)) break;
        best = gain, slope = found, middle = at;
    }
    float wide = range / 15.0f, exact = 0.0f;
    *scale = scale_of(&wide);
    *zero = to_half(-least / wide);
    if (best < 0) return;
    const uint16_t narrow = scale_of(&slope);
    const uint16_t from = to_half(middle - mean / slope);
    exact = error_of(v, wide, from_half(*zero), 15.0f);
    if (error_of(v, slope, from_half(from), 15.0f) < exact) *scale = narrow, *zero = from;
}

/* 8 bits: nothing is cut off, unless that pays because some values count more than others. */
static uint16_t choose_8(const values *v, int search) {
    const float largest = MAX(-v->least, v->most);
    if (!(largest > 0)) return 0;
    uint16_t best = 0;
    float least = 0.0f;
    for (int step = 0; step < (search ? RANGES_8 : 1); step++) {
        const float exact = largest * (1.0f - STEP * (float)step) / 127.0f;
        float scale = exact;
        uint16_t rounded = scale_of(&scale);
        if (scale < exact) scale = from_half(++rounded);
        const float error = search ? error_of(v, scale, 128.0f, 255.0f) : 0.0f;
        if (!step || error < least) best = rounded, least = error;
    }
    return best;
}

static void choose_row(void *context, long n) {
    const choice *c = context;
    const __m512 unit = _mm512_set1_ps(c->unit);
    for (long g = 0; g < c->groups; g++) {
        const long k0 = g * c->group, at = n * c->groups + g;
        values v;
        v.counts = c->counts + k0, v.count = MIN(c->group, c->K - k0), v.group = c->group;
        __m512 least = _mm512_set1_ps(3e38f), most = _mm512_set1_ps(-3e38f);
        for (long k = 0; k < c->group; k += 16) {
            const __mmask16 left = first_of(v.count - k);
            const long from = n * c->K + k0 + k;
            const __m512 w = _mm512_mul_ps(c->is_float ? _mm512_maskz_loadu_ps(left, (const float *)c->w + from)
                                                       : maskz_load_bf16(left, (const bf16 *)c->w + from), unit);
            _mm512_storeu_ps(v.w + k, w);
            least = _mm512_mask_min_ps(least, left, least, w);
            most = _mm512_mask_max_ps(most, left, most, w);
        }
        v.least = _mm512_reduce_min_ps(least), v.most = _mm512_reduce_max_ps(most);
        if (c->zeros)
            choose_4(&v, c->scales + at, c->zeros + at);
        else
            c->scales[at] = choose_8(&v, c->search);
        const float scale = from_half(c->scales[at]), zero = c->zeros ? from_half(c->zeros[at]) : 128.0f;
        uint8_t *q = c->q + n * c->groups * c->group + k0;
        if (scale > 0)
            put_values(&v, scale, zero, c->zeros ? 15.0f : 255.0f, q);
        else
            memset(q, 0, (size_t)c->group);
    }
}

/* w [N, K] float32 or bf16 -> q uint8 [N, groups * group], 0 where K is over, float16 scales and zeros [N, groups].
zeros NULL: 8 bits, and 128 in their place; else 4 bits. counts [groups * group]: the weight of each input's squared
error, 0 where K is over; their mean in a group is 1. search: whether 8 bits look at them. group: a multiple of 16 up to
1024. */
EXPORT void qv_quantize(const void *w, long is_float, const float *counts, long search, uint8_t *q, uint16_t *scales,
                        uint16_t *zeros, long N, long K, long group, long exponent, int threads) {
    choice c = {w, counts, q, scales, zeros, N, K, group, (K + group - 1) / group};
    c.unit = ldexpf(1.0f, -(int)exponent);
    c.is_float = (int)is_float;
    c.search = (int)search;
    share_out(choose_row, &c, N, threads);
}
