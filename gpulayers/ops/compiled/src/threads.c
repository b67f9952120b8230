/* The thread pool.
 *
 * Each worker waits for a ticket of its own, first by looking for a while, then asleep on a
 * condition variable: operations of a training step follow one another closely, and waking a
 * thread costs as much as a small operation takes. What is offered to a worker that has not come
 * when the caller is done with its own work, the caller takes back and does itself; and pieces of
 * work go to whoever is free, since the cores of a virtual machine are seldom equally fast.
 */
#define _GNU_SOURCE
#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXPORT __attribute__((visibility("default")))
#define MAX_THREADS 64
/* How long to look before sleeping. Between two operations of a layer Python takes some hundred
 * microseconds, between two steps of a small network half a thousand; waking a thread of a virtual
 * machine takes a hundred, in which the other threads do without it. */
#define SPIN_NS 1000000
#define BUSY_NS 200000 /* of which nobody else is let go first */

typedef struct {
    gl_task task;
    void *arguments;
    int64_t n;
    int shares, pieces; /* pieces of a share; 0: a share is one */
} job_t;

/* The pieces of a share that nobody has taken: the first in the upper half, the end in the lower.
 * Its thread takes them from the front, others from the back. */
typedef struct {
    _Alignas(64) _Atomic uint64_t range;
} left_t;

enum { NOTHING, OFFERED, TAKEN };

typedef struct {
    _Alignas(64) atomic_uint ticket; /* rises by one when there is work */
    atomic_int offer;                /* NOTHING, OFFERED by the caller, TAKEN by the worker */
    atomic_int asleep;
    pthread_mutex_t lock;
    pthread_cond_t wake;
} worker_t;

static struct {
    pthread_mutex_t busy; /* held by the one caller the pool works for */
    pthread_mutex_t lock;
    pthread_cond_t finished; /* for the caller: no share is left */
    atomic_int waiting;      /* the caller sleeps on `finished` */
    int started;             /* workers started */
    job_t job;
    left_t left[MAX_THREADS];
    worker_t workers[MAX_THREADS]; /* [0] is the caller and not used */
} pool = {
    .busy = PTHREAD_MUTEX_INITIALIZER,
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .finished = PTHREAD_COND_INITIALIZER,
};

static __thread int wanted_threads = 1;
static __thread int inside_a_share;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void pause_cpu(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* One look's pause in a search that began at `since`; 0 when it has lasted long enough. Soon others
 * are let go first: the awaited thread may be one of them. */
static int look_again(int64_t since) {
    int64_t lasted = now_ns() - since;
    if (lasted > SPIN_NS) return 0;
    if (lasted > BUSY_NS) sched_yield();
    return 1;
}

static void run_part(const job_t *job, int64_t part, int64_t parts, int share) {
    int64_t begin = job->n * part / parts, end = job->n * (part + 1) / parts;
    inside_a_share++;
    if (begin < end) job->task(job->arguments, begin, end, share);
    inside_a_share--;
}

/* Take a piece of a share, the first or the last; -1 when there is none left. */
static int64_t take(int share, int last) {
    _Atomic uint64_t *range = &pool.left[share].range;
    uint64_t now = atomic_load_explicit(range, memory_order_relaxed), next;
    do {
        uint32_t from = (uint32_t)(now >> 32), to = (uint32_t)now;
        if (from >= to) return -1;
        next = last ? now - 1 : now + ((uint64_t)1 << 32);
    } while (!atomic_compare_exchange_weak(range, &now, next));
    return last ? (int64_t)(uint32_t)now - 1 : (int64_t)(now >> 32);
}

/* The work of a thread: its own pieces, then what others have left; or its share as a whole. */
static void run_share(const job_t *job, int share) {
    if (!job->pieces) {
        run_part(job, share, job->shares, share);
        return;
    }
    int64_t piece, pieces = (int64_t)job->shares * job->pieces;
    for (int i = 0; i < job->shares; i++) {
        int of = (share + i) % job->shares;
        while ((piece = take(of, i > 0)) >= 0) run_part(job, piece, pieces, share);
    }
}

/* ------------------------------------------------------------------------------------- workers */

static int ticket_soon(worker_t *me, unsigned seen) {
    int64_t since = now_ns();
    do {
        for (int i = 0; i < 64; i++) {
            if (atomic_load_explicit(&me->ticket, memory_order_acquire) != seen) return 1;
            pause_cpu();
        }
    } while (look_again(since));
    return 0;
}

static void *work(void *number) {
    int share = (int)(intptr_t)number;
    worker_t *me = &pool.workers[share];
    unsigned seen = 0;
    for (;;) {
        if (!ticket_soon(me, seen)) {
            pthread_mutex_lock(&me->lock);
            atomic_store(&me->asleep, 1);
            while (atomic_load(&me->ticket) == seen) pthread_cond_wait(&me->wake, &me->lock);
            atomic_store(&me->asleep, 0);
            pthread_mutex_unlock(&me->lock);
        }
        seen = atomic_load(&me->ticket);
        int offered = OFFERED;
        if (!atomic_compare_exchange_strong(&me->offer, &offered, TAKEN)) continue;
        run_share(&pool.job, share);
        /* The caller writes the next job only when no worker has this one. */
        atomic_store(&me->offer, NOTHING);
        if (atomic_load(&pool.waiting)) {
            pthread_mutex_lock(&pool.lock);
            pthread_cond_signal(&pool.finished);
            pthread_mutex_unlock(&pool.lock);
        }
    }
    return NULL;
}

static void forget_workers(void) { /* in a forked child, which has none of them */
    pthread_mutex_init(&pool.busy, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.finished, NULL);
    atomic_store(&pool.waiting, 0);
    pool.started = 0;
    inside_a_share = 0;
}

/* Have `count` workers, or as many as the system gives; the caller holds `busy`. */
static int start_workers(int count) {
    static int registered;
    if (!registered) registered = pthread_atfork(NULL, NULL, forget_workers) == 0;
    while (pool.started < count) {
        worker_t *next = &pool.workers[pool.started + 1];
        pthread_t thread;
        atomic_store(&next->ticket, 0);
        atomic_store(&next->offer, NOTHING);
        atomic_store(&next->asleep, 0);
        pthread_mutex_init(&next->lock, NULL);
        pthread_cond_init(&next->wake, NULL);
        /* signals are for the threads of the program: a worker starts with all of them blocked */
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        int failed = pthread_create(&thread, NULL, work, (void *)(intptr_t)(pool.started + 1));
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (failed) break;
        pthread_detach(thread);
        pool.started++;
    }
    return pool.started < count ? pool.started : count;
}

/* -------------------------------------------------------------------------------------- callers */

EXPORT void gl_set_threads(int count) {
    wanted_threads = count < 1 ? 1 : count > MAX_THREADS ? MAX_THREADS : count;
}

int gl_shares(int64_t n, int64_t grain) {
    int64_t most = n / (grain < 1 ? 1 : grain);
    return most < 1 ? 1 : most < wanted_threads ? (int)most : wanted_threads;
}

/* Whether a worker has the job still. */
static int at_work(int helpers) {
    for (int i = 1; i <= helpers; i++)
        if (atomic_load(&pool.workers[i].offer) == TAKEN) return 1;
    return 0;
}

static void wait_for_workers(int helpers) {
    int64_t since = now_ns();
    do {
        for (int i = 0; i < 64; i++) {
            if (!at_work(helpers)) return;
            pause_cpu();
        }
    } while (look_again(since));
    pthread_mutex_lock(&pool.lock);
    atomic_store(&pool.waiting, 1);
    while (at_work(helpers)) pthread_cond_wait(&pool.finished, &pool.lock);
    atomic_store(&pool.waiting, 0);
    pthread_mutex_unlock(&pool.lock);
}

static void offer(worker_t *worker) {
    atomic_store(&worker->offer, OFFERED);
    atomic_fetch_add(&worker->ticket, 1);
    if (atomic_load(&worker->asleep)) {
        pthread_mutex_lock(&worker->lock);
        pthread_cond_signal(&worker->wake);
        pthread_mutex_unlock(&worker->lock);
    }
}

static int take_back(worker_t *worker) {
    int offered = OFFERED;
    return atomic_compare_exchange_strong(&worker->offer, &offered, NOTHING);
}

/* Give the job to the pool; 0 when that works for somebody else. */
static int run_by_pool(const job_t *job) {
    if (inside_a_share || pthread_mutex_trylock(&pool.busy) != 0) return 0;
    int helpers = start_workers(job->shares - 1);
    pool.job = *job;
    for (int i = 0; job->pieces && i < job->shares; i++) {
        uint64_t from = (uint64_t)i * job->pieces;
        atomic_store(&pool.left[i].range, from << 32 | (from + job->pieces));
    }
    for (int i = 1; i <= helpers; i++) offer(&pool.workers[i]);
    run_share(job, 0);
    for (int i = 1; i < job->shares; i++)
        if (i > helpers || take_back(&pool.workers[i])) run_share(job, i);
    wait_for_workers(helpers);
    pthread_mutex_unlock(&pool.busy);
    return 1;
}

static void run(const job_t *job) {
    if (job->n <= 0 || (job->shares > 1 && run_by_pool(job))) return;
    int parts = job->shares * (job->pieces ? job->pieces : 1);
    for (int i = 0; i < parts; i++) run_part(job, i, parts, job->pieces ? 0 : i);
}

void gl_parallel(int64_t n, int64_t grain, gl_task task, void *arguments) {
    job_t job = {task, arguments, n, gl_shares(n, grain), 0};
    run(&job);
}

void gl_pieces(int64_t n, int64_t grain, int most, gl_task task, void *arguments) {
    job_t job = {task, arguments, n, gl_shares(n, grain), 0};
    int64_t pieces = n / ((grain < 1 ? 1 : grain) * job.shares);
    if (job.shares > 1) job.pieces = pieces < 1 ? 1 : pieces < most ? (int)pieces : most;
    run(&job);
}

/* -------------------------------------------------------------------------------------- scratch */

typedef struct {
    void *memory[GL_SLOTS];
    size_t bytes[GL_SLOTS];
} scratch_t;

static __thread scratch_t *scratch;
static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;

static void free_scratch(void *of_a_thread) {
    scratch_t *old = of_a_thread;
    for (int i = 0; i < GL_SLOTS; i++) free(old->memory[i]);
    free(old);
}

static void make_scratch_key(void) { pthread_key_create(&scratch_key, free_scratch); }

void *gl_scratch(int slot, size_t bytes) {
    if (!scratch) {
        pthread_once(&scratch_once, make_scratch_key);
        scratch = calloc(1, sizeof *scratch);
        if (!scratch) return NULL;
        pthread_setspecific(scratch_key, scratch);
    }
    if (scratch->bytes[slot] < bytes) {
        void *memory = NULL;
        if (posix_memalign(&memory, 64, bytes + 64)) return NULL;
        free(scratch->memory[slot]);
        scratch->memory[slot] = memory;
        scratch->bytes[slot] = bytes;
    }
    return scratch->memory[slot];
}

/* ----------------------------------------------------------------------------------- the machine */

/* The best instruction set of this machine that the library is built for: 0 baseline, 1 AVX2,
 * 2 AVX-512. */
EXPORT int gl_instruction_set(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("fma"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}
