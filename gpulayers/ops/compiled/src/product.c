/* The matrix product C = relu(op(A) op(B) + bias), op the matrix itself or its transpose.
 *
 * Blocked for the caches as Goto & van de Geijn, "Anatomy of high-performance matrix
 * multiplication" (2008): a panel of B, packed, stays in the first-level cache while the rows of a
 * block of A, in the second, pass by it.
 */
#include "panel.h"
#include "recorded.h"

#define DEPTH ((i64)(1536 / sizeof(real)))  /* most k of a block: a panel of it takes 24 KB */
#define BLOCK_ROWS 144                      /* rows of A of a block */
#define BLOCK_COLUMNS ((i64)1024)           /* columns of B packed at a time */
#define FEW_ROWS (2 * SHORT)                /* up to which B is not worth packing */
#define DEEP ((i64)128)             /* k from which packing A^T pays, with */
#define MANY_COLUMNS (3 * PANEL)    /* that many columns to use it for */
#define GRAIN ((i64)1 << 17)                /* multiplications worth a thread */
#define MOST_PIECES 4                       /* for a thread */
#define WIDE ((i64)8)                       /* panels of a piece for which all of A^T is packed */

/* A and its product. */
typedef struct {
    const real *A;
    real *C;
    i64 lda, ldc, M;
} left_t;

typedef struct {
    left_t left[2]; /* one, or two that share B, which is then packed once */
    const real *B, *bias;
    i64 ldb, M, N, K; /* M: the most of them */
    int lefts, A_transposed, B_transposed, relu, by_rows, failed;
} product_t;

static const i64 zero = 0;

/* Rows of C for one panel of B and the k of one block; A begins at the block's first k. */
static void panel_product(const product_t *p, const left_t *l, const real *A, const real *packed_A,
                          i64 kc, const real *b, i64 ldb, int width, edge_t edge, real *c, i64 rows,
                          i64 valid) {
    lines_t lines = {NULL, 1, kc};
    runs_t runs = {&zero, &kc, 1};
    if (!p->A_transposed) {
        GL(gl_dot_rows)(width, rows, A, l->lda, &runs, b, ldb, edge, c, l->ldc, valid);
    } else if (!packed_A) {
        GL(gl_outer_rows)(width, rows, A, NULL, l->lda, &lines, b, ldb, edge, c, l->ldc, valid);
    } else {
        i64 tiles = ceil_div(rows, SHORT);
        for (i64 t = 0; t < tiles; t++) {
            i64 begin = rows * t / tiles, height = rows * (t + 1) / tiles - begin;
            edge_t here = edge;
            if (here.start) here.start += begin * here.start_step;
            GL(gl_outer_rows)(width, height, packed_A + begin * kc, NULL, height, &lines, b, ldb,
                              here, c + begin * l->ldc, l->ldc, valid);
        }
    }
}

/* A block of A^T, tile by tile as panel_product reads it: rows that lie far apart meet in the same
 * places of the cache. Whole vectors are written, what is too much is written over. */
static void pack_A(const left_t *l, const real *A, i64 kc, i64 rows, real *to) {
    i64 tiles = ceil_div(rows, SHORT);
    for (i64 t = 0; t < tiles; t++) {
        i64 begin = rows * t / tiles, height = rows * (t + 1) / tiles - begin;
        real *row = to + begin * kc;
        for (i64 k = 0; k < kc; k++, row += height) {
            const real *from = A + k * l->lda + begin;
            if (t + 2 < tiles)
                for (i64 j = 0; j < height; j += VW) store(row + j, load(from + j));
            else
                for (i64 j = 0; j < height; j++) row[j] = from[j];
        }
    }
}

/* The panels of B's columns n0..n1 and rows k0..k0+kc that have to be packed, into `packed`. */
static void pack_block(const product_t *p, i64 n0, i64 n1, i64 k0, i64 kc, int edges_only,
                       real *packed) {
    for (i64 j = n0; j < n1; j += PANEL) {
        i64 valid = min_i64(PANEL, n1 - j);
        int width = panel_width(j, n1);
        real *to = packed + (j - n0) * kc;
        if (p->B_transposed)
            pack_panel_transposed(p->B + j * p->ldb + k0, p->ldb, kc, valid, width, to);
        else if (!edges_only || valid < width * VW)
            pack_panel(p->B + k0 * p->ldb + j, p->ldb, kc, valid, width, to);
    }
}

/* Rows m0..m1, columns n0..n1, the k of one block; the first block begins with the bias and the
 * last one ends with the ReLU. */
static void rows_product(const product_t *p, const left_t *l, i64 m0, i64 m1, i64 n0, i64 n1,
                         i64 k0, i64 kc, int in_place, const real *packed, real *packed_A) {
    int last = k0 + kc == p->K;
    for (i64 i = m0; i < m1; i += BLOCK_ROWS) {
        i64 rows = min_i64(BLOCK_ROWS, m1 - i);
        const real *A = p->A_transposed ? l->A + k0 * l->lda + i : l->A + i * l->lda + k0;
        if (packed_A) pack_A(l, A, kc, rows, packed_A);
        for (i64 j = n0; j < n1; j += PANEL) {
            i64 valid = min_i64(PANEL, n1 - j);
            int width = panel_width(j, n1), direct = in_place && valid == width * VW;
            const real *b = direct ? p->B + k0 * p->ldb + j : packed + (j - n0) * kc;
            real *c = l->C + i * l->ldc + j;
            edge_t edge = {.relu = p->relu && last};
            if (k0 > 0) edge.start = c, edge.start_step = l->ldc;
            else if (p->bias) edge.start = p->bias + j;
            panel_product(p, l, A, packed_A, kc, b, direct ? p->ldb : width * VW, width, edge, c,
                          rows, valid);
        }
    }
}

static void product_share(void *arguments, i64 begin, i64 end, int share) {
    product_t *p = arguments;
    (void)share;
    i64 n0 = p->by_rows ? 0 : begin * PANEL, n1 = p->by_rows ? p->N : min_i64(end * PANEL, p->N);
    i64 blocks = ceil_div(p->K, DEPTH), depth = ceil_div(p->K, blocks);
    i64 most = p->by_rows ? end - begin : p->M;
    i64 columns = min_i64(BLOCK_COLUMNS, n1 - n0), rows = min_i64(BLOCK_ROWS, most);
    int packs_A = p->A_transposed && depth >= DEEP && n1 - n0 >= MANY_COLUMNS && rows > SHORT;
    int in_place = !p->B_transposed && p->lefts == 1 && most <= FEW_ROWS;
    real *packed = gl_scratch(0, sizeof(real) * (size_t)panels_size(depth, columns));
    real *packed_A = NULL;
    if (packs_A) packed_A = gl_scratch(1, sizeof(real) * (size_t)(depth * rows + PANEL));
    if (!packed || (packs_A && !packed_A)) {
        __atomic_store_n(&p->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    for (i64 j = n0; j < n1; j += BLOCK_COLUMNS)
        for (i64 t = 0; t < blocks; t++) {
            i64 k0 = p->K * t / blocks, kc = p->K * (t + 1) / blocks - k0;
            i64 j1 = min_i64(j + BLOCK_COLUMNS, n1);
            pack_block(p, j, j1, k0, kc, in_place, packed);
            for (int i = 0; i < p->lefts; i++) {
                const left_t *l = &p->left[i];
                rows_product(p, l, p->by_rows ? begin : 0, p->by_rows ? end : l->M, j, j1, k0, kc,
                             in_place, packed, packed_A);
            }
        }
}

/* Without k nothing is added up: C is the bias. */
static void product_of_nothing(const product_t *p) {
    for (const left_t *l = p->left; l < p->left + p->lefts; l++)
        for (i64 i = 0; i < l->M; i++)
            for (i64 j = 0; j < p->N; j++) {
                real start = p->bias ? p->bias[j] : 0;
                l->C[i * l->ldc + j] = p->relu && start <= 0 ? 0 : start;
            }
}

/* Threads share the columns, whose panels each then packs for itself; the rows where that would
 * leave one of them with much less than another. */
static int shares_rows(i64 M, i64 N) {
    i64 panels = panel_count(N), threads = gl_shares(INT64_MAX, 1);
    i64 longest = ceil_div(panels, threads) * threads;
    return M >= threads * SHORT && longest * 8 > panels * 9;
}

static int run_product(product_t *p) {
    i64 rows = p->left[0].M + (p->lefts > 1 ? p->left[1].M : 0);
    if (rows <= 0 || p->N <= 0) return 0;
    if (p->K <= 0) {
        product_of_nothing(p);
        return 0;
    }
    p->M = max_i64(p->left[0].M, p->left[p->lefts - 1].M);
    p->by_rows = p->lefts == 1 && shares_rows(p->M, p->N);
    i64 each = p->by_rows ? p->N * p->K : rows * p->K * PANEL;
    i64 items = p->by_rows ? p->M : panel_count(p->N);
    i64 grain = max_i64(p->by_rows ? SHORT : 1, ceil_div(GRAIN, each));
    i64 most = MOST_PIECES;
    if (p->A_transposed && !p->by_rows)
        most = min_i64(most, items / (gl_shares(items, grain) * WIDE));
    gl_pieces(items, grain, (int)max_i64(1, most), product_share, p);
    return p->failed;
}

/* A is (M, K) with rows lda apart, or (K, M) when transposed; B is (K, N) or (N, K); C is (M, N).
 * bias (N) may be NULL. Returns nonzero when there is no memory. */
EXPORT int GL(gl_product)(const real *A, i64 lda, int A_transposed, const real *B, i64 ldb,
                          int B_transposed, const real *bias, int relu, real *C, i64 ldc, i64 M,
                          i64 N, i64 K) {
    product_t p = {.left = {{A, C, lda, ldc, M}}, .lefts = 1, .B = B, .bias = bias, .ldb = ldb,
                   .N = N, .K = K, .A_transposed = A_transposed, .B_transposed = B_transposed,
                   .relu = relu};
    return run_product(&p);
}

/* The gradients of two weights whose layers had one sum: C = A^T B, D = X^T B, with A (K, M),
 * X (K, L) and C, D without gaps, the rows of B (K, N) ldb apart. Nonzero without memory. */
EXPORT int GL(gl_two_products)(const real *A, const real *X, const real *B, i64 ldb, real *C,
                               real *D, i64 M, i64 L, i64 N, i64 K) {
    product_t p = {.left = {{A, C, M, N, M}, {X, D, L, N, L}}, .lefts = 2, .B = B, .ldb = ldb,
                   .N = N, .K = K, .A_transposed = 1};
    return run_product(&p);
}
