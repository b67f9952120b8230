/* What the kernels of recurrent networks share.
 *
 * Arrays are (n_t, n, ...), time first, and states (n_t + 1, n, h): before the first step and after
 * each. A thread goes through all steps with examples of its own, so that threads never wait for
 * one another, and the weights, packed once, stay in its cache.
 *
 * A step that the mask leaves out (a byte of 0 for its example) keeps the example's state; on the
 * way back it has no gradient, and what comes from later steps passes by it.
 */
#ifndef GPULAYERS_RECURRENT_H
#define GPULAYERS_RECURRENT_H

#include "mathfun.h"
#include "panel.h"

#define GRAIN ((i64)1 << 17) /* multiplications worth a thread */
enum { STATE_SLOT = 2, INPUT_SLOT, GRU_SLOT, SUMS_SLOT }; /* scratch memory */

typedef struct {
    const uint8_t *mask; /* (n_t, n), or NULL */
    i64 n_t, n, h;
    i64 truncate; /* steps of a stretch of gradients; 0: one stretch */
    const real *packed; /* the weights of the state */
    const real *packed_input;
    i64 n_in;
    real *sums; /* of the rows of dZ, `columns` for each share; NULL where they are not wanted */
    i64 columns;
} sequence_t;

INLINE int is_left_out(const sequence_t *s, i64 t, i64 example) {
    return s->mask && !s->mask[t * s->n + example];
}

/* Whether a stretch ends after step t, so that nothing comes back from the next. */
INLINE int is_cut(const sequence_t *s, i64 t) {
    return s->truncate > 0 && t + 1 < s->n_t && (t + 1) % s->truncate == 0;
}

INLINE void clear(real *to, i64 count) { memset(to, 0, sizeof(real) * (size_t)count); }
INLINE void copy(real *to, const real *from, i64 count) {
    memcpy(to, from, sizeof(real) * (size_t)count);
}

/* Keep what the states were where this step is left out. */
INLINE void keep_state(const sequence_t *s, real *states, i64 t, i64 begin, i64 end) {
    i64 h = s->h;
    for (i64 b = begin; s->mask && b < end; b++)
        if (is_left_out(s, t, b))
            copy(states + ((t + 1) * s->n + b) * h, states + (t * s->n + b) * h, h);
}

/* The panels of W (K, columns), or of W^T for a W (columns, K), in memory of their own; NULL when
 * there is none. */
static inline __attribute__((unused)) const real *packed_weights(int slot, const real *W, i64 K,
                                                                 i64 columns, int transposed) {
    real *to = gl_scratch(slot, sizeof(real) * (size_t)max_i64(1, panels_size(K, columns)));
    for (i64 j = 0; to && j < columns; j += PANEL) {
        i64 valid = min_i64(PANEL, columns - j);
        if (transposed)
            pack_panel_transposed(W + j * K, K, K, valid, panel_width(j, columns), to + j * K);
        else
            pack_panel(W + j, columns, K, valid, panel_width(j, columns), to + j * K);
    }
    return to;
}

/* One panel's columns, from j on, of y (rows, columns) = start + x (rows, K) W. */
INLINE void times_panel(const real *x, i64 ldx, i64 K, const real *packed, i64 columns, i64 j,
                        const real *start, i64 start_step, real *y, i64 ldy, i64 rows) {
    i64 zero = 0;
    int width = panel_width(j, columns);
    runs_t runs = {&zero, &K, 1};
    edge_t edge = {.start = start ? start + j : NULL, .start_step = start_step};
    GL(gl_dot_rows)(width, rows, x, ldx, &runs, packed + j * K, width * VW, edge, y + j, ldy,
                    min_i64(PANEL, columns - j));
}

/* y = x W, or y += x W; the rows of x and y may lie apart. */
INLINE void times_weights(const real *x, i64 ldx, i64 K, const real *packed, i64 columns, int add,
                          real *y, i64 ldy, i64 rows) {
    for (i64 j = 0; j < columns; j += PANEL)
        times_panel(x, ldx, K, packed, columns, j, add ? y : NULL, ldy, y, ldy, rows);
}

/* y = bias + X_t W_x + A_{t-1} W_a for some examples: the input's products are made when they are
 * needed, since a pass over all of them would not stay in the cache. */
INLINE void both_products(const sequence_t *s, const real *X, const real *A, const real *bias,
                          i64 columns, real *y, i64 rows) {
    for (i64 j = 0; j < columns; j += PANEL) {
        times_panel(X, s->n_in, s->n_in, s->packed_input, columns, j, bias, 0, y, columns, rows);
        times_panel(A, s->h, s->h, s->packed, columns, j, y, columns, y, columns, rows);
    }
}

/* What a step's dZ gives: dA_{t-1} (+)= from_state W_a^T and, where dX is wanted, from_input W_x^T.
 * The rows of dZ are ldz apart, `columns` of them belong to each. With a mask (`add`) the first is
 * added, to the zeros of the examples that were gone through and to what passes by the others. */
INLINE void back_products(const sequence_t *s, const real *from_state, i64 ldz,
                          const real *from_input, i64 columns, int add, real *total, real *dX,
                          i64 rows) {
    times_weights(from_state, ldz, columns, s->packed, s->h, add, total, s->h, rows);
    if (dX) times_weights(from_input, ldz, columns, s->packed_input, s->n_in, 0, dX, s->n_in, rows);
}

/* Examples that are worth a thread, with `columns` products for each number of state and input. */
INLINE i64 grain_of(const sequence_t *s, i64 columns) {
    return ceil_div(GRAIN, max_i64(1, s->n_t * (s->h + s->n_in) * columns));
}

/* Add a row of dZ to the sums of a share. */
INLINE void add_to_sums(const sequence_t *s, const real *dz, int share) {
    if (!s->sums) return;
    real *sums = s->sums + share * s->columns;
    for (i64 j = 0; j < s->columns; j++) sums[j] += dz[j];
}

/* Run all steps back: `task` for shares of the examples. dZ has `columns`, W_a and W_x `width` of
 * them. db (columns) and `inputs` say what is wanted. Returns nonzero when there is no memory. */
static inline __attribute__((unused)) int go_back(sequence_t *s, const real *W_a, const real *W_x,
                                                  i64 width, i64 n_in, int inputs, i64 columns,
                                                  real *db, gl_task task, void *arguments) {
    i64 grain = grain_of(s, width);
    int shares = gl_shares(s->n, grain);
    s->n_in = n_in;
    s->columns = columns;
    s->packed = packed_weights(STATE_SLOT, W_a, width, s->h, 1);
    if (inputs) s->packed_input = packed_weights(INPUT_SLOT, W_x, width, n_in, 1);
    if (db) s->sums = gl_scratch(SUMS_SLOT, sizeof(real) * (size_t)(shares * columns));
    if (!s->packed || (inputs && !s->packed_input) || (db && !s->sums)) return 1;
    if (db) clear(s->sums, shares * columns);
    gl_parallel(s->n, grain, task, arguments);
    for (i64 j = 0; db && j < columns; j++) {
        db[j] = 0;
        for (int k = 0; k < shares; k++) db[j] += s->sums[k * columns + j];
    }
    return 0;
}

/* ------------------------------------------------------------------------------- activations
 *
 * Only exp(x) for x <= 0 is needed, so there is nothing that could overflow, and one scaling by 2^k
 * is enough. As exact as the functions of mathfun.h, but for results below the smallest normal
 * number, which are 0 here. NaN gives NaN. */

#ifdef GL_DOUBLE
#define LEAST_EXPONENT ((real)-708) /* exp of it is normal */
#else
#define LEAST_EXPONENT ((real)-87)
#endif

/* 1 / (1 + exp(-z)) */
INLINE vec sigmoid(vec z) {
    mask k;
    vec x = -magnitude(z), one = splat(1);
    vec e = (reduced_expm1(x, &k) + one) * power_of_two(k);
    e = (vec)(~(x < splat(LEAST_EXPONENT)) & (mask)e);
    return select(z < splat(0), e, one) / (one + e);
}

/* tanh |x| = -m / (2 + m), m = exp(-2 |x|) - 1: nothing cancels, for small x either */
INLINE vec hyperbolic_tangent(vec x) {
    mask k;
    vec y = magnitude(x) * splat(-2);
    mask inside = ~(y < splat(-40)); /* beyond, m rounds to -1 in both types */
    vec p = (vec)(inside & (mask)reduced_expm1(y, &k));
    vec scale = (vec)(inside & (mask)power_of_two(k));
    vec m = p * scale + (scale - splat(1));
    return with_sign_of((splat(0) - m) / (splat(2) + m), x); /* 0 - m: +0 for m = 0 */
}

/* Run `body` with `lanes` and j over h numbers, whole vectors first. */
#define FOR_LANES(h, body)                  \
    {                                       \
        i64 j = 0;                          \
        for (; j + VW <= (h); j += VW) {    \
            const i64 lanes = VW;           \
            body;                           \
        }                                   \
        if (j < (h)) {                      \
            const i64 lanes = (h) - j;      \
            body;                           \
        }                                   \
    }

#endif
