/* What the matrix products share. */
#ifndef QWENVL_LINEAR_H
#define QWENVL_LINEAR_H

#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 24")

/* Where a product goes: out [M, N], bf16 or float32, rows ldo apart; bias bf16 [N] or NULL. */
typedef struct {
    const bf16 *bias;
    void *out;
    long ldo, N;
    int is_float;
} result;

static inline __mmask16 first_of(long count) {
    return count >= 16 ? 0xffff : count > 0 ? (__mmask16)((1u << count) - 1) : 0;
}

/* Adds the bias to the sums of row m, features n to n + 15 as far as there are so many, and rounds them once. */
INLINE void put_sums(const result *r, long m, long n, __m512 sums) {
    const __mmask16 left = first_of(r->N - n);
    const long at = m * r->ldo + n;
    if (r->bias) sums = _mm512_add_ps(sums, maskz_load_bf16(left, r->bias + n));
    if (r->is_float)
        _mm512_mask_storeu_ps((float *)r->out + at, left, sums);
    else
        mask_store_bf16((bf16 *)r->out + at, left, sums);
}

/* qv_linear_bf16 for many rows of x. */
void linear_many_rows(const bf16 *x, long ldx, const bf16 *w, result to, long M, long K, int threads);

#endif
