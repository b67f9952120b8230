"""Layers with known parameters, and results that must not be numpy-ml's."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.conftest import Backend
from tests.support.compare import assert_close, host


def known(layer: Any, backend: Backend, shape: tuple[int, ...], **parameters: Any) -> Any:
    """`layer`, sized by an input of `shape`, with these parameters and zeros for the rest."""
    layer.forward(backend.asarray(np.ones(shape)), retain_derived=False)
    layer.flush_gradients()
    for name, array in layer.parameters.items():
        array[...] = backend.asarray(np.broadcast_to(parameters.pop(name, 0.0), array.shape), float)
    assert not parameters, f"no such parameters: {list(parameters)}"
    return layer


def assert_mended(actual: Any, right: Any, numpy_ml: Any) -> None:
    """`actual` is `right` to rounding, and not what numpy-ml returns (None: it raises)."""
    assert_close(actual, np.asarray(right, float))
    if numpy_ml is not None and np.shape(numpy_ml) == actual.shape:
        assert not np.allclose(host(actual), numpy_ml, rtol=1e-4, atol=1e-4)


def slope(function: Any, x: float) -> float:
    """The derivative of a real function written for complex numbers (complex step)."""
    return function(complex(x, 1e-30)).imag / 1e-30


def image(rows: Any) -> np.ndarray:
    """A picture of one example and one channel."""
    return np.asarray(rows, float)[None, :, :, None]
