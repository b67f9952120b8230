"""One recurrent step against loops."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers.errors import DTypeError, ShapeError
from gpulayers.ops import recurrent, sequence
from tests.ops.conftest import Engine, eighths
from tests.ops.test_activation import BUILT_IN, Cubic
from tests.support.compare import LAYOUTS, assert_close, assert_same_bits, host, scrambled
from tests.support.naive import recurrent as naive

shapes = pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 130), (0, 2)], ids=str)


@shapes
@pytest.mark.parametrize("name", BUILT_IN)
def test_forward(engine: Engine, shape: tuple[int, int], name: str) -> None:
    projected, recur = eighths(shape, 1), eighths(shape, 2)
    ba, bx = eighths(shape[1:], 3), eighths(shape[1:], 4)
    Z, A = engine.call(
        recurrent.rnn_step_forward,
        *(engine.array(a) for a in (projected, recur, ba, bx)),
        BUILT_IN[name](),
    )
    gold_Z, gold_A = naive.step(projected, recur, ba, bx, name)
    assert_close(Z, gold_Z)
    assert_close(A, gold_A)
    dA, accumulator = eighths(shape, 5), eighths(shape, 6)
    off_kinks = gold_Z + 1 / 16
    for given in (accumulator, None):
        dZ = engine.call(
            recurrent.rnn_step_backward,
            engine.array(dA),
            None if given is None else engine.array(given),
            engine.array(off_kinks),
            BUILT_IN[name](),
        )
        assert_close(dZ, naive.step_grad(dA, given, off_kinks, name))


def test_dtype(engine: Engine, dtype: str) -> None:
    arrays = [eighths((3, 4), k) for k in (1, 2)] + [eighths((4,), k) for k in (3, 4)]
    given = [engine.array(a, dtype) for a in arrays]
    Z, A = recurrent.rnn_step_forward(*given, BUILT_IN["tanh"]())
    gold_Z, gold_A = naive.step(*arrays, "tanh")
    dZ = recurrent.rnn_step_backward(given[0], given[1], Z, BUILT_IN["tanh"]())
    assert (Z.dtype, A.dtype, dZ.dtype) == (dtype, dtype, dtype)
    assert_close(A, gold_A)
    assert_close(dZ, naive.step_grad(arrays[0], arrays[1], gold_Z, "tanh"), factor=2)


def test_column_biases_and_an_activation_of_a_users_own(engine: Engine) -> None:
    arrays = [engine.array(eighths((3, 4), k)) for k in (1, 2)]
    ba, bx = engine.array(eighths((4, 1), 3)), engine.array(eighths((4, 1), 4))
    Z, A = engine.call(recurrent.rnn_step_forward, *arrays, ba, bx, Cubic())
    gold = eighths((3, 4), 1) + eighths((3, 4), 2) + eighths((4,), 3) + eighths((4,), 4)
    assert_close(Z, gold)
    assert_close(A, gold**3)
    dZ = recurrent.rnn_step_backward(arrays[0], None, Z, Cubic())
    assert_close(dZ, eighths((3, 4), 1) * 3 * gold**2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_does_not_matter(engine: Engine, layout: str) -> None:
    tanh = BUILT_IN["tanh"]()
    p, r = engine.array(eighths((3, 4), 1)), engine.array(eighths((3, 4), 2))
    b = engine.array(eighths((4,), 3))
    Z, A = recurrent.rnn_step_forward(p, r, b, b, tanh)
    z, a = engine.call(
        recurrent.rnn_step_forward,
        scrambled(p, layout),
        scrambled(r, layout),
        scrambled(b, "strided"),
        scrambled(b, "reversed"),
        tanh,
    )
    assert_same_bits(z, Z)
    assert_same_bits(a, A)
    assert_same_bits(
        engine.call(
            recurrent.rnn_step_backward,
            scrambled(p, layout),
            scrambled(r, layout),
            scrambled(Z, layout),
            tanh,
        ),
        recurrent.rnn_step_backward(p, r, Z, tanh),
    )


def test_wrong_calls(engine: Engine) -> None:
    tanh, X, b = BUILT_IN["tanh"](), engine.array(np.ones((2, 3))), engine.array(np.ones(3))
    forward, backward = recurrent.rnn_step_forward, recurrent.rnn_step_backward
    with pytest.raises(ShapeError, match=r"projected must have shape \(n, n_out\), got \(3,\)"):
        forward(b, b, b, b, tanh)
    with pytest.raises(ShapeError, match=r"recurrent must have shape \(2, 3\), got \(1, 3\)"):
        forward(X, X[:1], b, b, tanh)
    with pytest.raises(ShapeError, match=r"ba must have shape \(3,\), got \(2,\)"):
        forward(X, X, b[:2], b, tanh)
    with pytest.raises(ShapeError, match=r"bx must have shape \(3,\), got \(6,\)"):
        forward(X, X, b, X, tanh)
    with pytest.raises(DTypeError, match="rnn_step_forward: bx is float32, but projected is"):
        forward(X, X, b, b.astype("float32"), tanh)
    with pytest.raises(ShapeError, match=r"dA must have shape \(2, 3\), got \(3, 2\)"):
        backward(X.T, None, X, tanh)
    with pytest.raises(ShapeError, match=r"accumulator must have shape \(2, 3\), got \(3,\)"):
        backward(X, b, X, tanh)
    with pytest.raises(DTypeError, match="accumulator is float16, but dA is float64"):
        backward(X, X.astype("float16"), X, tanh)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (1, 1, 4), (2, 3, 1)], ids=str)
def test_time_comes_last_in_a_new_array(engine: Engine, shape: tuple[int, int, int]) -> None:
    """Also where nothing has to be moved: what a user writes there must not reach the states."""
    X = engine.array(eighths(shape, 1))
    Y = sequence.time_last(X)
    assert_same_bits(Y, host(X).transpose(1, 2, 0))
    Y[...] = 7
    assert (host(X) != 7).all()
