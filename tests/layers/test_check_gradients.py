"""`check_gradients`: right layers pass, each kind of wrong backward is told, nothing is changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpulayers
from gpulayers import modules
from gpulayers.backend import default_dtype
from gpulayers.errors import DTypeError, GradientError, ParameterError
from gpulayers.gradients import check_gradients
from gpulayers.layers import (
    BatchNorm2D,
    Conv2D,
    Dropout,
    Flatten,
    FullyConnected,
    LayerNorm1D,
    Pool2D,
)
from gpulayers.models import Sequential


def normal(*shape: int, dtype: str = "float64") -> Any:
    return np.random.default_rng(3).standard_normal(shape).astype(dtype)


LAYERS = {
    "dense": (lambda: FullyConnected(3, act_fn="Tanh"), (4, 5), {"W", "b"}),
    "conv": (lambda: Conv2D(2, (3, 3), pad=1, act_fn="GELU"), (2, 5, 4, 3), {"W", "b"}),
    "batchnorm": (BatchNorm2D, (3, 4, 4, 2), {"scaler", "intercept"}),
    "layernorm": (LayerNorm1D, (3, 7), {"scaler", "intercept"}),
    "pool": (lambda: Pool2D((2, 2), stride=2), (2, 4, 4, 3), set()),
    "module": (
        lambda: modules.SkipConnectionIdentityModule(3, (3, 3), (3, 3), act_fn="Tanh"),
        (2, 5, 5, 3),
        None,
    ),
    "network": (
        lambda: Sequential([Conv2D(2, (2, 2), act_fn="Sigmoid"), Flatten(), FullyConnected(2)]),
        (2, 4, 4, 1),
        None,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_our_layers_pass(name: str, backend: Any) -> None:
    make, shape, wanted = LAYERS[name]
    errors = check_gradients(make(), backend.asarray(normal(*shape)), entries=20)
    assert wanted is None or set(errors) == wanted | {"X"}
    assert len(errors) >= 1
    assert max(errors.values()) < 1e-6


def test_nothing_is_changed() -> None:
    with_sizes = BatchNorm2D()
    X = normal(3, 4, 4, 2)
    X.flags.writeable = False
    check_gradients(with_sizes, X)
    before = {key: value.copy() for key, value in with_sizes.parameters.items()}
    check_gradients(with_sizes, X)
    assert default_dtype() == np.float32
    for key, value in with_sizes.parameters.items():
        np.testing.assert_array_equal(value, before[key])
    assert with_sizes.X == []
    assert not any(grad.any() for grad in with_sizes.gradients.values())


class _Wrong(FullyConnected):
    """A dense layer whose gradient of `broken` is changed by `how`."""

    def __init__(self, broken: str, how: Any) -> None:
        super().__init__(3, act_fn="Tanh")
        self._broken, self._how = broken, how

    def _backward(self, dLdY: Any, saved: Any, params: bool, inputs: bool) -> Any:
        dX, grads = super()._backward(dLdY, saved, params, inputs)
        if self._broken == "X":
            return self._how(dX), grads
        return dX, {**grads, self._broken: self._how(grads[self._broken])}


def one_entry(array: Any) -> Any:
    changed = array.copy()
    changed.reshape(-1)[-1] *= 1.01
    return changed


@pytest.mark.parametrize("key", ["X", "W", "b"])
@pytest.mark.parametrize(
    "how",
    [lambda a: -a, lambda a: 2 * a, one_entry, np.zeros_like, lambda a: a + np.nan],
    ids=["sign", "twice", "one entry", "nothing", "nan"],
)
def test_a_wrong_backward_is_told(key: str, how: Any) -> None:
    with pytest.raises(GradientError, match=f"_Wrong: gradient of {key}"):
        check_gradients(_Wrong(key, how), normal(4, 5))


def test_a_gradient_of_another_shape() -> None:
    class Wrong(Flatten):
        def _backward(self, dLdY: Any, saved: Any, params: bool, inputs: bool) -> Any:
            return dLdY, {}

    with pytest.raises(GradientError, match=r"expected shape \(2, 3, 4\), got shape \(2, 12\)"):
        check_gradients(Wrong(), normal(2, 3, 4))


def test_a_message_names_entry_and_values() -> None:
    with pytest.raises(
        GradientError, match=r"gradient of b\[0, 2\]: backward gives .* differences"
    ):
        check_gradients(_Wrong("b", one_entry), normal(4, 5))


def test_few_entries_are_drawn_by_the_seed() -> None:
    layer = FullyConnected(4, act_fn="Tanh")
    X = normal(3, 50)
    first = check_gradients(layer, X, entries=5, seed=1)
    assert first == check_gradients(layer, X, entries=5, seed=1)
    assert first != check_gradients(layer, X, entries=5, seed=2)


def test_the_weights_are_not_the_input() -> None:
    seen: list[Any] = []

    class Watching(Flatten):
        def _backward(self, dLdY: Any, saved: Any, params: bool, inputs: bool) -> Any:
            seen.append(dLdY.copy())
            return super()._backward(dLdY, saved, params, inputs)

    X = np.random.default_rng(5).standard_normal((40, 10))
    check_gradients(Watching(), X, seed=5)
    assert abs(np.corrcoef(seen[0].ravel(), X.ravel())[0, 1]) < 0.3


def test_bad_calls() -> None:
    X = normal(4, 5)
    with pytest.raises(ParameterError, match="two forward passes of Dropout differ"):
        check_gradients(Dropout(0.5), X)
    small = FullyConnected(2)
    small.forward(X.astype("float32"))
    with pytest.raises(DTypeError, match="computes in float32, expected float64"):
        check_gradients(small, X)
    for bad in ({"step": 0.0}, {"step": float("nan")}, {"tolerance": -1.0}, {"entries": 0}):
        with pytest.raises(ParameterError, match=f"check_gradients: {next(iter(bad))} must be"):
            check_gradients(FullyConnected(2), X, **bad)
    with pytest.raises(DTypeError):
        check_gradients(FullyConnected(2), [[1.0]])


def test_it_is_a_name_of_the_package() -> None:
    assert gpulayers.check_gradients is check_gradients
