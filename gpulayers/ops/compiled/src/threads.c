/* The thread pool.
 *
 * Each worker waits for a ticket of its own, first by looking for a while, then asleep on a
 * condition variable: operations of a training step follow one another closely, and waking a
 * thread costs as much as a small operation takes.
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
 * microseconds, and waking a thread of a virtual machine tens of them. */
#define SPIN_NS 400000
#define BUSY_NS 200000 /* of which nobody else is let go first */

typedef struct {
    gl_task task;
    void *arguments;
    int64_t n;
    int shares;
} job_t;

typedef struct {
    _Alignas(64) atomic_uint ticket; /* rises by one when there is work */
    atomic_int asleep;
    pthread_mutex_t lock;
    pthread_cond_t wake;
} worker_t;

static struct {
    pthread_mutex_t busy; /* held by the one caller the pool works for */
    pthread_mutex_t lock;
    pthread_cond_t finished; /* for the caller: no share is left */
    atomic_int waiting;      /* the caller sleeps on `finished` */
    atomic_int pending;      /* shares given to workers that are not done */
    int started;             /* workers started */
    job_t job;
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

static void run_share(const job_t *job, int share) {
    int64_t begin = job->n * share / job->shares, end = job->n * (share + 1) / job->shares;
    inside_a_share++;
    if (begin < end) job->task(job->arguments, begin, end, share);
    inside_a_share--;
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
        seen++;
        run_share(&pool.job, share);
        /* The caller writes the next job only after it has seen `pending` at 0. */
        if (atomic_fetch_sub(&pool.pending, 1) == 1 && atomic_load(&pool.waiting)) {
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
    atomic_store(&pool.pending, 0);
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

static void wait_for_workers(void) {
    int64_t since = now_ns();
    do {
        for (int i = 0; i < 64; i++) {
            if (atomic_load_explicit(&pool.pending, memory_order_acquire) == 0) return;
            pause_cpu();
        }
    } while (look_again(since));
    pthread_mutex_lock(&pool.lock);
    atomic_store(&pool.waiting, 1);
    while (atomic_load(&pool.pending)) pthread_cond_wait(&pool.finished, &pool.lock);
    atomic_store(&pool.waiting, 0);
    pthread_mutex_unlock(&pool.lock);
}

void gl_parallel(int64_t n, int64_t grain, gl_task task, void *arguments) {
    job_t job = {task, arguments, n, gl_shares(n, grain)};
    if (n <= 0) return;
    if (job.shares > 1 && !inside_a_share && pthread_mutex_trylock(&pool.busy) == 0) {
        int helpers = start_workers(job.shares - 1);
        pool.job = job;
        atomic_store(&pool.pending, helpers);
        for (int i = 1; i <= helpers; i++) {
            worker_t *worker = &pool.workers[i];
            atomic_fetch_add(&worker->ticket, 1);
            if (atomic_load(&worker->asleep)) {
                pthread_mutex_lock(&worker->lock);
                pthread_cond_signal(&worker->wake);
                pthread_mutex_unlock(&worker->lock);
            }
        }
        run_share(&job, 0);
        for (int i = helpers + 1; i < job.shares; i++) run_share(&job, i);
        wait_for_workers();
        pthread_mutex_unlock(&pool.busy);
        return;
    }
    for (int i = 0; i < job.shares; i++) run_share(&job, i);
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

/* The best instruction set of this machine that the library is built for: 0 baseline, 1 AVX2. */
EXPORT int gl_instruction_set(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}
