/* Packing B into panels: two vectors wide, the last one or two, filled up with zeros.
 *
 * Within a panel row k follows row k - 1 directly, so a tile reads it from front to back. Panel p
 * of K rows begins at p * K * PANEL.
 */
#ifndef GPULAYERS_PANEL_H
#define GPULAYERS_PANEL_H

#include "tile.h"

#define COLD static __attribute__((noinline, unused)) /* not worth a copy at every call */

INLINE i64 panel_count(i64 columns) { return ceil_div(columns, PANEL); }
/* vectors of the panel that begins at column j of n: the last may be a narrow one */
INLINE int panel_width(i64 j, i64 n) { return n - j > VW ? 2 : 1; }
/* scalars that the panels of a (K, n) matrix take */
INLINE i64 panels_size(i64 K, i64 n) { return panel_count(n) * K * PANEL; }

/* One panel: rows of `valid` columns, each `ldb` from the last. */
COLD void pack_panel(const real *b, i64 ldb, i64 K, i64 valid, int width, real *to) {
    i64 W = width * VW;
    for (i64 k = 0; k < K; k++, b += ldb, to += W) {
        if (valid == W)
            for (int v = 0; v < width; v++) store(to + v * VW, load(b + v * VW));
        else
            for (i64 j = 0; j < W; j++) to[j] = j < valid ? b[j] : 0;
    }
}

/* Full panels of `columns` columns. Row by row, so that a row's panels are read together: rows that
 * lie a page apart cost more to come to than to copy. */
COLD void pack_panels(const real *b, i64 ldb, i64 K, i64 columns, real *to) {
    for (i64 k = 0; k < K; k++, b += ldb, to += PANEL) {
        real *at = to;
        for (i64 j = 0; j < columns; j += PANEL, at += K * PANEL) {
            store(at, load(b + j));
            store(at + VW, load(b + j + VW));
        }
    }
}

/* Exchange the off-diagonal blocks of `size` in rows a and b: one step of a transposition. */
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define HAVE_SHUFFLE 1
#endif
#endif
#ifdef HAVE_SHUFFLE
#define UNROLL _Pragma("GCC unroll 16")
#define SWAP(low, high)                                          \
    {                                                            \
        vec x = *a, y = *b;                                      \
        *a = __builtin_shufflevector(x, y, EXPAND low);          \
        *b = __builtin_shufflevector(x, y, EXPAND high);         \
    }
#define EXPAND(...) __VA_ARGS__
INLINE void exchange(vec *a, vec *b, const int size) {
#if VEC_BYTES == 64 && !defined(GL_DOUBLE)
    if (size == 1)
        SWAP((0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
             (1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
    if (size == 2)
        SWAP((0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
             (2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
    if (size == 4)
        SWAP((0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
             (4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
    if (size == 8)
        SWAP((0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
             (8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
#elif VEC_BYTES == 64 || (VEC_BYTES == 32 && !defined(GL_DOUBLE))
    if (size == 1) SWAP((0, 8, 2, 10, 4, 12, 6, 14), (1, 9, 3, 11, 5, 13, 7, 15))
    if (size == 2) SWAP((0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15))
    if (size == 4) SWAP((0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15))
#elif VEC_BYTES == 32 || (VEC_BYTES == 16 && !defined(GL_DOUBLE))
    if (size == 1) SWAP((0, 4, 2, 6), (1, 5, 3, 7))
    if (size == 2) SWAP((0, 1, 4, 5), (2, 3, 6, 7))
#elif VEC_BYTES == 16
    if (size == 1) SWAP((0, 2), (1, 3))
#endif
}
#undef EXPAND
#undef SWAP
#define LANES ((int)(VEC_BYTES / sizeof(real)))
/* VW rows of VW numbers, `ldb` apart, written as VW columns `step` apart. */
INLINE void transpose_block(const real *b, i64 ldb, real *to, i64 step) {
    vec row[LANES];
    UNROLL for (int i = 0; i < LANES; i++) row[i] = load(b + i * ldb);
    UNROLL for (int size = 1; size < LANES; size *= 2)
        UNROLL for (int i = 0; i < LANES; i++)
            if (!(i & size) && i + size < LANES) exchange(&row[i], &row[i + size], size);
    UNROLL for (int i = 0; i < LANES; i++) store(to + i * step, row[i]);
}
#undef UNROLL
#undef LANES
#endif

/* One panel of B^T, where B is given as `valid` rows of K numbers. */
COLD void pack_panel_transposed(const real *b, i64 ldb, i64 K, i64 valid, int width, real *to) {
    i64 W = width * VW;
    for (i64 v = 0; v < width; v++) {
        i64 here = min_i64(VW, valid - v * VW), k = 0;
#ifdef HAVE_SHUFFLE
        if (here == VW)
            for (; k + VW <= K; k += VW)
                transpose_block(b + v * VW * ldb + k, ldb, to + k * W + v * VW, W);
#endif
        for (; k < K; k++)
            for (i64 j = 0; j < VW; j++)
                to[k * W + v * VW + j] = j < here ? b[(v * VW + j) * ldb + k] : 0;
    }
}

#endif
