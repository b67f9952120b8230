"""Every test of an operation runs with each implementation on each backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from gpulayers.ops import use_engine
from tests.conftest import Backend, switched_to
from tests.support.compare import assert_same_bits


class Engine:
    """The implementation under test: makes arrays on its backend, calls operations, and checks
    that they left their arguments alone."""

    def __init__(self, name: str, backend: Any) -> None:
        self.name = name
        self.backend = backend
        self.xp = backend.xp
        self.on_host = backend.name == "numpy"

    def array(self, values: Any, dtype: Any = None) -> Any:
        return self.backend.asarray(np.array(values, dtype=dtype))

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        before = [(a, a.copy()) for a in args if isinstance(a, self.xp.ndarray)]
        result = function(*args, **kwargs)
        for array, copy in before:
            assert_same_bits(array, copy)
        return result


@pytest.fixture(params=["auto", "reference"])
def engine(request: pytest.FixtureRequest, backend: Any) -> Iterator[Engine]:
    # "auto" alone would choose the compiled kernels for pure NumPy's turn, too
    with use_engine(backend.engine if request.param == "auto" else request.param):
        yield Engine(request.param, backend)


@pytest.fixture(params=["float64", "float32", "float16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


def eighths(shape: tuple[int, ...], seed: int, spread: int = 16) -> np.ndarray:
    """Multiples of 1/8 in [-spread/8, spread/8]: exact in every floating dtype, many ties."""
    numbers = np.random.default_rng(seed).integers(-spread, spread, shape, endpoint=True)
    return np.asarray(numbers / 8.0)


@pytest.fixture(params=["numpy", pytest.param("compiled", marks=pytest.mark.compiled)])
def fast(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each fast implementation on the CPU: for operations on whole sequences."""
    with switched_to(request.param) as chosen:
        yield chosen
