"""tests.support.cuda_on_cpu: inline PTX and the tensor-core products of a warp."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.kernels.arrays import load, store
from tests.support.cuda_on_cpu import CompileError, HostModule, KernelError

pytestmark = pytest.mark.emulated

#: each lane loads its fragments as the PTX ISA draws them ("Matrix fragments for mma"), words of
#: 32 bits, eight in a row
PRODUCT = r"""
extern "C" __global__ void product(const unsigned* a, const unsigned* b, float* c)
{
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    const unsigned *x = a + 8 * g + t, *y = b + 8 * g + t;
    float *upper = c + 8 * g + 2 * t, *lower = upper + 64;
    if (threadIdx.x >= LANES) return;
    asm volatile("mma.sync.aligned.SHAPE.row.col.f32.TYPES.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(upper[0]), "+f"(upper[1]), "+f"(lower[0]), "+f"(lower[1])
                 : "r"(x[0]), "r"(x[64]), "r"(x[4]), "r"(x[68]), "r"(y[0]), "r"(y[4]));
}
"""
SHAPES = {
    "float32": ("m16n8k8", "tf32.tf32", 8),
    "bfloat16": ("m16n8k16", "bf16.bf16", 16),
    "float16": ("m16n8k16", "f16.f16", 16),
}


def kernel(dtype: str, lanes: int = 32) -> Any:
    shape, types, _ = SHAPES[dtype]
    code = PRODUCT.replace("SHAPE", shape).replace("TYPES", types).replace("LANES", str(lanes))
    return HostModule(code, name="mma.cu")["product"]


@pytest.mark.parametrize("dtype", SHAPES)
def test_product_of_a_warp(dtype: str) -> None:
    terms = SHAPES[dtype][2]
    rng = np.random.default_rng(0)
    a, b = (store(rng.standard_normal((lines, terms)), dtype) for lines in (16, 8))
    if dtype == "float32":  # the tensor cores see 10 bits of mantissa
        a, b = ((v.view("u4") & 0xFFFFE000).view("f4") for v in (a, b))
    c = rng.standard_normal((16, 8)).astype("f4")
    want = c + load(a, dtype) @ load(b, dtype).T
    if dtype == "float32":
        a = (a.view("u4") | 0x1FFF).view("f4")  # which they ignore
    words = [np.ascontiguousarray(v).view("u4").reshape(-1, 8) for v in (a, b)]
    kernel(dtype)((1,), (32,), (*words, c))
    np.testing.assert_allclose(c, want, rtol=1e-6, atol=1e-6)


def test_no_number_stays_in_its_row_and_column() -> None:
    a, b, c = np.zeros((16, 8), "f4"), np.ones((8, 8), "f4"), np.zeros((16, 8), "f4")
    a[5, 3], b[2, 6] = np.inf, np.nan
    kernel("float32")((1,), (32,), (a.view("u4"), b.view("u4"), c))
    assert np.isnan(c[:, 2]).all()
    assert np.isinf(np.delete(c[5], 2)).all()
    assert (np.delete(np.delete(c, 5, 0), 2, 1) == 0).all()


def test_a_lane_that_stays_away_is_a_deadlock() -> None:
    c = np.zeros((16, 8), "f4")
    words = np.zeros((16, 8), "u4")
    with pytest.raises(KernelError, match="warp-deadlock") as caught:
        kernel("float32", lanes=31)((1,), (32,), (words, words[:8].copy(), c))
    assert caught.value.kinds == {"warp-deadlock"}


ROUND = r"""
extern "C" __global__ void kernel(const float* x, unsigned* y)
{
    asm("cvt.WAY.tf32.f32 %0, %1;" : "=r"(y[threadIdx.x]) : "f"(x[threadIdx.x]));
}
"""


STEP, TINY = 2.0**-10, 2.0**-136  # the last place of TF32, of 1 and of what is subnormal
#: a number, rounded with ties away from zero, with ties to even
NEAREST = [
    (1 + STEP / 2, 1 + STEP, 1),
    (-1 - STEP / 2, -1 - STEP, -1),
    (1 + 1.5 * STEP, 1 + 2 * STEP, 1 + 2 * STEP),
    (1 + 2.5 * STEP, 1 + 3 * STEP, 1 + 2 * STEP),
    (1 + STEP / 2.001, 1, 1),
    (1 + STEP / 1.999, 1 + STEP, 1 + STEP),
    (2 - STEP / 2, 2, 2),
    (np.inf, np.inf, np.inf),
    (-np.inf, -np.inf, -np.inf),
    (float(np.finfo("f4").max), np.inf, np.inf),
    (-0.0, -0.0, -0.0),
    (3, 3, 3),
    (TINY / 2, TINY, 0),
    (-1.5 * TINY, -2 * TINY, -2 * TINY),
    (0.6 * TINY, TINY, TINY),
    (0.4 * TINY, 0, 0),
]


@pytest.mark.parametrize("way", ["rna", "rn"])
def test_rounding_to_tf32(way: str) -> None:
    """To the nearest of 10 bits."""
    x, away, even = np.array(NEAREST, "f4").T.copy()
    y = np.zeros(len(x), "u4")
    kernel = HostModule(ROUND.replace("WAY", way), name="round.cu")["kernel"]
    kernel((1,), (len(x),), (x, y))
    np.testing.assert_array_equal(y, (away if way == "rna" else even).view("u4"))
    kernel((1,), (2,), (np.array([0x7F800001, 0xFFFFFFFF], "u4").view("f4"), y))
    np.testing.assert_array_equal(y[:2], 0x7FFFFFFF)


ROWS = r"""
extern "C" __global__ void kernel(const unsigned* x, unsigned* y)
{
    extern __shared__ __align__(128) unsigned rows[];
    const int lane = threadIdx.x;
    for (int i = 0; i < 4; ++i) rows[4 * lane + i] = x[4 * lane + i];
    __syncthreads();
    unsigned w[4];
    const unsigned row = __cvta_generic_to_shared(rows + 4 * (lane ^ 1) + SKEW);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4WAY.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3]) : "r"(row));
    for (int i = 0; i < 4; ++i) y[4 * lane + i] = w[i];
}
"""


@pytest.mark.parametrize("way", ["", ".trans"])
def test_matrices_for_a_warp(way: str) -> None:
    """Row r of a matrix is where lane r says, here that of its neighbour."""
    x = np.random.default_rng(0).integers(0, 2**16, (4, 8, 8)).astype("u2")
    y = np.zeros((32, 4), "u4")
    code = ROWS.replace("WAY", way).replace("SKEW", "0")
    HostModule(code, name="rows.cu")["kernel"]((1,), (32,), (x.view("u4").ravel(), y), 512)
    rows = x[:, np.arange(8) ^ 1]
    got = y.view("u2").reshape(8, 4, 4, 2).transpose(2, 0, 1, 3).reshape(4, 8, 8)
    np.testing.assert_array_equal(got, rows.transpose(0, 2, 1) if way else rows)


def test_rows_of_matrices_are_aligned() -> None:
    x, y = np.zeros(128, "u4"), np.zeros((32, 4), "u4")
    code = ROWS.replace("WAY", "").replace("SKEW", "(lane == 0)")
    with pytest.raises(KernelError, match="misaligned-access"):
        HostModule(code, name="rows.cu")["kernel"]((1,), (32,), (x, y), 512)


#: each thread copies its number in two groups, and reads its neighbour's
COPIES = r"""
extern "C" __global__ void kernel(const uint4* x, uint4* y)
{
    extern __shared__ __align__(128) uint4 shared[];
    const int thread = threadIdx.x;
    for (int k = 0; k < 2; ++k) {
        const unsigned to = __cvta_generic_to_shared(shared + k * 64 + thread);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                     ::"r"(to), "l"(x + k * 64 + thread), "r"(GIVEN) : "memory");
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    WAIT
    BARRIER
    y[thread] = shared[64 * READ + (thread ^ 32)];
    BEHIND
}
"""
GROUP, ALL = (f'asm volatile("cp.async.wait_group {n};" ::: "memory");' for n in (1, 0))
AGAIN = """
    const unsigned again = __cvta_generic_to_shared(shared + thread);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 ::"r"(again), "l"(x + thread), "r"(16));
"""


def copies(
    wait: str,
    barrier: str = "__syncthreads();",
    read: int = 0,
    given: str = "16",
    behind: str = "",
    rows: int = 128,
) -> tuple[np.ndarray, np.ndarray]:
    x = np.arange(512, dtype="u4").reshape(2, 64, 4)
    y = np.zeros((64, 4), "u4")
    code = COPIES.replace("WAIT", wait).replace("BARRIER", barrier).replace("READ", str(read))
    code = code.replace("GIVEN", given).replace("BEHIND", behind)
    HostModule(code, name="copies.cu")["kernel"]((1,), (64,), (x.reshape(-1, 4)[:rows], y), 2048)
    return x[read][np.arange(64) ^ 32], y


def test_copies_are_there_when_waited_for() -> None:
    for wait, read in ((GROUP, 0), (ALL, 1)):
        want, y = copies(wait, read=read)
        np.testing.assert_array_equal(y, want)
    want, y = copies(ALL, given="thread % 3 ? 0 : 8")
    threads = (np.arange(64) ^ 32) % 3
    np.testing.assert_array_equal(y[threads == 0, :2], want[threads == 0, :2])
    assert not y[threads > 0].any()
    assert not y[:, 2:].any()


@pytest.mark.parametrize(
    ("kinds", "case"),
    [
        ("copy-under-way", {"wait": ""}),
        ("copy-under-way", {"wait": GROUP, "read": 1}),  # one group too many may be under way
        ("race-in-block", {"wait": ALL, "barrier": ""}),
        ("race-in-block", {"wait": ALL, "behind": AGAIN}),  # while others read
        ("out-of-bounds", {"wait": ALL, "rows": 100}),
        ("misaligned-access", {"wait": ALL, "given": "17"}),
    ],
)
def test_what_is_wrong_with_copies(kinds: str, case: dict[str, Any]) -> None:
    with pytest.raises(KernelError) as caught:
        copies(**case)
    assert kinds in caught.value.kinds


@pytest.mark.parametrize(
    ("ptx", "message"),
    [
        ("mul.wide.u17 %0, %1;", "emu_ptx_mul_wide_u17"),
        ("{ .reg .b32 t; cvt.rna.tf32.f32 %0, %1; }", "not understood"),
    ],
)
def test_other_ptx_is_refused(ptx: str, message: str) -> None:
    code = ROUND.replace("cvt.WAY.tf32.f32 %0, %1;", ptx)
    with pytest.raises(CompileError, match=message):
        HostModule(code, name="round.cu")
