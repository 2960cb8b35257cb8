/* Attention of packed sequences to their own keys, which lie packed too or in runs of a cache.

A task is up to ROWS query rows of one kv head (tokens times the query heads of its group) against the blocks of keys
that they see. Keys are cut into blocks at the same multiples for every row; each block's softmax has its own maximum,
and blocks are joined one after the other in the order of the keys. So a row's result depends on nothing but itself and
its keys: not on the rows beside it, on how a prompt was cut into chunks, nor on threads. Where there are few tasks, the
blocks of the long ones are computed side by side, and whoever finishes last joins them in that same order. */
#include "attention.h"

#define PARTS_A_THREAD 4 /* a task of more than an even share of so many parts a thread is cut */

typedef struct {
    const bf16 *q, *k, *v;
    bf16 *out; /* [T, heads, size] */
    const int64_t *cu_q, *keys, *cu_runs, *runs;
    long sequences, group, kv_heads, size, q_token, q_head, k_token, k_head, v_token, v_head, causal, window;
    float scale;
} problem;

/* A task whose blocks are shared out: what they gave, `stride` floats each, and how many blocks are still to come. */
typedef struct {
    atomic_long left;
    float *blocks;
    long first, last, stride;
} cut;

/* Query tokens [token, token + tokens) of a sequence, one kv head, key blocks [first, last). */
typedef struct {
    long sequence, head, token, tokens, first, last;
    cut *shared;
} task;

typedef struct {
    const problem *p;
    task *tasks;
    long count, room, widest;
    char *memory;
    size_t memory_step;
    atomic_long next;
} job;

/* Where a walk over the keys of a sequence is: in which run, and how many keys lie before that. */
typedef struct {
    long run, before;
} cursor;

static long width_of(long rows) { return rows <= 8 ? 8 : (rows + 15) / 16 * 16; }
static long padded_of(long size) { return (size + 15) / 16 * 16; }

/* Position of query token t among the keys of its sequence. */
static long position_of(const problem *p, long sequence, long t) {
    return p->keys[sequence] - (p->cu_q[sequence + 1] - p->cu_q[sequence]) + t;
}

static const bf16 *query_of(const problem *p, const task *t) {
    return p->q + (p->cu_q[t->sequence] + t->token) * p->q_token + t->head * p->group * p->q_head;
}

/* Where row 0 of a task's result goes. */
static bf16 *result_of(const problem *p, const task *t) {
    return p->out + ((p->cu_q[t->sequence] + t->token) * p->kv_heads + t->head) * p->group * p->size;
}

/* Asks for the queries of a task, or, to be written, for its results. */
static void ask_for_queries(const problem *p, const task *t) {
    const bf16 *q = query_of(p, t);
    for (long r = 0; r < t->tokens * p->group; r++)
        for (long i = 0; i < p->size; i += 32)
            __builtin_prefetch(q + r / p->group * p->q_token + r % p->group * p->q_head + i, 0, 2);
}

static void ask_for_results(const problem *p, const task *t) {
    const long line = p->group * p->size;
    for (long n = 0; n < t->tokens; n++)
        for (long i = 0; i < line + 31; i += 32)
            __builtin_prefetch(result_of(p, t) + n * p->kv_heads * line + MIN(i, line - 1), 1, 3);
}

/* Puts the query rows of a task side by side, row = token * group + head. */
static void load_queries(const problem *p, const task *t, work_space *w) {
    const long rows = t->tokens * p->group, width = width_of(rows);
    const long words = p->size / 2, position = position_of(p, t->sequence, t->token);
    const bf16 *q = query_of(p, t);
    const uint32_t *address[ROWS];
    for (long r = 0; r < MAX(width, 16); r++) {
        const long at = MIN(r, rows - 1);
        address[r] = (const uint32_t *)(q + at / p->group * p->q_token + at % p->group * p->q_head);
        w->position[r] = (int32_t)(position + at / p->group);
        w->largest[r] = EMPTY;
        w->sum[r] = 0;
    }
    for (long r = 0; r < width; r += 16)
        for (long i = 0; i < words; i += 16) transpose_words(address + r, i, words - i, w->q + i * width + r, width);
}

/* Range and addresses of block b of a task; `at` goes on from the block before. */
static void load_block(const problem *p, const task *t, long b, cursor *at, key_block *x) {
    const bf16 *k = p->k + t->head * p->k_head, *v = p->v + t->head * p->v_head;
    const long lowest = position_of(p, t->sequence, t->token), seen = lowest - p->window + 1;
    if (b == t->first) *at = (cursor){p->cu_runs[t->sequence], 0};
    x->first = b * BLOCK;
    const long last = MIN(x->first + BLOCK, p->causal ? lowest + t->tokens : p->keys[t->sequence]);
    if (p->causal && seen > x->first) x->first += (seen - x->first) & ~1L;
    x->count = last - x->first;
    for (long done = 0; done < x->count;) {
        const long start = p->runs[2 * at->run], length = p->runs[2 * at->run + 1];
        const long skip = x->first + done - at->before, part = MIN(length - skip, x->count - done);
        for (long i = 0; i < part; i++) {
            x->key[done + i] = k + (start + skip + i) * p->k_token;
            x->value[done + i] = v + (start + skip + i) * p->v_token;
        }
        done += MAX(part, 0);
        if (done < x->count) at->run++, at->before += length;
    }
    for (long i = x->count; i % TILE; i++) x->value[i] = x->value[x->count - 1];
    for (long i = x->count; i < BLOCK; i++) x->key[i] = x->key[x->count - 1];
}

/* Joins a block (its maximum and sum) to what was before: new maxima and sums, and the factors for the outputs. */
static void join(work_space *w, const float *largest, const float *sum, long width, float scale) {
    const __m512 factor = _mm512_set1_ps(scale);
    const __mmask16 real = width < 16 ? 0xff : 0xffff;
    for (long v = 0; v < width; v += 16) {
        const __m512 old = _mm512_maskz_loadu_ps(real, w->largest + v), new = _mm512_maskz_loadu_ps(real, largest + v);
        const __m512 most = _mm512_max_ps(old, new);
        const __m512 keep = vector_exp2(_mm512_mul_ps(_mm512_sub_ps(old, most), factor));
        const __m512 add = vector_exp2(_mm512_mul_ps(_mm512_sub_ps(new, most), factor));
        const __m512 before = _mm512_mul_ps(_mm512_loadu_ps(w->sum + v), keep);
        _mm512_storeu_ps(w->sum + v, _mm512_fmadd_ps(_mm512_maskz_loadu_ps(real, sum + v), add, before));
        _mm512_storeu_ps(w->largest + v, most);
        _mm512_storeu_ps(w->keep + v, keep);
        _mm512_storeu_ps(w->add + v, add);
    }
}

/* Divides by the sums and writes the rows of a task. */
static void write_rows(const problem *p, const task *t, const work_space *w, long rows) {
    const long heads = p->kv_heads * p->group, padded = padded_of(p->size);
    bf16 *out = result_of(p, t);
    for (long r = 0; r < rows; r++) {
        bf16 *to = out + (r / p->group * heads + r % p->group) * p->size;
        const __m512 factor = _mm512_set1_ps(w->sum[r] == 0 ? 0 : 1 / w->sum[r]);
        for (long i = 0; i < p->size; i += 16) {
            const __mmask16 m = p->size - i >= 16 ? 0xffff : (__mmask16)((1u << (p->size - i)) - 1);
            mask_store_bf16(to + i, m, _mm512_mul_ps(_mm512_loadu_ps(w->out + r * padded + i), factor));
        }
    }
}

/* Joins the stored blocks of a cut task, in order. */
static void join_blocks(const problem *p, const cut *c, work_space *w, long width) {
    const long padded = padded_of(p->size);
    const float *block = c->blocks;
    memset(w->out, 0, sizeof(float) * width * padded);
    for (long b = c->first; b < c->last; b++, block += c->stride) {
        join(w, block, block + width, width, p->scale);
        for (long r = 0; r < width; r++) {
            const __m512 keep = _mm512_set1_ps(w->keep[r]), add = _mm512_set1_ps(w->add[r]);
            for (long i = 0; i < padded; i += 16) {
                float *out = w->out + r * padded + i;
                const __m512 new = _mm512_loadu_ps(block + 2 * width + r * padded + i);
                _mm512_storeu_ps(out, _mm512_fmadd_ps(new, add, _mm512_mul_ps(_mm512_loadu_ps(out), keep)));
            }
        }
    }
}

/* Block b of a task: joined to those before, or stored where the task is cut. */
static void run_block(const problem *p, const task *t, long b, work_space *w) {
    const long width = width_of(t->tokens * p->group), first = w->now->first, count = w->now->count;
    const long lowest = position_of(p, t->sequence, t->token), highest = lowest + t->tokens - 1;
    const int masked = p->causal && (first + count - 1 > lowest || first <= highest - p->window);
    score_block(w, width, p->size / 2, masked, p->window, p->scale);
    if (t->shared) {
        float *block = t->shared->blocks + (b - t->shared->first) * t->shared->stride;
        memcpy(block, w->block_largest, sizeof(float) * width);
        memcpy(block + width, w->block_sum, sizeof(float) * width);
        value_block(w, block + 2 * width, width, p->size, 1);
    } else {
        join(w, w->block_largest, w->block_sum, width, p->scale);
        value_block(w, w->out, width, p->size, b == t->first);
    }
}

/* What is left when the blocks of a task are done. */
static void finish_task(const problem *p, const task *t, work_space *w) {
    const long rows = t->tokens * p->group, done = t->last - t->first;
    if (t->shared) {
        if (atomic_fetch_sub_explicit(&t->shared->left, done, memory_order_acq_rel) != done) return;
        join_blocks(p, t->shared, w, width_of(rows));
    }
    write_rows(p, t, w, rows);
}

/* Adds the tasks of one group of query rows; share: the work (rows times blocks) above which it is cut, 0 = never. */
static void add_tasks(job *j, task whole, long share) {
    const long width = width_of(whole.tokens * j->p->group), blocks = whole.last - whole.first;
    long step = blocks;
    if (share && blocks > 1 && width * blocks > share) {
        const long stride = width * (2 + padded_of(j->p->size));
        step = MAX(1, share / width);
        whole.shared = scratch(sizeof(cut) + 64 + sizeof(float) * stride * blocks);
        *whole.shared = (cut){blocks, (float *)((char *)whole.shared + 64), whole.first, whole.last, stride};
    }
    const long first = whole.first, last = whole.last;
    for (long b = first; b < last || b == first; b += MAX(step, 1)) {
        if (j->count == j->room) {
            j->room = 2 * j->room + 64;
            if (!(j->tasks = realloc(j->tasks, sizeof(task) * j->room))) abort();
        }
        whole.first = b, whole.last = MIN(b + step, last);
        j->tasks[j->count++] = whole;
    }
}

/* All tasks with `share` as above; returns their work, and adds them to j unless j is NULL. */
static long plan(const problem *p, job *j, long share) {
    const long tokens = MAX(1, ROWS / p->group);
    long work = 0;
    for (long s = 0; s < p->sequences; s++) {
        const long queries = p->cu_q[s + 1] - p->cu_q[s], keys = p->keys[s];
        for (long h = 0; h < p->kv_heads; h++)
            for (long t = 0; t < queries; t += tokens) {
                task x = {s, h, t, MIN(tokens, queries - t), 0, (keys + BLOCK - 1) / BLOCK, NULL};
                if (p->causal) {
                    const long lowest = keys - queries + t;
                    x.first = MAX(lowest - p->window + 1, 0) / BLOCK;
                    x.last = (lowest + x.tokens - 1) / BLOCK + 1;
                }
                work += width_of(x.tokens * p->group) * (x.last - x.first);
                if (!j) continue;
                j->widest = MAX(j->widest, width_of(x.tokens * p->group));
                add_tasks(j, x, share);
            }
    }
    return work;
}

/* Scratch for the widest task; returns its bytes and, with memory, lays w out in it. */
static size_t lay_out(const problem *p, work_space *w, char *memory, long width) {
    const size_t padded = padded_of(p->size), head = (sizeof(work_space) + 63) / 64 * 64;
    const size_t q = sizeof(uint32_t) * (p->size / 2) * width, scores = sizeof(float) * (BLOCK + TILE) * width;
    const size_t values = width > 16 ? sizeof(uint32_t) * (BLOCK / 2) * padded : 0;
    if (memory) {
        w->scores = (float *)(memory + head);
        w->out = (float *)(memory + head + scores);
        w->values = (uint32_t *)(memory + head + scores + sizeof(float) * width * padded);
        w->q = (uint32_t *)(memory + head + scores + sizeof(float) * width * padded + values);
    }
    return (head + scores + sizeof(float) * width * padded + values + q + 63) / 64 * 64;
}

static long claim(job *j) { return atomic_fetch_add_explicit(&j->next, 1, memory_order_relaxed); }

/* Tasks one after the other; while a block is computed, the memory of the next is fetched. */
static void run_tasks(void *context, long worker) {
    job *j = context;
    work_space *w = (work_space *)(j->memory + worker * j->memory_step);
    cursor at;
    long i = claim(j), following = i;
    lay_out(j->p, w, (char *)w, j->widest);
    w->now = &w->blocks[0], w->next = &w->blocks[1];
    if (i >= j->count) return;
    load_block(j->p, &j->tasks[i], j->tasks[i].first, &at, w->now);
    ask_for_rows(w->now->key, w->now->count, j->p->size);
    for (; i < j->count; i = following) {
        const task *t = &j->tasks[i];
        load_queries(j->p, t, w);
        for (long b = t->first; b < t->last; b++) {
            const int ends = b + 1 == t->last;
            following = ends ? claim(j) : i;
            if (following < j->count) {
                const task *then = &j->tasks[following];
                load_block(j->p, then, ends ? then->first : b + 1, &at, w->next);
                if (ends) ask_for_queries(j->p, then);
            } else
                w->next = w->now;
            if (ends) ask_for_results(j->p, t);
            run_block(j->p, t, b, w);
            key_block *done = w->now;
            w->now = w->next, w->next = done;
        }
        finish_task(j->p, t, w);
    }
}

/* q: [T, kv_heads * group, size], out the same, contiguous. k, v: key i of a run at (start + i) * k_token. layout:
number of sequences n, cu_q [n + 1], keys of each [n], cu_runs [n + 1], then (start, length) of every run. The last query
of a sequence stands at its last key; causal: a query sees keys at most at its position and above its position - window.
scale: of the scores. */
EXPORT void qv_attention(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *out, const int64_t *layout, long group,
                         long kv_heads, long size, long q_token, long q_head, long k_token, long k_head, long v_token,
                         long v_head, long causal, long window, float scale, int threads) {
    const long n = layout[0];
    const problem p = {q, k, v, out, layout + 1, layout + n + 2, layout + 2 * n + 2, layout + 3 * n + 3, n, group,
                       kv_heads, size, q_token, q_head, k_token, k_head, v_token, v_head, causal, window,
                       scale * 1.4426950408889634f};
    job j = {.p = &p};
    const long share = threads > 1 ? plan(&p, NULL, 0) / (PARTS_A_THREAD * threads) + 1 : 0;
    plan(&p, &j, share);
    threads = (int)MIN((long)threads, MAX(j.count, 1));
    j.memory_step = lay_out(&p, NULL, NULL, j.widest);
    j.memory = scratch(j.memory_step * threads);
    share_out(run_tasks, &j, threads, threads);
    for (long i = 0; i < j.count; i++)
        if (j.tasks[i].shared && j.tasks[i].last == j.tasks[i].shared->last) free(j.tasks[i].shared);
    free(j.tasks);
    free(j.memory);
}
