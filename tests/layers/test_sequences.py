"""What RNN, LSTM and GRU have beyond numpy-ml: states in and out, masks, truncation."""

from __future__ import annotations

import copy
from collections.abc import Iterator, MutableSequence
from typing import Any

import numpy as np
import pytest

from gpulayers import layers
from gpulayers.errors import ShapeError
from tests.conftest import Backend
from tests.layers import harness
from tests.layers.sequences import (
    DA,
    LENGTHS,
    MASK,
    N_IN,
    N_OUT,
    N_T,
    N,
    X,
    accumulators,
    alone,
    as_tuple,
    kinds,
    make,
    numbers,
    states_of,
)
from tests.support.compare import assert_close, assert_same_bits, host


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with harness.default_dtype("float64"):
        yield


# -------------------------------------------------------------------------------------- states


@kinds
def test_the_last_output_alone(kind: Any, backend: Backend) -> None:
    whole, last = make(kind, backend), make(kind, backend, return_sequences=False)
    A = whole.forward(backend.asarray(X))
    Y = last.forward(backend.asarray(X))
    assert_same_bits(Y, A[:, :, -1])
    only_last = np.zeros(DA.shape)
    only_last[:, :, -1] = DA[:, :, -1]
    assert_close(
        last.backward(backend.asarray(DA[:, :, -1])),
        host(whole.backward(backend.asarray(only_last))),
    )
    harness.assert_grads(last, numbers(whole.gradients))
    with pytest.raises(ShapeError, match=rf"output's shape \({N}, {N_OUT}\)"):
        last.backward(backend.asarray(DA))


@kinds
@pytest.mark.parametrize("cut", [1, 3, 5])
def test_two_halves_are_the_whole(kind: Any, backend: Backend, cut: int) -> None:
    """The state goes over ahead, its gradient goes over back: nothing is lost."""
    whole, first, second = (make(kind, backend) for _ in range(3))
    A, dX = whole.forward(backend.asarray(X)), whole.backward(backend.asarray(DA))
    A1 = first.forward(backend.asarray(X[:, :, :cut].copy()))
    given = first.final_state
    before = [host(s).copy() for s in as_tuple(given)]
    A2 = second.forward(backend.asarray(X[:, :, cut:].copy()), initial_state=given)
    assert_close(np.concatenate([host(A1), host(A2)], axis=2), host(A))
    for one, two in zip(as_tuple(second.final_state), as_tuple(whole.final_state), strict=True):
        assert_close(one, host(two))
    assert_close(as_tuple(whole.final_state)[0], host(A)[:, :, -1])

    dX2 = second.backward(backend.asarray(DA[:, :, cut:].copy()))
    dX1 = first.backward(
        backend.asarray(DA[:, :, :cut].copy()), final_state_grad=accumulators(second)
    )
    assert_close(np.concatenate([host(dX1), host(dX2)], axis=2), host(dX))
    total = {n: host(g) + host(second.gradients[n]) for n, g in first.gradients.items()}
    harness.assert_grads(whole, total)
    for one, two in zip(as_tuple(accumulators(first)), as_tuple(accumulators(whole)), strict=True):
        assert_close(one, host(two))
    for state, copied in zip(as_tuple(given), before, strict=True):
        assert_same_bits(state, copied)


@kinds
@pytest.mark.parametrize("last", [True, False])
def test_states_against_pytorch(kind: Any, numpy_backend: Backend, last: bool) -> None:
    torch = pytest.importorskip("torch")
    layer = make(kind, numpy_backend, return_sequences=not last)
    state, dS = states_of(kind, numpy_backend, 40), states_of(kind, numpy_backend, 50)
    dY = DA[:, :, -1] if last else DA
    Y = layer.forward(X, initial_state=state)
    dX = layer.backward(dY.copy(), final_state_grad=dS)

    p = layer.parameters
    if kind is layers.RNN:
        weights = {
            "weight_ih_l0": p["Wax"].T,
            "weight_hh_l0": p["Waa"].T,
            "bias_ih_l0": p["bx"][:, 0],
            "bias_hh_l0": p["ba"][:, 0],
        }
    else:
        names = "ufco" if kind is layers.LSTM else "rzn"
        W = np.concatenate([p[f"W{g}"] for g in names], axis=1)
        b = np.concatenate([p[f"b{g}"] for g in names], axis=1)[0]
        b_state = np.zeros_like(b)
        if kind is layers.GRU:
            b_state[2 * N_OUT :] = p["ba"][0]
        weights = {
            "weight_ih_l0": W[N_OUT:].T,
            "weight_hh_l0": W[:N_OUT].T,
            "bias_ih_l0": b,
            "bias_hh_l0": b_state,
        }
    module = getattr(torch.nn, kind.__name__)(N_IN, N_OUT, dtype=torch.float64)
    module.load_state_dict({n: torch.tensor(w.copy()) for n, w in weights.items()})
    x = torch.tensor(X, requires_grad=True)
    given = [torch.tensor(s[None], requires_grad=True) for s in as_tuple(state)]
    A, final = module(x.permute(2, 0, 1), tuple(given) if len(given) == 2 else given[0])
    A, final = A.permute(1, 2, 0), as_tuple(final)
    assert_close(Y, (A[:, :, -1] if last else A).detach().numpy())
    for ours, theirs in zip(as_tuple(layer.final_state), final, strict=True):
        assert_close(ours, theirs[0].detach().numpy())
    loss = ((A[:, :, -1] if last else A) * torch.tensor(dY)).sum()
    loss = loss + sum(
        (f[0] * torch.tensor(d)).sum() for f, d in zip(final, as_tuple(dS), strict=True)
    )
    loss.backward()
    assert_close(dX, x.grad.numpy())
    for ours, theirs in zip(as_tuple(accumulators(layer)), given, strict=True):
        assert_close(ours, theirs.grad[0].numpy())


@kinds
def test_a_cell_from_a_given_state(kind: Any, backend: Backend) -> None:
    """Put into what it shows before the first step."""
    layer, state = make(kind, backend), states_of(kind, backend, 45)
    A = layer.forward(backend.asarray(X), initial_state=state)
    dX, gradients = layer.backward(backend.asarray(DA)), numbers(layer.gradients)
    at_start = accumulators(layer)
    layer.flush_gradients()
    cell = layer.cell
    for name, array in zip("AC", as_tuple(state), strict=False):
        cell.derived_variables[name] = [array]
    for t in range(N_T):
        got = cell.forward(backend.asarray(X[:, :, t].copy()))
        assert_close(as_tuple(got)[0], host(A)[:, :, t])
    assert len(cell.derived_variables["A"]) == N_T + 1
    for t in reversed(range(N_T)):
        assert_close(cell.backward(backend.asarray(DA[:, :, t].copy())), host(dX)[:, :, t])
    harness.assert_grads(cell, gradients)
    for one, two in zip(as_tuple(accumulators(cell)), as_tuple(at_start), strict=True):
        assert_close(one, host(two))


@kinds
def test_the_final_state_stays(kind: Any, backend: Backend) -> None:
    """After update, flush and evaluation: the next stretch of long sequences starts from it."""
    layer = make(kind, backend)
    assert layer.final_state is None
    A = layer.forward(backend.asarray(X))
    layer.backward(backend.asarray(DA))
    layer.update()
    layer.flush_gradients()
    assert_same_bits(as_tuple(layer.final_state)[0], host(A)[:, :, -1])
    B = layer.forward(backend.asarray(X), retain_derived=False, initial_state=layer.final_state)
    assert_same_bits(as_tuple(layer.final_state)[0], host(B)[:, :, -1])
    assert not np.allclose(host(B), host(A))
    other = copy.deepcopy(layer)
    layer.forward(backend.asarray(X))
    assert_same_bits(as_tuple(other.final_state)[0], host(B)[:, :, -1])


@kinds
def test_the_final_state_moves(kind: Any, emulated: Backend) -> None:
    layer = make(kind, emulated)
    layer.forward(emulated.asarray(X))
    layer.to("numpy")
    assert {type(s) for s in as_tuple(layer.final_state)} == {np.ndarray}
    layer.flush_gradients()
    layer.forward(X, initial_state=layer.final_state)


@kinds
def test_backward_shows_the_sequence_it_went_through(kind: Any, backend: Backend) -> None:
    """Even if the cell took a step in between."""
    layer = make(kind, backend)
    layer.forward(backend.asarray(X))
    derived = layer.derived_variables.items()
    shown = {k: list(v) for k, v in derived if isinstance(v, MutableSequence)}
    assert len(shown) > 1
    layer.cell.forward(backend.asarray(X[:, :, 0].copy()))
    layer.backward(backend.asarray(DA))
    for name, values in shown.items():
        now = layer.derived_variables[name]
        assert len(now) == len(values)
        for one, two in zip(now, values, strict=True):
            assert_same_bits(one, two)
    assert layer.derived_variables["n_timesteps"] == N_T


# --------------------------------------------------------------------------------------- masks


@kinds
def test_sequences_of_different_lengths(kind: Any, backend: Backend) -> None:
    """As each sequence on its own; NaN in the padding does no harm."""
    layer, single = make(kind, backend), make(kind, backend)
    padded = X.copy()
    padded.transpose(0, 2, 1)[~MASK] = np.nan
    dA = DA.copy()
    dA.transpose(0, 2, 1)[~MASK] = np.nan
    mask = backend.asarray(MASK)
    A = layer.forward(backend.asarray(padded), mask=mask)
    dX = layer.backward(backend.asarray(dA))
    total: dict[str, Any] = dict.fromkeys(layer.gradients, 0.0)
    for m, length in enumerate(LENGTHS):
        a, dx, grads, final = alone(single, backend, m, slice(length), DA[m : m + 1, :, :length])
        assert_close(host(A)[m, :, :length], a)
        assert_close(host(dX)[m, :, :length], dx)
        assert not host(A)[m, :, length:].any()
        assert not host(dX)[m, :, length:].any()
        for state, expected in zip(as_tuple(layer.final_state), final, strict=True):
            assert_close(state[m], host(expected)[0])
        total = {n: total[n] + g for n, g in grads.items()}
    harness.assert_grads(layer, total)
    assert_same_bits(mask, MASK)


@kinds
def test_holes_in_sequences(kind: Any, backend: Backend) -> None:
    """A step left out is as if the sequence had never had it, at the beginning and between, too."""
    holes = np.array([[0, 1, 1, 0, 1, 0]] * 2 + [[1, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]])
    layer, single = make(kind, backend), make(kind, backend)
    A = layer.forward(backend.asarray(X), mask=backend.asarray(holes))
    dX = layer.backward(backend.asarray(DA))
    total: dict[str, Any] = dict.fromkeys(layer.gradients, 0.0)
    for m in range(3):
        steps = np.flatnonzero(holes[m])
        a, dx, grads, _ = alone(single, backend, m, steps, DA[m : m + 1][:, :, steps])
        assert_close(host(A)[m][:, steps], a)
        assert_close(host(dX)[m][:, steps], dx)
        total = {n: total[n] + g for n, g in grads.items()}
    for array in (A, dX):
        assert not host(array).transpose(0, 2, 1)[holes == 0].any()
    harness.assert_grads(layer, total)


@kinds
def test_the_last_real_output_alone(kind: Any, backend: Backend) -> None:
    whole, last = make(kind, backend), make(kind, backend, return_sequences=False)
    mask, d = backend.asarray(MASK.astype("float32")), DA[:, :, 0].copy()
    A = host(whole.forward(backend.asarray(X), mask=mask))
    Y = last.forward(backend.asarray(X), mask=mask)
    at_end, dA = [], np.zeros(DA.shape)
    for m, length in enumerate(LENGTHS):
        at_end.append(A[m, :, length - 1])
        dA[m, :, length - 1] = d[m]
    assert_close(Y, np.stack(at_end))
    assert_close(last.backward(backend.asarray(d)), host(whole.backward(backend.asarray(dA))))
    harness.assert_grads(last, numbers(whole.gradients))


@kinds
def test_a_mask_of_ones_changes_nothing(kind: Any, backend: Backend) -> None:
    plain, masked = make(kind, backend), make(kind, backend)
    state = states_of(kind, backend, 60)
    ones = backend.asarray(np.ones((N, N_T), dtype="int8"))
    assert_same_bits(
        masked.forward(backend.asarray(X), mask=ones, initial_state=state),
        plain.forward(backend.asarray(X), initial_state=state),
    )
    assert_same_bits(masked.backward(backend.asarray(DA)), plain.backward(backend.asarray(DA)))
    for name, gradient in plain.gradients.items():
        assert_same_bits(masked.gradients[name], gradient)


@kinds
def test_nothing_waits_with_mask_and_state(kind: Any, emulated: Backend) -> None:
    layer = make(kind, emulated, truncate=2)
    x, da, mask = (emulated.asarray(a) for a in (X, DA, MASK))
    state = states_of(kind, emulated, 70)
    with emulated.forbid("sync", "h2d", "d2h", "iterate"):
        layer.forward(x, mask=mask, initial_state=state)
        layer.backward(da, final_state_grad=state)


@kinds
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_dtype_is_kept(kind: Any, backend: Backend, dtype: str) -> None:
    with harness.default_dtype(dtype):
        layer = kind(N_OUT, truncate=3)
        wide = states_of(kind, backend, 80)
        A = layer.forward(backend.asarray(X, dtype), mask=backend.asarray(MASK), initial_state=wide)
        dX = layer.backward(backend.asarray(DA, dtype), final_state_grad=wide)
    arrays = [A, dX, *as_tuple(layer.final_state), *as_tuple(accumulators(layer))]
    assert {str(a.dtype) for a in arrays} == {dtype}
    assert {str(s.dtype) for s in as_tuple(wide)} == {"float64"}


# ---------------------------------------------------------------------------------- truncation


@kinds
@pytest.mark.parametrize("steps", [1, 2, 4, 5])
def test_truncation(kind: Any, backend: Backend, steps: int) -> None:
    """As stretches gone through one after the other, each back on its own."""
    layer, stretch = make(kind, backend, truncate=steps), make(kind, backend)
    A, dX = layer.forward(backend.asarray(X)), layer.backward(backend.asarray(DA))
    state, outputs, inputs = None, [], []
    total: dict[str, Any] = dict.fromkeys(layer.gradients, 0.0)
    for start in range(0, N_T, steps):
        part = slice(start, start + steps)
        stretch.flush_gradients()
        outputs.append(
            host(stretch.forward(backend.asarray(X[:, :, part].copy()), initial_state=state))
        )
        inputs.append(host(stretch.backward(backend.asarray(DA[:, :, part].copy()))))
        total = {n: total[n] + host(g) for n, g in stretch.gradients.items()}
        state = stretch.final_state
    assert_close(A, np.concatenate(outputs, axis=2))
    assert_close(dX, np.concatenate(inputs, axis=2))
    harness.assert_grads(layer, total)


@kinds
@pytest.mark.parametrize("steps", [N_T, 100, None])
def test_truncation_beyond_the_end_is_none(kind: Any, backend: Backend, steps: int) -> None:
    one, other = make(kind, backend, truncate=steps), make(kind, backend)
    assert_same_bits(one.forward(backend.asarray(X)), other.forward(backend.asarray(X)))
    assert_same_bits(one.backward(backend.asarray(DA)), other.backward(backend.asarray(DA)))


@kinds
def test_truncation_and_the_last_output(kind: Any, backend: Backend) -> None:
    layer = make(kind, backend, truncate=4, return_sequences=False)
    layer.forward(backend.asarray(X))
    dX = host(layer.backward(backend.asarray(DA[:, :, 0].copy())))
    assert not dX[:, :, :4].any()
    assert dX[:, :, 4:].all()
