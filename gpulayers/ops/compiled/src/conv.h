/* What the convolution kernels share: how their arrays look, and which part of an image they see.
 *
 * A convolution's work is cut into items: some whole images, or a band of output rows of one. An
 * item reads a view of its source images, in place where no padding is needed, else copied with the
 * padding around it into memory that stays in the cache.
 */
#ifndef GPULAYERS_CONV_H
#define GPULAYERS_CONV_H

#include "panel.h"

#define VIEW_BYTES (160 << 10)        /* of an item's source: a part of the second-level cache */
#define ITEM_PIXELS 128               /* outputs of an item at least, where images are small */
#define GRAIN ((i64)1 << 17)          /* multiplications worth a thread */

enum { PACKED, TABLES, VIEW, LINES, SLACK, PRIVATE }; /* slots of gl_scratch */

/* The arguments of a convolution, as the numbers Python gives. */
typedef struct {
    i64 n, rows, cols, ch;               /* X */
    i64 out_rows, out_cols, out_ch;      /* Z */
    i64 fr, fc, sr, sc, top, left, dr, dc;
} conv_t;

typedef struct {
    const real *x;
    i64 n, rows, cols, ch;
} images_t;

/* How outputs look at their source: output (u, v) at the pixels from (u * row_step + row_low,
 * v * col_step + col_low) on, row_span by col_span of them. */
typedef struct {
    i64 row_step, col_step, row_low, col_low, row_span, col_span;
    i64 rows, cols; /* outputs */
    int padded;     /* some of those pixels lie outside the image */
} looks_t;

/* Item i: images [first, first + images), output rows [begin, end). */
typedef struct {
    i64 images, rows, bands, items;
} cut_t;

typedef struct {
    const real *at; /* the first pixel seen */
    i64 row_step, image_step;
} view_t;

INLINE i64 seen(i64 outputs, i64 step, i64 span) { return (outputs - 1) * step + span; }

INLINE void set_padded(looks_t *l, const images_t *s) {
    l->padded = l->row_low < 0 || l->col_low < 0 ||
                l->row_low + seen(l->rows, l->row_step, l->row_span) > s->rows ||
                l->col_low + seen(l->cols, l->col_step, l->col_span) > s->cols;
}

/* Between one row of a view and the next. */
INLINE i64 view_row(const looks_t *l, const images_t *s) {
    return s->ch * (l->padded ? seen(l->cols, l->col_step, l->col_span) : s->cols);
}

/* Items small enough for the cache, and enough of them for the threads. */
INLINE cut_t cut_work(const looks_t *l, const images_t *s) {
    i64 row = view_row(l, s) * (i64)sizeof(real), threads = gl_shares(INT64_MAX, 1);
    i64 image = row * seen(l->rows, l->row_step, l->row_span);
    cut_t c = {.images = 1, .rows = l->rows};
    if (image > VIEW_BYTES) {
        c.rows = max_i64(1, (VIEW_BYTES / row - l->row_span) / l->row_step + 1);
    } else {
        c.images = ceil_div(ITEM_PIXELS, max_i64(1, l->rows * l->cols));
        c.images = max_i64(1, min_i64(c.images, VIEW_BYTES / max_i64(1, image)));
        c.images = max_i64(1, min_i64(c.images, s->n / threads));
    }
    if (s->n < threads) c.rows = min_i64(c.rows, max_i64(1, ceil_div(l->rows * s->n, threads)));
    c.bands = max_i64(1, ceil_div(l->rows, max_i64(1, c.rows)));
    c.rows = ceil_div(l->rows, c.bands);
    c.items = ceil_div(s->n, c.images) * c.bands;
    return c;
}

typedef struct {
    i64 first, images, begin, end;
} item_t;

INLINE item_t item_of(const cut_t *c, const looks_t *l, i64 n, i64 i) {
    item_t t = {.first = i / c->bands * c->images, .begin = i % c->bands * c->rows};
    t.images = min_i64(c->images, n - t.first);
    t.end = min_i64(t.begin + c->rows, l->rows);
    return t;
}

/* Rows [row, row + rows) and columns [col, col + cols) of an image, zero where it ends. */
COLD void copy_padded(const images_t *s, const real *image, i64 row, i64 rows, i64 col, i64 cols,
                      real *to) {
    i64 ch = s->ch, left = max_i64(0, min_i64(-col, cols));
    i64 inside = max_i64(0, min_i64(col + cols, s->cols) - max_i64(col, 0));
    i64 right = cols - left - inside;
    for (i64 r = row; r < row + rows; r++, to += cols * ch) {
        if (r < 0 || r >= s->rows || inside == 0) {
            memset(to, 0, sizeof(real) * (size_t)(cols * ch));
            continue;
        }
        const real *from = image + (r * s->cols + max_i64(col, 0)) * ch;
        memset(to, 0, sizeof(real) * (size_t)(left * ch));
        memcpy(to + left * ch, from, sizeof(real) * (size_t)(inside * ch));
        memset(to + (left + inside) * ch, 0, sizeof(real) * (size_t)(right * ch));
    }
}

/* The same of every `dr`-th row and `dc`-th column from there on, rows by cols of them. */
COLD void copy_spaced(const images_t *s, const real *image, i64 row, i64 rows, i64 dr, i64 col,
                      i64 cols, i64 dc, real *to) {
    size_t pixel = sizeof(real) * (size_t)s->ch;
    for (i64 i = 0; i < rows; i++)
        for (i64 j = 0; j < cols; j++, to += s->ch) {
            i64 r = row + i * dr, c = col + j * dc;
            if (r < 0 || r >= s->rows || c < 0 || c >= s->cols) memset(to, 0, pixel);
            else memcpy(to, image + (r * s->cols + c) * s->ch, pixel);
        }
}

/* What an item sees; `at` is NULL when there is no memory for a copy. */
COLD view_t view_of(const images_t *s, const looks_t *l, const item_t *t) {
    i64 image = s->rows * s->cols * s->ch;
    i64 row = t->begin * l->row_step + l->row_low;
    if (!l->padded) {
        const real *at = s->x + t->first * image + (row * s->cols + l->col_low) * s->ch;
        return (view_t){at, s->cols * s->ch, image};
    }
    i64 rows = seen(t->end - t->begin, l->row_step, l->row_span);
    i64 cols = seen(l->cols, l->col_step, l->col_span), size = rows * cols * s->ch;
    real *copy = gl_scratch(VIEW, sizeof(real) * (size_t)(size * t->images));
    if (copy)
        for (i64 i = 0; i < t->images; i++)
            copy_padded(s, s->x + (t->first + i) * image, row, rows, l->col_low, cols,
                        copy + i * size);
    return (view_t){copy, cols * s->ch, size};
}

/* The input gradient of few channels, conv_scatter.c. */
int GL(gl_scatter_wins)(const conv_t *c);
int GL(gl_scatter_input_grad)(const real *dz, const real *w, real *dx, const conv_t *c);

INLINE void fail(int *failed) { __atomic_store_n(failed, 1, __ATOMIC_RELAXED); }

#endif
