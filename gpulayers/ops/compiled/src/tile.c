/* The tiles of tile.h. */
#include "tile.h"

#define UNROLL _Pragma("GCC unroll 16")
#define PANEL_MOST (2 * VEC_BYTES / sizeof(real))

/* max(v, 0); a NaN stays one */
INLINE vec relu_of(vec v) { return select(v <= 0, (vec){0}, v); }

/* Rows of `valid` numbers, copied between places whose rows are `from_step` and `to_step` apart.
 * Kept out of the tiles, which are many. */
static __attribute__((noinline)) void copy_rows(const real *from, i64 from_step, real *to,
                                                i64 to_step, i64 rows, i64 valid) {
    for (i64 r = 0; r < rows; r++)
        for (i64 j = 0; j < valid; j++) to[r * to_step + j] = from[r * from_step + j];
}

/* Have the tile's part of C in the cache when the products are done. */
INLINE void ask_for(const int rows, const int width, const real *c, i64 ldc) {
    UNROLL for (int r = 0; r < rows; r++) {
        __builtin_prefetch(c + r * ldc);
        __builtin_prefetch(c + r * ldc + width * VW - 1);
    }
}

INLINE void clear(const int rows, const int width, vec acc[][2]) {
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < width; v++) acc[r][v] = (vec){0};
}

/* Last, not first: the sum of sums of a block of k each has the smaller error. */
INLINE void add_start(const int rows, const int width, vec acc[][2], edge_t edge, i64 valid) {
    real part[TALL * PANEL_MOST];
    const real *start = edge.start;
    i64 step = edge.start_step;
    if (!edge.start_padded && valid < width * VW) {
        copy_rows(start, step, part, width * VW, step ? rows : 1, valid);
        start = part;
        step = step ? width * VW : 0;
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < width; v++) acc[r][v] += load(start + r * step + v * VW);
}

/* Write the first `valid` columns. Where C's rows lie one behind the other and are just `valid`
 * wide, a whole vector may be written: the next rows' come over what is too much of it. `later`: how
 * many rows of C follow on the tile's and are written after it; what is added to each row may be
 * their own numbers, which are still to be read. */
INLINE void end_tile(const int rows, const int width, vec acc[][2], edge_t edge, real *c, i64 ldc,
                     i64 valid, i64 later) {
    int whole = valid == width * VW, dense = valid == ldc;
    real part[TALL * PANEL_MOST];
    if (edge.start) add_start(rows, width, acc, edge, valid);
    if (edge.relu)
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < width; v++) acc[r][v] = relu_of(acc[r][v]);
    if (whole) {
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < width; v++) store(c + r * ldc + v * VW, acc[r][v]);
        return;
    }
    i64 beyond = ceil_div(width * VW, ldc) - 1; /* rows that a row's vectors reach into */
    if (!edge.start || edge.start_step == 0) beyond = max_i64(0, beyond - later);
    i64 done = dense ? max_i64(0, rows - beyond) : 0;
    UNROLL for (int r = 0; r < rows; r++) {
        real *to = r < done ? c + r * ldc : part + r * width * VW;
        UNROLL for (int v = 0; v < width; v++) store(to + v * VW, acc[r][v]);
    }
    copy_rows(part + done * width * VW, width * VW, c + done * ldc, ldc, rows - done, valid);
}

INLINE void dot_tile(const int rows, const int width, const real *RESTRICT x, i64 step,
                     const runs_t *runs, const real *RESTRICT b, i64 ldb, edge_t edge, real *c,
                     i64 ldc, i64 valid, i64 later) {
    vec acc[TALL][2];
    clear(rows, width, acc);
    for (i64 q = 0; q < runs->count; q++) {
        const real *p = x + runs->offset[q];
        i64 length = runs->length[q];
        for (i64 k = 0; k < length; k++, b += ldb) {
            vec b0 = load(b), b1 = b0;
            if (width == 2) b1 = load(b + VW);
            UNROLL for (int r = 0; r < rows; r++) {
                real a = p[r * step + k];
                acc[r][0] += a * b0;
                if (width == 2) acc[r][1] += a * b1;
            }
        }
    }
    end_tile(rows, width, acc, edge, c, ldc, valid, later);
}

/* The tiles that m rows are cut into: as few as can be, their heights equal but for one row. */
INLINE i64 tile_count(i64 m, int width) { return ceil_div(m, width == 2 ? SHORT : TALL); }

void GL(gl_dot_rows)(int width, i64 m, const real *x, i64 step, const runs_t *runs, const real *b,
                     i64 ldb, edge_t edge, real *c, i64 ldc, i64 valid) {
    i64 tiles = tile_count(m, width);
    for (i64 t = 0, begin = 0; t < tiles; t++) {
        i64 end = m * (t + 1) / tiles;
        const real *a = x + begin * step;
        real *to = c + begin * ldc;
#define TILE(rows, width) \
    case rows:                                                                             \
        dot_tile(rows, width, a, step, runs, b, ldb, edge, to, ldc, valid, m - end);       \
        break;
        if (width == 2) {
            switch (end - begin) {
                TILE(1, 2) TILE(2, 2) TILE(3, 2) TILE(4, 2) TILE(5, 2) TILE(6, 2)
            }
        } else {
            switch (end - begin) {
                TILE(1, 1) TILE(2, 1) TILE(3, 1) TILE(4, 1) TILE(5, 1)
                TILE(6, 1) TILE(7, 1) TILE(8, 1) TILE(9, 1) TILE(10, 1)
            }
        }
#undef TILE
        if (edge.start) edge.start += (end - begin) * edge.start_step;
        begin = end;
    }
}


/* `at`: where the tile's rows lie in A, NULL when side by side */
INLINE void outer_tile(const int rows, const int width, const int beside, const real *RESTRICT x,
                       const i64 *at, i64 step, const lines_t *lines, const real *RESTRICT b,
                       i64 ldb, edge_t edge, real *c, i64 ldc, i64 valid, i64 later) {
    vec acc[TALL][2];
    i64 offset[TALL];
    UNROLL for (int r = 0; r < rows; r++) offset[r] = beside ? r : at[r];
    clear(rows, width, acc);
    ask_for(rows, width, c, ldc);
    for (i64 i = 0; i < lines->lines; i++) {
        const real *p = x + (lines->line_at ? lines->line_at[i] : 0);
        for (i64 k = 0; k < lines->length; k++, p += step, b += ldb) {
            vec b0 = load(b), b1 = b0;
            if (width == 2) b1 = load(b + VW);
            UNROLL for (int r = 0; r < rows; r++) {
                real a = p[beside ? r : offset[r]];
                acc[r][0] += a * b0;
                if (width == 2) acc[r][1] += a * b1;
            }
        }
    }
    end_tile(rows, width, acc, edge, c, ldc, valid, later);
}

void GL(gl_outer_rows)(int width, i64 m, const real *x, const i64 *at, i64 step,
                       const lines_t *lines, const real *b, i64 ldb, edge_t edge, real *c, i64 ldc,
                       i64 valid) {
    i64 tiles = tile_count(m, width);
    for (i64 t = 0, begin = 0; t < tiles; t++) {
        i64 end = m * (t + 1) / tiles;
        real *to = c + begin * ldc;
#define TILE(rows, width)                                                                      \
    case rows:                                                                                 \
        if (at)                                                                                \
            outer_tile(rows, width, 0, x, at + begin, step, lines, b, ldb, edge, to, ldc,      \
                       valid, m - end);                                                        \
        else                                                                                   \
            outer_tile(rows, width, 1, x + begin, NULL, step, lines, b, ldb, edge, to, ldc,    \
                       valid, m - end);                                                        \
        break;
        if (width == 2) {
            switch (end - begin) {
                TILE(1, 2) TILE(2, 2) TILE(3, 2) TILE(4, 2) TILE(5, 2) TILE(6, 2)
            }
        } else {
            switch (end - begin) {
                TILE(1, 1) TILE(2, 1) TILE(3, 1) TILE(4, 1) TILE(5, 1)
                TILE(6, 1) TILE(7, 1) TILE(8, 1) TILE(9, 1) TILE(10, 1)
            }
        }
#undef TILE
        if (edge.start) edge.start += (end - begin) * edge.start_step;
        begin = end;
    }
}
