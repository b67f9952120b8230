"""Matrices turned around by BLAS, or by NumPy where BLAS must not be asked."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers.ops.cpu import _blas
from tests.ops.cpu.conftest import normal
from tests.support.compare import assert_same_bits

SHAPE = (3, 97, 101)  # more numbers than BLAS needs to be worth a call


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The types of numbers for which BLAS was called."""
    calls: list[str] = []
    found = _blas._turning

    def turning(dtype: np.dtype):
        function = found(dtype)
        if function is None:
            return None

        def noted(*arguments: object) -> None:
            calls.append(dtype.name)
            function(*arguments)

        return noted

    monkeypatch.setattr(_blas, "_turning", turning)
    return calls


def matrices(dtype: str) -> np.ndarray:
    source = normal(SHAPE, 1, dtype).copy()
    source[0, 0, :4] = np.nan, np.inf, -np.inf, -0.0
    source[2, -1, -1] = np.nan
    return source


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_side_by_side(dtype: str, asked: list[str]) -> None:
    source = matrices(dtype)
    out = np.full((3, 101, 97), 7, dtype)
    _blas.turn(source, out)
    assert_same_bits(out, np.ascontiguousarray(source.transpose(0, 2, 1)))
    if _blas.functions(np.dtype(dtype)) is not None:
        assert asked == [dtype] * 3


def test_rows_that_lie_apart_leave_what_is_between(asked: list[str]) -> None:
    wide = np.zeros((97, 3, 120), np.float32)
    source = wide.transpose(1, 0, 2)[:, :, 5:106]
    source[...] = matrices("float32")
    around = np.full((101, 3, 110), 7, np.float32)
    out = around.transpose(1, 0, 2)[:, :, 3:100]
    _blas.turn(source, out)
    assert_same_bits(out, np.ascontiguousarray(source.transpose(0, 2, 1)))
    assert (around[:, :, :3] == 7).all() and (around[:, :, 100:] == 7).all()
    if _blas.functions(np.dtype("float32")) is not None:
        assert len(asked) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[:, :, ::-1],  # numbers of a row not side by side, rows backwards, repeated ones
        lambda x: x[:, ::-1],
        lambda x: np.broadcast_to(x[:, :1], x.shape),
        lambda x: x.astype(x.dtype.newbyteorder()),
        lambda x: x[:, :9, :9],
        lambda x: x[:0],
        lambda x: x.astype(np.float16),
    ],
)
def test_what_blas_is_not_asked_for(change, asked: list[str]) -> None:
    source = change(matrices("float32"))
    out = np.full(source.transpose(0, 2, 1).shape, 7, np.float32)
    _blas.turn(source, out)
    np.testing.assert_array_equal(out, source.transpose(0, 2, 1))
    assert not asked


def test_without_the_function_numpy_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_blas, "_turning", lambda dtype: None)
    source, out = matrices("float64"), np.zeros((3, 101, 97))
    _blas.turn(source, out)
    assert_same_bits(out, np.ascontiguousarray(source.transpose(0, 2, 1)))


def test_an_array_not_to_be_written_is_not(asked: list[str]) -> None:
    out = np.zeros((3, 101, 97), np.float32)
    out.setflags(write=False)
    with pytest.raises(ValueError, match="read-only"):
        _blas.turn(matrices("float32"), out)
    assert not asked and not out.any()
