/* The gradient of a convolution with respect to its input, as a direct convolution of dZ.
 *
 * Input pixel i got its part of output (i + top - a * dr) / sr through the kernel's row a, where
 * that is a whole number. So the pixels with the same remainder by the stride have the same taps
 * (a phase), and gather from dZ what belongs to them; with stride 1 there is one phase, and it is
 * the convolution with the kernel turned by 180 degrees.
 */
#include "conv_direct.h"
#include "recorded.h"

/* Where along one axis a phase gathers: tap f sees dZ at (first + before - f * spacing) / step. */
typedef struct {
    i64 size, taps, step, before, spacing;
} axis_t;

/* Whether pixels `phase`, phase + step, ... meet tap f, and where (counted from the first's 0). */
INLINE int meets(const axis_t *a, i64 phase, i64 f, i64 *at) {
    i64 position = phase + a->before - f * a->spacing;
    *at = position / a->step;
    return position % a->step == 0;
}

/* The lowest and the highest dZ that any phase sees from its pixel 0; none: low > high. */
static void reach(const axis_t *a, i64 *low, i64 *high) {
    i64 at;
    *low = INT64_MAX;
    *high = INT64_MIN;
    for (i64 phase = 0; phase < min_i64(a->step, a->size); phase++)
        for (i64 f = 0; f < a->taps; f++)
            if (meets(a, phase, f, &at)) *low = min_i64(*low, at), *high = max_i64(*high, at);
}

/* The taps of a phase, in the order of the pixels they see. */
static i64 taps_of(const conv_t *c, const axis_t *rows, const axis_t *cols, i64 pr, i64 pc,
                   const looks_t *looks, const real *w, tap_t *taps) {
    i64 count = 0, row, col;
    for (i64 a = c->fr - 1; a >= 0; a--)
        if (meets(rows, pr, a, &row))
            for (i64 b = c->fc - 1; b >= 0; b--)
                if (meets(cols, pc, b, &col))
                    taps[count++] = (tap_t){row - looks->row_low, col - looks->col_low,
                                            w + (a * c->fc + b) * c->ch * c->out_ch};
    return count;
}

static int all_finite(const real *w, i64 n) {
    vec sums[4] = {{0}}; /* x * 0 is NaN when x is not finite */
    real sum = 0;
    i64 i = 0;
    for (; i + 4 * VW <= n; i += 4 * VW)
        for (int v = 0; v < 4; v++) sums[v] += load(w + i + v * VW) * 0;
    for (; i < n; i++) sum += w[i] * 0;
    for (int v = 0; v < 4; v++)
        for (i64 j = 0; j < VW; j++) sum += sums[v][j];
    return sum == 0;
}

/* dX of dZ and W. Nonzero: 1 when there is no memory, 2 when W is not finite (here a padding zero
 * times an infinity would be NaN; the caller knows a way without). */
EXPORT int GL(gl_conv_input_grad)(const real *dz, const real *w, real *dx, const i64 *numbers) {
    const conv_t *c = (const conv_t *)numbers;
    i64 phases = min_i64(c->sr, c->rows) * min_i64(c->sc, c->cols), taps = c->fr * c->fc;
    if (c->n <= 0 || c->ch <= 0 || phases <= 0) return 0;
    if (c->out_ch > 0 && c->out_rows > 0 && c->out_cols > 0 && GL(gl_scatter_wins)(c))
        return GL(gl_scatter_input_grad)(dz, w, dx, c);
    if (!all_finite(w, taps * c->ch * c->out_ch)) return 2;
    axis_t rows = {c->rows, c->fr, c->sr, c->top, c->dr};
    axis_t cols = {c->cols, c->fc, c->sc, c->left, c->dc};
    i64 row_low, row_high, col_low, col_high;
    reach(&rows, &row_low, &row_high);
    reach(&cols, &col_low, &col_high);
    if (row_low > row_high || col_low > col_high || c->out_ch <= 0) { /* no pixel was seen */
        memset(dx, 0, sizeof(real) * (size_t)(c->n * c->rows * c->cols * c->ch));
        return 0;
    }
    phase_t *phase = gl_scratch(TABLES, sizeof(phase_t) * (size_t)phases +
                                            sizeof(tap_t) * (size_t)taps);
    if (!phase) return 1;
    tap_t *tap = (tap_t *)(phase + phases);
    direct_t d = {
        .source = {dz, c->n, c->out_rows, c->out_cols, c->out_ch},
        .looks = {1, 1, row_low, col_low, row_high - row_low + 1, col_high - col_low + 1,
                  ceil_div(c->rows, c->sr), ceil_div(c->cols, c->sc), 0},
        .out = dx, .out_rows = c->rows, .out_cols = c->cols, .out_ch = c->ch,
        .out_row_step = c->sr, .out_col_step = c->sc,
        .phases = phase, .phase_count = phases, .transposed = 1,
    };
    for (i64 pr = 0; pr < min_i64(c->sr, c->rows); pr++)
        for (i64 pc = 0; pc < min_i64(c->sc, c->cols); pc++, phase++) {
            i64 count = taps_of(c, &rows, &cols, pr, pc, &d.looks, w, tap);
            *phase = (phase_t){pr, pc, ceil_div(c->rows - pr, c->sr),
                               ceil_div(c->cols - pc, c->sc), tap, count, {0}, NULL};
            tap += count;
        }
    return GL(gl_direct)(&d, taps);
}
