/* The input gradient of a convolution with few input channels, pixel by pixel of dZ.
 *
 * A pixel of dZ times W^T is what it gives to each tap; the taps of a kernel's row lie side by side
 * in X, so that product is added there a row at a time. Compared with gathering (conv_input.c) the
 * vectors run over taps and channels instead of channels alone, and no padding is multiplied.
 */
#include "conv.h"

#define PIXELS 30 /* of dZ at a time: five tiles, whose products stay in the first-level cache */

typedef struct {
    const conv_t *c;
    const real *dz, *packed;
    real *dx;
    i64 wide;       /* numbers of a kernel's row, filled up to whole vectors */
    mask valid;     /* of a row's last vector */
    i64 rows, cols; /* of the pixels that outputs see, padding and all */
    int failed;
} scatter_t;

INLINE i64 whole_vectors(i64 n) { return ceil_div(n, VW) * VW; }

/* Whether it takes clearly fewer steps than gathering, and an image's pixels stay in the cache. */
int GL(gl_scatter_wins)(const conv_t *c) {
    i64 wide = whole_vectors(c->fc * c->ch), pixels = c->out_rows * c->out_cols;
    i64 scatter = pixels * c->fr * wide * (c->out_ch + 4); /* 4: for adding the products up */
    i64 gather = ceil_div(c->rows, c->sr) * ceil_div(c->cols, c->sc) * c->fr * c->fc * c->out_ch *
                 whole_vectors(c->ch);
    i64 seen_rows = seen(c->out_rows, c->sr, (c->fr - 1) * c->dr + 1);
    i64 bytes = seen_rows * seen(c->out_cols, c->sc, c->fc) * c->ch * (i64)sizeof(real);
    return c->dc == 1 && c->ch < PANEL && bytes <= VIEW_BYTES && 10 * scatter < 7 * gather;
}

/* W^T: for each of the kernel's rows its panels. */
static void pack_weights(const conv_t *c, const real *w, i64 run, i64 wide, real *to) {
    for (i64 a = 0; a < c->fr; a++)
        for (i64 j = 0; j < wide; j += PANEL) {
            int width = panel_width(j, wide);
            pack_panel_transposed(w + (a * run + j) * c->out_ch, c->out_ch, c->out_ch,
                                  min_i64(PANEL, run - j), width, to);
            to += c->out_ch * width * VW;
        }
}

/* products (pixels, fr * wide) = dZ W^T */
static void multiply(const scatter_t *d, const real *dz, i64 pixels, real *products) {
    const conv_t *c = d->c;
    i64 zero = 0, K = c->out_ch, all = c->fr * d->wide;
    runs_t runs = {&zero, &K, 1};
    const real *b = d->packed;
    for (i64 a = 0; a < c->fr; a++)
        for (i64 j = 0; j < d->wide; j += PANEL) {
            int width = panel_width(j, d->wide);
            edge_t edge = {.start = NULL};
            GL(gl_dot_rows)(width, pixels, dz, K, &runs, b, width * VW, edge,
                            products + a * d->wide + j, all, width * VW);
            b += K * width * VW;
        }
}

/* Add the products of a row of dZ to the pixels it saw. Outputs `fc` apart share no pixel (with
 * stride 1): in this order nothing is read again while it is still being written. */
INLINE void add_row(const scatter_t *d, const real *products, real *seen_pixels) {
    const conv_t *c = d->c;
    i64 last = d->wide - VW;
    for (i64 first = 0; first < min_i64(c->fc, c->out_cols); first++)
        for (i64 a = 0; a < c->fr; a++)
            for (i64 v = first; v < c->out_cols; v += c->fc) {
                const real *from = products + (v * c->fr + a) * d->wide;
                real *to = seen_pixels + (a * c->dr * d->cols + v * c->sc) * c->ch;
                for (i64 k = 0; k < last; k += VW) store(to + k, load(to + k) + load(from + k));
                /* what fills a row up is 0, or NaN where dZ is not finite */
                vec rest = select(d->valid, load(from + last), (vec){0});
                store(to + last, load(to + last) + rest);
            }
}

/* What of the pixels seen belongs to the image. */
static void copy_inside(const scatter_t *d, const real *seen_pixels, real *dx) {
    const conv_t *c = d->c;
    images_t source = {seen_pixels, 1, d->rows, d->cols, c->ch};
    copy_padded(&source, seen_pixels, c->top, c->rows, c->left, c->cols, dx);
}

static void scatter_share(void *arguments, i64 begin, i64 end, int share) {
    scatter_t *d = arguments;
    const conv_t *c = d->c;
    i64 size = d->rows * d->cols * c->ch, lines = max_i64(1, PIXELS / c->out_cols);
    real *pixels = gl_scratch(VIEW, sizeof(real) * (size_t)(size + VW));
    real *products = gl_scratch(SLACK, sizeof(real) * (size_t)(lines * c->out_cols * c->fr *
                                                               d->wide));
    (void)share;
    if (!pixels || !products) {
        fail(&d->failed);
        return;
    }
    for (i64 i = begin; i < end; i++) {
        memset(pixels, 0, sizeof(real) * (size_t)(size + VW));
        for (i64 u = 0; u < c->out_rows; u += lines) {
            i64 count = min_i64(lines, c->out_rows - u);
            multiply(d, d->dz + (i * c->out_rows + u) * c->out_cols * c->out_ch,
                     count * c->out_cols, products);
            for (i64 r = 0; r < count; r++)
                add_row(d, products + r * c->out_cols * c->fr * d->wide,
                        pixels + (u + r) * c->sr * d->cols * c->ch);
        }
        copy_inside(d, pixels, d->dx + i * c->rows * c->cols * c->ch);
    }
}

/* dX of dZ and W, where gl_scatter_wins says so. Nonzero when there is no memory. */
int GL(gl_scatter_input_grad)(const real *dz, const real *w, real *dx, const conv_t *c) {
    i64 run = c->fc * c->ch, wide = whole_vectors(run);
    real *packed = gl_scratch(PACKED, sizeof(real) * (size_t)(c->out_ch * c->fr * wide));
    if (!packed) return 1;
    pack_weights(c, w, run, wide, packed);
    scatter_t d = {.c = c, .dz = dz, .packed = packed, .dx = dx, .wide = wide,
                   .rows = seen(c->out_rows, c->sr, (c->fr - 1) * c->dr + 1),
                   .cols = seen(c->out_cols, c->sc, c->fc)};
    for (i64 k = 0; k < VW; k++) d.valid[k] = wide - VW + k < run ? -1 : 0;
    i64 each = c->out_rows * c->out_cols * c->out_ch * c->fr * wide; /* of an image */
    gl_pieces(c->n, ceil_div(GRAIN, each + 1), PIECES, scatter_share, &d);
    return d.failed;
}
