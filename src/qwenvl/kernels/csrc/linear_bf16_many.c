/* out = x @ w.T + bias in bf16 with float32 sums, for many rows of x: the multiplier is what must never wait.

Pieces of w, WIDE features by DEEP inputs, are packed as they are used: panels of 32 features, two neighbouring inputs
side by side as the bf16 dot product wants them. A piece stays in the second cache while all rows pass in strips of
STRIP, whose copy (rows apart by an odd number of lines, so that they do not push each other out) stays in the first.
24 accumulators: STRIP rows by 32 features. An output adds its inputs in their order, DEEP at a time, whatever M is. */
#include "linear.h"

enum {
    STRIP = 12,
    PANEL = 32,
    DEEP = 512,
    WIDE = 256,
    ROWS = 1152,       /* rows of a part, at most: their sums stay in the third cache */
    TILE = STRIP * PANEL,
    STRIDE = DEEP + 32 /* values between the rows of a strip's copy */
};

typedef struct {
    const bf16 *x, *w;
    result to;
    long ldx, M, N, K, wide, rows, across; /* a part: `wide` features by `rows` rows; `across`: parts along N */
} many_rows;

/* 16 rows of 16 pairs -> 16 lines with the same pair of every row. */
INLINE void transpose_pairs(__m512i v[16]) {
    __m512i t[16];
    UNROLL for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        v[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        v[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        v[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        v[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        v[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        v[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        v[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        v[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* Rows [n, n + columns) of w, inputs [k, k + depth) -> panels; zeros where either is over. */
static void pack(const many_rows *c, long n, long columns, long k, long depth, bf16 *to) {
    for (long panel = 0; panel < columns; panel += PANEL, to += PANEL * ((depth + 1) & ~1L))
        for (long half = 0; half < PANEL; half += 16)
            for (long i = 0; i < depth; i += 32) {
                const long some = MIN(32, depth - i);
                const __mmask32 left = (__mmask32)((1ull << some) - 1);
                __m512i v[16];
                UNROLL for (int r = 0; r < 16; r++) {
                    const long row = n + panel + half + r;
                    v[r] = _mm512_maskz_loadu_epi16(row < c->N ? left : 0, c->w + row * c->K + k + i);
                }
                transpose_pairs(v);
                for (long pair = 0; pair < (some + 1) / 2; pair++)
                    _mm512_store_si512(to + (i / 2 + pair) * 2 * PANEL + 2 * half, v[pair]);
            }
}

/* sums [STRIP][PANEL] (+)= R strip rows x panel over `pairs` pairs of inputs; the next tile's sums are asked for. */
INLINE void kernel(const bf16 *strip, const bf16 *panel, long pairs, float *sums, int add, const int R) {
    __m512 sum[STRIP][2];
    UNROLL for (int i = 0; i < 2 * R; i++) {
        sum[i / 2][i % 2] = add ? _mm512_load_ps(sums + 16 * i) : _mm512_setzero_ps();
        _mm_prefetch((const char *)(sums + TILE + 16 * i), _MM_HINT_T0);
    }
    for (long p = 0; p < pairs; p++, panel += 2 * PANEL, strip += 2) {
        const __m512bh first = (__m512bh)_mm512_load_si512(panel), second = (__m512bh)_mm512_load_si512(panel + PANEL);
        UNROLL for (int i = 0; i < R; i++) {
            int32_t pair;
            memcpy(&pair, strip + i * STRIDE, 4);
            const __m512bh v = (__m512bh)_mm512_set1_epi32(pair);
            sum[i][0] = _mm512_dpbf16_ps(sum[i][0], first, v);
            sum[i][1] = _mm512_dpbf16_ps(sum[i][1], second, v);
        }
    }
    UNROLL for (int i = 0; i < 2 * R; i++) _mm512_store_ps(sums + 16 * i, sum[i / 2][i % 2]);
}

static void strip_panel(const bf16 *strip, const bf16 *panel, long pairs, float *sums, int add, long rows) {
    switch ((rows + 3) / 4) {
        case 1: kernel(strip, panel, pairs, sums, add, 4); break;
        case 2: kernel(strip, panel, pairs, sums, add, 8); break;
        default: kernel(strip, panel, pairs, sums, add, STRIP);
    }
}

/* Copies `rows` rows of x, inputs [k, k + depth); zeros up to STRIP rows and to an even depth. */
static void copy_strip(const many_rows *c, long m, long rows, long k, long depth, bf16 *strip) {
    for (long i = 0; i < STRIP; i++)
        for (long j = 0; j < depth; j += 32) {
            const __mmask32 left = i < rows ? (__mmask32)((1ull << MIN(32, depth - j)) - 1) : 0;
            _mm512_store_si512(strip + i * STRIDE + j, _mm512_maskz_loadu_epi16(left, c->x + (m + i) * c->ldx + k + j));
        }
}

static void put_strip(const many_rows *c, const float *tiles, long m, long rows, long n, long columns) {
    for (long j = 0; j < columns; j += 16)
        for (long i = 0; i < rows; i++)
            put_sums(&c->to, m + i, n + j, _mm512_load_ps(tiles + j / PANEL * TILE + i * PANEL + j % PANEL));
}

static void part(void *context, long number) {
    const many_rows *c = context;
    const long n = number % c->across * c->wide, m0 = number / c->across * c->rows;
    const long columns = MIN(c->wide, c->N - n), m1 = MIN(c->M, m0 + c->rows);
    const long panels = (columns + PANEL - 1) / PANEL, strips = (m1 - m0 + STRIP - 1) / STRIP;
    const long sums_size = strips * panels * TILE;
    float *sums = scratch((size_t)(sums_size * 4 + (DEEP * panels * PANEL + STRIP * STRIDE) * 2));
    bf16 *packed = (bf16 *)(sums + sums_size), *strip = packed + DEEP * panels * PANEL;
    for (long k = 0; k < c->K; k += DEEP) {
        const long depth = MIN(DEEP, c->K - k), pairs = (depth + 1) / 2;
        float *tile = sums;
        pack(c, n, columns, k, depth, packed);
        for (long m = m0; m < m1; m += STRIP) {
            const long rows = MIN(STRIP, m1 - m);
            copy_strip(c, m, rows, k, depth, strip);
            for (long j = 0; j < panels; j++, tile += TILE)
                strip_panel(strip, packed + j * PANEL * 2 * pairs, pairs, tile, k > 0, rows);
            if (k + DEEP >= c->K) put_strip(c, tile - panels * TILE, m, rows, n, columns);
        }
    }
    free(sums);
}

void linear_many_rows(const bf16 *x, long ldx, const bf16 *w, result to, long M, long K, int threads) {
    const long strips = (M + STRIP - 1) / STRIP;
    many_rows c = {x, w, to, ldx, M, to.N, K, WIDE, 0, 0};
    for (long cuts = (M + ROWS - 1) / ROWS;;) {
        c.rows = (strips + cuts - 1) / cuts * STRIP;
        c.across = (c.N + c.wide - 1) / c.wide;
        const long parts = c.across * ((M + c.rows - 1) / c.rows);
        if (threads == 1 || parts >= 4 * threads || (c.rows <= 2 * c.wide && c.wide <= 2 * PANEL)) {
            share_out(part, &c, parts, threads);
            return;
        }
        if (c.rows > 2 * c.wide)
            cuts *= 2;
        else
            c.wide /= 2;
    }
}
