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

/* Calls run(channel, lanes) until all ch channels of a pixel are done, in whole vectors where that
 * can be. With VW channels or more the last vector overlaps the one before. With fewer, a vector
 * reads and writes beyond the pixel, if `room` elements are there: what it writes is written over
 * when the next pixel's turn comes, so pixels of a row must be worked off from left to right. */
#define FOR_CHANNELS(ch, room, run)                                                       \
    if ((ch) >= VW)                                                                       \
        for (i64 done = 0; done < (ch); done += VW) { run(min_i64(done, (ch)-VW), VW); } \
    else if (VW <= (room)) {                                                              \
        run(0, VW);                                                                       \
    } else {                                                                              \
        run(0, ch);                                                                       \
    }

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

INLINE void store_winners(uint8_t *p, mask winner, i64 lanes) {
    half_lanes half = __builtin_convertvector(winner, half_lanes);
    byte_lanes bytes = __builtin_convertvector(half, byte_lanes);
    memcpy(p, &bytes, lanes >= VW ? (size_t)VW : (size_t)lanes);
}

INLINE mask load_winners(const uint8_t *p, i64 lanes) {
    mask winner;
    if (lanes >= VW && VW % 4 == 0) { /* words of four bytes, shifted by lane */
        mask shift;
        int32_t words[(VEC_BYTES / sizeof(real) + 3) / 4];
        memcpy(words, p, sizeof words);
        for (int k = 0; k < VW; k++) {
            winner[k] = words[k / 4];
            shift[k] = 8 * (k % 4);
        }
        return (winner >> shift) & splat_bits(255);
    }
    for (int k = 0; k < VW; k++) winner[k] = k < lanes ? p[k] : 0;
    return winner;
}

/* Taps [first, last) of `count` see a pixel of 0..size when the window starts at `start`. */
INLINE void taps_inside(i64 start, i64 spacing, i64 count, i64 size, i64 *first, i64 *last) {
    *first = start >= 0 ? 0 : ceil_div(-start, spacing);
    *last = start >= size ? 0 : min_i64(count, ceil_div(size - start, spacing));
}

#endif
