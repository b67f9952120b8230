/* Direct convolution: each output is a sum over runs of source pixels, times packed weights.
 *
 * Channels are fastest, so the taps of a kernel's row that lie side by side are one run of memory,
 * and the register tile of tile.h takes neighbouring outputs of a row as its rows: no columns are
 * built.
 */
#include "conv_direct.h"
#include "recorded.h"

/* Taps that follow one another in memory become one run. */
static void set_runs(const direct_t *d, phase_t *p, i64 *offset, i64 *length) {
    i64 ch = d->source.ch, row_step = view_row(&d->looks, &d->source), count = 0;
    for (i64 t = 0; t < p->tap_count; t++) {
        i64 at = p->taps[t].row * row_step + p->taps[t].col * ch;
        if (count && offset[count - 1] + length[count - 1] == at) {
            length[count - 1] += ch;
        } else {
            offset[count] = at;
            length[count++] = ch;
        }
    }
    p->runs = (runs_t){offset, length, count};
}

/* Panels [begin, end) of all phases. */
static void pack_share(void *arguments, i64 begin, i64 end, int share) {
    direct_t *d = arguments;
    i64 ch = d->source.ch, out_ch = d->out_ch;
    (void)share;
    for (i64 p = 0; p < d->phase_count; p++) {
        const phase_t *phase = &d->phases[p];
        for (i64 j = begin * PANEL; j < min_i64(end * PANEL, out_ch); j += PANEL) {
            i64 valid = min_i64(PANEL, out_ch - j);
            int width = panel_width(j, out_ch);
            real *to = phase->packed + j * phase->tap_count * ch;
            for (i64 t = 0; t < phase->tap_count; t++, to += ch * width * VW) {
                const real *w = phase->taps[t].weights;
                if (d->transposed) pack_panel_transposed(w + j * ch, ch, ch, valid, width, to);
                else pack_panel(w + j, out_ch, ch, valid, width, to);
            }
        }
    }
}

/* The outputs of one item, of one phase, for one panel. */
static void panel_of_item(const direct_t *d, const item_t *t, const view_t *view,
                          const phase_t *phase, i64 j) {
    i64 ch = d->source.ch, valid = min_i64(PANEL, d->out_ch - j);
    i64 row = d->out_cols * d->out_ch, image = d->out_rows * row;
    int width = panel_width(j, d->out_ch);
    edge_t edge = {.start = d->padded_bias ? d->padded_bias + j : NULL, .start_padded = 1,
                   .relu = d->relu};
    const real *packed = phase->packed + j * phase->tap_count * ch;
    for (i64 i = 0; i < t->images; i++)
        for (i64 u = t->begin; u < min_i64(t->end, phase->rows); u++) {
            const real *x = view->at + i * view->image_step +
                            (u - t->begin) * d->looks.row_step * view->row_step;
            real *c = d->out + (t->first + i) * image +
                      (phase->first_row + u * d->out_row_step) * row + phase->first_col * d->out_ch;
            GL(gl_dot_rows)(width, phase->cols, x, d->looks.col_step * ch, &phase->runs, packed,
                            width * VW, edge, c + j, d->out_col_step * d->out_ch, valid);
        }
}

static void direct_share(void *arguments, i64 begin, i64 end, int share) {
    direct_t *d = arguments;
    (void)share;
    for (i64 i = begin; i < end; i++) {
        item_t item = item_of(&d->cut, &d->looks, d->source.n, i);
        view_t view = view_of(&d->source, &d->looks, &item);
        if (!view.at) {
            fail(&d->failed);
            return;
        }
        for (i64 p = 0; p < d->phase_count; p++)
            for (i64 j = 0; j < d->out_ch; j += PANEL)
                panel_of_item(d, &item, &view, &d->phases[p], j);
    }
}

int GL(gl_direct)(direct_t *d, i64 taps) {
    i64 ch = d->source.ch, out_ch = d->out_ch, padded = panel_count(out_ch) * PANEL;
    set_padded(&d->looks, &d->source);
    d->cut = cut_work(&d->looks, &d->source);
    /* the packed weights of all phases, the bias filled up to whole panels; the runs */
    real *packed = gl_scratch(PACKED, sizeof(real) * (size_t)(padded * (taps * ch + 1)));
    i64 *runs = gl_scratch(LINES, sizeof(i64) * (size_t)(2 * taps + 1));
    if (!packed || !runs) return 1;
    for (i64 p = 0; p < d->phase_count; p++) {
        phase_t *phase = &d->phases[p];
        phase->packed = packed;
        packed += padded * phase->tap_count * ch;
        set_runs(d, phase, runs, runs + phase->tap_count);
        runs += 2 * phase->tap_count;
    }
    if (d->bias) {
        for (i64 j = 0; j < padded; j++) packed[j] = j < out_ch ? d->bias[j] : 0;
        d->padded_bias = packed;
    }
    i64 panel = taps * ch * PANEL; /* numbers of a panel of all phases */
    gl_parallel(panel_count(out_ch), ceil_div(GRAIN, panel + 1), pack_share, d);
    i64 outputs = ceil_div(d->source.n * d->out_rows * d->out_cols, max_i64(1, d->cut.items));
    i64 each = outputs * ceil_div(taps, max_i64(1, d->phase_count)) * ch * out_ch;
    gl_pieces(d->cut.items, ceil_div(GRAIN, each + 1), PIECES, direct_share, d);
    return d->failed;
}

/* Z = X * W + b, then max(Z, 0) where asked for. Nonzero when there is no memory. */
EXPORT int GL(gl_conv_forward)(const real *x, const real *w, const real *b, real *z, const i64 *c,
                               int relu) {
    const conv_t *a = (const conv_t *)c;
    i64 taps = a->fr * a->fc;
    if (a->n <= 0 || a->out_ch <= 0) return 0;
    phase_t *phase = gl_scratch(TABLES, sizeof(phase_t) + sizeof(tap_t) * (size_t)taps);
    if (!phase) return 1;
    tap_t *tap = (tap_t *)(phase + 1);
    for (i64 t = 0; t < taps; t++)
        tap[t] = (tap_t){t / a->fc * a->dr, t % a->fc * a->dc, w + t * a->ch * a->out_ch};
    *phase = (phase_t){.rows = a->out_rows, .cols = a->out_cols, .taps = tap, .tap_count = taps};
    direct_t d = {
        .source = {x, a->n, a->rows, a->cols, a->ch},
        .looks = {a->sr, a->sc, -a->top, -a->left, (a->fr - 1) * a->dr + 1,
                  (a->fc - 1) * a->dc + 1, a->out_rows, a->out_cols, 0},
        .out = z, .out_rows = a->out_rows, .out_cols = a->out_cols, .out_ch = a->out_ch,
        .out_row_step = 1, .out_col_step = 1,
        .phases = phase, .phase_count = 1, .bias = b, .relu = relu,
    };
    return GL(gl_direct)(&d, taps);
}
