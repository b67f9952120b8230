"""tests.support.cuda_on_cpu: products of a warpgroup (wgmma), and what may be wrong with them.

Shared memory is laid out here, from the drawings of the PTX ISA ("128B swizzle": 16 bytes number r
of each 128 bytes number k lie at r ^ k % 8).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.kernels.arrays import load, store
from tests.support.cuda_on_cpu import HostModule, KernelError

pytestmark = pytest.mark.emulated

COLUMNS, SUMS = 64, 32
REGISTERS = ", ".join(f"%{i}" for i in range(SUMS))
OPERANDS = ", ".join(f'"+f"(s[{i}])' for i in range(SUMS))
#: 8 KB of each factor; of a, the 16 terms from number 16 * STEP on
PRODUCT = r"""
__device__ unsigned long long descriptor(const void* place, unsigned start)
{
    const unsigned long long address = __cvta_generic_to_shared(place) + start;
    return 1ull << 62 | 64ull << 32 | 512ull << 16 | (address & 0x3ffff) >> 4;
}
extern "C" __global__ void product(const uint4* factors, float* c, int a_start, int b_start)
{
    extern __shared__ __align__(1024) uint4 memory[];
    for (int i = threadIdx.x; i < 1024; i += 128) memory[i] = factors[i];
    SHOW;
    __syncthreads();
    float s[32];
    for (int i = 0; i < 32; ++i) s[i] = i;
    FENCE;
    for (int i = 0; i < 2; ++i)
        asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.TYPE.TYPE "
                     "{REGISTERS}, %32, %33, 1, 1, 1, %34, %35;"
                     : OPERANDS
                     : "l"(descriptor(memory, a_start)), "l"(descriptor(memory + 512, b_start)),
                       "n"(A_LINES), "n"(B_LINES));
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    CHANGE;
    WAIT;
    for (int i = 0; i < 32; ++i) c[threadIdx.x * 32 + i] = s[i];
}
"""
USUAL = {
    "SHOW": 'asm volatile("fence.proxy.async.shared::cta;" ::: "memory")',
    "FENCE": 'asm volatile("wgmma.fence.sync.aligned;" ::: "memory")',
    "WAIT": 'asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory")',
    "CHANGE": "",
    "TYPE": "bf16",
    "A_LINES": "0",
    "B_LINES": "0",
}


def laid_out(lines: np.ndarray, by_lines: bool) -> np.ndarray:
    """(64 lines, 64 terms) of 16 bits in 8 KB."""
    rows = (lines.T if by_lines else lines).reshape(64, 8, 8)  # 128 bytes, 16 bytes, numbers
    swizzled = np.empty_like(rows)
    for k in range(64):
        for r in range(8):
            swizzled[k, r ^ k % 8] = rows[k, r]
    return swizzled


def run(step: int = 0, **changed: str) -> tuple[np.ndarray, np.ndarray]:
    """The product (64, 64) plus what the sums were before, twice; and what it should be."""
    words = {**USUAL, **changed}
    code = PRODUCT.replace("{REGISTERS}", f"{{{REGISTERS}}}").replace("OPERANDS", OPERANDS)
    for name, text in words.items():
        code = code.replace(name, text)
    dtype = {"bf16": "bfloat16", "f16": "float16"}[words["TYPE"]]
    rng = np.random.default_rng(0)
    a, b = (store(rng.standard_normal((64, 64)), dtype) for _ in range(2))
    apart = [words[name] == "1" for name in ("A_LINES", "B_LINES")]
    image = np.stack([laid_out(x, lines) for x, lines in zip((a, b), apart, strict=True)])
    starts = [np.int32(step * (2048 if lines else 32)) for lines in apart]
    c = np.full((128, SUMS), np.nan, "f4")
    kernel: Any = HostModule(code, name="wgmma.cu")["product"]
    kernel.max_dynamic_shared_size_bytes = 1 << 14
    image = np.ascontiguousarray(image).view("u4")
    kernel((1,), (128,), (image, c, *starts), shared_mem=1 << 14)
    terms = slice(16 * step, 16 * step + 16)
    x, y = (load(f, dtype)[:, terms] for f in (a, b))
    want = 2 * x @ y.T
    thread, number = np.arange(128)[:, None], np.arange(SUMS)
    row = thread // 32 * 16 + thread % 32 // 4 + 8 * (number // 2 % 2)
    column = number // 4 * 8 + thread % 4 * 2 + number % 2
    return c, want[row, column] + number


@pytest.mark.parametrize("kind", ["bf16", "f16"])
@pytest.mark.parametrize("a_lines", ["0", "1"])
@pytest.mark.parametrize("b_lines", ["0", "1"])
@pytest.mark.parametrize("step", [0, 3])
def test_product_of_a_warpgroup(kind: str, a_lines: str, b_lines: str, step: int) -> None:
    got, want = run(step, TYPE=kind, A_LINES=a_lines, B_LINES=b_lines)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_sums_are_not_there_before_they_are_waited_for() -> None:
    got, _ = run(WAIT="")
    assert np.isnan(got).all()
    got, _ = run(WAIT='asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory")')
    assert np.isnan(got).all()


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("hidden-from-products", {"SHOW": ""}),
        ("no-product-fence", {"FENCE": ""}),
        ("product-source-changed", {"CHANGE": "memory[threadIdx.x] = factors[0]"}),
        ("product-descriptor", {"1ull << 62": "2ull << 62"}),
        ("product-descriptor", {"64ull << 32": "63ull << 32"}),
        ("product-descriptor", {"+ start": "+ start + 256"}),
        ("out-of-bounds-shared", {"64ull << 32": "1024ull << 32"}),
    ],
)
def test_what_is_wrong_with_products(kind: str, changed: dict[str, str]) -> None:
    with pytest.raises(KernelError) as caught:
        run(**changed)
    assert kind in caught.value.kinds
