"""Optimizer updates against loops: in place, with state, over several steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gpulayers.errors import DTypeError, ShapeError
from gpulayers.ops import update
from tests.ops.conftest import Engine, eighths
from tests.support.compare import assert_close, assert_same_bits
from tests.support.naive import update as naive

# name: (operation, gold, number of state arrays, hyperparameters of step t)
RULES: dict[str, tuple[Callable, Callable, int, Callable[[int], tuple]]] = {
    "sgd": (update.sgd_update, naive.sgd, 1, lambda t: (0.1, 0.0)),
    "momentum": (update.sgd_update, naive.sgd, 1, lambda t: (0.1 / t, 0.9)),
    "adagrad": (update.adagrad_update, naive.adagrad, 1, lambda t: (0.1, 1e-4)),
    "rmsprop": (update.rmsprop_update, naive.rmsprop, 1, lambda t: (0.01, 0.9, 1e-4)),
    "adam": (update.adam_update, naive.adam, 2, lambda t: (0.01, 0.9, 0.999, 1e-4, t)),
}
rules = pytest.mark.parametrize("rule", RULES)


@rules
@pytest.mark.parametrize("shape", [(1,), (), (3, 5), (2, 3, 4, 5), (1030,), (0, 3)], ids=str)
def test_three_steps(engine: Engine, rule: str, shape: tuple[int, ...], dtype: str) -> None:
    operation, gold, states, hyperparameters = RULES[rule]
    values = [eighths(shape, 1)] + [np.zeros(shape)] * states
    arrays = [engine.array(v, dtype) for v in values]
    for t in (1, 2, 3):
        grad = eighths(shape, 10 + t)
        given = engine.array(grad, dtype)
        result = operation(arrays[0], given, *arrays[1:], *hyperparameters(t))
        assert result is None
        assert_same_bits(given, grad.astype(dtype))
        values = list(gold(values[0], grad, *values[1:], *hyperparameters(t)))
        for array, value in zip(arrays, values, strict=True):
            assert array.dtype == dtype
            assert_close(array, value, factor=2)


def test_adam_at_a_late_step(engine: Engine) -> None:
    param, grad = eighths((40,), 2), eighths((40,), 3)
    mean, var = eighths((40,), 4), np.abs(eighths((40,), 5))
    arrays = [engine.array(a) for a in (param, grad, mean, var)]
    update.adam_update(*arrays, 0.01, 0.9, 0.999, 1e-7, 100_000)
    gold = naive.adam(param, grad, mean, var, 0.01, 0.9, 0.999, 1e-7, 100_000)
    for array, value in zip((arrays[0], *arrays[2:]), gold, strict=True):
        assert_close(array, value)


@rules
def test_a_gradient_of_zero_leaves_the_parameter_of_a_fresh_state(
    engine: Engine, rule: str
) -> None:
    operation, _, states, hyperparameters = RULES[rule]
    param = engine.array(eighths((7,), 6))
    before = param.copy()
    state = [engine.array(np.zeros(7)) for _ in range(states)]
    operation(param, engine.array(np.zeros(7)), *state, *hyperparameters(1))
    assert_same_bits(param, before)


@rules
def test_wrong_calls(engine: Engine, rule: str) -> None:
    operation, _, states, hyperparameters = RULES[rule]
    name = operation.__name__
    good = [engine.array(np.ones((2, 3))) for _ in range(2 + states)]

    def call_with(position: int, array) -> None:
        arrays = [array if k == position else a for k, a in enumerate(good)]
        operation(*arrays, *hyperparameters(1))

    for position in range(1, 2 + states):
        with pytest.raises(
            ShapeError, match=rf"{name}: \w+ must have shape \(2, 3\), got \(3, 2\)"
        ):
            call_with(position, engine.array(np.ones((3, 2))))
        with pytest.raises(DTypeError, match=rf"{name}: \w+ must be .* float64, got float32"):
            call_with(position, engine.array(np.ones((2, 3)), "float32"))
    with pytest.raises(DTypeError, match=rf"{name}: \w+ must be a floating array"):
        call_with(0, engine.array(np.ones((2, 3)), "int64"))
    for position in range(2 + states):
        with pytest.raises(ShapeError, match=rf"{name}: \w+ must be C-contiguous"):
            call_with(position, engine.xp.asfortranarray(good[0]))
    for array in good:  # a refused call has changed nothing
        assert_same_bits(array, np.ones((2, 3)))
