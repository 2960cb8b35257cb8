/* Work shared out to the OpenMP threads that torch has already started: its library is asked by pointer, so that no
second pool of threads fights with it. */
#include "kernels.h"

typedef void (*gomp_parallel_fn)(void (*)(void *), void *, unsigned, unsigned);
static gomp_parallel_fn gomp_parallel;

/* Called once after loading, with the address of GOMP_parallel; NULL: everything runs in the calling thread. */
EXPORT void qv_init(void *parallel) { gomp_parallel = (gomp_parallel_fn)parallel; }

typedef struct {
    work_fn work;
    void *context;
    long parts;
    atomic_long next;
} job;

static void run_job(void *p) {
    job *j = p;
    for (;;) {
        long part = atomic_fetch_add_explicit(&j->next, 1, memory_order_relaxed);
        if (part >= j->parts) return;
        j->work(j->context, part);
    }
}

void share_out(work_fn work, void *context, long parts, int threads) {
    job j = {work, context, parts, 0};
    threads = (int)MIN((long)threads, parts);
    if (threads <= 1 || !gomp_parallel)
        run_job(&j);
    else
        gomp_parallel(run_job, &j, (unsigned)threads, 0);
}
