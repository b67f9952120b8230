/* The matrix product C = relu(op(A) op(B) + bias), op the matrix itself or its transpose; and
 * C += op(A) op(B).
 *
 * Blocked for the caches as Goto & van de Geijn, "Anatomy of high-performance matrix
 * multiplication" (2008): a panel of B, packed, stays in the first-level cache while the tiles of a
 * block of A, in the second, pass by it. Where packing A pays, it is packed once for all threads.
 */
#include "left.h"
#include "recorded.h"

#define DEPTH ((i64)(1024 / sizeof(real)))  /* most k of a block: a panel of it takes 16 KB */
#define BLOCK_TILES 24                      /* tiles of A of a block */
#define BLOCK_COLUMNS ((i64)1024)           /* columns of B packed at a time */
#define FEW_ROWS (2 * SHORT)                /* up to which B is not worth packing */
#define DEEP ((i64)128)                     /* k from which packing A pays, with */
#define MANY_COLUMNS (3 * PANEL)            /* that many columns to use it for */
#define LARGE ((i64)1 << 16)                /* numbers of an A that is packed, not transposed */
#define PACKED_MOST ((i64)1 << 20)          /* numbers of A packed at a time, at least a block */
#define PACKED_ROWS ((i64)1 << 12)          /* of that many rows at most */
#define GRAIN ((i64)1 << 17)                /* multiplications worth a thread */
#define PACK_GRAIN ((i64)1 << 13)           /* numbers to pack that are worth a thread */
#define WIDE (8 * PANEL)                    /* columns that an A in place is packed for */
#define MOST_PIECES 4                       /* for a thread, where each reads what others do */
#define FINE_PIECES 16                      /* where that costs little: of many rows; of columns, */
#define LONG_PIECE ((i64)256)               /* rows of such a piece at least */
#define NARROW ((i64)2)                     /* with A packed, panels of such a piece at least */
#define TOWER ((i64)16)                     /* rows for each column where threads share the rows */

/* A and its product. */
typedef struct {
    const real *A;
    real *C;
    i64 lda, ldc, M;
    real *packed; /* A's tiles of the blocks at work, or NULL */
} left_t;

typedef struct {
    left_t left[2]; /* one, or two that share B, which is then packed once */
    const real *B, *bias;
    i64 ldb, N, K;
    i64 block, last_block, blocks; /* of k: those at work, out of how many */
    int lefts, A_transposed, B_transposed, relu, onto, by_rows, failed;
} product_t;

static const i64 zero = 0;

INLINE i64 block_begin(const product_t *p, i64 block) { return p->K * block / p->blocks; }

/* Tiles t0..t1 of C for one panel of B and the k of one block; the first block begins with the bias
 * and the last one ends with the ReLU. */
static void panel_product(const product_t *p, const left_t *l, i64 t0, i64 t1, i64 k0, i64 kc,
                          const real *b, i64 ldb, int width, i64 j, i64 valid) {
    lines_t lines = {NULL, 1, kc};
    runs_t runs = {&zero, &kc, 1};
    i64 m0 = left_begin(l->M, t0), m1 = left_begin(l->M, t1);
    edge_t edge = {.relu = p->relu && k0 + kc == p->K};
    real *c = l->C + m0 * l->ldc + j;
    if (k0 > 0 || p->onto) edge.start = c, edge.start_step = l->ldc;
    else if (p->bias) edge.start = p->bias + j;
    if (l->packed) {
        const real *block = l->packed + (k0 - block_begin(p, p->block)) * l->M;
        for (i64 t = t0; t < t1; t++) {
            i64 begin = left_begin(l->M, t), height = left_begin(l->M, t + 1) - begin;
            edge_t here = edge;
            if (here.start) here.start += (begin - m0) * here.start_step;
            GL(gl_outer_rows)(width, height, block + begin * kc, NULL, height, &lines, b, ldb,
                              here, l->C + begin * l->ldc + j, l->ldc, valid);
        }
    } else if (p->A_transposed) {
        GL(gl_outer_rows)(width, m1 - m0, l->A + k0 * l->lda + m0, NULL, l->lda, &lines, b, ldb,
                          edge, c, l->ldc, valid);
    } else {
        GL(gl_dot_rows)(width, m1 - m0, l->A + m0 * l->lda + k0, l->lda, &runs, b, ldb, edge, c,
                        l->ldc, valid);
    }
}

/* The panels of B's columns n0..n1 and rows k0..k0+kc that have to be packed, into `packed`. */
static void pack_block(const product_t *p, i64 n0, i64 n1, i64 k0, i64 kc, int edges_only,
                       real *packed) {
    i64 j = n0;
    if (!p->B_transposed && !edges_only) {
        i64 full = (n1 - n0) / PANEL * PANEL;
        pack_panels(p->B + k0 * p->ldb + n0, p->ldb, kc, full, packed);
        j += full;
    }
    for (; j < n1; j += PANEL) {
        i64 valid = min_i64(PANEL, n1 - j);
        int width = panel_width(j, n1);
        real *to = packed + (j - n0) * kc;
        if (p->B_transposed)
            pack_panel_transposed(p->B + j * p->ldb + k0, p->ldb, kc, valid, width, to);
        else if (!edges_only || valid < width * VW)
            pack_panel(p->B + k0 * p->ldb + j, p->ldb, kc, valid, width, to);
    }
}

/* Tiles t0..t1, columns n0..n1, the k of one block. */
static void block_product(const product_t *p, const left_t *l, i64 t0, i64 t1, i64 n0, i64 n1,
                          i64 k0, i64 kc, int in_place, const real *packed) {
    for (i64 t = t0; t < t1; t += BLOCK_TILES)
        for (i64 j = n0; j < n1; j += PANEL) {
            i64 valid = min_i64(PANEL, n1 - j);
            int width = panel_width(j, n1), direct = in_place && valid == width * VW;
            const real *b = direct ? p->B + k0 * p->ldb + j : packed + (j - n0) * kc;
            panel_product(p, l, t, min_i64(t + BLOCK_TILES, t1), k0, kc, b,
                          direct ? p->ldb : width * VW, width, j, valid);
        }
}

/* A piece: some panels, or some tiles. */
static void product_share(void *arguments, i64 begin, i64 end, int share) {
    product_t *p = arguments;
    (void)share;
    i64 n0 = p->by_rows ? 0 : begin * PANEL, n1 = p->by_rows ? p->N : min_i64(end * PANEL, p->N);
    i64 columns = min_i64(BLOCK_COLUMNS, n1 - n0);
    i64 tiles = p->by_rows ? end - begin : left_tiles(p->left[0].M);
    int in_place = !p->B_transposed && p->lefts == 1 && tiles * SHORT <= FEW_ROWS;
    size_t size = sizeof(real) * (size_t)panels_size(ceil_div(p->K, p->blocks), columns);
    real *packed = gl_scratch(0, size);
    if (!packed) {
        __atomic_store_n(&p->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    for (i64 j = n0; j < n1; j += BLOCK_COLUMNS)
        for (i64 block = p->block; block < p->last_block; block++) {
            i64 k0 = block_begin(p, block), kc = block_begin(p, block + 1) - k0;
            i64 j1 = min_i64(j + BLOCK_COLUMNS, n1);
            pack_block(p, j, j1, k0, kc, in_place, packed);
            for (const left_t *l = p->left; l < p->left + p->lefts; l++)
                block_product(p, l, p->by_rows ? begin : 0, p->by_rows ? end : left_tiles(l->M), j,
                              j1, k0, kc, in_place, packed);
        }
}

/* A piece of packing A: some k of A^T, or some tiles, of the blocks at work. */
static void pack_share(void *arguments, i64 begin, i64 end, int share) {
    const product_t *p = arguments;
    i64 start = block_begin(p, p->block);
    (void)share;
    for (const left_t *l = p->left; l < p->left + p->lefts; l++)
        for (i64 block = p->block; block < p->last_block; block++) {
            i64 k0 = block_begin(p, block), kc = block_begin(p, block + 1) - k0;
            real *to = l->packed + (k0 - start) * l->M;
            if (!p->A_transposed)
                pack_left(l->A + k0, l->lda, l->M, begin, end, kc, to);
            else if (start + begin < k0 + kc && start + end > k0)
                pack_left_transposed(l->A + k0 * l->lda, l->lda, l->M,
                                     max_i64(start + begin - k0, 0),
                                     min_i64(start + end - k0, kc), kc, to);
        }
}

/* Without k nothing is added up: C is the bias. */
static void product_of_nothing(const product_t *p) {
    if (p->onto) return;
    for (const left_t *l = p->left; l < p->left + p->lefts; l++)
        for (i64 i = 0; i < l->M; i++)
            for (i64 j = 0; j < p->N; j++) {
                real start = p->bias ? p->bias[j] : 0;
                l->C[i * l->ldc + j] = p->relu && start <= 0 ? 0 : start;
            }
}

/* Threads share the columns, whose panels each then packs for itself; the rows where that would
 * leave one of them with much less than another, or where reading all of A costs more than packing
 * all of B. */
static int shares_rows(i64 M, i64 N) {
    i64 panels = panel_count(N), threads = gl_shares(INT64_MAX, 1);
    i64 longest = ceil_div(panels, threads) * threads;
    return M >= threads * SHORT && (longest * 8 > panels * 9 || M >= TOWER * N);
}

/* Whether A is worth packing: the rows of an A^T lie apart for every k, those of an A only take up
 * too much of the caches together. */
static int packs_left(const product_t *p, i64 rows) {
    i64 depth = ceil_div(p->K, p->blocks);
    if (depth < DEEP || p->N < MANY_COLUMNS || rows <= SHORT) return 0;
    return p->A_transposed || (p->N >= WIDE && rows * p->K >= LARGE);
}

/* All of a product that has something to add up. */
static int run_blocks(product_t *p, i64 rows, int packs) {
    i64 M = p->left[0].M, depth = ceil_div(p->K, p->blocks), at_once = p->blocks;
    p->by_rows = p->lefts == 1 && shares_rows(M, p->N);
    if (packs) {
        at_once = min_i64(at_once, max_i64(1, PACKED_MOST / (rows * depth)));
        real *packed = gl_scratch(1, sizeof(real) * (size_t)(rows * depth * at_once));
        if (!packed) return 1;
        p->left[0].packed = packed;
        p->left[1].packed = packed + M * depth * at_once;
    }
    i64 items = p->by_rows ? left_tiles(M) : panel_count(p->N), most = MOST_PIECES;
    i64 grain = ceil_div(GRAIN * items, rows * p->N * p->K);
    int shares = gl_shares(items, grain);
    if (p->by_rows) most = max_i64(most, min_i64(FINE_PIECES, M / (shares * LONG_PIECE)));
    else if (packs) most = min_i64(FINE_PIECES, items / (shares * NARROW));
    for (p->block = 0; p->block < p->blocks; p->block = p->last_block) {
        p->last_block = min_i64(p->block + at_once, p->blocks);
        if (packs) {
            i64 k = block_begin(p, p->last_block) - block_begin(p, p->block);
            i64 parts = p->A_transposed ? k : left_tiles(M);
            gl_pieces(parts, ceil_div(PACK_GRAIN * parts, rows * k), MOST_PIECES, pack_share, p);
        }
        gl_pieces(items, grain, (int)max_i64(1, most), product_share, p);
    }
    return p->failed;
}

static int run_product(product_t *p) {
    i64 rows = p->left[0].M + (p->lefts > 1 ? p->left[1].M : 0);
    if (rows <= 0 || p->N <= 0) return 0;
    if (p->K <= 0) {
        product_of_nothing(p);
        return 0;
    }
    p->blocks = ceil_div(p->K, DEPTH);
    int packs = packs_left(p, rows);
    if (!packs || rows <= PACKED_ROWS) return run_blocks(p, rows, packs);
    for (const left_t *l = p->left; l < p->left + p->lefts; l++)
        for (i64 first = 0; first < l->M; first += PACKED_ROWS) {
            product_t part = *p;
            part.lefts = 1;
            part.left[0] = *l;
            part.left[0].A += p->A_transposed ? first : first * l->lda;
            part.left[0].C += first * l->ldc;
            part.left[0].M = min_i64(PACKED_ROWS, l->M - first);
            if (run_blocks(&part, part.left[0].M, 1)) return 1;
        }
    return 0;
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

/* The same, without bias, added to what C holds. */
EXPORT int GL(gl_product_onto)(const real *A, i64 lda, int A_transposed, const real *B, i64 ldb,
                               int B_transposed, real *C, i64 ldc, i64 M, i64 N, i64 K) {
    product_t p = {.left = {{A, C, lda, ldc, M, NULL}}, .lefts = 1, .B = B, .ldb = ldb, .N = N,
                   .K = K, .A_transposed = A_transposed, .B_transposed = B_transposed, .onto = 1};
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
