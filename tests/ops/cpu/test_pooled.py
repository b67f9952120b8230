"""Convolution, ReLU and pooling in one pass against the reference's operations one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers.ops import Window
from gpulayers.ops.cpu import Cpu, _pooled
from gpulayers.ops.reference import Reference
from tests.ops.cpu.conftest import normal

REFERENCE = Reference()
POOL = Window((2, 2), (2, 2))

# x_shape, then kernel, out_ch and pad of each layer: odd and even sizes of everything, pixels that
# no window sees, padding on one side, images smaller than the kernel
CHAINS: list[tuple[Any, list[tuple[tuple[int, int], int, tuple[int, int, int, int]]]]] = [
    ((6, 28, 28, 1), [((5, 5), 6, (2, 2, 2, 2)), ((5, 5), 16, (0, 0, 0, 0))]),
    ((5, 11, 8, 3), [((3, 3), 4, (1, 1, 1, 1)), ((3, 2), 5, (1, 0, 0, 1)), ((1, 1), 2, (0,) * 4)]),
    ((1, 7, 9, 2), [((2, 4), 3, (0, 1, 3, 0))]),
    ((3, 6, 5, 1), [((4, 3), 1, (0, 0, 0, 0))]),
    ((4, 2, 2, 5), [((3, 3), 7, (3, 4, 1, 2))]),
    ((9, 5, 4, 1), [((1, 3), 2, (5, 0, 0, 6))]),
]


def layers_of(chain: Any, seed: int, dtype: str) -> tuple[list[Any], list[Any]]:
    ch, layers, weights = chain[0][3], [], []
    for i, (kernel, out_ch, pad) in enumerate(chain[1]):
        W = normal((*kernel, ch, out_ch), seed + i, dtype)
        layers.append((W.shape, Window(kernel, pad=pad)))
        weights.append((W, normal((out_ch,), seed + 9 + i, dtype)))
        ch = out_ch
    return layers, weights


def gold_forward(X: np.ndarray, layers: Any, weights: Any) -> tuple[np.ndarray, list[Any]]:
    saved = []
    for (_, window), (W, b) in zip(layers, weights, strict=True):
        Y = REFERENCE.conv2d_relu_forward(X, W, b, window)
        P, argmax = REFERENCE.max_pool2d_forward(Y, POOL)
        saved.append((X, argmax, P, Y.shape))
        X = P
    return X, saved


def gold_backward(dY: np.ndarray, layers: Any, weights: Any, saved: Any) -> tuple[Any, Any]:
    gradients = []
    for (_, window), (W, _), (X, argmax, P, shape) in zip(
        layers[::-1], weights[::-1], saved[::-1], strict=True
    ):
        dZ = REFERENCE.max_pool2d_relu_backward(dY, argmax, P, shape, POOL)
        gradients.append((REFERENCE.conv2d_weight_grad(X, dZ, window), REFERENCE.bias_grad(dZ)))
        dY = REFERENCE.conv2d_input_grad(dZ, W, X.shape, window)
    return gradients[::-1], dY


def assert_near(actual: np.ndarray, gold: np.ndarray, bound: float) -> None:
    assert actual.shape == gold.shape
    assert np.abs(actual - gold).max(initial=0) <= bound * max(1.0, np.abs(gold).max(initial=0))


@pytest.mark.parametrize("dtype, bound", [("float32", 3e-6), ("float64", 1e-14)])
@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: str(chain[0]))
@pytest.mark.parametrize("cut", [False, True])
def test_a_chain(
    chain: Any, dtype: str, bound: float, cut: bool, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cut:
        monkeypatch.setattr(_pooled, "_BLOCK", 2)
        monkeypatch.setattr(_pooled, "_FEWEST", 1)
    layers, weights = layers_of(chain, 3, dtype)
    plan = Cpu().pooled_convolutions(layers, chain[0], np.dtype(dtype))
    assert plan is not None
    for seed in range(2):  # the memory of the first batch is the second one's
        X = normal(chain[0], seed, dtype)
        Y, saved = gold_forward(X, layers, weights)
        ours = plan.forward(X, weights)
        assert ours is not None and ours.dtype == dtype
        assert_near(ours, Y, bound)
        dY = normal(Y.shape, seed + 5, dtype)
        gradients, dX = gold_backward(dY, layers, weights, saved)
        if seed == 0:
            first = plan.backward(dY, inputs=False)
            assert first is not None and first[1] is None
            continue
        found = plan.backward(dY, inputs=True)
        assert found is not None and found[1] is not None
        assert_near(found[1], dX, 8 * bound)
        for mine, theirs in zip(found[0], gradients, strict=True):
            for a, b in zip(mine, theirs, strict=True):
                assert_near(a, b, 8 * bound)


def test_ties_go_to_the_first_of_a_window_and_the_kink_has_no_slope() -> None:
    window = Window((1, 1))
    X = np.zeros((1, 4, 4, 1), np.float32)
    X[0, :2, :2, 0] = [[1, 1], [1, 1]]
    X[0, :2, 2:, 0] = [[0, 2], [1, 2]]
    X[0, 2:, :2, 0] = [[1, 2], [2, 2]]
    W, b = np.ones((1, 1, 1, 1), np.float32), np.zeros(1, np.float32)
    plan = _pooled.PooledConvolutions([(W.shape, window)], X.shape, X.dtype)
    Y = plan.forward(X, [(W, b)])
    assert Y is not None and Y[0, :, :, 0].tolist() == [[1, 2], [2, 0]]
    found = plan.backward(np.full(Y.shape, 3, np.float32), inputs=True)
    assert found is not None and found[1] is not None
    assert found[1][0, :, :, 0].tolist() == [[3, 0, 0, 3], [0, 0, 0, 0], [0, 3, 0, 0], [0] * 4]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e38])
@pytest.mark.parametrize("where", ["X", "W", "dY"])
def test_nothing_is_computed_with_what_is_not_finite(bad: float, where: str) -> None:
    chain = CHAINS[0]
    layers, weights = layers_of(chain, 3, "float32")
    X, dY = normal(chain[0], 1), normal((6, 5, 5, 16), 2)
    arrays = {"X": X.copy(), "W": weights[1][0].copy(), "dY": dY.copy()}
    arrays[where].flat[7] = bad
    weights[1] = (arrays["W"], weights[1][1])
    plan = _pooled.PooledConvolutions(layers, chain[0], np.dtype("float32"))
    with np.errstate(all="ignore"):
        Y = plan.forward(arrays["X"], weights)
        if where == "dY":
            assert Y is not None
            assert plan.backward(arrays["dY"], inputs=False) is None
        else:
            assert Y is None


def test_what_is_served() -> None:
    make, f32 = Cpu().pooled_convolutions, np.dtype("float32")
    plain = ((3, 3, 2, 4), Window((3, 3)))
    assert make([plain], (2, 8, 8, 2), f32) is not None
    assert make([plain], (2, 8, 8, 2), np.dtype("float16")) is None
    assert make([plain], (0, 8, 8, 2), f32) is None
    assert make([plain], (2, 8, 3, 2), f32) is None  # nothing is left of an output of one column
    assert make([((3, 3, 2, 4), Window((3, 3), stride=(2, 1)))], (2, 8, 8, 2), f32) is None
    assert make([((3, 3, 2, 4), Window((3, 3), dilation=(1, 2)))], (2, 8, 8, 2), f32) is None
    assert make([((3, 3, 64, 4), Window((3, 3)))], (2, 8, 8, 64), f32) is None


def test_the_same_bits_again_for_a_number_of_threads(count: int) -> None:
    chain = CHAINS[0]
    layers, weights = layers_of(chain, 3, "float32")
    X, dY = normal((40, 28, 28, 1), 1), normal((40, 5, 5, 16), 2)
    found = []
    for _ in range(2):
        plan = _pooled.PooledConvolutions(layers, X.shape, X.dtype)
        Y = plan.forward(X, weights)
        back = plan.backward(dY, inputs=True)
        assert Y is not None and back is not None and back[1] is not None
        found.append([Y, back[1], *(a for pair in back[0] for a in pair)])
    for a, b in zip(*found, strict=True):
        assert a.tobytes() == b.tobytes()
