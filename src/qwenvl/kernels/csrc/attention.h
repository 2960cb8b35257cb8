/* One block of attention: up to ROWS query rows against up to BLOCK keys. What attention_block.c computes and
attention.c puts together. */
#ifndef QWENVL_ATTENTION_H
#define QWENVL_ATTENTION_H

#include "kernels.h"

#define ROWS 64      /* query rows of a task: tokens times the query heads of a group */
#define BLOCK 240    /* keys of a block; every sequence is cut at the same multiples, whatever asks */
#define TILE 24      /* tables of keys are filled up to a multiple of this */
#define EMPTY -1e29f /* the largest score of a row that sees no key: far below any real one, far above hidden ones */

/* Keys [first, first + count) of a sequence: addresses of keys and values. Beyond the last, the last is repeated: in
key to the end, in value up to a multiple of TILE. */
typedef struct {
    long first, count;
    const bf16 *key[BLOCK + TILE], *value[BLOCK + TILE];
} key_block;

/* Scratch of one worker. Query rows are lanes: `width` of them (8, 16, 32, 48 or 64; the last is repeated up to it).
q: pairs of bf16 [size / 2][width]. scores: float [BLOCK + TILE][width], then probabilities, pairs of bf16
[BLOCK / 2][width]. values: pairs of bf16 [BLOCK / 2][padded], for many rows. out: float [width][padded]. padded: size
up to a multiple of 16. now: the block in work; next: the one after it, which is fetched meanwhile. */
typedef struct {
    uint32_t *q, *values;
    float *scores, *out;
    float largest[ROWS], sum[ROWS];             /* over all blocks so far */
    float block_largest[ROWS], block_sum[ROWS]; /* over this block */
    float keep[ROWS], add[ROWS];                /* factors: of what was before, of what this block brings */
    int32_t position[ROWS];                     /* of each row's token among the keys of its sequence */
    key_block *now, *next, blocks[2];
} work_space;

/* Scores, probabilities, block_largest and block_sum of w->now. masked: a row sees only keys at most at its position
and above its position - window. */
void score_block(work_space *w, long width, long pairs, int masked, long window, float scale);

/* out[row] = out[row] * keep[row] + add[row] * (probabilities x values); raw: out[row] = probabilities x values. */
void value_block(work_space *w, float *out, long width, long size, int raw);

/* Words [at, at + words), at most 16, of 16 rows -> [words][16], `step` words apart; where step is 8, of 8 rows. */
void transpose_words(const uint32_t *const *row, long at, long words, uint32_t *out, long step);

/* Asks for the memory of `count` rows of `size` elements. */
void ask_for_rows(const bf16 *const *row, long count, long size);

#endif
