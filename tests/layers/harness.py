"""Running a case: a layer with known parameters, inputs, and what came out."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpulayers import backend as backends
from gpulayers import layers, random
from tests.conftest import Backend
from tests.layers.cases import Case
from tests.layers.gold import SEED, Result
from tests.support.compare import assert_close, host

Params = dict[str, np.ndarray]


@contextlib.contextmanager
def default_dtype(dtype: str) -> Iterator[None]:
    """Layers create their parameters in `dtype`."""
    before = backends.default_dtype()
    backends.set_default_dtype(dtype)
    try:
        yield
    finally:
        backends.set_default_dtype(before)


def values(shape: tuple[int, ...], seed: int, dtype: str = "float64") -> np.ndarray:
    """Normal numbers, rounded to `dtype` and returned in float64."""
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype).astype(float)


def parameters_of(case: Case, dtype: str = "float64") -> Params:
    """Known parameters for the case's layer, by name, in float64; read-only."""
    return dict(_parameters_of(case, dtype))


@functools.cache
def _parameters_of(case: Case, dtype: str) -> Params:
    with default_dtype("float64"), backends.use_backend("numpy"):
        layer = case.make()
        layer.forward(values(case.shape, 0), retain_derived=False)
    known = {}
    for k, (name, array) in enumerate(sorted(layer.parameters.items())):
        numbers = 0.5 * values(array.shape, 100 + k)
        known[name] = np.abs(numbers) + 0.5 if name == "running_var" else numbers
    return read_only({name: v.astype(dtype).astype(float) for name, v in known.items()})


def read_only(arrays: Params) -> Params:
    """The same arrays, which nobody can change any more."""
    for array in arrays.values():
        array.setflags(write=False)
    return arrays


def fresh(case: Case, backend: Backend, dtype: str = "float64", **kwargs: Any) -> layers.LayerBase:
    """A layer of the case that has seen an input's shape and holds the known parameters."""
    layer = case.make(**kwargs)
    with default_dtype(dtype):
        layer.forward(backend.asarray(values(case.shape, 0), dtype), retain_derived=False)
    layer.flush_gradients()
    for name, known in parameters_of(case, dtype).items():
        layer.parameters[name][...] = backend.asarray(known, dtype)
    return layer


def forward(layer: layers.LayerBase, X: Any, **kwargs: Any) -> Any:
    """`layer.forward` with the generator restarted, so that dropout repeats itself."""
    random.seed(SEED)
    return layer.forward(X, **kwargs)


def input_of(case: Case, backend: Backend, dtype: str = "float64", batch: int | None = None) -> Any:
    shape = case.shape if batch is None else case.batch_of(batch)
    return backend.asarray(values(shape, 1, dtype), dtype)


def gradient_like(Y: Any, backend: Backend, dtype: str | None = None) -> Any:
    name = dtype or Y.dtype.name
    return backend.asarray(values(Y.shape, 2, name), name)


@functools.cache
def gold_of(case: Case, dtype: str = "float64", batch: int | None = None) -> Result:
    """The gold of `fresh(case)` on `input_of(case)` with `gradient_like(Y)`."""
    shape = case.shape if batch is None else case.batch_of(batch)
    return case.gold(
        parameters_of(case, dtype),
        values(shape, 1, dtype),
        lambda out_shape: values(out_shape, 2, dtype),
    )


def snapshot(arrays: dict[str, Any]) -> Params:
    """Copies on the host, as they are."""
    return {name: backends.to_cpu(array).copy() for name, array in arrays.items()}


def assert_grads(layer: layers.LayerBase, gold: Params, **kwargs: Any) -> None:
    """The layer holds exactly these gradients."""
    assert layer.gradients.keys() == gold.keys()
    for name, expected in gold.items():
        assert_close(layer.gradients[name], expected, **kwargs)


def assert_no_grads(layer: layers.LayerBase) -> None:
    for name, gradient in layer.gradients.items():
        assert not host(gradient).any(), f"gradient of {name} is not zero"
