"""Recurrent networks over whole sequences: memory of all sorts, and turning time around."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers.errors import DTypeError, ShapeError
from gpulayers.ops import sequence
from gpulayers.ops.cpu import _turned
from gpulayers.ops.sequence import Weights
from gpulayers.ops.workspace import Workspace
from tests.conftest import Backend
from tests.ops.sequence_calls import Call, dtypes, main_kinds, ragged, shapes
from tests.support.compare import assert_close, assert_same_bits, host, scrambled
from tests.support.workspaces import needs_workspaces


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
