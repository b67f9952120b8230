/* The direct convolution, of which the forward pass and the input gradient are two uses. */
#ifndef GPULAYERS_CONV_DIRECT_H
#define GPULAYERS_CONV_DIRECT_H

#include "conv.h"

/* A tap: which source pixel an output meets there, counted from the first one it looks at, and
 * which `ch` rows of the weights it takes. */
typedef struct {
    i64 row, col;
    const real *weights;
} tap_t;

/* Outputs with the same taps: rows first_row, first_row + out_row_step, ... of the image. */
typedef struct {
    i64 first_row, first_col, rows, cols; /* rows by cols of them */
    const tap_t *taps;
    i64 tap_count;
    runs_t runs;
    real *packed;
} phase_t;

typedef struct {
    images_t source;
    looks_t looks;
    real *out;
    i64 out_rows, out_cols, out_ch, out_row_step, out_col_step;
    phase_t *phases;
    i64 phase_count;
    int transposed; /* the weights of a tap are (out_ch, ch) instead of (ch, out_ch) */
    const real *bias;
    int relu;
    cut_t cut;
    real *padded_bias;
    int failed;
} direct_t;

/* Compute all outputs; nonzero when there is no memory. `taps`: of all phases together. */
int GL(gl_direct)(direct_t *d, i64 taps);

#endif
