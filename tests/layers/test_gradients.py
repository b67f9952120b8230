"""Outputs and gradients: against loops, against PyTorch, against central differences."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers import layers
from tests.conftest import Backend
from tests.layers import harness
from tests.layers.cases import CASES, Case, with_cases, with_learning_cases
from tests.support.compare import assert_close, host


@with_cases
def test_against_loops(case: Case, backend: Backend) -> None:
    gold = harness.gold_of(case)
    layer = harness.fresh(case, backend)
    Y = harness.forward(layer, harness.input_of(case, backend))
    assert_close(Y, gold.Y)
    dX = layer.backward(harness.gradient_like(Y, backend))
    assert_close(dX, gold.dX)
    harness.assert_grads(layer, gold.grads)


@with_cases
def test_against_pytorch(case: Case, backend: Backend) -> None:
    torch = pytest.importorskip("torch")
    if case.torch is None:
        pytest.skip("PyTorch has nothing to compare with")
    from tests.layers import torch_reference

    kind, settings = case.torch
    reference = getattr(torch_reference, kind)(**settings)
    layer = harness.fresh(case, backend)
    X = harness.input_of(case, backend)
    Y = harness.forward(layer, X)
    dY = harness.gradient_like(Y, backend)
    dX = layer.backward(dY)

    params = {k: torch.tensor(v) for k, v in harness.parameters_of(case).items()}
    learned = [name for name in params if name in layer.gradients]
    for name in learned:
        params[name].requires_grad_(True)
    X_torch = torch.tensor(host(X), requires_grad=True)
    Y_torch = reference(params, X_torch)
    assert_close(Y, Y_torch.detach().numpy())
    wanted = torch.autograd.grad(
        Y_torch, [X_torch, *(params[n] for n in learned)], torch.tensor(host(dY))
    )
    assert_close(dX, wanted[0].numpy(), factor=10)
    for name, gradient in zip(learned, wanted[1:], strict=True):
        assert_close(layer.gradients[name], gradient.numpy(), factor=10)


# -------------------------------------------------------------------------- central differences


class Loss:
    """sum(Y * dY) as a function of the input and the parameters of one layer."""

    def __init__(self, case: Case, backend: Backend) -> None:
        self.backend = backend
        self.layer = harness.fresh(case, backend)
        self.X = harness.input_of(case, backend)
        Y = harness.forward(self.layer, self.X)
        self.dY = harness.gradient_like(Y, backend)
        dX = self.layer.backward(self.dY)
        self.places = {"X": self.X}
        self.places |= {n: self.layer.parameters[n] for n in self.layer.gradients}
        self.gradients = {"X": host(dX).copy()}
        self.gradients |= {n: host(g).copy() for n, g in self.layer.gradients.items()}
        self.layer.flush_gradients()

    def slope(self, name: str, direction: np.ndarray, h: float = 1e-5) -> float:
        """(L(x + h v) - L(x - h v)) / 2h, with `name` the input or a parameter."""
        place = self.places[name]
        kept = host(place).copy()
        sides = []
        for sign in (1.0, -1.0):
            place[...] = self.backend.asarray(kept + sign * h * direction)
            sides.append(float(np.sum(host(self._evaluate()) * host(self.dY))))
        place[...] = self.backend.asarray(kept)
        return (sides[0] - sides[1]) / (2 * h)

    def _evaluate(self):
        Y = harness.forward(self.layer, self.X)
        self.layer.flush_gradients()
        return Y


@with_cases
def test_a_random_direction(case: Case, backend: Backend) -> None:
    loss = Loss(case, backend)
    for name, gradient in loss.gradients.items():
        direction = np.random.default_rng(5).normal(size=gradient.shape)
        difference = loss.slope(name, direction)
        assert np.sum(gradient * direction) == pytest.approx(difference, rel=1e-6, abs=1e-7), name


SMALL = [case for case in CASES if case.small]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
def test_every_single_number(case: Case, numpy_backend: Backend) -> None:
    loss = Loss(case, numpy_backend)
    for name, gradient in loss.gradients.items():
        for index in np.ndindex(gradient.shape):
            direction = np.zeros(gradient.shape)
            direction[index] = 1.0
            difference = loss.slope(name, direction)
            assert gradient[index] == pytest.approx(difference, rel=1e-6, abs=1e-7), (name, index)


# ------------------------------------------------------------------------------ loops of a layer


NAIVE = [case for case in CASES if case.layer in ("Conv1D", "Conv2D")]


@pytest.mark.parametrize("case", NAIVE, ids=lambda case: case.id)
def test_naive_backward_equals_backward(case: Case, backend: Backend) -> None:
    results = []
    for method in ("backward", "_backward_naive"):
        layer = harness.fresh(case, backend)
        Y = harness.forward(layer, harness.input_of(case, backend, batch=1))
        dX = getattr(layer, method)(harness.gradient_like(Y, backend))
        results.append((dX, layer.gradients))
    (dX, grads), (naive_dX, naive_grads) = results
    assert_close(naive_dX, host(dX))
    for name, gradient in grads.items():
        assert_close(naive_grads[name], host(gradient))


@pytest.mark.parametrize("case", NAIVE, ids=lambda case: case.id)
def test_naive_backward_of_several_inputs(case: Case, numpy_backend: Backend) -> None:
    results = []
    for method in ("backward", "_backward_naive"):
        layer = harness.fresh(case, numpy_backend)
        Xs = [harness.input_of(case, numpy_backend, batch=n) for n in (2, 1)]
        Ys = [layer.forward(X) for X in Xs]
        dXs = getattr(layer, method)([harness.gradient_like(Y, numpy_backend) for Y in Ys])
        assert [dX.shape for dX in dXs] == [X.shape for X in Xs]
        results.append((dXs, layer.gradients))
    (dXs, grads), (naive_dXs, naive_grads) = results
    for dX, naive_dX in zip(dXs, naive_dXs, strict=True):
        assert_close(naive_dX, dX)
    for name, gradient in grads.items():
        assert_close(naive_grads[name], gradient)


@pytest.mark.parametrize("case", NAIVE[:2] + NAIVE[-2:], ids=lambda case: case.id)
def test_naive_backward_obeys_freeze_and_retain_grads(case: Case, numpy_backend: Backend) -> None:
    layer = harness.fresh(case, numpy_backend)
    Y = layer.forward(harness.input_of(case, numpy_backend))
    dY = harness.gradient_like(Y, numpy_backend)
    expected = layer.backward(dY, retain_grads=False)
    assert isinstance(layer, (layers.Conv1D, layers.Conv2D))
    assert_close(layer._backward_naive(dY, retain_grads=False), expected)
    harness.assert_no_grads(layer)
    layer.freeze()
    assert_close(layer._backward_naive(dY), expected)
    harness.assert_no_grads(layer)


@with_learning_cases
def test_a_wrong_gradient_would_be_seen(case: Case, numpy_backend: Backend) -> None:
    """The test's own test: a gradient with its sign turned, or a bias left out, fails."""
    loss = Loss(case, numpy_backend)
    for name, gradient in loss.gradients.items():
        if name in ("Waa", "Wf", "bf") and (case.sequence or case.shape[2] == 1):
            continue  # the first step does not use them
        direction = np.random.default_rng(5).normal(size=gradient.shape)
        difference = loss.slope(name, direction)
        for wrong in (-gradient, 0 * gradient, 1.001 * gradient):
            assert np.sum(wrong * direction) != pytest.approx(difference, rel=1e-6, abs=1e-7)
