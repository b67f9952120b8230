/* Windows over images, for both directions of pooling. */
#ifndef GPULAYERS_POOL_H
#define GPULAYERS_POOL_H

#include "mathfun.h"

/* Filled by gpulayers/ops/compiled/pool.py, in this order. */
typedef struct {
    i64 n, rows, cols, ch, out_rows, out_cols;
    i64 fr, fc;      /* taps */
    i64 sr, sc;      /* stride */
    i64 dr, dc;      /* spacing of the taps */
    i64 top, left;   /* padding */
} window_t;

/* A job and its window as variables of the function: bytes may be part of anything, so all that is
 * elsewhere in memory would have to be read anew after winners are stored. */
#define OWN_COPY(job, w, of_all)          \
    window_t window = *(of_all)->w;       \
    job_t copy = *(of_all);               \
    const window_t *w = copy.w = &window; \
    const job_t *job = &copy

/* Calls vector(channel, kept) for all ch channels of a pixel, VW at a time, `kept` of which are to
 * be stored; with VW channels or more the last vector overlaps the one before. With fewer, a vector
 * reads beyond the pixel, if there are `readable` elements, and writes beyond it, if there are
 * `writable` ones: what it writes there is written over when the next pixel's turn comes, so pixels
 * of a row must be worked off from left to right. Else scalar(channel), one by one. */
#define FOR_CHANNELS(ch, readable, writable, vector, scalar)                                \
    if ((ch) >= VW)                                                                         \
        for (i64 done = 0; done < (ch); done += VW) { vector(min_i64(done, (ch)-VW), VW); } \
    else if (VW <= (readable)) {                                                            \
        if (VW <= (writable)) {                                                             \
            vector(0, VW);                                                                  \
        } else {                                                                            \
            vector(0, ch);                                                                  \
        }                                                                                   \
    } else                                                                                  \
        for (i64 done = 0; done < (ch); done++) { scalar(done); }

/* Winners are bytes in memory and lanes as wide as a scalar in registers. */

typedef uint8_t byte_lanes
    __attribute__((vector_size(VEC_BYTES / sizeof(real)), aligned(1), may_alias));
/* half as wide as a scalar: in two steps of one half the conversion stays in vectors */
#ifdef GL_DOUBLE
typedef int32_t half_bits;
#else
typedef int16_t half_bits;
#endif
typedef half_bits half_lanes __attribute__((vector_size(VEC_BYTES / 2)));

INLINE void store_winners(uint8_t *p, mask winner, i64 kept) {
    half_lanes half = __builtin_convertvector(winner, half_lanes);
    byte_lanes bytes = __builtin_convertvector(half, byte_lanes);
    if (kept >= VW)
        memcpy(p, &bytes, VW);
    else
        for (i64 k = 0; k < kept; k++) p[k] = bytes[k];
}

INLINE mask load_winners(const uint8_t *p) {
    mask winner, shift, first;
    if (VW != 4 && VW != 8) {
        for (int k = 0; k < VW; k++) winner[k] = p[k];
        return winner;
    }
    /* each lane takes its byte of a word of four */
    int32_t words[2] = {0, 0};
    memcpy(words, p, VW < 8 ? VW : 8);
    for (int k = 0; k < VW; k++) {
        shift[k] = 8 * (k % 4);
        first[k] = k < 4 ? -1 : 0;
    }
    winner = (first & splat_bits(words[0])) | (~first & splat_bits(words[1]));
    return (winner >> shift) & splat_bits(255);
}

/* Taps [first, last) of `count` see a pixel of 0..size when the window starts at `start`. */
INLINE void taps_inside(i64 start, i64 spacing, i64 count, i64 size, i64 *first, i64 *last) {
    *first = start >= 0 ? 0 : ceil_div(-start, spacing);
    *last = start >= size ? 0 : min_i64(count, ceil_div(size - start, spacing));
}

#endif
