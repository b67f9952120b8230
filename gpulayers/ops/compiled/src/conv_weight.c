/* The gradient of a convolution with respect to its weights and its bias; for a kernel of one pixel
 * that with respect to its input too.
 *
 * dW[k, o] is a sum over all outputs of the number that weight k met there, times dZ. The register
 * tile holds some k and two vectors of o while the outputs of an item go by. Each thread adds up a
 * dW of its own over its items; at the end these are added.
 */
#include "conv.h"
#include "recorded.h"
#include "sums.h"

#define LONG_RUN 24       /* k side by side from which their tiles need no table of places */
#define BLOCK_PIXELS 96   /* outputs at a time: what their tiles read stays in the first cache */

typedef struct {
    images_t source;
    looks_t looks;
    const real *dz;
    real *dw, *db;
    i64 out_ch, wide;         /* channels of dZ; filled up to whole vectors */
    i64 K, run;               /* weights of an output channel; how many are side by side in X */
    const i64 *place;         /* of each k, from the first pixel an output sees */
    const real *packed;       /* W^T in panels, where dX is asked for; */
    real *dx;                 /* else both NULL */
    real *private;            /* for each share dW (K, wide), and db (wide) if asked for */
    i64 private_size;
    i64 shares;
    cut_t cut;
    int failed;
} gradient_t;

/* Add the item's part of one panel of dW; `g` is its dZ. */
static void panel_of_item(const gradient_t *d, const view_t *view, const lines_t *lines,
                          const real *g, i64 j, int begins, real *dw) {
    i64 step = d->looks.col_step * d->source.ch, valid = min_i64(PANEL, d->wide - j);
    int width = panel_width(j, d->out_ch);
    for (i64 k = 0; k < d->K;) {
        /* a long run's tiles read side by side, short runs are taken together */
        i64 count = d->run >= LONG_RUN ? d->run : d->K;
        const i64 *at = d->run >= LONG_RUN ? NULL : d->place;
        const real *x = view->at + (at ? 0 : d->place[k]);
        real *c = dw + k * d->wide + j;
        edge_t edge = {.start = begins ? NULL : c, .start_step = d->wide, .start_padded = 1};
        GL(gl_outer_rows)(width, count, x, at, step, lines, g + j, d->out_ch, edge, c, d->wide,
                          valid);
        k += count;
    }
}

/* The part of dX = dZ W^T of some pixels, while their dZ is in the cache. */
static void input_of_block(const gradient_t *d, const real *g, i64 pixels, real *dx) {
    i64 ch = d->source.ch, nowhere = 0;
    runs_t runs = {&nowhere, &d->out_ch, 1};
    for (i64 j = 0; j < ch; j += PANEL) {
        int width = panel_width(j, ch);
        GL(gl_dot_rows)(width, pixels, g, d->out_ch, &runs, d->packed + j * d->out_ch, width * VW,
                        (edge_t){0}, dx + j, ch, min_i64(PANEL, ch - j));
    }
}

/* The item's dZ. A panel's last vector may reach beyond a row; where less follows the item's last
 * row than that (not only after the last item: items may be small), it is copied to where more
 * does. */
static const real *outputs_of(const gradient_t *d, const item_t *t, i64 *count) {
    i64 row = d->looks.cols * d->out_ch;
    const real *g = d->dz + (t->first * d->looks.rows + t->begin) * row;
    *count = (t->images - 1) * d->looks.rows * d->looks.cols +
             (t->end - t->begin) * d->looks.cols;
    const real *end = d->dz + d->source.n * d->looks.rows * row;
    if (end - (g + *count * d->out_ch) >= d->wide - d->out_ch) return g;
    real *copy = gl_scratch(SLACK, sizeof(real) * (size_t)(*count * d->out_ch + PANEL));
    if (!copy) return NULL;
    memset(copy + *count * d->out_ch, 0, sizeof(real) * (size_t)PANEL);
    memcpy(copy, g, sizeof(real) * (size_t)(*count * d->out_ch));
    return copy;
}

static void weight_share(void *arguments, i64 begin, i64 end, int share) {
    gradient_t *d = arguments;
    i64 rows = d->cut.images * d->cut.rows;
    real *dw = d->private + share * d->private_size, *db = dw + d->K * d->wide;
    i64 *line_at = gl_scratch(LINES, sizeof(i64) * (size_t)rows);
    if (d->db) memset(db, 0, sizeof(real) * (size_t)d->wide);
    for (i64 i = begin; i < end; i++) {
        item_t t = item_of(&d->cut, &d->looks, d->source.n, i);
        view_t view = view_of(&d->source, &d->looks, &t);
        i64 pixels;
        const real *g = outputs_of(d, &t, &pixels);
        if (!view.at || !line_at || !g) {
            fail(&d->failed);
            return;
        }
        lines_t lines = {line_at, 0, d->looks.cols};
        for (i64 m = 0; m < t.images; m++)
            for (i64 u = 0; u < t.end - t.begin; u++)
                line_at[lines.lines++] =
                    m * view.image_step + u * d->looks.row_step * view.row_step;
        i64 step = max_i64(1, BLOCK_PIXELS / d->looks.cols);
        for (i64 line = 0; line < lines.lines; line += step) {
            lines_t block = {line_at + line, min_i64(step, lines.lines - line), d->looks.cols};
            const real *here = g + line * d->looks.cols * d->out_ch;
            for (i64 j = 0; j < d->out_ch; j += PANEL)
                panel_of_item(d, &view, &block, here, j, i == begin && line == 0, dw);
            if (d->dx) {
                i64 first = (t.first * d->looks.rows + t.begin + line) * d->looks.cols;
                input_of_block(d, here, block.lines * d->looks.cols,
                               d->dx + first * d->source.ch);
            }
        }
        if (d->db) add_columns(g, pixels, d->out_ch, db);
    }
}

/* Rows [begin, end) of dW: the sum of the shares'. Row K is db. */
static void add_shares(void *arguments, i64 begin, i64 end, int share) {
    const gradient_t *d = arguments;
    (void)share;
    for (i64 k = begin; k < end; k++) {
        real *to = k < d->K ? d->dw + k * d->out_ch : d->db;
        const real *from = d->private + k * d->wide;
        for (i64 o = 0; o < d->out_ch; o++) to[o] = from[o];
        for (i64 s = 1; s < d->shares; s++)
            for (i64 o = 0; o < d->out_ch; o++) to[o] += from[s * d->private_size + o];
    }
}

static void set_places(const conv_t *c, i64 row_step, i64 *place) {
    for (i64 k = 0; k < c->fr * c->fc * c->ch; k++) {
        i64 tap = k / c->ch;
        place[k] = tap / c->fc * c->dr * row_step + tap % c->fc * c->dc * c->ch + k % c->ch;
    }
}

static int gradients(const conv_t *c, const real *x, const real *dz, const real *packed, real *dx,
                     real *dw, real *db) {
    i64 K = c->fr * c->fc * c->ch, wide = ceil_div(c->out_ch, VW) * VW;
    gradient_t d = {
        .source = {x, c->n, c->rows, c->cols, c->ch},
        .looks = {c->sr, c->sc, -c->top, -c->left, (c->fr - 1) * c->dr + 1,
                  (c->fc - 1) * c->dc + 1, c->out_rows, c->out_cols, 0},
        .dz = dz, .packed = packed, .dx = dx, .dw = dw, .db = db, .out_ch = c->out_ch, .wide = wide,
        .K = K, .run = c->dc == 1 ? c->fc * c->ch : c->ch, .private_size = (K + 1) * wide,
    };
    if (c->n <= 0 || K <= 0 || c->out_ch <= 0) {
        memset(dw, 0, sizeof(real) * (size_t)(K * c->out_ch));
        if (db) memset(db, 0, sizeof(real) * (size_t)c->out_ch);
        if (c->n <= 0 || c->out_ch <= 0) return 0;
    }
    set_padded(&d.looks, &d.source);
    d.cut = cut_work(&d.looks, &d.source);
    i64 *place = gl_scratch(TABLES, sizeof(i64) * (size_t)(K + 1));
    i64 each = ceil_div(c->n * c->out_rows * c->out_cols, d.cut.items) * K * c->out_ch;
    i64 grain = ceil_div(GRAIN + 4 * K * wide, each + 1); /* a share also costs its addition */
    d.shares = gl_shares(d.cut.items, grain);
    d.private = gl_scratch(PRIVATE, sizeof(real) * (size_t)(d.shares * d.private_size));
    if (!place || !d.private) return 1;
    set_places(c, view_row(&d.looks, &d.source), place);
    d.place = place;
    gl_parallel(d.cut.items, grain, weight_share, &d);
    if (!d.failed)
        gl_parallel(K + (db != NULL), ceil_div(GRAIN, 4 * wide * d.shares), add_shares, &d);
    return d.failed;
}

/* dW, and db unless it is NULL, of X and dZ. Nonzero when there is no memory. */
EXPORT int GL(gl_conv_weight_grad)(const real *x, const real *dz, real *dw, real *db,
                                   const i64 *numbers) {
    return gradients((const conv_t *)numbers, x, dz, NULL, NULL, dw, db);
}

/* All gradients of a convolution with a kernel of one pixel, stride 1 and no padding. */
EXPORT int GL(gl_pointwise_grads)(const real *x, const real *dz, const real *w, real *dx, real *dw,
                                  real *db, const i64 *numbers) {
    const conv_t *c = (const conv_t *)numbers;
    real *packed = gl_scratch(PACKED, sizeof(real) * (size_t)panels_size(c->out_ch, c->ch));
    if (!packed) return 1;
    if (c->out_ch <= 0)
        memset(dx, 0, sizeof(real) * (size_t)(c->n * c->rows * c->cols * c->ch));
    for (i64 j = 0; j < c->ch; j += PANEL)
        pack_panel_transposed(w + j * c->out_ch, c->out_ch, c->out_ch, min_i64(PANEL, c->ch - j),
                              panel_width(j, c->ch), packed + j * c->out_ch);
    return gradients(c, x, dz, packed, dx, dw, db);
}

/* ----------------------------------------------------------------------------- the bias alone */

typedef struct {
    const real *z;
    real *sums;
    i64 cols, wide;
} sums_t;

static void sum_share(void *arguments, i64 begin, i64 end, int share) {
    const sums_t *s = arguments;
    real *sums = s->sums + share * s->wide;
    memset(sums, 0, sizeof(real) * (size_t)s->cols);
    add_columns(s->z + begin * s->cols, end - begin, s->cols, sums);
}

/* sums (cols): over the rows of z. Nonzero when there is no memory. */
EXPORT int GL(gl_column_sums)(const real *z, real *sums, i64 rows, i64 cols) {
    i64 wide = ceil_div(cols, PANEL) * PANEL, grain = max_i64(1, (1 << 15) / max_i64(1, cols));
    memset(sums, 0, sizeof(real) * (size_t)cols);
    if (rows <= 0) return 0;
    i64 shares = gl_shares(rows, grain);
    sums_t s = {z, gl_scratch(PRIVATE, sizeof(real) * (size_t)(shares * wide + 1)), cols, wide};
    if (!s.sums) return 1;
    gl_parallel(rows, grain, sum_share, &s);
    for (i64 share = 0; share < shares; share++)
        for (i64 j = 0; j < cols; j++) sums[j] += s.sums[share * wide + j];
    return 0;
}
