/* Recurrent networks with gates over whole sequences: tanh for values, the sigmoid for gates.
 *
 * Hochreiter & Schmidhuber, "Long short-term memory" (1997); Gers, Schmidhuber & Cummins, "Learning
 * to forget" (2000); Cho et al., "Learning phrase representations using RNN encoder-decoder for
 * statistical machine translation" (2014).
 */
#include "recurrent.h"

/* --------------------------------------------------------------------- long short-term memory */

typedef struct {
    sequence_t s;
    const real *X, *bias, *dA;
    real *gates, *A, *C, *seen, *dZ, *total, *dC, *dX;
} lstm_t;

/* [G_f, G_u, N, G_o] in place of Z;  C_t = G_f C_{t-1} + G_u N;  A_t = G_o tanh(C_t) */
static void lstm_row(real *g, const real *c_old, real *c, real *a, real *seen, i64 h) {
    FOR_LANES(h, {
        vec forget = sigmoid(load_lanes(g + j, lanes));
        vec update = sigmoid(load_lanes(g + h + j, lanes));
        vec candidate = hyperbolic_tangent(load_lanes(g + 2 * h + j, lanes));
        vec output = sigmoid(load_lanes(g + 3 * h + j, lanes));
        vec memory = forget * load_lanes(c_old + j, lanes) + update * candidate;
        vec shown = hyperbolic_tangent(memory);
        store_lanes(g + j, forget, lanes);
        store_lanes(g + h + j, update, lanes);
        store_lanes(g + 2 * h + j, candidate, lanes);
        store_lanes(g + 3 * h + j, output, lanes);
        store_lanes(c + j, memory, lanes);
        store_lanes(seen + j, shown, lanes);
        store_lanes(a + j, output * shown, lanes);
    })
}

static void lstm_ahead(void *arguments, i64 begin, i64 end, int share) {
    const lstm_t *l = arguments;
    const sequence_t *s = &l->s;
    i64 h = s->h;
    (void)share;
    for (i64 t = 0; t < s->n_t; t++) {
        i64 first = t * s->n + begin;
        both_products(s, l->X + first * s->n_in, l->A + first * h, l->bias, 4 * h,
                      l->gates + first * 4 * h, end - begin);
        for (i64 row = first; row < first + end - begin; row++)
            lstm_row(l->gates + row * 4 * h, l->C + row * h, l->C + (row + s->n) * h,
                     l->A + (row + s->n) * h, l->seen + row * h, h);
        keep_state(s, l->A, t, begin, end);
        keep_state(s, l->C, t, begin, end);
    }
}

/* X (n_t, n, n_in); W_x (n_in, 4h), W_a (h, 4h), bias (4h), blocks forget, update, candidate,
 * output; gates (n_t, n, 4h) and seen (n_t, n, h), which is tanh(C_t), are written; A and C hold
 * their first states. Returns nonzero when there is no memory. */
EXPORT int GL(gl_lstm_forward)(const real *X, const real *W_x, const real *W_a, const real *bias,
                               const uint8_t *mask, real *gates, real *A, real *C, real *seen,
                               i64 n_t, i64 n, i64 h, i64 n_in) {
    lstm_t l = {.s = {.mask = mask, .n_t = n_t, .n = n, .h = h, .n_in = n_in},
                .X = X, .bias = bias, .gates = gates, .A = A, .C = C, .seen = seen};
    l.s.packed = packed_weights(STATE_SLOT, W_a, h, 4 * h, 0);
    l.s.packed_input = packed_weights(INPUT_SLOT, W_x, n_in, 4 * h, 0);
    if (!l.s.packed || !l.s.packed_input) return 1;
    gl_parallel(n, grain_of(&l.s, 4 * h), lstm_ahead, &l);
    return 0;
}

/* dZ_t of one example, from what reaches A_t (dA and total) and C_t (dC, which becomes that of
 * C_{t-1}). With `used_up`, total becomes zero. */
static void lstm_row_back(const real *dA, real *total, int used_up, real *dC, const real *g,
                          const real *c_old, const real *seen, real *dz, i64 h) {
    const vec one = splat(1);
    FOR_LANES(h, {
        vec f = load_lanes(g + j, lanes);
        vec u = load_lanes(g + h + j, lanes);
        vec n = load_lanes(g + 2 * h + j, lanes);
        vec o = load_lanes(g + 3 * h + j, lanes);
        vec shown = load_lanes(seen + j, lanes);
        vec da = load_lanes(total + j, lanes);
        if (dA) da += load_lanes(dA + j, lanes);
        vec dc = load_lanes(dC + j, lanes) + da * o * (one - shown * shown);
        store_lanes(dz + j, dc * load_lanes(c_old + j, lanes) * (f * (one - f)), lanes);
        store_lanes(dz + h + j, dc * n * (u * (one - u)), lanes);
        store_lanes(dz + 2 * h + j, dc * u * (one - n * n), lanes);
        store_lanes(dz + 3 * h + j, da * shown * (o * (one - o)), lanes);
        store_lanes(dC + j, dc * f, lanes);
        if (used_up) store_lanes(total + j, splat(0), lanes);
    })
}

static void lstm_back(void *arguments, i64 begin, i64 end, int share) {
    const lstm_t *l = arguments;
    const sequence_t *s = &l->s;
    i64 h = s->h, n = s->n;
    for (i64 t = s->n_t - 1; t >= 0; t--) {
        if (is_cut(s, t)) {
            clear(l->total + begin * h, (end - begin) * h);
            clear(l->dC + begin * h, (end - begin) * h);
        }
        for (i64 b = begin; b < end; b++) {
            i64 row = t * n + b;
            real *dz = l->dZ + row * 4 * h;
            if (is_left_out(s, t, b))
                clear(dz, 4 * h);
            else
                lstm_row_back(l->dA ? l->dA + row * h : NULL, l->total + b * h, s->mask != NULL,
                              l->dC + b * h, l->gates + row * 4 * h, l->C + row * h,
                              l->seen + row * h, dz, h);
            add_to_sums(s, dz, share);
        }
        i64 first = t * n + begin;
        const real *dz = l->dZ + first * 4 * h;
        back_products(s, dz, 4 * h, dz, 4 * h, s->mask != NULL, l->total + begin * h,
                      l->dX ? l->dX + first * s->n_in : NULL, end - begin);
    }
}

/* dA may be NULL; total and dC (n, h) hold the gradients of the last states from beyond the
 * sequence, and then those of the first; dZ (n_t, n, 4h) is written and, unless
 * NULL, dX (n_t, n, n_in) and db (4h). Returns nonzero when there is no memory. */
EXPORT int GL(gl_lstm_backward)(const real *dA, const real *gates, const real *C, const real *seen,
                                const real *W_x, const real *W_a, const uint8_t *mask, real *total,
                                real *dC, real *dZ, real *dX, real *db, i64 n_t, i64 n, i64 h,
                                i64 n_in, i64 truncate) {
    lstm_t l = {.s = {.mask = mask, .n_t = n_t, .n = n, .h = h, .truncate = truncate},
                .gates = (real *)gates, .C = (real *)C, .seen = (real *)seen,
                .dZ = dZ, .total = total, .dC = dC, .dA = dA, .dX = dX};
    return go_back(&l.s, W_a, W_x, 4 * h, n_in, dX != NULL, 4 * h, db, lstm_back, &l);
}

/* ---------------------------------------------------------------------- gated recurrent unit */

typedef struct {
    sequence_t s;
    const real *X, *bias, *dA;
    real *gates, *A, *M, *dZ, *total, *dX;
    int failed;
} gru_t;

/* G_z, G_r from Z and the state's product p = [z, r, M];  M += b_a;  N = tanh(Z_n + G_r M);
 * A_t = (1 - G_z) N + G_z A_{t-1} */
static void gru_row(real *g, const real *p, const real *bias, const real *old, real *m, real *a,
                    i64 h) {
    FOR_LANES(h, {
        vec z = sigmoid(load_lanes(g + h + j, lanes) + load_lanes(p + j, lanes));
        vec r = sigmoid(load_lanes(g + 2 * h + j, lanes) + load_lanes(p + h + j, lanes));
        vec inner = load_lanes(p + 2 * h + j, lanes) + load_lanes(bias + j, lanes);
        vec n = hyperbolic_tangent(load_lanes(g + j, lanes) + r * inner);
        store_lanes(g + j, n, lanes);
        store_lanes(g + h + j, z, lanes);
        store_lanes(g + 2 * h + j, r, lanes);
        store_lanes(m + j, inner, lanes);
        store_lanes(a + j, (splat(1) - z) * n + z * load_lanes(old + j, lanes), lanes);
    })
}

static void gru_ahead(void *arguments, i64 begin, i64 end, int share) {
    gru_t *u = arguments;
    const sequence_t *s = &u->s;
    i64 h = s->h, rows = end - begin;
    real *products = gl_scratch(GRU_SLOT, sizeof(real) * (size_t)(rows * 3 * h));
    (void)share;
    if (!products) {
        __atomic_store_n(&u->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    for (i64 t = 0; t < s->n_t; t++) {
        i64 first = t * s->n + begin;
        for (i64 j = 0; j < 3 * h; j += PANEL)
            times_panel(u->X + first * s->n_in, s->n_in, s->n_in, s->packed_input, 3 * h, j,
                        u->bias, 0, u->gates + first * 3 * h, 3 * h, rows);
        times_weights(u->A + first * h, h, h, s->packed, 3 * h, 0, products, 3 * h, rows);
        for (i64 b = 0; b < rows; b++)
            gru_row(u->gates + (first + b) * 3 * h, products + b * 3 * h, u->bias + 3 * h,
                    u->A + (first + b) * h, u->M + (first + b) * h,
                    u->A + (first + b + s->n) * h, h);
        keep_state(s, u->A, t, begin, end);
    }
}

/* X (n_t, n, n_in); W_x (n_in, 3h) with the columns [n, z, r], W_a (h, 3h) with [z, r, M], bias
 * (4h) with [n, z, r, M]; gates (n_t, n, 3h), [N, G_z, G_r], and M (n_t, n, h) are written; A holds
 * its first state. Returns nonzero when there is no memory. */
EXPORT int GL(gl_gru_forward)(const real *X, const real *W_x, const real *W_a, const real *bias,
                              const uint8_t *mask, real *gates, real *M, real *A, i64 n_t, i64 n,
                              i64 h, i64 n_in) {
    gru_t u = {.s = {.mask = mask, .n_t = n_t, .n = n, .h = h, .n_in = n_in},
               .X = X, .bias = bias, .gates = gates, .A = A, .M = M};
    u.s.packed = packed_weights(STATE_SLOT, W_a, h, 3 * h, 0);
    u.s.packed_input = packed_weights(INPUT_SLOT, W_x, n_in, 3 * h, 0);
    if (!u.s.packed || !u.s.packed_input) return 1;
    gl_parallel(n, grain_of(&u.s, 3 * h), gru_ahead, &u);
    return u.failed;
}

/* [dZ_n, dZ_z, dZ_r, dM] of one example; total becomes what A_{t-1} gets directly. */
static void gru_row_back(const real *dA, real *total, const real *g, const real *m,
                         const real *old, real *dz, i64 h) {
    const vec one = splat(1);
    FOR_LANES(h, {
        vec n = load_lanes(g + j, lanes);
        vec z = load_lanes(g + h + j, lanes);
        vec r = load_lanes(g + 2 * h + j, lanes);
        vec da = load_lanes(total + j, lanes);
        if (dA) da += load_lanes(dA + j, lanes);
        vec dn = da * (one - z) * (one - n * n);
        vec dz_z = da * (load_lanes(old + j, lanes) - n) * (z * (one - z));
        store_lanes(dz + j, dn, lanes);
        store_lanes(dz + h + j, dz_z, lanes);
        store_lanes(dz + 2 * h + j, dn * load_lanes(m + j, lanes) * (r * (one - r)), lanes);
        store_lanes(dz + 3 * h + j, dn * r, lanes);
        store_lanes(total + j, da * z, lanes);
    })
}

static void gru_back(void *arguments, i64 begin, i64 end, int share) {
    const gru_t *u = arguments;
    const sequence_t *s = &u->s;
    i64 h = s->h, n = s->n;
    for (i64 t = s->n_t - 1; t >= 0; t--) {
        if (is_cut(s, t)) clear(u->total + begin * h, (end - begin) * h);
        for (i64 b = begin; b < end; b++) {
            i64 row = t * n + b;
            real *dz = u->dZ + row * 4 * h;
            if (is_left_out(s, t, b))
                clear(dz, 4 * h);
            else
                gru_row_back(u->dA ? u->dA + row * h : NULL, u->total + b * h,
                             u->gates + row * 3 * h, u->M + row * h, u->A + row * h, dz, h);
            add_to_sums(s, dz, share);
        }
        i64 first = t * n + begin;
        const real *dz = u->dZ + first * 4 * h;
        back_products(s, dz + h, 4 * h, dz, 3 * h, 1, u->total + begin * h,
                      u->dX ? u->dX + first * s->n_in : NULL, end - begin);
    }
}

/* dA may be NULL; total (n, h) holds the gradient of the last state from beyond the sequence, and
 * then that of the first; dZ (n_t, n, 4h) and, unless NULL, dX (n_t, n, n_in) are written. Returns
 * nonzero when there is no memory. */
EXPORT int GL(gl_gru_backward)(const real *dA, const real *gates, const real *M, const real *A,
                               const real *W_x, const real *W_a, const uint8_t *mask, real *total,
                               real *dZ, real *dX, real *db, i64 n_t, i64 n, i64 h, i64 n_in,
                               i64 truncate) {
    gru_t u = {.s = {.mask = mask, .n_t = n_t, .n = n, .h = h, .truncate = truncate},
               .gates = (real *)gates, .A = (real *)A, .M = (real *)M,
               .dZ = dZ, .total = total, .dA = dA, .dX = dX};
    return go_back(&u.s, W_a, W_x, 3 * h, n_in, dX != NULL, 4 * h, db, gru_back, &u);
}
