/* A small pool of threads and scratch memory, shared by all kernels of the library. */
#ifndef GPULAYERS_THREADS_H
#define GPULAYERS_THREADS_H

#include <stddef.h>
#include <stdint.h>

/* Work on [begin, end), as share number `share` of `shares`. */
typedef void (*gl_task)(void *arguments, int64_t begin, int64_t end, int share);

/* How many shares `gl_parallel` would cut n items into, each of at least `grain` items. */
int gl_shares(int64_t n, int64_t grain);

/* Cut 0..n into gl_shares(n, grain) shares, equal but for one item, and run each in a thread.
 * What a share holds depends on n, grain and the number of threads alone, so results do too.
 * When the pool is busy with another caller's work, the calling thread runs all shares itself, as
 * it does those of workers that have not begun when it is done. */
void gl_parallel(int64_t n, int64_t grain, gl_task task, void *arguments);

/* The same for a task that makes no use of `share`, in pieces of at least `grain` items, `most` for a
 * thread: one that is done with its own takes pieces of the others. Where the pieces are cut
 * depends on n, grain and the number of threads alone, so results do too. */
#define PIECES 8 /* most for a thread, where a piece costs nothing of its own */
void gl_pieces(int64_t n, int64_t grain, int most, gl_task task, void *arguments);

/* Memory of this thread, 64-byte aligned, not initialised, kept for the next call with the same
 * slot. Slots 0..GL_SLOTS-1; a function may call others only with other slots in use. NULL when
 * there is no memory. Within a parallel share it is the worker's own. */
#define GL_SLOTS 12
void *gl_scratch(int slot, size_t bytes);

#endif
