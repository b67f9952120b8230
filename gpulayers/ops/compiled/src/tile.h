/* The inner loops of every product: a tile of C that stays in registers while K runs by.
 *
 * A tile is `rows` rows by `width` vectors. Two vectors by six rows take 12 of the 16 registers,
 * one vector by ten rows 10; what is left holds the row of B and one number of A. (AVX-512 has 32,
 * but tiles of 12 or 14 rows were no faster with them.) There are two kinds, by how A lies in memory:
 *
 *   dot tiles    a row of C is the sum over k of one number of A, at x[row * step + k], times row k
 *                of B; k runs through several stretches of memory (the rows of a kernel's window)
 *   outer tiles  the numbers of A for the tile's rows lie beside one another (or at given offsets)
 *                and move on by `step` with k, as B's rows do: A^T B, and gradients of weights
 *
 * B comes in panels of one or two vectors, the last one filled up with zeros (see panel.h).
 */
#ifndef GPULAYERS_TILE_H
#define GPULAYERS_TILE_H

#include "common.h"

#define PANEL (2 * VW) /* columns of a full panel */
#define TALL 10        /* most rows of a tile one vector wide */
#define SHORT 6        /* most rows of a tile two vectors wide */

/* What is added to a tile and done with it: C = relu(A B + start). */
typedef struct {
    const real *start; /* NULL: zeros */
    i64 start_step;    /* from one row's start to the next; 0 for a bias */
    int start_padded;  /* whole vectors may be read there, beyond the valid columns */
    int relu;
} edge_t;

/* The stretches of A that belong to one row of C, each `length[q]` numbers from `offset[q]`. */
typedef struct {
    const i64 *offset, *length;
    i64 count;
} runs_t;

/* The k of an outer tile: `lines` lines of `length` steps each. Line i of A begins at line_at[i]
 * (NULL: at 0), B's lines follow one another. */
typedef struct {
    const i64 *line_at;
    i64 lines, length;
} lines_t;

/* m rows of C, `valid` columns of one panel that is `width` vectors wide; the rows of A are `step`
 * apart. */
void GL(gl_dot_rows)(int width, i64 m, const real *x, i64 step, const runs_t *runs, const real *b,
                     i64 ldb, edge_t edge, real *c, i64 ldc, i64 valid);

/* m rows of C = A^T B. `at`: where those rows lie in A, NULL when side by side. */
void GL(gl_outer_rows)(int width, i64 m, const real *x, const i64 *at, i64 step,
                       const lines_t *lines, const real *b, i64 ldb, edge_t edge, real *c, i64 ldc,
                       i64 valid);

#endif
