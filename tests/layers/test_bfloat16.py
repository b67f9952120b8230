"""bfloat16 stays bfloat16 on NumPy too, where products of ml_dtypes arrays come out as float32."""

from typing import Any

import numpy as np
import pytest

from gpulayers import backend, layers, ops, random

ml_dtypes = pytest.importorskip("ml_dtypes")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

CASES: list[tuple[Any, tuple[int, ...]]] = [
    (lambda: layers.Conv2D(4, (3, 3), act_fn="Tanh"), (2, 6, 6, 3)),
    (lambda: layers.Conv1D(4, 3), (2, 6, 3)),
    (lambda: layers.Deconv2D(4, (3, 3)), (2, 6, 6, 3)),
    (lambda: layers.Pool2D((2, 2)), (2, 6, 6, 3)),
    (lambda: layers.Pool2D((2, 2), mode="average"), (2, 6, 6, 3)),
    (lambda: layers.BatchNorm2D(), (2, 6, 6, 3)),
    (lambda: layers.GlobalAvgPool2D(), (2, 30, 30, 3)),
    (lambda: layers.Upsample2D(3), (2, 5, 4, 3)),
    (lambda: layers.ZeroPad2D((1, 2)), (2, 5, 4, 3)),
    (lambda: layers.GroupNorm(3), (2, 6, 6, 9)),
    (lambda: layers.LayerNorm1D(), (6, 300)),
    (lambda: layers.LayerNorm2D(), (2, 6, 6, 3)),
    (lambda: layers.BatchNorm1D(), (6, 3)),
    (lambda: layers.FullyConnected(4, act_fn="GELU"), (3, 4)),
    (lambda: layers.Softmax(), (3, 4)),
    (lambda: layers.RNN(4), (3, 4, 5)),
    (lambda: layers.LSTM(4), (3, 4, 5)),
    (lambda: layers.GRU(4), (3, 4, 5)),
    (lambda: layers.GRU(4, act_fn="ELU", gate_fn="Hard Sigmoid"), (3, 4, 5)),
    (lambda: layers.LSTM(4, act_fn="ELU", gate_fn="Hard Sigmoid"), (3, 4, 5)),
    (lambda: layers.Dropout(0.5), (3, 4)),
    (lambda: layers.Flatten(), (3, 4, 5)),
]


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("make, shape", CASES)
def test_bfloat16_is_kept(make: Any, shape: tuple[int, ...], engine: str) -> None:
    X = np.random.default_rng(0).standard_normal(shape)
    before = backend.default_dtype()
    try:
        exact = run(make(), X, "float64")
        with ops.use_engine(engine):
            rounded = run(make(), X.astype(BFLOAT16), "bfloat16")
    finally:
        backend.set_default_dtype(before)
    assert {array.dtype for array in rounded} == {BFLOAT16}
    for low, high in zip(rounded[:2], exact[:2], strict=True):  # the output, the input's gradient
        scale = np.abs(high).max() + 1e-6
        assert np.abs(low.astype(np.float64) - high).max() / scale < 0.06


def run(layer: Any, X: np.ndarray, dtype: str) -> list[np.ndarray]:
    random.seed(3)
    backend.set_default_dtype(dtype)
    Y = layer.forward(X)
    dX = layer.backward(np.random.default_rng(1).standard_normal(Y.shape).astype(Y.dtype))
    gradients = [g.copy() for g in layer.gradients.values()]
    layer.update()
    return [Y, dX, *gradients, *layer.parameters.values()]
