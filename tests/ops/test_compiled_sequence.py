"""Recurrent networks over whole sequences: the fast implementations against the reference.

The reference goes step by step; tests/layers holds it against loops and PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpulayers import activations, threads
from gpulayers.errors import BackendError, DTypeError, ShapeError
from gpulayers.ops import sequence, use_engine
from gpulayers.ops.cpu import _turned
from gpulayers.ops.cpu import sequence as cpu_sequence
from gpulayers.ops.sequence import Trace, Weights
from gpulayers.ops.workspace import Workspace
from tests.conftest import Backend, switched_to
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
from tests.support.compare import assert_close, assert_same_bits, host, scrambled
from tests.support.workspaces import needs_workspaces


@pytest.fixture(params=["numpy", pytest.param("compiled", marks=pytest.mark.compiled)])
def fast(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each fast implementation on the CPU."""
    with switched_to(request.param) as chosen:
        yield chosen


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


# ------------------------------------------------------------------------------ memory of all sorts


@main_kinds
@pytest.mark.parametrize("layout", ["fortran", "strided", "reversed", "read-only", "odd address"])
def test_memory_layout_does_not_matter(fast: Backend, name: str, layout: str) -> None:
    def laid_out(array: np.ndarray) -> np.ndarray:
        if layout == "odd address":
            raw = np.zeros(array.nbytes + 1, np.uint8)[1:]
            raw = raw.view(array.dtype).reshape(array.shape)
            raw[...] = array
            return raw
        if layout == "read-only":
            array = array.copy()
            array.flags.writeable = False
            return array
        return scrambled(array, layout)

    call = Call(name, (4, 9, 3, 10), "float64", mask=ragged(4, 9))
    expected = call.run()
    call.X, call.dA, call.mask = (
        laid_out(call.X),
        laid_out(call.dA),
        scrambled(call.mask, "strided"),
    )
    call.first, call.last = (tuple(laid_out(s) for s in given) for given in (call.first, call.last))
    W_a, W_x, biases = call.weights
    call.weights = Weights(laid_out(W_a), laid_out(W_x), biases)
    got = call.run()
    for what, array in expected.items():
        assert_close(got[what], array)


@pytest.mark.parametrize("long", [1, 1000])
@main_kinds
@shapes
def test_sequences_that_lie_by_unit(
    fast: Backend, name: str, shape: tuple[int, ...], long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `time_first` lays them for networks with gates; read where they are, or by the line."""
    monkeypatch.setattr(_turned, "_LONG", long)

    def by_unit(array: np.ndarray) -> np.ndarray:
        return array.transpose(2, 0, 1).copy().transpose(1, 2, 0)

    call = Call(name, shape, "float64", mask=ragged(*shape[:2]))
    expected = call.reference()
    call.X, call.dA = by_unit(call.X), by_unit(call.dA)
    got = call.run()
    for what, array in expected.items():
        assert_close(got[what], array, factor=10)


@main_kinds
def test_swapped_bytes(fast: Backend, name: str) -> None:
    call = Call(name, (4, 9, 3, 10), "float32")
    expected = call.run()
    swapped = np.dtype("float32").newbyteorder()
    call.X, call.dA = call.X.astype(swapped), call.dA.astype(swapped)
    call.first = tuple(s.astype(swapped) for s in call.first)
    call.last = tuple(s.astype(swapped) for s in call.last)
    W_a, W_x, biases = call.weights
    call.weights = Weights(
        W_a.astype(swapped), W_x.astype(swapped), tuple(b.astype(swapped) for b in biases)
    )
    try:
        got = call.run()
    except DTypeError:
        return  # refused with a word is right as well
    for what, array in expected.items():
        assert_close(got[what], host(array))


@needs_workspaces
@main_kinds
def test_a_workspace_keeps_results_apart(fast: Backend, name: str) -> None:
    """The same numbers, no growth, and nothing that is still held is written over."""
    call, workspace = Call(name, (16, 37, 9, 40), "float32"), Workspace()
    expected, sizes, held = call.run(), [], []
    for _ in range(5):
        with workspace:
            workspace.next_round()
            results = call.run()
        held = [*held[-1:], results]
        sizes.append(workspace.nbytes)
        for got in held:
            for what, array in expected.items():
                assert_same_bits(got[what], array)
        del results, got
    assert sizes[0] > 0
    assert sizes[2:] == sizes[2:3] * 3


@pytest.mark.parametrize("n, ch, n_t", [(1, 1, 1), (3, 7, 50), (9, 17, 8), (25, 40, 50), (0, 3, 4)])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_turning_time(fast: Backend, n: int, ch: int, n_t: int, dtype: str) -> None:
    X = np.random.default_rng(0).standard_normal((n, ch, n_t)).astype(dtype)
    first = sequence.time_first(X)
    assert first.flags.c_contiguous
    assert_same_bits(first, X.transpose(2, 0, 1))
    for order in (first, sequence.time_first(X, gated=True)):
        assert_same_bits(order, first)
        assert not np.may_share_memory(order, X)
        last = sequence.time_last(order)
        assert last.flags.c_contiguous
        assert_same_bits(last, X)


@pytest.mark.parametrize("n, ch, n_t", [(1, 3, 4), (9, 17, 8), (25, 90, 50), (300, 40, 2)])
@dtypes
def test_some_steps_of_sequences_by_unit(
    fast: Backend, n: int, ch: int, n_t: int, dtype: str
) -> None:
    units = np.random.default_rng(0).standard_normal((ch, n_t, n)).astype(dtype)
    for cut in (slice(1, None), slice(0, -1), slice(1, 2)):
        part = units.transpose(1, 2, 0)[cut]
        assert_same_bits(sequence.time_last(part), part.transpose(1, 2, 0))


@pytest.mark.parametrize("axis", [0, 1])
@dtypes
def test_matrices_joined(fast: Backend, axis: int, dtype: str) -> None:
    rng = np.random.default_rng(0)
    shapes = [(3, 5), (3, 1), (3, 17)]
    arrays = [rng.standard_normal(s).astype(dtype) for s in shapes]
    arrays = arrays if axis else [a.T for a in arrays]
    for _ in range(2):
        with Workspace():
            assert_same_bits(sequence.joined(arrays, axis), np.concatenate(arrays, axis=axis))
    with pytest.raises(ShapeError, match=r"joined: arrays\[1\] must fit .* along axis"):
        sequence.joined([arrays[0], arrays[0][:-1, :-1]], axis)
    with pytest.raises(ShapeError, match=r"joined: .* got none"):
        sequence.joined([], axis)


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
