/* Winograd's minimal filtering F(4x4, 3x3): 36 multiplications where 144 are needed otherwise.
 *
 * A tile of 6 x 6 inputs d gives 4 x 4 outputs, with the 3 x 3 weights g:
 *
 *   y = A^T [(G g G^T) . (B^T d B)] A        . entry by entry, summed over the channels
 *
 * so that each of the 36 entries is a matrix product of its own over all tiles. The interpolation
 * points are 0, 1, -1, 2, -2 and infinity.
 *
 * Source: Lavin & Gray, "Fast algorithms for convolutional neural networks" (2016), section 4;
 * the gradient of the weights is the same identity transposed: dg = G^T [(B^T d B) . (A dy A^T)] G.
 *
 * With spacing between the taps, outputs that many rows (and columns) apart are an image of their
 * own, of dense taps: a phase.
 *
 * It reorders the sum with factors up to 8, which costs about three bits; so float only.
 */
#ifndef GPULAYERS_WINOGRAD_H
#define GPULAYERS_WINOGRAD_H

#include "conv.h"

#define ENTRIES 36
#define MIN_TILES 24                  /* rows of the products at least, where there are so many */
#define TILE_BYTES ((i64)(256 << 10)) /* of an item, transformed: half the second-level cache */
enum { TRANSFORMED = 6, PRODUCTS, ROWS, WEIGHTS, WEIGHT_PANEL }; /* more slots of gl_scratch */

/* Tiles are counted row by row through all phases of all images; an item is some rows of tiles. */
typedef struct {
    i64 images, rows, cols; /* rows and columns of tiles of a phase; phases in all */
    i64 dr, dc;             /* spacing */
    i64 step, items;        /* rows of tiles of an item */
} tiles_t;

/* A row of tiles: of which image, and the pixel its first output is. */
typedef struct {
    i64 image, row, col;
} place_t;

/* B^T d: six numbers to six */
INLINE void input_transform(const vec d[6], vec t[6]) {
    vec a = d[4] - 4 * d[2], b = d[3] - 4 * d[1], c = d[4] - d[2], e = 2 * (d[3] - d[1]);
    t[0] = 4 * d[0] - 5 * d[2] + d[4];
    t[1] = a + b;
    t[2] = a - b;
    t[3] = c + e;
    t[4] = c - e;
    t[5] = 4 * d[1] - 5 * d[3] + d[5];
}

/* The 6 x 6 pixels from p on, `row` between rows, into the 36 planes from v on. */
INLINE void transform_input(const real *p, i64 row, i64 ch, real *v, i64 plane) {
    vec half[6][6], d[6], t[6];
    for (int j = 0; j < 6; j++) {
        for (int i = 0; i < 6; i++) d[i] = load(p + i * row + j * ch);
        input_transform(d, t);
        for (int i = 0; i < 6; i++) half[i][j] = t[i];
    }
    for (int i = 0; i < 6; i++) {
        input_transform(half[i], t);
        for (int j = 0; j < 6; j++) store(v + (i * 6 + j) * plane, t[j]);
    }
}

INLINE place_t place_of(const tiles_t *t, i64 tile_row) {
    i64 phase = tile_row / t->rows, within = phase % (t->dr * t->dc);
    return (place_t){phase / (t->dr * t->dc),
                     within / t->dc + tile_row % t->rows * 4 * t->dr, within % t->dc};
}

/* How many of a tile's four rows (or columns) are in an image of `size`, from `at` on. */
INLINE i64 inside(i64 size, i64 at, i64 spacing) {
    return max_i64(0, min_i64(4, ceil_div(size - at, spacing)));
}

/* Rows of tiles of an item: enough tiles for the products, not more than the cache holds. */
INLINE tiles_t cut_tiles(i64 n, i64 out_rows, i64 out_cols, i64 dr, i64 dc, i64 channels) {
    i64 phases = dr * dc;
    tiles_t t = {n * phases, ceil_div(ceil_div(out_rows, dr), 4),
                 ceil_div(ceil_div(out_cols, dc), 4), dr, dc, 0, 0};
    i64 all = t.images * t.rows, threads = gl_shares(INT64_MAX, 1);
    i64 most = max_i64(MIN_TILES, TILE_BYTES / (ENTRIES * channels * (i64)sizeof(real)));
    t.step = max_i64(1, most / t.cols);
    t.step = max_i64(1, min_i64(t.step, ceil_div(all, threads)));
    t.items = ceil_div(all, t.step);
    return t;
}

/* `count` rows of pixels that a row of tiles sees from `at` on, `cols` wide. */
INLINE void copy_seen(const images_t *s, const tiles_t *t, place_t at, i64 count, i64 cols,
                      real *rows) {
    const real *image = s->x + at.image * s->rows * s->cols * s->ch;
    if (t->dr == 1 && t->dc == 1) copy_padded(s, image, at.row, count, at.col, cols, rows);
    else copy_spaced(s, image, at.row, count, t->dr, at.col, cols, t->dc, rows);
}

/* B^T d B of a row of tiles. `rows`: memory for its six rows of pixels. */
COLD void transform_tile_row(const images_t *s, i64 top, i64 left, const tiles_t *t, i64 tile_row,
                             real *rows, real *v, i64 wide, i64 plane) {
    i64 cols = 4 * t->cols + 2;
    place_t at = place_of(t, tile_row);
    at.row -= top;
    at.col -= left;
    copy_seen(s, t, at, 6, cols, rows);
    for (i64 c = 0; c < t->cols; c++)
        for (i64 k = 0; k < s->ch; k += VW)
            transform_input(rows + 4 * c * s->ch + k, cols * s->ch, s->ch, v + c * wide + k, plane);
}

#endif
