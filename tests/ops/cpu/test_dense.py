"""The dense layer with memory of its own, against float64 formulas."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers.ops.cpu import Cpu
from gpulayers.ops.workspace import Workspace
from tests.ops.cpu.conftest import normal


@pytest.mark.parametrize("dtype, bound", [("float32", 2e-6), ("float64", 1e-14)])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("n, n_in, n_out", [(1, 1, 1), (7, 5, 3), (64, 40, 12), (33, 257, 65)])
def test_dense(n: int, n_in: int, n_out: int, relu: bool, dtype: str, bound: float) -> None:
    W, b = normal((n_in, n_out), 8, dtype), normal((n_out,), 9, dtype)
    with Workspace():
        layer = Cpu().dense_layer(n, (n_in, n_out), np.dtype(dtype), relu)
        assert layer is not None
        kept = []
        for seed in range(3):
            X, dY = normal((n, n_in), seed, dtype), normal((n, n_out), seed + 4, dtype)
            Y = layer.forward(X, W, b)
            gradients, dX = layer.backward(dY, X, Y, W, params=True, inputs=True)
            assert gradients is not None and dX is not None
            kept.append((X, dY, Y, *gradients, dX.copy()))
        # the plan's user may keep what was put out: the next batch does not write over it
        for X, dY, Y, dW, db, dX in kept:
            x, w, dz = X.astype(float), W.astype(float), dY.astype(float)
            z = x @ w + b
            gold = np.maximum(z, 0) if relu else z
            dz = dz * (Y > 0) if relu else dz
            pairs = [(Y, gold), (dW, x.T @ dz), (db, dz.sum(0)), (dX, dz @ w.T)]
            for ours, theirs in pairs:
                assert ours.dtype == dtype and ours.shape == theirs.shape
                scale = max(1.0, np.abs(theirs).max())
                assert np.abs(ours - theirs).max() <= bound * scale * np.sqrt(n + n_in)
        Y = layer.forward(X, W, b)
        assert layer.backward(dY, X, Y, W, params=False, inputs=False) == (None, None)


def test_what_is_not_a_number_and_what_is_not_served() -> None:
    layer = Cpu().dense_layer(3, (2, 2), np.dtype("float32"), True)
    assert layer is not None
    X = np.array([[np.nan, 0], [1, 2], [-np.inf, 0]], np.float32)
    W, b = np.eye(2, dtype=np.float32), np.zeros(2, np.float32)
    with np.errstate(invalid="ignore"):
        Y = layer.forward(X, W, b)
    assert np.isnan(Y).tolist() == [[True, True], [False, False], [False, True]]
    assert Y[2, 0] == 0
    assert Cpu().dense_layer(0, (2, 2), np.dtype("float32"), True) is None
    assert Cpu().dense_layer(3, (2, 2), np.dtype("float16"), True) is None
