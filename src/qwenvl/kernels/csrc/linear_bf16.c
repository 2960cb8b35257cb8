/* out = x @ w.T + bias in bf16 with float32 sums, for few rows of x: the weights stream from memory once, and reading
them is all that may take time. k lies along the lanes, one accumulator an output, summed across at the end. The order
of the sum of an output does not depend on M. */
#include "linear.h"

enum {
    FEW_ROWS = 16,    /* linear.py knows it too */
    PART = 48,        /* weight rows a thread takes at a time */
    BLOCK = 48,       /* weight rows between which x stays in the first cache */
    TILES = 24,       /* most accumulators in registers */
    X_ROWS = 8,       /* most rows of x in a tile */
    X_VALUES = 12288, /* values of x that stay in the first cache beside the weights that pass */
};

typedef struct {
    const bf16 *x, *w;
    result to;
    long ldx, M, N, K;
} few_rows;

/* Sums of the lanes of 16 vectors, one a lane: the same tree for every vector. */
INLINE __m512 lane_sums(const __m512 *v) {
    __m512 a[8], b[4], c[2];
    UNROLL for (int i = 0; i < 8; i++)
        a[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    UNROLL for (int i = 0; i < 4; i++) {
        __m512d first = _mm512_castps_pd(a[2 * i]), second = _mm512_castps_pd(a[2 * i + 1]);
        b[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(first, second)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(first, second)));
    }
    UNROLL for (int i = 0; i < 2; i++)
        c[i] = _mm512_add_ps(_mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x88),
                             _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(c[0], c[1], 0x88), _mm512_shuffle_f32x4(c[0], c[1], 0xdd));
}

/* Adds the products of k in [k, end) to the sums of X rows of x times R rows of w; sums[i * R + r] lie in `kept`
between calls. `ahead`: distance in bytes to the weights that are asked for meanwhile. */
INLINE void tile(const few_rows *c, const bf16 *x, const bf16 *w, long k, long end, long ahead, __m512 *kept,
                 const int R, const int X) {
    const long whole = k + ((end - k) & ~31L);
    __m512 sum[TILES];
    UNROLL for (int i = 0; i < R * X; i++) sum[i] = k ? kept[i] : _mm512_setzero_ps();
    for (; k < whole; k += 32) {
        __m512bh row[8];
        UNROLL for (int r = 0; r < R; r++) {
            row[r] = (__m512bh)_mm512_loadu_si512(w + r * c->K + k);
            _mm_prefetch((const char *)(w + r * c->K + k) + ahead, _MM_HINT_T1);
        }
        UNROLL for (int i = 0; i < X; i++) {
            __m512bh v = (__m512bh)_mm512_loadu_si512(x + i * c->ldx + k);
            UNROLL for (int r = 0; r < R; r++) sum[i * R + r] = _mm512_dpbf16_ps(sum[i * R + r], row[r], v);
        }
    }
    if (k < end) {
        __mmask32 left = (__mmask32)((1ull << (end - k)) - 1);
        UNROLL for (int i = 0; i < X; i++) {
            __m512bh v = (__m512bh)_mm512_maskz_loadu_epi16(left, x + i * c->ldx + k);
            UNROLL for (int r = 0; r < R; r++)
                sum[i * R + r] =
                    _mm512_dpbf16_ps(sum[i * R + r], (__m512bh)_mm512_maskz_loadu_epi16(left, w + r * c->K + k), v);
        }
    }
    UNROLL for (int i = 0; i < R * X; i++) kept[i] = sum[i];
}

/* X rows of x from m times the weight rows [n, end), at most BLOCK of them; y [X][BLOCK] takes the sums. The `passes`
passes over a block take turns, tile by tile, in asking for the rows that follow it, so that each is asked for once. */
INLINE void block(const few_rows *c, long m, long n, long end, int pass, int passes, float *y, const int R,
                  const int X) {
    const long step = (X_VALUES / X) & ~31L, ahead = (end - n) * c->K * 2;
    __m512 kept[BLOCK * X_ROWS];
    float sums[BLOCK * X_ROWS];
    for (long k = 0; k < c->K; k += step) {
        const bf16 *x = c->x + m * c->ldx;
        long stop = MIN(c->K, k + step), row = n, turn = pass;
        for (; row + R <= end; row += R, turn++)
            tile(c, x, c->w + row * c->K, k, stop, turn % passes ? 0 : ahead, kept + (row - n) * X, R, X);
        for (; row < end; row++) tile(c, x, c->w + row * c->K, k, stop, 0, kept + (row - n) * X, 1, X);
    }
    for (long i = 0; i < (end - n) * X; i += 16) _mm512_storeu_ps(sums + i, lane_sums(kept + i));
    for (long row = n; row < end;) {
        int rows = row + R <= end ? R : 1;
        for (int i = 0; i < X; i++)
            for (int r = 0; r < rows; r++) y[i * BLOCK + row + r - n] = sums[(row - n) * X + i * rows + r];
        row += rows;
    }
}

static void few_rows_part(void *context, long part) {
    const few_rows *c = context;
    const long last = MIN(c->N, (part + 1) * PART);
    const int passes = (int)((c->M + X_ROWS - 1) / X_ROWS);
    result to = c->to;
    float y[X_ROWS * BLOCK + 16] = {0};
    for (long n = part * PART; n < last; n += BLOCK) {
        long end = MIN(last, n + BLOCK), m = 0;
        to.N = end;
        for (int pass = 0; pass < passes; pass++) {
            long rows = (c->M - m + passes - pass - 1) / (passes - pass);
            switch (rows) {
                case 1: block(c, m, n, end, pass, passes, y, 8, 1); break;
                case 2: block(c, m, n, end, pass, passes, y, 8, 2); break;
                case 3: block(c, m, n, end, pass, passes, y, 8, 3); break;
                case 4: block(c, m, n, end, pass, passes, y, 6, 4); break;
                case 5: block(c, m, n, end, pass, passes, y, 4, 5); break;
                case 6: block(c, m, n, end, pass, passes, y, 4, 6); break;
                case 7: block(c, m, n, end, pass, passes, y, 3, 7); break;
                default: block(c, m, n, end, pass, passes, y, 3, 8);
            }
            for (long i = 0; i < rows; i++)
                for (long j = n; j < end; j += 16) put_sums(&to, m + i, j, _mm512_loadu_ps(y + i * BLOCK + j - n));
            m += rows;
        }
    }
}

/* x bf16 [M, K] with rows ldx apart, w bf16 [N, K], bias bf16 [N] or NULL, out bf16 or float32 [M, N] with rows ldo
apart. */
EXPORT void qv_linear_bf16(const bf16 *x, long ldx, const bf16 *w, const bf16 *bias, void *out, long ldo,
                           long out_is_float, long M, long N, long K, int threads) {
    const result to = {bias, out, ldo, N, (int)out_is_float};
    few_rows c = {x, w, to, ldx, M, N, K};
    if (M > FEW_ROWS)
        linear_many_rows(x, ldx, w, to, M, K, threads);
    else
        share_out(few_rows_part, &c, (N + PART - 1) / PART, threads);
}
