"""FullyConnected._bwd2: the second derivative against central differences and PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers import random
from gpulayers.errors import BackendError, DTypeError, ShapeError
from gpulayers.layers import FullyConnected
from tests.conftest import Backend

SMOOTH = ("Tanh", "Sigmoid", "SoftPlus", "GELU", "Exponential", "Identity", "ReLU")


def made(
    act_fn: str, backend: Backend, n: int = 3
) -> tuple[FullyConnected, dict[str, np.ndarray], np.ndarray]:
    """A layer in float64, the arrays the second gradient depends on, and its U."""
    rng = np.random.default_rng(1)
    layer = FullyConnected(2, act_fn=act_fn)
    arrays = {
        "X": rng.normal(size=(n, 4)),
        "dY": rng.normal(size=(n, 2)),
        "W": rng.normal(size=(4, 2)),
        "b": rng.normal(size=(1, 2)),
    }
    layer.set_params(
        {
            "parameters": {k: backend.asarray(arrays[k]) for k in "Wb"},
            "hyperparameters": {"n_in": 4},
        }
    )
    return layer, arrays, rng.normal(size=(n, 4))


def of_backward(
    layer: FullyConnected, arrays: dict[str, np.ndarray], U: np.ndarray, backend: Backend
) -> float:
    """sum(U * backward(dY)), a loss that looks at the gradient of the input."""
    for name in "Wb":
        layer.parameters[name][...] = backend.asarray(arrays[name])
    layer.forward(backend.asarray(arrays["X"]))
    dX = layer.backward(backend.asarray(arrays["dY"]), retain_grads=False)
    layer.flush_gradients()
    return float((backend.asnumpy(dX) * U).sum())


@pytest.mark.parametrize("act_fn", SMOOTH)
def test_against_differences(act_fn: str, backend: Backend) -> None:
    """numpy-ml's dW lacks the term with the second derivative (D30): for tanh it is off by 2.3."""
    layer, arrays, U = made(act_fn, backend)
    given = [backend.asarray(a) for a in (U, arrays["X"], arrays["dY"])]
    got = layer._bwd2(*given, input_grad=True)
    assert len(layer._bwd2(*given)) == 3
    for gradient, name in zip(got, ("dY", "W", "b", "X"), strict=True):
        want = np.empty_like(arrays[name])
        for i in np.ndindex(want.shape):
            value = []
            for h in (1e-6, -1e-6):
                moved = {k: v.copy() for k, v in arrays.items()}
                moved[name][i] += h
                value.append(of_backward(layer, moved, U, backend))
            want[i] = (value[0] - value[1]) / 2e-6
        np.testing.assert_allclose(backend.asnumpy(gradient), want, rtol=2e-6, atol=1e-7)
    for array in layer.gradients.values():
        assert not backend.asnumpy(array).any()


@pytest.mark.parametrize("act_fn", ["Tanh", "SoftPlus"])
def test_against_torch(act_fn: str, numpy_backend: Backend) -> None:
    torch = pytest.importorskip("torch")
    layer, arrays, U = made(act_fn, numpy_backend)
    tensors = {k: torch.tensor(v, requires_grad=True) for k, v in arrays.items()}
    Y = getattr(torch.nn, act_fn.replace("SoftPlus", "Softplus"))()(
        tensors["X"] @ tensors["W"] + tensors["b"]
    )
    (dX,) = torch.autograd.grad(Y, tensors["X"], tensors["dY"], create_graph=True)
    wanted = torch.autograd.grad(
        (dX * torch.tensor(U)).sum(), [tensors[k] for k in ["dY", "W", "b", "X"]]
    )
    got = layer._bwd2(U, arrays["X"], arrays["dY"], input_grad=True)
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-11, atol=1e-13)


def test_penalty_through_a_chain(backend: Backend) -> None:
    """Gradients of sum(U * dX) with respect to each W of two layers, put together as documented."""
    random.seed(0)
    rng = np.random.default_rng(2)
    X, U = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    weights = [rng.normal(size=(4, 5)), rng.normal(size=(5, 2))]
    chain = [FullyConnected(5, act_fn="Tanh"), FullyConnected(2, act_fn="Sigmoid")]
    ones = backend.asarray(np.ones((3, 2)))

    def load(values: list[np.ndarray]) -> None:
        for layer, W in zip(chain, values, strict=True):
            W, b = backend.asarray(W), backend.asarray(np.zeros((1, W.shape[1])))
            layer.set_params({"parameters": {"W": W, "b": b}, "hyperparameters": {}})

    def run(values: list[np.ndarray]) -> float:
        load(values)
        Y = chain[1].forward(chain[0].forward(backend.asarray(X)))
        dX = chain[0].backward(chain[1].backward(ones, retain_grads=False), retain_grads=False)
        for layer in chain:
            layer.flush_gradients()
        assert Y.shape == (3, 2)
        return float((backend.asnumpy(dX) * U).sum())

    load(weights)
    x = backend.asarray(X)
    hidden = chain[0].forward(x)
    chain[1].forward(hidden)
    dHidden = chain[1].backward(ones, retain_grads=False)
    u1, dW1, _ = chain[0]._bwd2(backend.asarray(U), x, dHidden)
    _, dW2, _, back = chain[1]._bwd2(u1, hidden, ones, input_grad=True)
    chain[0].backward(back)
    got = [dW1 + chain[0].gradients["W"], dW2]
    chain[0].flush_gradients()
    chain[1].flush_gradients()
    for i, gradient in enumerate(got):
        want = np.empty_like(weights[i])
        for j in np.ndindex(want.shape):
            sides = []
            for h in (1e-6, -1e-6):
                moved = [w.copy() for w in weights]
                moved[i][j] += h
                sides.append(run(moved))
            want[j] = (sides[0] - sides[1]) / 2e-6
        np.testing.assert_allclose(backend.asnumpy(gradient), want, rtol=2e-6, atol=1e-7)


def test_bad_calls(backend: Backend) -> None:
    layer, arrays, U = made("Tanh", backend)
    u, X, dY = (backend.asarray(a) for a in (U, arrays["X"], arrays["dY"]))
    with pytest.raises(ShapeError, match=r"dLdy must be \(3, 4\), got \(2, 4\)"):
        layer._bwd2(u[:2], X, dY)
    with pytest.raises(ShapeError, match=r"dLdy_bwd must be \(3, 2\), got \(3, 1\)"):
        layer._bwd2(u, X, dY[:, :1])
    with pytest.raises(DTypeError, match="dLdy must have a floating dtype"):
        layer._bwd2(u.astype(np.int64), X, dY)
    assert layer._bwd2(u.astype(np.float32), X, dY)[1].dtype == np.float64
    if backend.name != "numpy":
        with pytest.raises(BackendError, match="dLdy is a numpy array"):
            layer._bwd2(U, X, dY)
