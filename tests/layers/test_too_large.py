"""Sizes that no array can have: the error names the layer, not only the library's limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers import layers
from gpulayers.errors import ShapeError

X = np.ones((2, 3), np.float32)
IMAGES = np.ones((2, 5, 5, 3), np.float32)
SERIES = np.ones((2, 5, 3), np.float32)
FAR = 10**9


@pytest.mark.parametrize(
    "make, inputs",
    [
        (lambda: layers.Conv2D(4, 3, pad=FAR), IMAGES),
        (lambda: layers.Conv2D(4, 3, stride=10**30), IMAGES),
        (lambda: layers.Conv2D(4, 3, dilation=10**30, pad="same"), IMAGES),
        (lambda: layers.Conv1D(4, 3, stride=10**30), SERIES),
        (lambda: layers.Deconv2D(4, 3, stride=FAR), IMAGES),
        (lambda: layers.Deconv2D(4, 3, stride=10**30), IMAGES),
        (lambda: layers.Pool2D(3, pad=FAR, mode="average"), IMAGES),
        (lambda: layers.Upsample2D(FAR), IMAGES),
        (lambda: layers.ZeroPad2D(FAR), IMAGES),
    ],
)
@pytest.mark.parametrize("backend", ["numpy", "compiled"], indirect=True)
def test_results(make: Any, inputs: Any, backend: Any) -> None:
    layer = make()
    with pytest.raises((ShapeError, MemoryError)) as caught:
        layer.forward(inputs)
    said = "\n".join((str(caught.value), *getattr(caught.value, "__notes__", ())))
    assert f"{layer._name}.forward: " in said
    assert f"an input of shape {inputs.shape} float32" in said


@pytest.mark.parametrize("size", [10**14, 10**18, 10**30, 10**400])
@pytest.mark.parametrize(
    "make, inputs, name",
    [
        (lambda n: layers.FullyConnected(n), X, "W"),
        (lambda n: layers.Conv2D(4, n, pad="same"), IMAGES, "W"),
        (lambda n: layers.LSTM(n), SERIES, "Wf"),
        (lambda n: layers.Embedding(3, n), np.ones((2, 3), int), "W"),
    ],
)
def test_parameters(size: int, make: Any, inputs: Any, name: str, numpy_backend: Any) -> None:
    with pytest.raises((ShapeError, MemoryError)) as caught:
        make(size).forward(inputs)
    notes = getattr(caught.value, "__notes__", ())
    said = "\n".join((str(caught.value), *notes))
    assert f": parameter '{name}' of shape " in said
    assert str(size)[:8] in said
    assert "a smaller batch needs less memory" not in said, "it would not help"


def test_errors_of_another_kind_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layers.FullyConnected(3)

    def overflows(*_: Any, **__: Any) -> Any:
        raise OverflowError("math range error")

    monkeypatch.setattr(layer, "_forward", overflows)
    with pytest.raises(OverflowError, match="math range error"):
        layer.forward(X)
