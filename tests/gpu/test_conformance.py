"""Does the stand-in tell the truth about CuPy? One table of claims, three runs.

On the stand-in (always), on the real CuPy over host memory where CuPy is installed but no GPU is
(the claims that touch no device memory), and on the real CuPy on a GPU (all of them).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.conftest import no_gpu_reason
from tests.gpu import claims_device, claims_host
from tests.gpu.claims import CLAIMS, Claim, Raises
from tests.support import fake_cupy

assert claims_host.claim is claims_device.claim  # importing both files fills CLAIMS
ALL = list(CLAIMS.values())
HOST_ONLY = [c for c in ALL if c.host_only]


def check(claim: Claim, cp: Any, put: Any) -> None:
    if isinstance(claim.expected, Raises):
        with pytest.raises(claim.expected.kind) as caught:
            claim.function(cp, put)
        assert claim.expected.words in str(caught.value)
        return
    result = claim.function(cp, put)
    assert not isinstance(result, cp.ndarray), "a claim returns host values"
    np.testing.assert_equal(result, claim.expected)


@pytest.mark.emulated
@pytest.mark.parametrize("claim", ALL, ids=lambda c: c.name)
def test_on_the_stand_in(claim: Claim) -> None:
    with fake_cupy.installed() as cp:
        check(claim, cp, cp.asarray)


@pytest.fixture(scope="module")
def real_cupy() -> Any:
    """The installed CuPy, on a machine where no test put it on a GPU before."""
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("CuPy is not installed")
    import cupy

    return cupy


def _over_host_memory(cp: Any, array: np.ndarray) -> Any:
    """A real cupy.ndarray whose memory is host memory: good for everything but computing."""
    array = np.ascontiguousarray(array)
    block = cp.cuda.UnownedMemory(array.ctypes.data, array.nbytes, array, device_id=0)
    return cp.ndarray(array.shape, array.dtype, cp.cuda.MemoryPointer(block, 0))


@pytest.mark.skipif(no_gpu_reason() is None, reason="there is a GPU: the run below covers it")
@pytest.mark.parametrize("claim", HOST_ONLY, ids=lambda c: c.name)
def test_on_cupy_without_a_gpu(claim: Claim, real_cupy: Any) -> None:
    check(claim, real_cupy, lambda array: _over_host_memory(real_cupy, array))


@pytest.fixture
def clean_stream() -> Iterator[None]:
    """Leave no stream in capture behind, whatever a claim did."""
    yield
    import cupy

    stream = cupy.cuda.get_current_stream()
    if stream.is_capturing():
        stream.end_capture()


@pytest.mark.gpu
@pytest.mark.parametrize("claim", ALL, ids=lambda c: c.name)
def test_on_cupy(claim: Claim, real_cupy: Any, clean_stream: None) -> None:
    check(claim, real_cupy, real_cupy.asarray)
