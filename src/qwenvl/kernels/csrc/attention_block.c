/* Scores lie with query rows side by side in a vector, so that the softmax never works across lanes, and keys are read
where they lie, two elements at a time, broadcast. Products of probabilities and values have the elements of a value
side by side. Every sum is taken in the order of the keys, whatever the shape of a tile, so that a row's result does not
depend on the rows beside it. */
#include "attention.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define LINE 16 /* pairs of bf16 in a cache line */
#define MOST 12 /* rows of the tallest tile; arrays of constant size become registers */

/* Asks for the cache line that holds element i of each row. */
INLINE void ask_for(const int R, const bf16 *const *row, long i) {
    UNROLL for (int r = 0; r < R; r++) _mm_prefetch((const char *)(row[r] + i), _MM_HINT_T1);
}

void ask_for_rows(const bf16 *const *row, long count, long size) {
    for (long r = 0; r < count; r++)
        for (long i = 0; i < size; i += 2 * LINE) ask_for(1, row + r, i);
}

/* Scores of R keys and 16 * NV rows; raises `largest`. Meanwhile the keys' values are fetched. */
INLINE void score_tile(const int R, const int NV, const uint32_t *q, const bf16 *const *key, const bf16 *const *value,
                       float *scores, float *largest, long width, long pairs) {
    __m512 sum[MOST][4];
    const uint32_t *k[MOST];
    UNROLL for (int r = 0; r < R; r++) {
        k[r] = (const uint32_t *)key[r];
        UNROLL for (int v = 0; v < NV; v++) sum[r][v] = _mm512_setzero_ps();
    }
    for (long i = 0; i < pairs; i++, q += width) {
        __m512bh row[4];
        if (i % LINE == 0) ask_for(R, value, 2 * i);
        UNROLL for (int v = 0; v < NV; v++) row[v] = (__m512bh)_mm512_loadu_si512(q + 16 * v);
        UNROLL for (int r = 0; r < R; r++) {
            const __m512bh x = (__m512bh)_mm512_set1_epi32((int)k[r][i]);
            UNROLL for (int v = 0; v < NV; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], row[v], x);
        }
    }
    UNROLL for (int v = 0; v < NV; v++) {
        __m512 most = _mm512_loadu_ps(largest + 16 * v);
        UNROLL for (int r = 0; r < R; r++) {
            most = _mm512_max_ps(most, sum[r][v]);
            _mm512_storeu_ps(scores + r * width + 16 * v, sum[r][v]);
        }
        _mm512_storeu_ps(largest + 16 * v, most);
    }
}

/* The same for 8 rows. */
INLINE void score_tile_8(const int R, const uint32_t *q, const bf16 *const *key, const bf16 *const *value,
                         float *scores, float *largest, long pairs) {
    __m256 sum[MOST], most = _mm256_loadu_ps(largest);
    const uint32_t *k[MOST];
    UNROLL for (int r = 0; r < R; r++) {
        k[r] = (const uint32_t *)key[r];
        sum[r] = _mm256_setzero_ps();
    }
    for (long i = 0; i < pairs; i++, q += 8) {
        if (i % LINE == 0) ask_for(R, value, 2 * i);
        const __m256bh row = (__m256bh)_mm256_loadu_si256((const __m256i *)q);
        UNROLL for (int r = 0; r < R; r++)
            sum[r] = _mm256_dpbf16_ps(sum[r], row, (__m256bh)_mm256_set1_epi32((int)k[r][i]));
    }
    UNROLL for (int r = 0; r < R; r++) {
        most = _mm256_max_ps(most, sum[r]);
        _mm256_storeu_ps(scores + r * 8, sum[r]);
    }
    _mm256_storeu_ps(largest, most);
}

/* Scores of all keys and their maximum; keys beyond count repeat the last one. */
static void all_scores(work_space *w, long width, long pairs, long count) {
    for (long j = 0; j < count;) {
        const bf16 *const *key = w->now->key + j, *const *value = w->now->value + j;
        float *scores = w->scores + j * width, *most = w->block_largest;
        switch (width) {
        case 8: score_tile_8(12, w->q, key, value, scores, most, pairs); j += 12; break;
        case 16: score_tile(12, 1, w->q, key, value, scores, most, width, pairs); j += 12; break;
        case 32: score_tile(8, 2, w->q, key, value, scores, most, width, pairs); j += 8; break;
        case 48: score_tile(8, 3, w->q, key, value, scores, most, width, pairs); j += 8; break;
        default: score_tile(6, 4, w->q, key, value, scores, most, width, pairs); j += 6;
        }
    }
}

/* Hides the keys that a row does not see; the maximum becomes that of the others. */
static void hide(work_space *w, long width, long first, long count, long window) {
    const __m512 hidden = _mm512_set1_ps(-__builtin_inff());
    const __mmask16 real = width == 8 ? 0xff : 0xffff;
    for (long v = 0; v < width; v += 16) {
        const __m512i place = _mm512_maskz_loadu_epi32(real, w->position + v);
        const __m512i reach = _mm512_sub_epi32(place, _mm512_set1_epi32((int)window));
        __m512 most = _mm512_set1_ps(EMPTY);
        for (long j = 0; j < count; j++) {
            float *scores = w->scores + j * width + v;
            const __m512i key = _mm512_set1_epi32((int)(first + j));
            const __mmask16 seen = _mm512_cmple_epi32_mask(key, place) & _mm512_cmpgt_epi32_mask(key, reach);
            const __m512 x = _mm512_mask_mov_ps(hidden, seen, _mm512_maskz_loadu_ps(real, scores));
            most = _mm512_max_ps(most, x);
            _mm512_mask_storeu_ps(scores, real, x);
        }
        _mm512_mask_storeu_ps(w->block_largest + v, real, most);
    }
}

/* Scores -> probabilities: pairs of bf16 in place, sums of the unrounded ones. */
static void soften(work_space *w, long width, long count, float scale) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512 factor = _mm512_set1_ps(scale);
    for (long v = 0; v < width; v += 16) {
        const __m512 offset = _mm512_mul_ps(_mm512_loadu_ps(w->block_largest + v), factor);
        __m512 even_sum = _mm512_setzero_ps(), odd_sum = _mm512_setzero_ps();
        for (long j = 0; j < count; j += 2) {
            const float *s = w->scores + j * width + v;
            const __m512 even = vector_exp2(_mm512_fmsub_ps(_mm512_loadu_ps(s), factor, offset));
            __m512 odd = vector_exp2(_mm512_fmsub_ps(_mm512_loadu_ps(s + width), factor, offset));
            if (j + 1 == count) odd = _mm512_setzero_ps();
            even_sum = _mm512_add_ps(even_sum, even);
            odd_sum = _mm512_add_ps(odd_sum, odd);
            const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
            _mm512_storeu_si512((uint32_t *)w->scores + j / 2 * width + v, _mm512_permutexvar_epi16(order, both));
        }
        _mm512_storeu_ps(w->block_sum + v, _mm512_add_ps(even_sum, odd_sum));
    }
}

/* The same for 8 rows: a vector holds two keys. */
static void soften_8(work_space *w, long count, float scale) {
    const __m256i order = _mm256_set_epi16(15, 7, 14, 6, 13, 5, 12, 4, 11, 3, 10, 2, 9, 1, 8, 0);
    const __m512 factor = _mm512_set1_ps(scale);
    const __m512 offset = _mm512_mul_ps(_mm512_broadcast_f32x8(_mm256_loadu_ps(w->block_largest)), factor);
    __m512 sum = _mm512_setzero_ps();
    for (long j = 0; j < count; j += 2) {
        __m512 p = vector_exp2(_mm512_fmsub_ps(_mm512_loadu_ps(w->scores + j * 8), factor, offset));
        if (j + 1 == count) p = _mm512_maskz_mov_ps(0xff, p);
        sum = _mm512_add_ps(sum, p);
        const __m256i pairs = _mm256_permutexvar_epi16(order, (__m256i)_mm512_cvtneps_pbh(p));
        _mm256_storeu_si256((__m256i *)((uint32_t *)w->scores + j * 4), pairs);
    }
    const __m256 even = _mm512_castps512_ps256(sum), odd = _mm512_extractf32x8_ps(sum, 1);
    _mm256_storeu_ps(w->block_sum, _mm256_add_ps(even, odd));
}

void score_block(work_space *w, long width, long pairs, int masked, long window, float scale) {
    const long count = w->now->count;
    for (long i = 0; i < width; i++) w->block_largest[i] = EMPTY;
    all_scores(w, width, pairs, count);
    if (masked) hide(w, width, w->now->first, count, window);
    if (width == 8)
        soften_8(w, count, scale);
    else
        soften(w, width, count, scale);
}

/* Two values as 16 pairs: element i of both side by side. */
INLINE __m512bh value_pairs(const bf16 *a, const bf16 *b, __mmask16 m) {
    const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                                           37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i low = _mm512_castsi256_si512(_mm256_maskz_loadu_epi16(m, a));
    const __m512i high = _mm512_castsi256_si512(_mm256_maskz_loadu_epi16(m, b));
    return (__m512bh)_mm512_permutex2var_epi16(low, order, high);
}

/* What a tile of products needs besides its shape. packed: pairs [count / 2][padded], or NULL: read from w->value. */
typedef struct {
    const work_space *w;
    const uint32_t *probability, *packed;
    float *out;
    long width, padded, pairs, row, at;
    __mmask16 tail;
    int raw;
} value_work;

/* Rows [row, row + R), elements [at, at + 16 * NV); the last 16 under the mask `tail`. */
INLINE void value_tile(const int R, const int NV, const int PACKED, const value_work *x) {
    __m512 sum[MOST][4];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < NV; v++) sum[r][v] = _mm512_setzero_ps();
    const uint32_t *p = x->probability + x->row, *packed = x->packed + x->at;
    const bf16 *const *value = x->w->now->value;
    for (long i = 0; i < x->pairs; i++, p += x->width) {
        __m512bh pair[4];
        if (!PACKED) UNROLL for (int v = 0; v < NV; v += 2) ask_for(2, x->w->next->key + 2 * i, x->at + 16 * v);
        UNROLL for (int v = 0; v < NV; v++)
            pair[v] = PACKED ? (__m512bh)_mm512_loadu_si512(packed + 16 * v)
                             : value_pairs(value[2 * i] + x->at + 16 * v, value[2 * i + 1] + x->at + 16 * v,
                                           v == NV - 1 ? x->tail : 0xffff);
        UNROLL for (int r = 0; r < R; r++) {
            const __m512bh y = (__m512bh)_mm512_set1_epi32((int)p[r]);
            UNROLL for (int v = 0; v < NV; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], pair[v], y);
        }
        packed += x->padded;
    }
    UNROLL for (int r = 0; r < R; r++) {
        float *out = x->out + (x->row + r) * x->padded + x->at;
        const __m512 keep = _mm512_set1_ps(x->w->keep[x->row + r]), add = _mm512_set1_ps(x->w->add[x->row + r]);
        UNROLL for (int v = 0; v < NV; v++) {
            __m512 total = sum[r][v];
            if (!x->raw) total = _mm512_fmadd_ps(total, add, _mm512_mul_ps(_mm512_loadu_ps(out + 16 * v), keep));
            _mm512_storeu_ps(out + 16 * v, total);
        }
    }
}

static void pack_values(work_space *w, long padded, long size, long count) {
    for (long j = 0; j < count; j += 2)
        for (long at = 0; at < padded; at += 16) {
            if (at % 32 == 0) ask_for(2, w->next->key + j, at);
            const __mmask16 m = size - at >= 16 ? 0xffff : (__mmask16)((1u << (size - at)) - 1);
            const __m512i pair = (__m512i)value_pairs(w->now->value[j] + at, w->now->value[j + 1] + at, m);
            _mm512_storeu_si512(w->values + j / 2 * padded + at, pair);
        }
}

void value_block(work_space *w, float *out, long width, long size, int raw) {
    const long count = w->now->count;
    const long padded = (size + 15) / 16 * 16;
    const __mmask16 tail = size == padded ? 0xffff : (__mmask16)((1u << (size % 16)) - 1);
    const int packed = width > 16;
    if (packed) pack_values(w, padded, size, count);
    value_work x = {w, (uint32_t *)w->scores, w->values, out, width, padded, (count + 1) / 2, 0, 0, 0, raw};
    for (long vectors; x.at < padded; x.at += 16 * vectors) {
        const long left = (padded - x.at) / 16;
        vectors = left == 4 ? 2 : MIN(left, 3);
        x.tail = left == vectors ? tail : 0xffff;
        for (x.row = 0; x.row < width; x.row += 8) {
            if (packed && vectors == 3) value_tile(8, 3, 1, &x);
            else if (packed && vectors == 2) value_tile(8, 2, 1, &x);
            else if (packed) value_tile(8, 1, 1, &x);
            else if (vectors == 3) value_tile(8, 3, 0, &x);
            else if (vectors == 2) value_tile(8, 2, 0, &x);
            else value_tile(8, 1, 0, &x);
        }
    }
}

/* 4 x 4 words within each quarter, then quarters against vectors. */
INLINE void transpose_16(__m512i x[16]) {
    UNROLL for (int i = 0; i < 16; i += 4) {
        const __m512i a = _mm512_unpacklo_epi32(x[i], x[i + 1]), b = _mm512_unpackhi_epi32(x[i], x[i + 1]);
        const __m512i c = _mm512_unpacklo_epi32(x[i + 2], x[i + 3]), d = _mm512_unpackhi_epi32(x[i + 2], x[i + 3]);
        x[i] = _mm512_unpacklo_epi64(a, c), x[i + 1] = _mm512_unpackhi_epi64(a, c);
        x[i + 2] = _mm512_unpacklo_epi64(b, d), x[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        const __m512i a = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88), b = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
        const __m512i c = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
        const __m512i d = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
        x[i] = _mm512_shuffle_i32x4(a, c, 0x88), x[i + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
        x[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88), x[i + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
}

void transpose_words(const uint32_t *const *row, long at, long words, uint32_t *out, long step) {
    const __mmask16 real = words >= 16 ? 0xffff : (__mmask16)((1u << words) - 1);
    const __mmask16 wanted = step < 16 ? 0xff : 0xffff;
    __m512i x[16];
    UNROLL for (int i = 0; i < 16; i++) x[i] = _mm512_maskz_loadu_epi32(real, row[i] + at);
    transpose_16(x);
    if (words >= 16)
        UNROLL for (int i = 0; i < 16; i++) _mm512_mask_storeu_epi32(out + i * step, wanted, x[i]);
    else
        for (int i = 0; i < words; i++) _mm512_mask_storeu_epi32(out + i * step, wanted, x[i]);
}
