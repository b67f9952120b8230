/* Winograd's convolution F(4x4, 3x3): forward, and the input gradient as a forward pass. */
#include "recorded.h"
#include "winograd.h"

#ifndef GL_DOUBLE

#define BLOCK_CHANNELS ((i64)128)

static const real G[6][3] = {{1 / 4.f, 0, 0},
                             {-1 / 6.f, -1 / 6.f, -1 / 6.f},
                             {-1 / 6.f, 1 / 6.f, -1 / 6.f},
                             {1 / 24.f, 1 / 12.f, 1 / 6.f},
                             {1 / 24.f, -1 / 12.f, 1 / 6.f},
                             {0, 0, 1}};

typedef struct {
    images_t source;
    i64 top, left, dr, dc;
    real *out;
    i64 out_rows, out_cols, out_ch, out_wide;
    const real *w, *bias; /* bias filled up to whole vectors, or NULL */
    real *weights;        /* G g G^T: 36 times the panels of (ch, out_ch) */
    tiles_t tiles;
    int flipped, relu, failed, not_finite;
} winograd_t;

/* ----------------------------------------------------------------------------------- weights */

/* G g G^T of one vector of weights; `g` has the nine taps `step` apart. */
INLINE void transform_weights(const real *g, i64 step, real *to, i64 plane) {
    vec half[6][3];
    for (int i = 0; i < 6; i++)
        for (int c = 0; c < 3; c++)
            half[i][c] = G[i][0] * load(g + c * step) + G[i][1] * load(g + (3 + c) * step) +
                         G[i][2] * load(g + (6 + c) * step);
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < 6; j++)
            store(to + (i * 6 + j) * plane,
                  half[i][0] * G[j][0] + half[i][1] * G[j][1] + half[i][2] * G[j][2]);
}

/* Panels [begin, end). Flipped: tap (2 - i, 2 - j), its matrix transposed. */
static void weight_share(void *arguments, i64 begin, i64 end, int share) {
    winograd_t *d = arguments;
    i64 ch = d->source.ch, plane = ch * d->out_wide;
    real *panel = gl_scratch(WEIGHT_PANEL, sizeof(real) * (size_t)(9 * ch * PANEL));
    (void)share;
    if (!panel) {
        fail(&d->failed);
        return;
    }
    for (i64 j = begin * PANEL; j < min_i64(end * PANEL, d->out_ch); j += PANEL) {
        i64 valid = min_i64(PANEL, d->out_ch - j);
        int width = panel_width(j, d->out_ch);
        i64 size = ch * width * VW;
        for (i64 t = 0; t < 9; t++) {
            const real *w = d->w + (d->flipped ? 8 - t : t) * ch * d->out_ch;
            real *to = panel + t * size;
            if (d->flipped) pack_panel_transposed(w + j * ch, ch, ch, valid, width, to);
            else pack_panel(w + j, d->out_ch, ch, valid, width, to);
        }
        for (i64 k = 0; k < size; k += VW)
            transform_weights(panel + k, size, d->weights + j * ch + k, plane);
    }
}

/* ------------------------------------------------------------------------------------- outputs */

/* A^T m: six numbers to four */
INLINE void output_transform(const vec m[6], vec y[4]) {
    vec p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], s = m[3] - m[4];
    y[0] = m[0] + p + r;
    y[1] = q + 2 * s;
    y[2] = p + 4 * r;
    y[3] = q + 8 * s + m[5];
}

/* A^T m A of one vector of channels; `bad` becomes NaN where an output is not finite. */
INLINE void transform_output(const real *m, i64 plane, vec y[4][4], vec *bad) {
    vec half[4][6], in[6], out[4];
    for (int j = 0; j < 6; j++) {
        for (int i = 0; i < 6; i++) in[i] = load(m + (i * 6 + j) * plane);
        output_transform(in, out);
        for (int i = 0; i < 4; i++) half[i][j] = out[i];
    }
    for (int i = 0; i < 4; i++) {
        output_transform(half[i], y[i]);
        for (int j = 0; j < 4; j++) *bad += y[i][j] * 0;
    }
}

/* The outputs of a row of tiles: those that the image has. */
static void write_tile_row(winograd_t *d, i64 tile_row, const real *m, i64 plane) {
    const tiles_t *t = &d->tiles;
    place_t at = place_of(t, tile_row);
    i64 rows = inside(d->out_rows, at.row, t->dr), ch = d->out_ch;
    i64 down = t->dr * d->out_cols * ch, right = t->dc * ch;
    real *line = d->out + (at.image * d->out_rows + at.row) * d->out_cols * ch;
    vec bad = {0};
    for (i64 c = 0; c < t->cols; c++) {
        i64 col = at.col + 4 * c * t->dc, cols = inside(d->out_cols, col, t->dc);
        for (i64 k = 0; k < ch; k += VW) {
            vec y[4][4], b = d->bias ? load(d->bias + k) : (vec){0};
            real *to = line + col * ch + k;
            transform_output(m + c * d->out_wide + k, plane, y, &bad);
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++) {
                    y[i][j] += b;
                    if (d->relu) y[i][j] = select(y[i][j] <= 0, (vec){0}, y[i][j]);
                }
            if (rows == 4 && cols == 4 && k + VW <= ch) {
                for (i64 i = 0; i < 4; i++)
                    for (i64 j = 0; j < 4; j++) store(to + i * down + j * right, y[i][j]);
            } else {
                for (i64 i = 0; i < rows; i++)
                    for (i64 j = 0; j < cols; j++)
                        for (i64 l = 0; l < min_i64(VW, ch - k); l++)
                            to[i * down + j * right + l] = y[i][j][l];
            }
        }
    }
    real sum = 0;
    for (i64 l = 0; l < VW; l++) sum += bad[l];
    if (sum != 0) fail(&d->not_finite);
}

/* The 36 products M = V U over the channels. Many channels are cut into blocks that are added up
 * one by one: the transforms make the error of these sums several times larger. */
static void multiply(const winograd_t *d, const real *v, i64 wide, real *m, i64 tiles) {
    i64 ch = d->source.ch, blocks = ceil_div(ch, BLOCK_CHANNELS), zero = 0;
    for (i64 e = 0; e < ENTRIES; e++)
        for (i64 j = 0; j < d->out_ch; j += PANEL) {
            int width = panel_width(j, d->out_ch);
            const real *u = d->weights + (e * d->out_wide + j) * ch;
            real *to = m + e * tiles * d->out_wide + j;
            for (i64 t = 0; t < blocks; t++) {
                i64 k0 = ch * t / blocks, kc = ch * (t + 1) / blocks - k0;
                runs_t runs = {&zero, &kc, 1};
                edge_t edge = {.start = t ? to : NULL, .start_step = d->out_wide};
                GL(gl_dot_rows)(width, tiles, v + e * tiles * wide + k0, wide, &runs,
                                u + k0 * width * VW, width * VW, edge, to, d->out_wide,
                                width * VW);
            }
        }
}

static void winograd_share(void *arguments, i64 begin, i64 end, int share) {
    winograd_t *d = arguments;
    const tiles_t *t = &d->tiles;
    i64 ch = d->source.ch, wide = ceil_div(ch, VW) * VW, most = t->step * t->cols;
    real *v = gl_scratch(TRANSFORMED, sizeof(real) * (size_t)(ENTRIES * most * wide));
    real *m = gl_scratch(PRODUCTS, sizeof(real) * (size_t)(ENTRIES * most * d->out_wide));
    i64 pixels = 6 * (4 * t->cols + 2) * ch;
    real *rows = gl_scratch(ROWS, sizeof(real) * (size_t)(pixels + VW));
    (void)share;
    if (!v || !m || !rows) {
        fail(&d->failed);
        return;
    }
    memset(rows + pixels, 0, sizeof(real) * (size_t)VW);
    for (i64 item = begin; item < end; item++) {
        i64 first = item * t->step, count = min_i64(t->step, t->images * t->rows - first);
        i64 tiles = count * t->cols;
        for (i64 r = 0; r < count; r++)
            transform_tile_row(&d->source, d->top, d->left, t, first + r, rows,
                               v + r * t->cols * wide, wide, tiles * wide);
        multiply(d, v, wide, m, tiles);
        for (i64 r = 0; r < count; r++)
            write_tile_row(d, first + r, m + r * t->cols * d->out_wide, tiles * d->out_wide);
    }
}

/* Nonzero: 1 when there is no memory, 2 when an output is not finite: then a tile has spread what
 * belonged to some of its outputs, and the caller has to compute directly. */
static int winograd(winograd_t *d) {
    i64 ch = d->source.ch;
    d->out_wide = ceil_div(d->out_ch, VW) * VW;
    d->tiles = cut_tiles(d->source.n, d->out_rows, d->out_cols, d->dr, d->dc,
                         ceil_div(ch, VW) * VW + d->out_wide);
    d->weights = gl_scratch(WEIGHTS, sizeof(real) * (size_t)(ENTRIES * ch * d->out_wide +
                                                             d->out_wide));
    if (!d->weights) return 1;
    if (d->bias) {
        real *padded = d->weights + ENTRIES * ch * d->out_wide;
        for (i64 j = 0; j < d->out_wide; j++) padded[j] = j < d->out_ch ? d->bias[j] : 0;
        d->bias = padded;
    }
    gl_pieces(panel_count(d->out_ch), ceil_div(GRAIN, 300 * ch), PIECES, weight_share, d);
    if (!d->failed) gl_pieces(d->tiles.items, 1, PIECES, winograd_share, d);
    return d->failed ? 1 : d->not_finite ? 2 : 0;
}

/* The arguments of gl_conv_forward, kernel 3 x 3, stride 1; n and the sizes positive. */
EXPORT int GL(gl_winograd_forward)(const real *x, const real *w, const real *b, real *z,
                                   const i64 *numbers, int relu) {
    const conv_t *c = (const conv_t *)numbers;
    winograd_t d = {
        .source = {x, c->n, c->rows, c->cols, c->ch},
        .top = c->top, .left = c->left, .dr = c->dr, .dc = c->dc, .out = z, .out_rows = c->out_rows,
        .out_cols = c->out_cols, .out_ch = c->out_ch, .w = w, .bias = b, .relu = relu,
    };
    return winograd(&d);
}

/* The arguments of gl_conv_input_grad: the convolution of dZ with the kernel turned by 180 degrees,
 * whose padding leads back to the size of X. */
EXPORT int GL(gl_winograd_input_grad)(const real *dz, const real *w, real *dx,
                                      const i64 *numbers) {
    const conv_t *c = (const conv_t *)numbers;
    winograd_t d = {
        .source = {dz, c->n, c->out_rows, c->out_cols, c->out_ch},
        .top = 2 * c->dr - c->top, .left = 2 * c->dc - c->left, .dr = c->dr, .dc = c->dc,
        .out = dx, .out_rows = c->rows, .out_cols = c->cols, .out_ch = c->ch, .w = w, .flipped = 1,
    };
    return winograd(&d);
}

#endif
