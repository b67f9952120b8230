"""Every refused call says which layer, what was expected and what came; and changes nothing."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from gpulayers import layers
from gpulayers.errors import BackendError, DTypeError, ParameterError, ShapeError
from tests.conftest import Backend
from tests.layers import harness
from tests.layers.cases import CASES, Case, with_cases
from tests.support.compare import assert_close, assert_same_bits

ranked = [case for case in CASES if case.layer not in ("Flatten", "Softmax", "Dropout")]
with_ranked = pytest.mark.parametrize("case", ranked, ids=lambda case: case.id)
sized = [case for case in CASES if case.size]
with_sized = pytest.mark.parametrize("case", sized, ids=lambda case: case.id)


def still_works(case: Case, layer: layers.LayerBase, backend: Backend) -> None:
    """The layer computes what it would have without the refused calls."""
    gold = harness.gold_of(case)
    Y = harness.forward(layer, harness.input_of(case, backend))
    assert_close(Y, gold.Y)
    assert_close(layer.backward(harness.gradient_like(Y, backend)), gold.dX)
    harness.assert_grads(layer, gold.grads)


# --------------------------------------------------------------------------------------- inputs


@with_ranked
def test_a_wrong_rank(case: Case, backend: Backend) -> None:
    layer = harness.fresh(case, backend)
    for shape in [(*case.shape, 2), case.shape[:-1], (), (3,)]:
        expected = (
            rf"{case.layer}: expected an input \(n_ex, .*\), got shape {re.escape(str(shape))}"
        )
        with pytest.raises(ShapeError, match=expected):
            layer.forward(backend.asarray(np.ones(shape)))
    still_works(case, layer, backend)


@with_sized
@pytest.mark.parametrize("more", [1, 5, -1])
def test_a_wrong_number_of_channels(case: Case, backend: Backend, more: int) -> None:
    assert case.size is not None
    attribute, axis = case.size
    layer = harness.fresh(case, backend)
    shape = list(case.shape)
    shape[axis] += more
    expected = (
        rf"{case.layer}: expected an input \(n_ex, .*\) with {attribute} = {case.shape[axis]}, "
        rf"got shape {re.escape(str(tuple(shape)))}"
    )
    with pytest.raises(ShapeError, match=expected):
        layer.forward(backend.asarray(np.ones(shape)))
    still_works(case, layer, backend)


@with_sized
def test_no_channels_at_all(case: Case, backend: Backend) -> None:
    assert case.size is not None
    attribute, axis = case.size
    shape = list(case.shape)
    shape[axis] = 0
    layer = case.make()
    with pytest.raises(ShapeError, match=rf"{case.layer}: .* with {attribute} >= 1, got"):
        layer.forward(backend.asarray(np.ones(shape)))
    assert not layer.is_initialized
    assert getattr(layer, attribute) is None


@with_cases
@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "complex64"])
def test_a_wrong_dtype(case: Case, backend: Backend, dtype: str) -> None:
    layer = harness.fresh(case, backend)
    with pytest.raises(
        DTypeError,
        match=rf"{case.layer}: the input must have a floating dtype, got {dtype}; convert it",
    ):
        layer.forward(backend.asarray(np.ones(case.shape), dtype))
    Y = harness.forward(layer, harness.input_of(case, backend))
    with pytest.raises(
        DTypeError, match=rf"{case.layer}: the gradient must have a floating dtype, got {dtype}"
    ):
        layer.backward(backend.asarray(np.ones(Y.shape), dtype))
    layer.flush_gradients()
    still_works(case, layer, backend)


@with_cases
@pytest.mark.parametrize("thing", [[[1.0]], None, 3.0, "text"], ids=repr)
def test_something_that_is_no_array(case: Case, numpy_backend: Backend, thing: Any) -> None:
    layer = harness.fresh(case, numpy_backend)
    with pytest.raises(DTypeError, match=rf"{case.layer}: the input: expected .* array, got"):
        layer.forward(thing)
    Y = harness.forward(layer, harness.input_of(case, numpy_backend))
    if not isinstance(thing, list) or case.sequence:
        with pytest.raises(DTypeError, match=rf"{case.layer}: the gradient: expected .* array"):
            layer.backward(thing)
    assert Y.shape == harness.gold_of(case).Y.shape
    layer.flush_gradients()
    still_works(case, layer, numpy_backend)


@with_cases
def test_a_gradient_of_the_wrong_shape(case: Case, backend: Backend) -> None:
    layer = harness.fresh(case, backend)
    Y = harness.forward(layer, harness.input_of(case, backend))
    for shape in [(*Y.shape, 1), Y.shape[:-1], (Y.shape[0] + 1, *Y.shape[1:]), ()]:
        expected = (
            rf"{case.layer}: the gradient must have the output's shape "
            rf"{re.escape(str(Y.shape))}, got {re.escape(str(shape))}"
        )
        with pytest.raises(ShapeError, match=expected):
            layer.backward(backend.asarray(np.ones(shape)))
    harness.assert_no_grads(layer)
    assert_close(layer.backward(harness.gradient_like(Y, backend)), harness.gold_of(case).dX)


@with_cases
def test_arrays_of_the_other_library(case: Case, emulated: Backend) -> None:
    layer = harness.fresh(case, emulated)
    Y = harness.forward(layer, harness.input_of(case, emulated))
    with pytest.raises(
        BackendError, match=rf"{case.layer}: the gradient is a numpy array, the output a cupy one"
    ):
        layer.backward(np.ones(Y.shape))
    layer.flush_gradients()
    if layer.parameters:
        with pytest.raises(
            BackendError,
            match=rf"{case.layer}: the parameters are cupy arrays, the input is a numpy array; "
            r"move one: layer\.to\('numpy'\)",
        ):
            layer.forward(np.ones(case.shape))
    still_works(case, layer, emulated)


@with_cases
def test_backward_without_forward(case: Case, numpy_backend: Backend) -> None:
    layer = case.make()
    with pytest.raises(ShapeError, match=rf"{case.layer}: no (input is retained|step is left)"):
        layer.backward(np.ones((2, 2)))


@pytest.mark.parametrize(
    "make, too_small, right",
    [
        (lambda: layers.Conv2D(2, 3), (1, 2, 9, 4), (1, 3, 3, 5)),
        (lambda: layers.Conv1D(2, 3), (1, 2, 4), (1, 3, 5)),
        (lambda: layers.Deconv2D(2, 1, pad=1), (1, 2, 2, 4), (1, 3, 3, 5)),
        (lambda: layers.RNN(2), (1, 4, 0), (1, 5, 1)),
        (lambda: layers.GroupNorm(5), (1, 3, 3, 4), (1, 3, 3, 5)),
        (lambda: layers.LSTM(2), (1, 4, 0), (1, 5, 1)),
        (lambda: layers.GRU(2), (1, 4, 0), (1, 5, 1)),
    ],
)
def test_a_refused_first_input_is_forgotten(make: Any, too_small: Any, right: Any) -> None:
    """It must not fix the layer's number of channels, nor leave weights behind."""
    layer = make()
    with pytest.raises(ShapeError):
        layer.forward(np.ones(too_small))
    assert not layer.is_initialized
    assert layer.gradients == {}
    layer.forward(np.ones(right))
    assert 5 in (layer.hyperparameters.get("in_ch"), layer.hyperparameters.get("n_in"))


# ---------------------------------------------------------------------------------- constructors

BAD_SIZES = [None, float("nan"), 0, -1, 1.5, True, "3", (3,), np.float32(2)]


@pytest.mark.parametrize("bad", BAD_SIZES, ids=repr)
@pytest.mark.parametrize(
    "layer, name, make",
    [
        ("FullyConnected", "n_out", lambda v: layers.FullyConnected(v)),
        ("Conv1D", "out_ch", lambda v: layers.Conv1D(v, 3)),
        ("Conv2D", "out_ch", lambda v: layers.Conv2D(v, 3)),
        ("Deconv2D", "out_ch", lambda v: layers.Deconv2D(v, 3)),
        ("RNNCell", "n_out", lambda v: layers.RNNCell(v)),
        ("RNN", "n_out", lambda v: layers.RNN(v)),
        ("LSTMCell", "n_out", lambda v: layers.LSTMCell(v)),
        ("LSTM", "n_out", lambda v: layers.LSTM(v)),
        ("GRUCell", "n_out", lambda v: layers.GRUCell(v)),
        ("GRU", "n_out", lambda v: layers.GRU(v)),
    ],
)
def test_bad_sizes(layer: str, name: str, make: Any, bad: Any) -> None:
    with pytest.raises(ParameterError, match=rf"{layer}: {name} must be an integer >= 1, got"):
        make(bad)


@pytest.mark.parametrize(
    "bad", [None, float("nan"), 0, -1, 1.5, True, "3", (3, None), (3, float("nan"))], ids=repr
)
@pytest.mark.parametrize(
    "layer, make",
    [
        ("Conv2D", lambda v: layers.Conv2D(2, v)),
        ("Deconv2D", lambda v: layers.Deconv2D(2, v)),
        ("Pool2D", lambda v: layers.Pool2D(v)),
        ("Conv1D", lambda v: layers.Conv1D(2, v)),
    ],
)
def test_bad_kernels(layer: str, make: Any, bad: Any) -> None:
    with pytest.raises(ParameterError, match=rf"{layer}: kernel(_width)? must be an integer >= 1"):
        make(bad)


WINDOWED = {
    "Conv1D": lambda **kwargs: layers.Conv1D(2, 3, **kwargs),
    "Conv2D": lambda **kwargs: layers.Conv2D(2, (3, 3), **kwargs),
    "Deconv2D": lambda **kwargs: layers.Deconv2D(2, (3, 3), **kwargs),
    "Pool2D": lambda **kwargs: layers.Pool2D((3, 3), **kwargs),
}


@pytest.mark.parametrize("layer", WINDOWED)
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"stride": 0}, "stride must be an integer >= 1, got 0"),
        ({"stride": None}, "stride must be an integer >= 1, got None"),
        ({"stride": float("nan")}, "stride must be an integer >= 1, got nan"),
        ({"stride": 1.0}, "stride must be an integer >= 1, got 1.0"),
        ({"pad": -1}, "pad must be an integer >= 0, got -1"),
        ({"pad": None}, "pad must be an integer >= 0, got None"),
        ({"pad": (0, -1)}, "pad must be an integer >= 0, got -1"),
        ({"pad": (1, 2, 3)}, "pad must be an int"),
        ({"pad": "full"}, "pad must be .*'same'.*, got 'full'"),
        ({"dilation": -1}, "dilation must be an integer >= 0, got -1"),
        ({"dilation": 0.5}, "dilation must be an integer >= 0, got 0.5"),
    ],
)
def test_bad_windows(layer: str, arguments: dict[str, Any], message: str) -> None:
    if "dilation" in arguments and layer in ("Deconv2D", "Pool2D"):
        pytest.skip("has no dilation")
    with pytest.raises(ParameterError, match=rf"{layer}: {message}"):
        WINDOWED[layer](**arguments)
    built = WINDOWED[layer]()
    ((name, value),) = arguments.items()
    before = getattr(built, name)
    with pytest.raises(ParameterError, match=rf"{layer}: {message}"):
        setattr(built, name, value)
    assert getattr(built, name) == before


@pytest.mark.parametrize(
    "layer, name, value, message",
    [
        (layers.Dropout(0.1), "p", 1.0, r"Dropout: p must be a number in \[0, 1\), got 1.0"),
        (layers.Flatten(), "keep_dim", "all", "Flatten: keep_dim must be one of"),
        (layers.LayerNorm1D(), "epsilon", -1, "LayerNorm1D: epsilon must be"),
        (layers.ZeroPad2D(), "pad", (1, 2, 3), "ZeroPad2D: pad must be an int"),
        (layers.FullyConnected(2), "act_fn", 3, "FullyConnected: act_fn: .* got 3"),
        (layers.FullyConnected(2), "optimizer", "adamm", "optimizer: .*did you mean 'Adam'"),
        (layers.LSTM(2), "gate_fn", "sigmoit", "LSTM: gate_fn: .*did you mean 'Sigmoid'"),
        (layers.RNN(2), "truncate", 0, "RNN: truncate must be an integer >= 1, got 0"),
    ],
)
def test_bad_assignments(layer: Any, name: str, value: Any, message: str) -> None:
    before = vars(layer).copy()
    with pytest.raises(ParameterError, match=message):
        setattr(layer, name, value)
    assert vars(layer) == before


@pytest.mark.parametrize(
    "assigned, constructed, shape",
    [
        (layers.Conv2D(2, 3), layers.Conv2D(2, 3, pad="same", stride=[2, 1]), (2, 7, 6, 3)),
        (layers.Deconv2D(2, 3), layers.Deconv2D(2, 3, pad=[1, 0], stride=2), (2, 3, 2, 3)),
        (layers.Pool2D(3), layers.Pool2D(3, (2, 3), (1, 1, 0, 1), "average"), (2, 7, 6, 3)),
        (layers.Conv1D(2, 3), layers.Conv1D(2, 3, [2, 1], 2, 1, "ReLU"), (2, 9, 3)),
        (layers.ZeroPad2D(), layers.ZeroPad2D((2, 0, 1, 3)), (1, 2, 2, 1)),
        (layers.FullyConnected(3), layers.FullyConnected(3, "Tanh", optimizer="Adam"), (2, 4)),
    ],
)
def test_assigned_later_is_as_constructed(
    assigned: Any, constructed: Any, shape: tuple[int, ...]
) -> None:
    """Also as a list, an array, or the description of an object."""
    X = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    Y = constructed.forward(X)
    for name in ("pad", "stride", "dilation", "mode"):
        if name in constructed.hyperparameters:
            value = getattr(constructed, name)
            whole = isinstance(value, tuple)
            setattr(assigned, name, np.array(value) if whole else value)
    assigned.optimizer = str(constructed.optimizer)
    if assigned.act_fn is not None:
        assigned.act_fn = str(constructed.act_fn)
    assigned.set_params({"parameters": constructed.parameters})
    assert_same_bits(assigned.forward(X), Y)
    kept = assigned.hyperparameters
    assert kept == constructed.hyperparameters


@pytest.mark.parametrize(
    "layer, shape, message",
    [
        (layers.Conv2D(2, (5, 3)), (1, 4, 9, 2), "Conv2D: the kernel spans 5 x 3 pixels, but"),
        (layers.Conv2D(2, 3, dilation=2, pad=1), (1, 4, 4, 1), "Conv2D: .* has only 6 x 6"),
        (layers.Conv1D(2, 4), (1, 3, 1), "Conv1D: the kernel spans 1 x 4 pixels"),
        (layers.Pool2D(3), (1, 2, 5, 1), "Pool2D: the kernel spans 3 x 3 pixels"),
        (layers.Pool2D(2, pad=2), (1, 4, 4, 1), "some window sees only padding"),
        (layers.Deconv2D(2, 2, pad=3), (1, 2, 2, 1), "Deconv2D: an input of 2 x 2 pixels leaves"),
        (layers.Conv2D(2, 1), (2, 0, 3, 1), "Conv2D: .* padded input has only 0 x 3"),
        (layers.Softmax(2), (2, 3), r"Softmax: expected an input with an axis 2, got \(2, 3\)"),
        (layers.Softmax(-3), (2, 3), r"Softmax: expected an input with an axis -3"),
        (layers.Flatten(), (), r"Flatten: expected an input with at least one axis, got shape \("),
        (layers.GlobalAvgPool2D(), (2, 0, 3, 1), "GlobalAvgPool2D: .* rows and cols >= 1, got"),
        (layers.GroupNorm(2), (2, 3, 3, 3), "GroupNorm: .* divisible by n_groups = 2, got shape"),
        (layers.GroupNorm(1), (2, 0, 3, 3), "GroupNorm: .* rows and cols >= 1 .*got shape"),
        (layers.LayerNorm2D(), (2, 0, 3, 1), r"LayerNorm2D: .* rows and cols >= 1, got .*2, 0"),
        (layers.RNN(2), (2, 3, 0), r"RNN: expected at least one time step, got shape \(2, 3, 0\)"),
    ],
)
def test_inputs_that_do_not_fit_the_settings(
    layer: layers.LayerBase, shape: tuple[int, ...], message: str, backend: Backend
) -> None:
    with pytest.raises(ShapeError, match=message):
        layer.forward(backend.asarray(np.ones(shape)))
    assert all(p is None for p in layer.parameters.values())
    assert not layer.is_initialized


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: layers.FullyConnected(3, act_fn="rellu"), "'rellu'.*did you mean 'relu'"),
        (lambda: layers.FullyConnected(3, act_fn=3), "3"),
        (lambda: layers.FullyConnected(3, init="glorot"), "'glorot'.*did you mean 'glorot_"),
        (lambda: layers.Conv2D(3, 3, optimizer="adamm"), "adamm.*did you mean 'adam"),
        (lambda: layers.Conv1D(3, 3, optimizer="Adam(lr=-1)"), "lr"),
        (lambda: layers.LSTM(3, gate_fn="sigmod"), "'sigmod'.*did you mean 'sigmoid'"),
        (lambda: layers.LSTMCell(3, gate_fn=0.5), "0.5"),
        (lambda: layers.GRU(3, gate_fn="sigmod"), "'sigmod'.*did you mean 'sigmoid'"),
        (lambda: layers.Pool2D(2, mode="maximum"), "Pool2D: mode must be one of 'max', 'average'"),
        (lambda: layers.Pool2D(2, mode="avg"), "Pool2D: .*got 'avg'"),
        (lambda: layers.Flatten("frist"), "Flatten: keep_dim .* got 'frist' .*mean 'first'"),
        (lambda: layers.Flatten(1), "Flatten: keep_dim must be one of 'first', 'last', -1, got 1"),
        (lambda: layers.Softmax("last"), "Softmax: dim must be an integer"),
        (lambda: layers.Softmax(1.0), "Softmax: dim must be an integer"),
        (lambda: layers.Dropout(1.0), r"Dropout: p must be a number in \[0, 1\), got 1.0"),
        (lambda: layers.Dropout(-0.1), r"Dropout: p must be a number in \[0, 1\), got -0.1"),
        (lambda: layers.Dropout(float("nan")), r"Dropout: p must be a number in \[0, 1\), got nan"),
        (lambda: layers.Dropout(None), r"Dropout: p must be a number in \[0, 1\), got None"),
        (
            lambda: layers.Dropout(layers.Flatten(), 0.5),
            r"wrap it: gpulayers\.wrappers\.Dropout\(l",
        ),
        (lambda: layers.BatchNorm2D(momentum=1.1), "BatchNorm2D: momentum must be a number in"),
        (lambda: layers.Upsample2D(0), "Upsample2D: factor must be an integer >= 1, got 0"),
        (lambda: layers.Upsample2D(1.5), r"Upsample2D: factor must be an int or \(rows, cols\)"),
        (lambda: layers.Upsample2D((2, 2, 2)), r"Upsample2D: factor .* got \(2, 2, 2\)"),
        (lambda: layers.Upsample2D((2, None)), "Upsample2D: factor must be an integer >= 1, got N"),
        (lambda: layers.ZeroPad2D(-1), "ZeroPad2D: pad must be an integer >= 0, got -1"),
        (lambda: layers.ZeroPad2D("same"), "ZeroPad2D: pad must be an int or .* got 'same'"),
        (lambda: layers.ZeroPad2D((1, 2, 3)), "ZeroPad2D: pad must be an int"),
        (lambda: layers.GroupNorm(0), "GroupNorm: n_groups must be an integer >= 1, got 0"),
        (lambda: layers.GroupNorm(1, -1), "GroupNorm: epsilon must be a number in"),
        (lambda: layers.LayerNorm1D(epsilon=-1), r"LayerNorm1D: epsilon must be a number in \[0"),
        (lambda: layers.LayerNorm2D("a"), r"LayerNorm2D: epsilon must be .* got 'a'"),
        (lambda: layers.BatchNorm1D(momentum="x"), "BatchNorm1D: momentum must be a number in"),
        (lambda: layers.BatchNorm2D(epsilon=-1), "BatchNorm2D: epsilon must be a number in"),
        (lambda: layers.BatchNorm2D(epsilon="a"), "BatchNorm2D: epsilon must be .* got 'a'"),
        (lambda: layers.BatchNorm2D(epsilon=float("inf")), "BatchNorm2D: epsilon must be"),
    ],
)
def test_bad_names_and_numbers(make: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=f"(?i){message}"):
        make()


def test_a_list_as_input_gradient_pair(numpy_backend: Backend) -> None:
    layer = layers.FullyConnected(2)
    layer.forward(np.ones((2, 3)))
    with pytest.raises(DTypeError, match=r"FullyConnected: the gradient: expected .*got float"):
        layer.backward([1.0])
    assert_same_bits(layer.backward((np.zeros((2, 2)),)), np.zeros((2, 3), np.float32))
