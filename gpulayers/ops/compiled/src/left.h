/* Packing A into tiles of up to SHORT rows, which an outer tile reads from front to back: the
 * numbers of the tile's rows side by side, k after k.
 *
 * The tiles of M rows are as few as can be, their heights equal but for one row. Those of a block of
 * kc follow one another, so tile t of the block begins at left_begin(M, t) * kc. Whole vectors are
 * written; what is too much of them is written over by the next k.
 */
#ifndef GPULAYERS_LEFT_H
#define GPULAYERS_LEFT_H

#include "panel.h"

#define TOGETHER ((i64)16) /* k of A^T at a time: their rows stay in the first-level cache */

INLINE i64 left_tiles(i64 M) { return ceil_div(M, SHORT); }
INLINE i64 left_begin(i64 M, i64 t) { return M * t / left_tiles(M); }

/* k0 <= k < k1 of a block of kc, from A^T (kc, M), whose rows are `lda` apart. */
COLD void pack_left_transposed(const real *A, i64 lda, i64 M, i64 k0, i64 k1, i64 kc, real *to) {
    for (i64 from = k0; from < k1; from += TOGETHER)
        for (i64 t = 0; t < left_tiles(M); t++) {
            i64 begin = left_begin(M, t), height = left_begin(M, t + 1) - begin;
            i64 until = min_i64(from + TOGETHER, k1), reach = ceil_div(height, VW) * VW;
            real *row = to + begin * kc + from * height;
            const real *a = A + from * lda + begin;
            i64 k = from, whole = begin + reach <= M ? min_i64(until, k1 - reach) : from;
            for (; k < whole; k++, row += height, a += lda) {
                store(row, load(a));
                for (i64 j = VW; j < height; j += VW) store(row + j, load(a + j));
            }
            for (; k < until; k++, row += height, a += lda)
                for (i64 j = 0; j < height; j++) row[j] = a[j];
        }
}

/* Tiles [first, last) of a block of kc, from A (M, kc), whose rows are `lda` apart. */
COLD void pack_left(const real *A, i64 lda, i64 M, i64 first, i64 last, i64 kc, real *to) {
    for (i64 t = first; t < last; t++) {
        i64 begin = left_begin(M, t), height = left_begin(M, t + 1) - begin, k = 0;
        const real *a = A + begin * lda;
        real *tile = to + begin * kc;
#ifdef HAVE_SHUFFLE
        if (begin + max_i64(height, VW) <= M)
            for (; k + 2 * VW <= kc; k += VW)
                for (i64 v = 0; v < height; v += VW) {
                    i64 row = min_i64(v, max_i64(height - VW, 0));
                    transpose_block(a + row * lda + k, lda, tile + k * height + row, height);
                }
#endif
        for (; k < kc; k++)
            for (i64 j = 0; j < height; j++) tile[k * height + j] = a[j * lda + k];
    }
}

#endif
