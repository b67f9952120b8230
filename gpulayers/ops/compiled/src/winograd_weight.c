/* The gradient of the weights by Winograd's identity, transposed (see winograd.h). */
#include "recorded.h"
#include "sums.h"
#include "winograd.h"

#ifndef GL_DOUBLE

typedef struct {
    images_t source;
    i64 top, left;
    images_t outputs; /* dZ */
    i64 wide;         /* its channels filled up to whole vectors */
    real *dw, *db;
    real *private; /* for each share 36 matrices (ch, wide), and db */
    i64 private_size, shares;
    tiles_t tiles;
    int failed, not_finite;
} winograd_t;

/* A dy: four numbers to six */
INLINE void gradient_transform(const vec d[4], vec t[6]) {
    vec even = d[0] + d[2], odd = d[1] + d[3];
    vec even2 = d[0] + 4 * d[2], odd2 = 2 * (d[1] + 4 * d[3]);
    t[0] = d[0];
    t[1] = even + odd;
    t[2] = even - odd;
    t[3] = even2 + odd2;
    t[4] = even2 - odd2;
    t[5] = d[3];
}

/* A dy A^T of one vector of channels. */
INLINE void transform_gradient(const real *p, i64 row, i64 ch, real *v, i64 plane) {
    vec half[6][4], d[4], t[6];
    for (int j = 0; j < 4; j++) {
        for (int i = 0; i < 4; i++) d[i] = load(p + i * row + j * ch);
        gradient_transform(d, t);
        for (int i = 0; i < 6; i++) half[i][j] = t[i];
    }
    for (int i = 0; i < 6; i++) {
        gradient_transform(half[i], t);
        for (int j = 0; j < 6; j++) store(v + (i * 6 + j) * plane, t[j]);
    }
}

/* A dy A^T of a row of tiles, whose sum is added to db. `rows`: memory for its four rows of pixels,
 * zeros where the image ends. */
static void gradient_tile_row(const winograd_t *d, i64 tile_row, real *rows, real *v, i64 plane,
                              real *db) {
    const images_t *s = &d->outputs;
    const tiles_t *t = &d->tiles;
    i64 cols = 4 * t->cols;
    copy_seen(s, t, place_of(t, tile_row), 4, cols, rows);
    if (db) add_columns(rows, 4 * cols, s->ch, db);
    for (i64 c = 0; c < t->cols; c++)
        for (i64 k = 0; k < s->ch; k += VW)
            transform_gradient(rows + 4 * c * s->ch + k, cols * s->ch, s->ch, v + c * d->wide + k,
                               plane);
}

static void gradient_share(void *arguments, i64 begin, i64 end, int share) {
    winograd_t *d = arguments;
    const tiles_t *t = &d->tiles;
    i64 ch = d->source.ch, wide = ceil_div(ch, VW) * VW, most = t->step * t->cols;
    i64 widest = max_i64(ch, d->outputs.ch), pixels = 6 * (4 * t->cols + 2) * widest;
    real *v = gl_scratch(TRANSFORMED, sizeof(real) * (size_t)(ENTRIES * most * wide));
    real *g = gl_scratch(PRODUCTS, sizeof(real) * (size_t)(ENTRIES * most * d->wide));
    real *rows = gl_scratch(ROWS, sizeof(real) * (size_t)(pixels + VW));
    real *mine = d->private + share * d->private_size, *db = mine + ENTRIES * ch * d->wide;
    if (!v || !g || !rows) {
        fail(&d->failed);
        return;
    }
    /* what a vector reads beyond the last channel counts for nothing, but must be finite */
    memset(rows, 0, sizeof(real) * (size_t)(pixels + VW));
    if (d->db) memset(db, 0, sizeof(real) * (size_t)d->wide);
    for (i64 item = begin; item < end; item++) {
        i64 first = item * t->step, count = min_i64(t->step, t->images * t->rows - first);
        i64 tiles = count * t->cols;
        for (i64 r = 0; r < count; r++) {
            transform_tile_row(&d->source, d->top, d->left, t, first + r, rows,
                               v + r * t->cols * wide, wide, tiles * wide);
            gradient_tile_row(d, first + r, rows, g + r * t->cols * d->wide, tiles * d->wide,
                              d->db ? db : NULL);
        }
        lines_t lines = {NULL, 1, tiles};
        for (i64 e = 0; e < ENTRIES; e++)
            for (i64 j = 0; j < d->outputs.ch; j += PANEL) {
                real *to = mine + e * ch * d->wide + j;
                int width = panel_width(j, d->outputs.ch);
                edge_t edge = {.start = item == begin ? NULL : to, .start_step = d->wide};
                GL(gl_outer_rows)(width, ch, v + e * tiles * wide, NULL, wide, &lines,
                                  g + e * tiles * d->wide + j, d->wide, edge, to, d->wide,
                                  width * VW);
            }
    }
}

/* G^T m: six numbers to three */
INLINE void weight_transform(const vec m[6], vec w[3]) {
    vec p = m[1] + m[2], q = m[2] - m[1], r = m[3] + m[4], s = m[3] - m[4];
    w[0] = m[0] / 4 - p / 6 + r / 24;
    w[1] = q / 6 + s / 12;
    w[2] = r / 6 - p / 6 + m[5];
}

/* Input channels [begin, end) of dW: G^T (the sum of the shares) G. */
static void finish_share(void *arguments, i64 begin, i64 end, int share) {
    winograd_t *d = arguments;
    i64 ch = d->source.ch, out_ch = d->outputs.ch;
    vec bad = {0};
    (void)share;
    for (i64 u = begin; u < end; u++)
        for (i64 k = 0; k < out_ch; k += VW) {
            vec m[6], t[3], half[3][6];
            for (int j = 0; j < 6; j++) {
                for (int i = 0; i < 6; i++) {
                    const real *from = d->private + ((i * 6 + j) * ch + u) * d->wide + k;
                    m[i] = load(from);
                    for (i64 s = 1; s < d->shares; s++) m[i] += load(from + s * d->private_size);
                }
                weight_transform(m, t);
                for (int i = 0; i < 3; i++) half[i][j] = t[i];
            }
            for (int i = 0; i < 3; i++) {
                weight_transform(half[i], t);
                for (int j = 0; j < 3; j++) {
                    real *to = d->dw + ((i * 3 + j) * ch + u) * out_ch + k;
                    bad += t[j] * 0;
                    if (k + VW <= out_ch) store(to, t[j]);
                    else
                        for (i64 l = 0; l < out_ch - k; l++) to[l] = t[j][l];
                }
            }
        }
    real sum = 0;
    for (i64 l = 0; l < VW; l++) sum += bad[l];
    if (sum != 0) fail(&d->not_finite);
}

/* The arguments of gl_conv_weight_grad, kernel 3 x 3, stride 1; n and the sizes positive.
 * Nonzero: 1 when there is no memory, 2 when dW is not finite. */
EXPORT int GL(gl_winograd_weight_grad)(const real *x, const real *dz, real *dw, real *db,
                                       const i64 *numbers) {
    const conv_t *c = (const conv_t *)numbers;
    i64 wide = ceil_div(c->out_ch, VW) * VW;
    winograd_t d = {
        .source = {x, c->n, c->rows, c->cols, c->ch}, .top = c->top, .left = c->left,
        .outputs = {dz, c->n, c->out_rows, c->out_cols, c->out_ch}, .wide = wide,
        .dw = dw, .db = db, .private_size = (ENTRIES * c->ch + 1) * wide,
    };
    d.tiles = cut_tiles(c->n, c->out_rows, c->out_cols, c->dr, c->dc,
                        ceil_div(c->ch, VW) * VW + wide);
    d.shares = gl_shares(d.tiles.items, 1);
    d.private = gl_scratch(PRIVATE, sizeof(real) * (size_t)(d.shares * d.private_size));
    if (!d.private) return 1;
    gl_parallel(d.tiles.items, 1, gradient_share, &d);
    if (d.failed) return 1;
    gl_pieces(c->ch, ceil_div(GRAIN, 200 * wide), PIECES, finish_share, &d);
    if (db) {
        for (i64 o = 0; o < c->out_ch; o++) db[o] = 0;
        for (i64 s = 0; s < d.shares; s++)
            for (i64 o = 0; o < c->out_ch; o++)
                db[o] += d.private[s * d.private_size + ENTRIES * c->ch * wide + o];
    }
    return d.not_finite ? 2 : 0;
}

#endif
