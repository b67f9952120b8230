/* Simple recurrent networks over whole sequences, and time to the front and back.
 *
 *     Z_t = bias + X_t W_x + A_{t-1} W_a            A_t = act(Z_t)
 *     dZ_t = (dA_t + accumulator) act'(Z_t)         accumulator = dZ_t W_a^T,  dX_t = dZ_t W_x^T
 *
 * Elman, "Finding structure in time" (1990); Werbos, "Backpropagation through time" (1990).
 */
#include "recurrent.h"

enum { TANH, RELU, SIGMOID }; /* in the order of gpulayers/ops/compiled/sequence.py */

typedef struct {
    sequence_t s;
    int act;
    const real *X, *bias, *dA;
    real *Z, *A, *total, *dX;
} simple_t;

INLINE vec value(const int act, vec z) {
    vec zero = splat(0);
    if (act == TANH) return hyperbolic_tangent(z);
    if (act == SIGMOID) return sigmoid(z);
    return select(z <= zero, zero, z); /* NaN stays */
}

/* act'(Z) from A = act(Z) */
INLINE vec slope_at(const int act, vec a) {
    vec zero = splat(0), one = splat(1);
    if (act == TANH) return one - a * a;
    if (act == SIGMOID) return a * (one - a);
    return select(a > zero, one, zero);
}

INLINE void values(const int act, const real *z, real *a, i64 count) {
    FOR_LANES(count, store_lanes(a + j, value(act, load_lanes(z + j, lanes)), lanes))
}

/* -------------------------------------------------------------------------------------- ahead */

static void simple_ahead(void *arguments, i64 begin, i64 end, int share) {
    const simple_t *r = arguments;
    const sequence_t *s = &r->s;
    i64 h = s->h, rows = end - begin;
    (void)share;
    for (i64 t = 0; t < s->n_t; t++) {
        i64 first = t * s->n + begin;
        real *z = r->Z + first * h, *new = r->A + (first + s->n) * h;
        both_products(s, r->X + first * s->n_in, r->A + first * h, r->bias, h, z, rows);
        if (r->act == TANH) values(TANH, z, new, rows * h);
        else if (r->act == RELU) values(RELU, z, new, rows * h);
        else values(SIGMOID, z, new, rows * h);
        keep_state(s, r->A, t, begin, end);
    }
}

/* X (n_t, n, n_in); W_x (n_in, h), W_a (h, h), bias (h); Z (n_t, n, h) is written; A holds its
 * first state. Returns nonzero when there is no memory. */
EXPORT int GL(gl_rnn_forward)(const real *X, const real *W_x, const real *W_a, const real *bias,
                              const uint8_t *mask, real *Z, real *A, i64 n_t, i64 n, i64 h,
                              i64 n_in, int act) {
    simple_t r = {.s = {.mask = mask, .n_t = n_t, .n = n, .h = h, .n_in = n_in},
                  .act = act, .X = X, .bias = bias, .Z = Z, .A = A};
    r.s.packed = packed_weights(STATE_SLOT, W_a, h, h, 0);
    r.s.packed_input = packed_weights(INPUT_SLOT, W_x, n_in, h, 0);
    if (!r.s.packed || !r.s.packed_input) return 1;
    gl_parallel(n, grain_of(&r.s, h), simple_ahead, &r);
    return 0;
}

/* --------------------------------------------------------------------------------------- back */

/* dZ_t of one example; `total` is what comes from step t + 1, and is used up. */
INLINE void simple_row(const int act, const real *dA, const real *a, real *total, int used_up,
                       real *dz, i64 h) {
    FOR_LANES(h, {
        vec sum = load_lanes(total + j, lanes);
        if (dA) sum += load_lanes(dA + j, lanes);
        store_lanes(dz + j, sum * slope_at(act, load_lanes(a + j, lanes)), lanes);
        if (used_up) store_lanes(total + j, splat(0), lanes);
    })
}

static void simple_back(void *arguments, i64 begin, i64 end, int share) {
    const simple_t *r = arguments;
    const sequence_t *s = &r->s;
    i64 h = s->h;
    for (i64 t = s->n_t - 1; t >= 0; t--) {
        if (is_cut(s, t)) clear(r->total + begin * h, (end - begin) * h);
        for (i64 b = begin; b < end; b++) {
            i64 row = t * s->n + b;
            real *dz = r->Z + row * h, *total = r->total + b * h;
            const real *dA = r->dA ? r->dA + row * h : NULL, *a = r->A + (row + s->n) * h;
            int masked = s->mask != NULL;
            if (is_left_out(s, t, b)) clear(dz, h);
            else if (r->act == TANH) simple_row(TANH, dA, a, total, masked, dz, h);
            else if (r->act == RELU) simple_row(RELU, dA, a, total, masked, dz, h);
            else simple_row(SIGMOID, dA, a, total, masked, dz, h);
            add_to_sums(s, dz, share);
        }
        i64 first = t * s->n + begin;
        const real *dz = r->Z + first * h;
        back_products(s, dz, h, dz, h, s->mask != NULL, r->total + begin * h,
                      r->dX ? r->dX + first * s->n_in : NULL, end - begin);
    }
}

/* dA may be NULL; `total` (n, h) holds the gradient of the last state from beyond the sequence, and
 * then that of the first; dZ (n_t, n, h) is written and, unless NULL, dX (n_t, n, n_in) and
 * db (h). Returns nonzero when there is no memory. */
EXPORT int GL(gl_rnn_backward)(const real *dA, const real *A, const real *W_x, const real *W_a,
                               const uint8_t *mask, real *total, real *dZ, real *dX, real *db,
                               i64 n_t, i64 n, i64 h, i64 n_in, i64 truncate, int act) {
    simple_t r = {.s = {.mask = mask, .n_t = n_t, .n = n, .h = h, .truncate = truncate},
                  .act = act, .dA = dA, .Z = dZ, .A = (real *)A, .total = total, .dX = dX};
    return go_back(&r.s, W_a, W_x, h, n_in, dX != NULL, h, db, simple_back, &r);
}

/* ------------------------------------------------------------------------- time first and last */

typedef struct {
    const real *from;
    real *to;
    i64 n, ch, n_t;
} turn_t;

/* to (columns, rows) = from (rows, columns) transposed. The rows that lie far apart, which get in
 * each other's way in the cache, are gone along: a few of them at a time, from end to end. */
static void transpose(const real *from, i64 ld_from, i64 rows, i64 columns, real *to, i64 ld_to) {
    i64 whole_rows = 0, whole_columns = 0;
#ifdef HAVE_SHUFFLE
    whole_rows = rows / VW * VW, whole_columns = columns / VW * VW;
    int along_from = ld_from > ld_to;
    i64 outer = along_from ? whole_rows : whole_columns;
    i64 inner = along_from ? whole_columns : whole_rows;
    for (i64 far = 0; far < outer; far += VW)
        for (i64 near = 0; near < inner; near += VW) {
            i64 i = along_from ? far : near, j = along_from ? near : far;
            transpose_block(from + i * ld_from + j, ld_from, to + j * ld_to + i, ld_to);
        }
#endif
    for (i64 i = 0; i < rows; i++)
        for (i64 j = i < whole_rows ? whole_columns : 0; j < columns; j++)
            to[j * ld_to + i] = from[i * ld_from + j];
}

static void time_first(void *arguments, i64 begin, i64 end, int share) {
    const turn_t *p = arguments;
    (void)share;
    for (i64 b = begin; b < end; b++)
        transpose(p->from + b * p->ch * p->n_t, p->n_t, p->ch, p->n_t, p->to + b * p->ch,
                  p->n * p->ch);
}

static void time_last(void *arguments, i64 begin, i64 end, int share) {
    const turn_t *p = arguments;
    (void)share;
    for (i64 b = begin; b < end; b++)
        transpose(p->from + b * p->ch, p->n * p->ch, p->n_t, p->ch, p->to + b * p->ch * p->n_t,
                  p->n_t);
}

/* (n, ch, n_t) to (n_t, n, ch), or back */
EXPORT void GL(gl_turn_time)(const real *from, real *to, i64 n, i64 ch, i64 n_t, int first) {
    turn_t p = {from, to, n, ch, n_t};
    i64 grain = ceil_div((i64)1 << 15, max_i64(1, ch * n_t));
    gl_pieces(n, grain, PIECES, first ? time_first : time_last, &p);
}
