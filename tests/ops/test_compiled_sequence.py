"""Recurrent networks over whole sequences: the fast implementations against the reference.

The reference goes step by step; tests/layers holds it against loops and PyTorch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers import activations, threads
from gpulayers.errors import BackendError, DTypeError, ShapeError
from gpulayers.ops import sequence, use_engine
from gpulayers.ops.cpu import _turned
from gpulayers.ops.cpu import sequence as cpu_sequence
from gpulayers.ops.sequence import Trace, Weights
from tests.conftest import Backend
from tests.ops.sequence_calls import (
    KINDS,
    MANY,
    SIGMOID,
    TANH,
    Call,
    dtypes,
    every_kind,
    main_kinds,
    ragged,
    shapes,
)
from tests.support.compare import assert_close, assert_same_bits

# ---------------------------------------------------------------------------- against the reference


@every_kind
@shapes
@dtypes
def test_as_step_by_step(fast: Backend, name: str, shape: tuple[int, ...], dtype: str) -> None:
    Call(name, shape, dtype).check()


@every_kind
@shapes
def test_with_a_mask(fast: Backend, name: str, shape: tuple[int, ...]) -> None:
    Call(name, shape, "float64", mask=ragged(*shape[:2])).check()


@main_kinds
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("truncate", [1, 2, 4, 6, 9])
def test_truncated(fast: Backend, name: str, truncate: int, masked: bool) -> None:
    mask = ragged(*MANY[:2]) if masked else None
    Call(name, MANY, "float64", truncate=truncate, mask=mask).check()


@main_kinds
@pytest.mark.parametrize("left_out", ["first", "last", "dA", "all"])
def test_from_zeros_and_without_gradients(fast: Backend, name: str, left_out: str) -> None:
    names = ("first", "last", "dA") if left_out == "all" else (left_out,)
    Call(name, MANY, "float64", **dict.fromkeys(names)).check()


@main_kinds
@pytest.mark.parametrize("params", [False, True])
@pytest.mark.parametrize("inputs", [False, True])
def test_only_what_is_wanted(fast: Backend, name: str, params: bool, inputs: bool) -> None:
    call = Call(name, MANY, "float64", wanted={"params": params, "inputs": inputs})
    call.check()
    assert ("dX" in call.run(), "dW_a" in call.run()) == (inputs, params)


@main_kinds
@dtypes
@pytest.mark.parametrize("count", [1, 2, 3, 5, 64])
def test_any_number_of_threads(fast: Backend, name: str, dtype: str, count: int) -> None:
    call = Call(name, MANY, dtype, mask=ragged(*MANY[:2]))
    with threads.use_threads(count):
        call.check()
        first, second = call.run(), call.run()
    for what, array in first.items():
        assert_same_bits(second[what], array)


@main_kinds
@pytest.mark.parametrize("count", [2, 5])
def test_examples_shared_out(name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pure NumPy, what large batches do: slopes for a few steps at a time and, in simple
    networks, a part of the examples for each thread."""
    monkeypatch.setattr(cpu_sequence, "_NUMBERS", 1)
    step = -(-MANY[1] // count) * MANY[3] * (1 if name == "rnn" else 4)
    monkeypatch.setattr(cpu_sequence, "_SLOPES", 4 * step)
    with use_engine("numpy"), threads.use_threads(count):
        for shape in (MANY, (2, 13, 70, 24)):
            Call(name, shape, "float64", mask=ragged(*shape[:2])).check()


@pytest.mark.parametrize("name", ["lstm", "gru"])
@pytest.mark.parametrize("params, inputs", [(True, True), (True, False), (False, True)])
def test_gradients_of_many_examples(
    name: str, params: bool, inputs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pure NumPy they are added up step by step."""
    monkeypatch.setattr(_turned, "_MANY", MANY[1])
    wanted = {"params": params, "inputs": inputs}
    with use_engine("numpy"):
        call = Call(name, MANY, "float64", mask=ragged(*MANY[:2]), wanted=wanted)
        call.check()
        assert ("dX" in call.run(), "dW_a" in call.run()) == (inputs, params)


@every_kind
@pytest.mark.parametrize("other", ["numpy", "reference", "compiled"])
def test_back_through_what_another_engine_went_through(
    fast: Backend, name: str, other: str
) -> None:
    if other == "compiled":
        pytest.importorskip("gpulayers.ops.compiled")
        from gpulayers.ops.compiled import unavailable_reason

        if unavailable_reason():
            pytest.skip("not built")
    call = Call(name, (4, 9, 3, 10), "float64", mask=ragged(4, 9))
    expected = call.reference()
    with use_engine(other):
        trace = call.ahead()
    mixed = call.back(trace)
    trace = call.ahead()
    with use_engine(other):
        turned = call.back(trace)
    for what, array in expected.items():
        for got in (mixed, turned):
            assert_close(got[what], array, factor=10)


@main_kinds
@pytest.mark.parametrize("dtype", ["float16"])
def test_half_precision(fast: Backend, name: str, dtype: str) -> None:
    call = Call(name, (3, 4, 5, 6), dtype)
    expected, got = call.reference(), call.run()
    for what, array in expected.items():
        assert_same_bits(got[what], array)


# --------------------------------------------------------------------------------- hard numbers


@every_kind
@dtypes
@pytest.mark.parametrize("place", ["X", "first", "dA", "recurrent"])
def test_nan_goes_where_it_does_step_by_step(
    fast: Backend, name: str, dtype: str, place: str
) -> None:
    call = Call(name, (4, 9, 3, 10), dtype)
    target = {"X": call.X, "first": call.first[0], "dA": call.dA}.get(place)
    if target is None:
        call.weights.recurrent[3, 4] = np.nan
    else:
        target[(2, 5, 1)[-target.ndim :]] = np.nan
    expected, got = call.reference(), call.run()
    for what, array in expected.items():
        np.testing.assert_array_equal(np.isnan(got[what]), np.isnan(array), err_msg=what)
        np.testing.assert_allclose(got[what], array, rtol=1e-3, atol=1e-4, err_msg=what)


@main_kinds
@dtypes
def test_saturated(fast: Backend, name: str, dtype: str) -> None:
    """Neither warnings nor NaN where everything is at its limits."""
    call = Call(name, (3, 9, 4, 10), dtype)
    call.X *= call.X.dtype.type(1e4)
    call.check(factor=20)


@dtypes
@pytest.mark.parametrize("act", [TANH, SIGMOID, activations.ReLU()], ids=str)
def test_the_activations_are_exact(fast: Backend, act: Any, dtype: str) -> None:
    """To some units in the last place, everywhere: by a network of one unit with W = 1."""
    tiny, huge = np.finfo(dtype).tiny, np.finfo(dtype).max
    points = np.concatenate([np.geomspace(1e-30, 1e3, 4001), np.linspace(0, 100, 4001)])
    points = np.concatenate([points, [0, tiny, 1e-3, 40, 87, 88, 708, 1e30, huge, np.inf]])
    z = np.concatenate([points, -points]).astype(dtype)
    one = np.ones((1, 1), dtype)
    weights = Weights(0 * one, one, (np.zeros(1, dtype), np.zeros(1, dtype)))
    trace = sequence.rnn_forward(z[None, :, None], None, None, weights, act)
    with np.errstate(over="ignore", under="ignore"):
        exact = act.fn(z.astype(np.float64))
    got = trace.states[0][1, :, 0].astype(np.float64)
    least = 2 * float(tiny)  # results below the normal numbers may be zero
    few = 16 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(got, exact, rtol=few, atol=least)
    assert not np.signbit(got[z >= 0]).any()
    assert (got[z < -least] < 0).all() or act is not TANH


# -------------------------------------------------------------------------------------- wrong calls


@main_kinds
def test_wrong_calls(backend: Backend, name: str) -> None:
    kind = KINDS[name]
    k, blocks = kind.states, kind.blocks

    def ones(*shape: int) -> Any:
        return backend.asarray(np.ones(shape))

    right = {
        "X": ones(4, 2, 3),
        "first": tuple(ones(2, 5) for _ in range(k)),
        "mask": backend.asarray(np.ones((4, 2, 1), bool)),
        "weights": Weights(
            ones(5, blocks * 5), ones(3, blocks * 5), tuple(ones(5 * b) for b in kind.biases)
        ),
    }

    def forward(**wrong: Any) -> Trace:
        given = right | wrong
        return kind.forward(given["X"], given["first"], given["mask"], given["weights"], *kind.acts)

    trace = forward()
    op = f"{name}_forward"
    with pytest.raises(ShapeError, match=rf"{op}: expected at least one time step.*\(0, 2, 3\)"):
        forward(X=ones(0, 2, 3))
    with pytest.raises(ShapeError, match=rf"{op}: X must have shape \(n_t, n_ex, n_in\)"):
        forward(X=ones(2, 3))
    with pytest.raises(ShapeError, match=rf"{op}: weights.input must have shape \(7,"):
        forward(X=ones(4, 2, 7))
    with pytest.raises(ShapeError, match=rf"{op}: weights.recurrent must have shape \(5,"):
        forward(weights=right["weights"]._replace(recurrent=ones(5, 6)))
    with pytest.raises(ShapeError, match=rf"{op}: weights.biases must hold"):
        forward(weights=right["weights"]._replace(biases=()))
    with pytest.raises(ShapeError, match=rf"{op}: first must hold {k} array"):
        forward(first=(*right["first"], ones(2, 5)))
    with pytest.raises(ShapeError, match=rf"{op}: first\[0\] must have shape \(2, 5\)"):
        forward(first=(ones(3, 5), *right["first"][1:]))
    with pytest.raises(ShapeError, match=rf"{op}: mask must have shape \(4, 2, 1\)"):
        forward(mask=ones(4, 2))
    with pytest.raises(DTypeError, match=rf"{op}: weights.recurrent is float32, but X is float64"):
        weights = right["weights"]
        forward(weights=weights._replace(recurrent=weights.recurrent.astype("float32")))

    def backward(dA: Any = None, last: Any = None) -> Any:
        return kind.backward(dA, last, trace, right["weights"], *kind.acts)

    backward(ones(4, 2, 5), tuple(ones(2, 5) for _ in range(k)))
    op = f"{name}_backward"
    with pytest.raises(ShapeError, match=rf"{op}: dA must have shape \(4, 2, 5\), got \(4, 5\)"):
        backward(ones(4, 5))
    with pytest.raises(ShapeError, match=rf"{op}: last must hold {k} array"):
        backward(None, ())
    with pytest.raises(DTypeError, match=rf"{op}: dA is float32, but X is float64"):
        backward(ones(4, 2, 5).astype("float32"))


def test_arrays_of_two_libraries(emulated: Backend) -> None:
    weights = Weights(np.ones((5, 5)), np.ones((3, 5)), (np.ones(5), np.ones(5)))
    with pytest.raises(BackendError, match="rnn_forward: numpy and cupy arrays were mixed"):
        sequence.rnn_forward(emulated.asarray(np.ones((4, 2, 3))), None, None, weights, TANH)
