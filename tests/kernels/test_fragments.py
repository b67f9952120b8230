"""fragments.cuh: TF32 is rounded to the nearest; half way, as the architecture does it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.mutations import read

KERNEL = """
extern "C" __global__ void kernel(const unsigned* x, unsigned* y)
{
    y[threadIdx.x] = to_tf32(x[threadIdx.x]);
}
"""
STEP = 2.0**-10
X = np.array([1 + STEP / 2, -1 - STEP / 2, 1 + 1.5 * STEP, 1 + STEP / 1.99, np.inf], "f4")
EVEN = np.array([1, -1, 1 + 2 * STEP, 1 + STEP, np.inf], "f4")
AWAY = np.array([1 + STEP, -1 - STEP, 1 + 2 * STEP, 1 + STEP, np.inf], "f4")


def source() -> str:
    return read("fragments.cuh") + KERNEL


@pytest.mark.emulated
def test_on_the_cpu_as_on_the_newest() -> None:
    from tests.support.cuda_on_cpu import HostModule

    y = np.zeros(len(X), "u4")
    HostModule(source(), name="fragments.cu")["kernel"]((1,), (len(X),), (X.view("u4"), y))
    np.testing.assert_array_equal(y.view("f4"), EVEN)


@pytest.mark.parametrize(
    ("architecture", "want"), [("compute_80", AWAY), ("compute_90", EVEN), ("compute_120", EVEN)]
)
def test_of_an_architecture(compiler: None, architecture: str, want: np.ndarray) -> None:
    from tests.support import ptx

    text, _ = ptx.compile_ptx(source(), (), (), "fragments.cu", architecture)
    y = np.zeros(len(X), "u4")
    ptx.load(text, "kernel")((1,), (len(X),), (X.view("u4"), y), 0, False)
    np.testing.assert_array_equal(y.view("f4"), want)
