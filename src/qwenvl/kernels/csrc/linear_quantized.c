/* out = x @ w.T + bias with weights of 8 or 4 bits in groups along K, and x rounded to signed 8 bits with one scale for
a row's group, so that the integer dot product of VNNI does the work.

Layout (quantized.py packs it): panels of 32 output features, K padded to whole groups. A line is 64 bytes: 16 features
times 4 values of k. 8 bits: for every 4 k, the lines of features 0-15 and 16-31. 4 bits: the same for every 8 k, the
first 4 in the low halves of the bytes and the last 4 in the high ones. Scales and zeros: float16 [panel][group][32].

   w = 2^exponent * scale * (q - zero)     out = sum over groups of  xscale * scale * (dot(q, xq) - zero * sum(xq))

The power of two goes into xscale. Without zeros they are 128, and the difference is taken in integers.

Sums within a group are exact integers and groups are added in their order: a row's result does not depend on M. */
#include "linear.h"

#include <math.h>

enum {
    MANY = 128,        /* rows from which taking 4 bits apart once is cheaper than in every pass */
    PANEL = 32,        /* output features of a panel */
    ROWS = 6,          /* rows of x whose sums all stay in registers, */
    FEW = 8,           /* and the most for which spilling them between groups is cheaper than a second pass */
    AHEAD = 4096,      /* bytes between the weights in use and those asked for */
    KEPT = 512 * 1024, /* bytes of panels that stay in the second cache while many rows pass */
    ROW_BLOCK = 16     /* rows that a thread rounds at a time */
};

typedef struct {
    const bf16 *x;
    const uint8_t *data;
    const uint16_t *scales, *zeros; /* zeros NULL: 128 */
    result to;
    long ldx, M, K, group, groups, stride, panels, take, bits;
    float unit;      /* 2^exponent */
    int8_t *xq;      /* [M][stride] */
    float *xscale;   /* [M][groups] */
    int32_t *offset; /* [M][groups]: -128 * sum(xq); with zeros the float -xscale * sum(xq) */
} product;

/* One group of a row of x -> integers, their scale, and their sum. */
static void round_group(const bf16 *x, long count, long group, int8_t *q, float *scale, int32_t *sum) {
    __m512i most = _mm512_setzero_si512();
    const __m512i positive = _mm512_set1_epi32(0x7fffffff);
    for (long k = 0; k < count; k += 16) {
        const __mmask16 left = first_of(count - k);
        __m512i v = _mm512_castps_si512(maskz_load_bf16(left, x + k));
        most = _mm512_max_epi32(most, _mm512_and_si512(v, positive)); /* as integers, so that NaN is the largest */
    }
    const union { int i; float f; } largest = {_mm512_reduce_max_epi32(most)};
    const __m512 inverse = _mm512_set1_ps(largest.f > 1e-30f ? 127.0f / largest.f : 0.0f);
    __m512i total = _mm512_setzero_si512();
    for (long k = 0; k < group; k += 16) {
        const __mmask16 left = first_of(count - k);
        __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(maskz_load_bf16(left, x + k), inverse));
        total = _mm512_add_epi32(total, v);
        _mm_storeu_si128((__m128i *)(q + k), _mm512_cvtsepi32_epi8(v));
    }
    *scale = largest.f / 127.0f;
    *sum = _mm512_reduce_add_epi32(total);
}

static void round_rows(void *context, long part) {
    const product *c = context;
    const long end = MIN(c->M, (part + 1) * ROW_BLOCK);
    for (long m = part * ROW_BLOCK; m < end; m++)
        for (long g = 0; g < c->groups; g++) {
            const long k = g * c->group, at = m * c->groups + g;
            int32_t sum;
            round_group(c->x + m * c->ldx + k, MIN(c->group, c->K - k), c->group, c->xq + m * c->stride + k,
                        c->xscale + at, &sum);
            c->xscale[at] *= c->unit;
            if (c->zeros)
                ((float *)c->offset)[at] = -c->xscale[at] * (float)sum;
            else
                c->offset[at] = -128 * sum;
        }
}

INLINE __m512 half(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }

/* sum[i][j] of R rows of x and one line pair: += dot(w, x at k). */
INLINE void dots(__m512i sum[][2], const int8_t *x, long stride, __m512i first, __m512i second, const int R) {
    UNROLL for (int i = 0; i < R; i++) {
        int32_t four;
        memcpy(&four, x + i * stride, 4);
        const __m512i v = _mm512_set1_epi32(four);
        sum[i][0] = _mm512_dpbusd_epi32(sum[i][0], first, v);
        sum[i][1] = _mm512_dpbusd_epi32(sum[i][1], second, v);
    }
}

/* One panel times R rows of x from m. `bits`: how the lines lie (4: to be taken apart). `ahead`: 0 where they are
cached. */
INLINE void panel_rows(const product *c, const uint8_t *w, long panel, long m, long ahead, const int R, const int bits,
                       const int has_zeros) {
    const int8_t *x = c->xq + m * c->stride;
    const uint16_t *scale = c->scales + panel * c->groups * PANEL;
    const uint16_t *zero = has_zeros ? c->zeros + panel * c->groups * PANEL : NULL;
    const __m512i low = _mm512_set1_epi8(15);
    __m512 out[FEW][2];
    UNROLL for (int i = 0; i < R; i++) out[i][0] = out[i][1] = _mm512_setzero_ps();
    for (long g = 0; g < c->groups; g++) {
        __m512i sum[FEW][2];
        UNROLL for (int i = 0; i < R; i++)
            sum[i][0] = sum[i][1] =
                has_zeros ? _mm512_setzero_si512() : _mm512_set1_epi32(c->offset[(m + i) * c->groups + g]);
        for (long k = 0; k < c->group; k += bits == 4 ? 8 : 4, w += 128) {
            const __m512i first = _mm512_loadu_si512(w), second = _mm512_loadu_si512(w + 64);
            _mm_prefetch((const char *)w + ahead, _MM_HINT_T1);
            _mm_prefetch((const char *)w + ahead + 64, _MM_HINT_T1);
            if (bits == 4) {
                dots(sum, x + k, c->stride, _mm512_and_si512(first, low), _mm512_and_si512(second, low), R);
                dots(sum, x + k + 4, c->stride, _mm512_and_si512(_mm512_srli_epi16(first, 4), low),
                     _mm512_and_si512(_mm512_srli_epi16(second, 4), low), R);
            } else
                dots(sum, x + k, c->stride, first, second, R);
        }
        x += c->group;
        UNROLL for (int j = 0; j < 2; j++) {
            const __m512 s = half(scale + g * PANEL + 16 * j);
            const __m512 shift = has_zeros ? _mm512_mul_ps(s, half(zero + g * PANEL + 16 * j)) : s;
            UNROLL for (int i = 0; i < R; i++) {
                const long at = (m + i) * c->groups + g;
                const __m512 dot = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[i][j]), s);
                out[i][j] = _mm512_fmadd_ps(dot, _mm512_set1_ps(c->xscale[at]), out[i][j]);
                if (has_zeros)
                    out[i][j] = _mm512_fmadd_ps(shift, _mm512_set1_ps(((const float *)c->offset)[at]), out[i][j]);
            }
        }
    }
    UNROLL for (int j = 0; j < 2; j++)
        UNROLL for (int i = 0; i < R; i++) put_sums(&c->to, m + i, panel * PANEL + 16 * j, out[i][j]);
}

#define CASE(R, bits, zeros) \
    case R: panel_rows(c, w, panel, m, ahead, R, bits, zeros); break;
#define CHOOSE(bits, zeros)                                                        \
    switch (rows) {                                                                \
        CASE(1, bits, zeros) CASE(2, bits, zeros) CASE(3, bits, zeros)             \
        CASE(4, bits, zeros) CASE(5, bits, zeros) CASE(6, bits, zeros)             \
        CASE(7, bits, zeros) CASE(8, bits, zeros)                                  \
    }

static void rows_8(const product *c, const uint8_t *w, long panel, long m, long rows, long ahead) {
    CHOOSE(8, 0)
}
/* 8 bits, or 4 bits that were taken apart. */
static void rows_8_zeros(const product *c, const uint8_t *w, long panel, long m, long rows, long ahead) {
    CHOOSE(8, 1)
}
static void rows_4_zeros(const product *c, const uint8_t *w, long panel, long m, long rows, long ahead) {
    CHOOSE(4, 1)
}

static void open_panel(const uint8_t *w, uint8_t *open, long bytes) {
    const __m512i low = _mm512_set1_epi8(15);
    for (long i = 0; i < bytes; i += 128)
        for (long j = 0; j < 128; j += 64) {
            const __m512i both = _mm512_loadu_si512(w + i + j);
            _mm_prefetch((const char *)w + i + j + AHEAD, _MM_HINT_T1);
            _mm512_store_si512(open + 2 * i + j, _mm512_and_si512(both, low));
            _mm512_store_si512(open + 2 * i + j + 128, _mm512_and_si512(_mm512_srli_epi16(both, 4), low));
        }
}

/* Panels [part * take, + take) times all rows: a few rows stay in the first cache, the panels in the second. */
static void product_part(void *context, long part) {
    const product *c = context;
    const long first = part * c->take, last = MIN(c->panels, first + c->take), depth = c->groups * c->group;
    const long bytes = depth * PANEL * c->bits / 8;
    const long most = c->M <= 2 * FEW ? FEW : ROWS, passes = (c->M + most - 1) / most;
    uint8_t *open = c->bits == 4 && c->M > MANY ? scratch((size_t)((last - first) * depth * PANEL)) : NULL;
    if (open) open_panel(c->data + first * bytes, open, (last - first) * bytes);
    for (long pass = 0, m = 0; pass < passes; pass++) {
        const long rows = (c->M - m + passes - pass - 1) / (passes - pass);
        for (long panel = first; panel < last; panel++) {
            const long ahead = pass ? 0 : AHEAD;
            const uint8_t *w = c->data + panel * bytes;
            if (open)
                rows_8_zeros(c, open + (panel - first) * depth * PANEL, panel, m, rows, 0);
            else if (c->bits == 4)
                rows_4_zeros(c, w, panel, m, rows, ahead);
            else if (c->zeros)
                rows_8_zeros(c, w, panel, m, rows, ahead);
            else
                rows_8(c, w, panel, m, rows, ahead);
        }
        m += rows;
    }
    free(open);
}

/* data, scales, zeros: as above; bits 8, zeros may be NULL, or 4. x bf16 [M, K] with rows ldx apart; bias bf16 [N] or
NULL; out bf16 or float32 with rows ldo apart. group: a multiple of 16. */
EXPORT void qv_linear_quantized(const bf16 *x, long ldx, const uint8_t *data, const uint16_t *scales,
                                const uint16_t *zeros, const bf16 *bias, void *out, long ldo, long out_is_float,
                                long M, long N, long K, long group, long bits, long exponent, int threads) {
    product c = {.x = x, .data = data, .scales = scales, .zeros = zeros, .ldx = ldx, .M = M, .K = K, .group = group};
    c.bits = bits;
    c.unit = ldexpf(1.0f, (int)exponent);
    c.to = (result){bias, out, ldo, N, (int)out_is_float};
    c.groups = (K + group - 1) / group;
    c.stride = c.groups * group + 64;
    c.panels = (N + PANEL - 1) / PANEL;
    c.take = MIN(KEPT / (c.groups * group * PANEL), c.panels / (8 * threads));
    c.take = M <= 16 ? 1 : MAX(1, c.take);
    const size_t integers = (size_t)(M * c.stride + 63) / 64 * 64, floats = (size_t)(M * c.groups) * 4;
    c.xq = scratch(integers + 2 * floats);
    c.xscale = (float *)(c.xq + integers);
    c.offset = (int32_t *)(c.xscale + M * c.groups);
    share_out(round_rows, &c, (M + ROW_BLOCK - 1) / ROW_BLOCK, threads);
    share_out(product_part, &c, (c.panels + c.take - 1) / c.take, threads);
    free(c.xq);
}
