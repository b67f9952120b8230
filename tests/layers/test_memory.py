"""Too little memory: the error, NumPy's or CuPy's own, names layer and call in a note."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers import layers
from tests.conftest import Backend

HUGE = 1 << 42  # examples


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", ()))


def test_a_forward_pass_that_does_not_fit() -> None:
    layer = layers.FullyConnected(3)
    X = np.broadcast_to(np.float32(1), (HUGE, 4))
    with pytest.raises(MemoryError) as caught:
        layer.forward(X)
    assert f"FullyConnected.forward: of an input of shape ({HUGE}, 4) float32; a smaller" in notes(
        caught.value
    )
    assert not layer.is_initialized, "the sizes are not held on to"
    assert layer.forward(np.ones((2, 5), "f4")).shape == (2, 3)


@pytest.mark.parametrize("kind", ["one", "several"])
def test_a_step_that_does_not_fit(
    backend: Backend, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as the layer goes: what its step raises, whatever the library."""
    layer: Any = layers.Add() if kind == "several" else layers.Conv2D(2, (2, 2))
    X = backend.asarray(np.ones((1, 3, 3, 2)), "float32")
    Y = layer.forward([X, X] if kind == "several" else X)

    def no_memory(*_: Any, **__: Any) -> Any:
        raise MemoryError("Out of memory allocating 5 bytes")

    for name in ("_forward", "_backward"):
        monkeypatch.setattr(layer, name, no_memory)
    shape = "(1, 3, 3, 2) float32"
    with pytest.raises(MemoryError, match="5 bytes") as caught:
        layer.forward([X, X] if kind == "several" else X)
    given = f"{shape}, {shape}" if kind == "several" else shape
    assert f"{type(layer).__name__}.forward: of an input of shape {given};" in notes(caught.value)
    with pytest.raises(MemoryError, match="5 bytes") as caught:
        layer.backward(Y)
    said = notes(caught.value)
    assert f"{type(layer).__name__}.backward: of a gradient of shape {Y.shape} float32;" in said


def test_other_errors_have_no_note() -> None:
    layer = layers.Conv2D(2, (2, 2))
    with pytest.raises(Exception) as caught:
        layer.forward(np.ones((1, 1, 1, 1), "f4"))
    assert not notes(caught.value)
