"""What RNN, LSTM and GRU take beyond numpy-ml: settings, and what does not fit."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpulayers.errors import BackendError, DTypeError, ParameterError, ShapeError
from tests.conftest import Backend
from tests.layers import harness
from tests.layers.sequences import DA, MASK, N_OUT, N_T, N, X, as_tuple, kinds, make, states_of
from tests.support.compare import assert_same_bits, host


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with harness.default_dtype("float64"):
        yield


@kinds
def test_the_settings_round_trip(kind: Any) -> None:
    layer = kind(3, return_sequences=False, truncate=np.int64(7))
    assert layer.hyperparameters["return_sequences"] is False
    assert layer.hyperparameters["truncate"] == 7
    other = kind(2).set_params(layer.summary())
    assert (other.return_sequences, other.truncate, other.cell.n_out) == (False, 7, 3)
    assert "return_sequences" not in layer.cell.hyperparameters
    numpy_ml = {k: v for k, v in layer.hyperparameters.items() if k != "return_sequences"}
    assert kind(2).set_params({"hyperparameters": numpy_ml}).return_sequences is True


@kinds
@pytest.mark.parametrize(
    "settings, message",
    [
        ({"return_sequences": 1}, "return_sequences must be one of True, False, got 1"),
        ({"return_sequences": "no"}, "return_sequences must be one of True, False, got 'no'"),
        ({"truncate": 0}, "truncate must be an integer >= 1, got 0"),
        ({"truncate": 2.5}, "truncate must be an integer >= 1, got 2.5"),
    ],
)
def test_bad_settings(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=rf"{kind.__name__}: {message}"):
        kind(3, **settings)


@kinds
def test_states_and_masks_that_do_not_fit(kind: Any, backend: Backend) -> None:
    layer, x, state = make(kind, backend), backend.asarray(X), states_of(kind, backend, 90)
    name, count = kind.__name__, len(as_tuple(state))
    one = as_tuple(state)[0]

    def states(first: Any) -> Any:
        return (first, one) if count == 2 else first

    shape = rf"initial_state must have shape \({N}, {N_OUT}\), got \(1, {N_OUT}\)"
    with pytest.raises(ShapeError, match=rf"{name}: {shape}"):
        layer.forward(x, initial_state=states(one[:1]))
    with pytest.raises(ShapeError, match=rf"{name}: initial_state must be {count} array\(s\) \(A"):
        layer.forward(x, initial_state=(one,) * 3)
    with pytest.raises(DTypeError, match=rf"{name}: initial_state must have a floating dtype"):
        layer.forward(x, initial_state=states(one.astype("int32")))
    with pytest.raises(DTypeError, match=rf"{name}: initial_state: expected a"):
        layer.forward(x, initial_state=states("zeros"))
    with pytest.raises(ShapeError, match=rf"mask must have shape .* = \({N}, {N_T}\), got \({N},"):
        layer.forward(x, mask=backend.asarray(MASK[:, :-1]))
    with pytest.raises(DTypeError, match=rf"{name}: the mask: expected a"):
        layer.forward(x, mask=MASK.tolist())
    layer.flush_gradients()
    A = layer.forward(x)
    with pytest.raises(ShapeError, match=rf"{name}: final_state_grad must have shape"):
        layer.backward(A, final_state_grad=states(one[:1]))
    layer.forward(x)
    with pytest.raises(ShapeError, match="final_state_grad needs a single retained input, 2 are"):
        layer.backward([A, A], final_state_grad=state)
    harness.assert_no_grads(layer)
    layer.flush_gradients()
    assert_same_bits(layer.forward(x), A)  # no argument of a refused call is left behind


@kinds
def test_states_and_masks_of_the_other_library(kind: Any, emulated: Backend) -> None:
    layer, x = make(kind, emulated), emulated.asarray(X)
    state = states_of(kind, emulated, 90)
    on_host = tuple(host(s) for s in as_tuple(state))
    with pytest.raises(BackendError, match="initial_state must be a cupy array, as the input"):
        layer.forward(x, initial_state=on_host if len(on_host) == 2 else on_host[0])
    with pytest.raises(BackendError, match="the mask is a numpy array, the input a cupy one"):
        layer.forward(x, mask=MASK)


@kinds
def test_arguments_are_let_go(kind: Any, numpy_backend: Backend) -> None:
    """The layer holds no array of a call longer than the call."""
    layer = make(kind, numpy_backend)
    mask, state = MASK.copy(), states_of(kind, numpy_backend, 90)
    grad = states_of(kind, numpy_backend, 95)
    held = [weakref.ref(a) for a in (mask, *as_tuple(state), *as_tuple(grad))]
    layer.forward(X, mask=mask, initial_state=state)
    layer.backward(DA, final_state_grad=grad)
    del mask, state, grad
    gc.collect()
    assert [ref() for ref in held] == [None] * len(held)


@kinds
def test_a_refused_first_call_is_forgotten(kind: Any) -> None:
    layer = kind(2)
    with pytest.raises(ShapeError, match="the mask must have shape"):
        layer.forward(X, mask=MASK.T)
    assert not layer.is_initialized
    assert layer.gradients == {}
    layer.forward(np.ones((1, 9, 2)))
    assert layer.n_in == 9


@kinds
def test_what_is_assigned_reaches_the_cell(numpy_backend: Backend, kind: Any) -> None:
    """The cell, step by step, is the layer over the sequence, whatever is assigned later."""
    one = kind(3)
    X = np.linspace(-1, 1, 2 * 4 * 5).reshape(2, 4, 5)
    one.forward(X, retain_derived=False)
    one.act_fn = "ReLU"
    if hasattr(one, "gate_fn"):
        one.gate_fn = "Tanh"
        assert one.cell.gate_fn is one.gate_fn
    one.optimizer = "Adam"
    assert one.cell.act_fn is one.act_fn and one.cell.optimizer is one.optimizer
    Y = one.forward(X, retain_derived=False)
    for t in range(X.shape[2]):
        A = one.cell.forward(X[:, :, t])
        A = A[0] if isinstance(A, tuple) else A
        np.testing.assert_allclose(A, Y[:, :, t], rtol=1e-5, atol=1e-6)
    with pytest.raises(ParameterError, match=f"{one._name}: act_fn"):
        one.act_fn = "Reluu"
    assert one.cell.act_fn is one.act_fn and str(one.act_fn) == "ReLU"
