/* Sums of columns: the gradient of a bias. */
#ifndef GPULAYERS_SUMS_H
#define GPULAYERS_SUMS_H

#include "panel.h"

#define SUM_BLOCK 256 /* rows added up before their sum is added to the total: smaller errors */

/* Add `width` (1..4) vectors of columns over at most SUM_BLOCK rows. */
INLINE void add_block(const int width, const real *z, i64 step, i64 rows, real *sums) {
    vec sum[4] = {{0}};
    for (i64 r = 0; r < rows; r++)
        for (int v = 0; v < width; v++) sum[v] += load(z + r * step + v * VW);
    for (int v = 0; v < width; v++) store(sums + v * VW, load(sums + v * VW) + sum[v]);
}

/* Fewer columns than a vector has lanes: VW rows are `cols` vectors, of which number v holds in
 * lane j column (v * VW + j) % cols. */
INLINE void add_narrow_block(const real *z, i64 cols, i64 groups, real *sums) {
    vec sum[VEC_BYTES / sizeof(real)] = {{0}};
    for (i64 g = 0; g < groups; g++, z += cols * VW)
        for (i64 v = 0; v < cols; v++) sum[v] += load(z + v * VW);
    for (i64 v = 0; v < cols; v++)
        for (i64 j = 0; j < VW; j++) sums[(v * VW + j) % cols] += sum[v][j];
}

/* sums (cols) += the sum of the rows of z (rows, cols) */
COLD void add_columns(const real *z, i64 rows, i64 cols, real *sums) {
    for (i64 begin = 0; begin < rows; begin += SUM_BLOCK, z += SUM_BLOCK * cols) {
        i64 count = min_i64(SUM_BLOCK, rows - begin), j = 0, done = 0;
        if (cols < VW) {
            done = count / VW * VW;
            add_narrow_block(z, cols, count / VW, sums);
        }
        for (; j + 4 * VW <= cols; j += 4 * VW) add_block(4, z + j, cols, count, sums + j);
        for (; j + VW <= cols; j += VW) add_block(1, z + j, cols, count, sums + j);
        for (; j < cols; j++)
            for (i64 r = done; r < count; r++) sums[j] += z[r * cols + j];
    }
}

#endif
