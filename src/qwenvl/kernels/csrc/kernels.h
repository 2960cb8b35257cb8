/* What all kernels share: types, bf16 conversion, and work shared out to torch's own threads.

Legend: M rows of x (tokens), N output features, K input features; T tokens, H heads, D head size. bf16 is stored as
its 16 bits. Every function is reentrant and keeps no state but the scratch memory that it frees itself. */
#ifndef QWENVL_KERNELS_H
#define QWENVL_KERNELS_H

#include <immintrin.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

typedef uint16_t bf16;

static inline float bf16_to_float(bf16 x) {
    union { uint32_t u; float f; } v = {(uint32_t)x << 16};
    return v.f;
}

/* Rounds to nearest even, as torch does. */
static inline bf16 float_to_bf16(float x) {
    union { float f; uint32_t u; } v = {x};
    if ((v.u & 0x7fffffffu) > 0x7f800000u) return (bf16)((v.u >> 16) | 0x40);
    return (bf16)((v.u + 0x7fffu + ((v.u >> 16) & 1)) >> 16);
}

/* 16 bf16 values -> 16 floats. */
static inline __m512 load_bf16(const bf16 *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}

static inline __m512 maskz_load_bf16(__mmask16 m, const bf16 *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, p)), 16));
}

/* 16 floats -> 16 bf16 values, to nearest even. */
static inline void store_bf16(bf16 *p, __m512 x) { _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh(x)); }

static inline void mask_store_bf16(bf16 *p, __mmask16 m, __m512 x) {
    _mm256_mask_storeu_epi16(p, m, (__m256i)_mm512_cvtneps_pbh(x));
}

/* 2^x to a relative 2e-7; exactly 1 at 0, 0 for x below -150 and for minus infinity. */
static inline __m512 vector_exp2(__m512 x) {
    const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(1.867130399e-03f), f, _mm512_set1_ps(9.017029777e-03f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.579991266e-02f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.401644439e-01f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.931512952e-01f));
    return _mm512_scalef_ps(_mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f)), x);
}

/* Runs work(context, part) for every part in [0, parts) on `threads` threads of torch's OpenMP pool; a thread takes
the next part when it has done one. */
typedef void (*work_fn)(void *context, long part);
void share_out(work_fn work, void *context, long parts, int threads);

/* Scratch memory, aligned to 64 bytes; free() frees it. NULL never comes back: without memory the process aborts. */
static inline void *scratch(size_t bytes) {
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    if (!p) abort();
    return p;
}

#endif
