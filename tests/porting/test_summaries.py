"""Summaries made by numpy-ml load, and give numpy-ml's outputs, gradients and next update."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpulayers import layers, modules, random
from gpulayers.wrappers import Dropout
from tests.conftest import Backend
from tests.layers.harness import default_dtype
from tests.support.compare import host

ARRAYS = Path(__file__).with_name("numpy_ml_summaries.npz")

# float32: the weights are rounded, and so are some dozen products
TOLERANCE = {"float64": 1e-12, "float32": 1e-6}
GRADIENTS = {"float64": 1e-11, "float32": 1e-5}

# A new object of each kind, with settings other than those in the summaries
MAKE: dict[str, Callable[[], Any]] = {
    "FullyConnected": lambda: layers.FullyConnected(9),
    "Conv1D": lambda: layers.Conv1D(9, 1),
    "Conv2D": lambda: layers.Conv2D(9, (1, 1)),
    "Deconv2D": lambda: layers.Deconv2D(9, (1, 1)),
    "Pool2D": lambda: layers.Pool2D((1, 1)),
    "BatchNorm1D": lambda: layers.BatchNorm1D(momentum=0.1),
    "BatchNorm2D": lambda: layers.BatchNorm2D(momentum=0.1),
    "LayerNorm1D": lambda: layers.LayerNorm1D(epsilon=0.1),
    "LayerNorm2D": lambda: layers.LayerNorm2D(epsilon=0.1),
    "SoftmaxLayer": layers.Softmax,
    "Flatten": layers.Flatten,
    "Sum": layers.Add,
    "Multiply": layers.Multiply,
    "Embedding": lambda: layers.Embedding(9, 9),
    "DotProductAttention": lambda: layers.DotProductAttention(scale=False),
    "RNNCell": lambda: layers.RNNCell(9, act_fn="ReLU"),
    "LSTMCell": lambda: layers.LSTMCell(9, act_fn="ReLU"),
    "SkipConnectionIdentityModule": lambda: modules.SkipConnectionIdentityModule(9, 1, 1),
    "SkipConnectionConvModule": lambda: modules.SkipConnectionConvModule(9, 9, 1, 1, 1),
    "WavenetResidualModule": lambda: modules.WavenetResidualModule(9, 9, 0, 1),
    "BidirectionalLSTM": lambda: modules.BidirectionalLSTM(9, merge_mode="sum"),
    "MultiHeadedAttentionModule": lambda: modules.MultiHeadedAttentionModule(1),
}


@functools.cache
def stored() -> tuple[dict[str, Any], np.ndarray]:
    with np.load(ARRAYS) as file:
        return {c["name"]: c for c in json.loads(file["cases"].tobytes())}, file["numbers"]


def decoded(entry: Any, dtype: str) -> Any:
    """The stored structure, with NumPy arrays as numpy-ml has them, or rounded to float32."""
    if isinstance(entry, dict):
        if entry.keys() == {"@tuple"}:
            return tuple(decoded(v, dtype) for v in entry["@tuple"])
        if entry.keys() == {"@array"}:
            start, shape, kind = entry["@array"]
            numbers = stored()[1][start : start + int(np.prod(shape))].reshape(shape)
            return numbers.astype(dtype if kind == "float64" else kind)
        return {k: decoded(v, dtype) for k, v in entry.items()}
    return [decoded(v, dtype) for v in entry] if isinstance(entry, list) else entry


def case_of(name: str, dtype: str) -> dict[str, Any]:
    return decoded(stored()[0][name], dtype)


def leaves(entry: Any) -> Iterator[Any]:
    """The arrays in nested dicts, lists and tuples, in order."""
    if isinstance(entry, dict):
        for key in sorted(entry):
            yield from leaves(entry[key])
    elif isinstance(entry, list | tuple):
        for value in entry:
            yield from leaves(value)
    elif entry is not None:
        yield entry


def assert_equal(ours: Any, theirs: Any, tolerance: float, dtype: str) -> None:
    """Array by array, to `tolerance` of the largest number."""
    mine, known = list(leaves(ours)), list(leaves(theirs))
    assert len(mine) == len(known) > 0
    for a, b in zip(mine, known, strict=True):
        assert a.shape == b.shape and a.dtype == dtype
        close = tolerance * max(1.0, np.abs(b).max(initial=0.0))
        np.testing.assert_allclose(host(a), b, rtol=0, atol=close)


def on(backend: Backend, entry: Any) -> Any:
    """The same structure with arrays of the backend."""
    if isinstance(entry, list | tuple):
        return type(entry)(on(backend, v) for v in entry)
    return backend.asarray(entry)


NAMES = list(stored()[0])
LEARNERS = [name for name in NAMES if "updated" in stored()[0][name]]
with_dtype = pytest.mark.parametrize("dtype", ["float64", "float32"])


def restored(case: dict[str, Any], dtype: str = "float64") -> Any:
    """A new layer takes the summary's dtype, not the default; Embedding, which has weights from
    the start, keeps that of its weights."""
    kind = case["summary"]["layer"]
    wrapped = "layer_wrappers" in case["summary"]
    with default_dtype(dtype if kind == "Embedding" else "float32"):
        fresh = MAKE[kind]()
    return (Dropout(fresh, 0.9) if wrapped else fresh).set_params(case["summary"])


def forward(layer: Any, case: dict[str, Any], backend: Backend) -> Any:
    """The output or outputs: cells take a list of steps, attention and modules several arrays."""
    X = on(backend, case["X"])
    if isinstance(X, tuple):
        Y = layer.forward(*X)
        return Y if isinstance(layer, layers.LayerBase) or isinstance(Y, tuple) else (Y,)
    if isinstance(layer, layers.RNNCell | layers.LSTMCell):
        outs = [layer.forward(x) for x in X]
        return [out[0] if isinstance(out, tuple) else out for out in outs]
    return layer.forward(X)


def backward(layer: Any, case: dict[str, Any], backend: Backend) -> Any:
    dY = on(backend, case["dY"])
    if isinstance(layer, layers.RNNCell | layers.LSTMCell):
        return [layer.backward(dy) for dy in reversed(dY)][::-1]
    if not isinstance(dY, tuple):
        return layer.backward(dY)
    if isinstance(layer, modules.WavenetResidualModule):
        dY = dY[::-1]
    dX = layer.backward(*dY)
    return dX if isinstance(dX, tuple) else (dX,)


def gradients(layer: Any) -> Any:
    return layer.gradients.get("components", layer.gradients)


@with_dtype
@pytest.mark.parametrize("name", NAMES)
def test_the_same_outputs_and_gradients(name: str, dtype: str, backend: Backend) -> None:
    case, reference = case_of(name, dtype), case_of(name, "float64")
    layer = restored(case, dtype)
    if "evaluated" in case:
        Y = layer.forward(on(backend, case["X"]), retain_derived=False)
        assert_equal(Y, reference["evaluated"], TOLERANCE[dtype], dtype)
    if "Y" in case:
        Y = forward(layer, case, backend)
        assert_equal(Y, reference["Y"], TOLERANCE[dtype], dtype)
    if "dX" in case:
        dX = backward(layer, case, backend)
        if reference["dX"] is None:
            assert dX is None
        else:
            assert_equal(dX, reference["dX"], GRADIENTS[dtype], dtype)
    if reference.get("gradients"):
        assert_equal(gradients(layer), reference["gradients"], GRADIENTS[dtype], dtype)


@with_dtype
@pytest.mark.parametrize("name", [n for n in LEARNERS if stored()[0][n]["updated"]])
def test_the_next_update_goes_on_from_the_optimizers_state(
    name: str, dtype: str, backend: Backend
) -> None:
    case, reference = case_of(name, dtype), case_of(name, "float64")
    layer = restored(case, dtype)
    forward(layer, case, backend)
    backward(layer, case, backend)
    layer.update()
    parameters = layer.parameters.get("components", layer.parameters)
    assert_equal(parameters, reference["updated"], 10 * TOLERANCE[dtype], dtype)


def without_state(entry: Any) -> Any:
    """The summary with every optimizer's cache emptied."""
    if not isinstance(entry, dict):
        return entry
    return {k: {} if k == "cache" else without_state(v) for k, v in entry.items()}


def test_the_state_matters(numpy_backend: Backend) -> None:
    """Without the caches the same update goes elsewhere."""
    stateful = set()
    for name in LEARNERS:
        case = case_of(name, "float64")
        case["summary"] = without_state(case["summary"])
        layer = restored(case)
        forward(layer, case, numpy_backend)
        backward(layer, case, numpy_backend)
        layer.update()
        parameters = layer.parameters.get("components", layer.parameters)
        pairs = zip(leaves(parameters), leaves(case["updated"]), strict=True)
        if any(np.abs(host(a) - b).max() > 1e-4 for a, b in pairs):
            stateful.add(name)
    assert {"fc tanh adam", "conv2d same", "lstmcell", "wavenet", "heads"} <= stateful
    assert len(stateful) >= 15


@pytest.mark.parametrize("name", NAMES)
def test_a_summary_is_read_not_used_up(name: str, numpy_backend: Backend) -> None:
    """What was restored describes itself as it was described; the caller's dict stays."""
    case, again = case_of(name, "float64"), case_of(name, "float64")
    layer = restored(case)
    np.testing.assert_equal(case["summary"], again["summary"])
    theirs, mine = again["summary"], layer.summary()
    assert mine["layer"] == theirs["layer"]
    for a, b in zip(leaves(mine["parameters"]), leaves(theirs["parameters"]), strict=True):
        np.testing.assert_array_equal(a, b)
    shown = mine["hyperparameters"]
    for key, value in theirs["hyperparameters"].items():
        if key not in ("optimizer", "components", "act_fn"):
            assert shown[key] == value or list(shown[key]) == list(value), key


@with_dtype
def test_trained_arrays_alone_carry_over(dtype: str, backend: Backend) -> None:
    """A dict of arrays, as in an .npz file, into a layer made with the same settings."""
    case = case_of("conv2d stride", dtype)
    layer = layers.Conv2D(3, (3, 3), pad=(1, 0, 2, 1), stride=2, act_fn="ReLU")
    random.seed(0)
    layer.set_params(case["summary"]["parameters"])
    Y = layer.forward(on(backend, case["X"]))
    assert_equal(Y, case_of("conv2d stride", "float64")["Y"], TOLERANCE[dtype], dtype)


def test_every_layer_of_numpy_ml_that_works_is_there() -> None:
    kinds = {case["summary"]["layer"] for case in stored()[0].values()}
    assert kinds == set(MAKE)
    assert ARRAYS.stat().st_size < 300_000
