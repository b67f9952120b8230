"""What a plan follows when its network is changed, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from gpulayers.activations import Tanh
from gpulayers.errors import BackendError, DTypeError, ParameterError, ShapeError
from gpulayers.layers import Conv2D, FullyConnected
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models import Sequential
from tests.conftest import switched_to
from tests.models.planned import (
    IMAGE,
    assert_alike,
    batches,
    by_example,
    fused,
    mixed,
    plain_step,
    twins,
)


def test_frozen_layers_pass_gradients_and_stand_still(backend: Any) -> None:
    plain, planned = twins(fused, backend)
    for network in (plain, planned):
        network.layers[2].freeze()
        network.layers[9].freeze()
    before = backend.asnumpy(planned.layers[2].parameters["W"]).copy()
    plan = planned.compile(batch_shape=(7, *IMAGE))
    for X, labels in batches(backend, 2, 7):
        plain_step(plain, SoftmaxCrossEntropy(), X, labels)
        plan.step(X, labels)
    np.testing.assert_array_equal(backend.asnumpy(planned.layers[2].parameters["W"]), before)
    assert_alike(backend, planned, plain, 2e-5)


def test_optimizer_state_is_the_layers_own(backend: Any) -> None:
    """After a planned step one goes on without the plan, and the other way round."""
    plain, planned = twins(by_example, backend)
    plan = planned.compile(batch_shape=(6, *IMAGE))
    for i, (X, labels) in enumerate(batches(backend, 6, 6)):
        plain_step(plain, SoftmaxCrossEntropy(), X, labels)
        if i % 2:
            plan.step(X, labels)
        else:
            plain_step(planned, SoftmaxCrossEntropy(), X, labels)
    assert_alike(backend, planned, plain, 2e-5)
    assert planned.layers[0].optimizer.cur_step == 6


@pytest.fixture(params=["numpy", pytest.param("compiled", marks=pytest.mark.compiled)])
def engine_on_cpu(request: pytest.FixtureRequest) -> Iterator[Any]:
    with switched_to(request.param) as chosen:
        yield chosen


def _unwritable(W: Any) -> Any:
    W = W.copy()
    W.flags.writeable = False
    return W


LYING: dict[str, Callable[[Any], Any]] = {
    "a transpose": lambda W: W.T.copy().T,
    "every second number": lambda W: np.repeat(W, 2, axis=-1)[..., ::2],
    "the other byte order": lambda W: W.astype(W.dtype.newbyteorder()),
    "write-protected": _unwritable,
}


@pytest.mark.parametrize("lying", LYING)
@pytest.mark.parametrize("place", [0, -1], ids=["convolution", "dense"])
def test_an_assigned_parameter_may_lie_anyhow(engine_on_cpu: Any, place: int, lying: str) -> None:
    plain, planned = twins(by_example, engine_on_cpu)
    for network in (plain, planned):
        parameters = network.layers[place].parameters
        parameters["W"] = LYING[lying](parameters["W"])
    plan = planned.compile(batch_shape=(6, *IMAGE))
    given: list[Any] = []
    copies: list[Any] = []
    for i, (X, labels) in enumerate(batches(engine_on_cpu, 3, 6)):
        expected = plain_step(plain, SoftmaxCrossEntropy(), X, labels)
        assert plan.step(X, labels) == pytest.approx(expected, rel=2e-5)
        if i == 0:  # later steps meet the state that the optimizer has kept
            for network in (plain, planned):
                parameters = network.layers[place].parameters
                given.append(LYING[lying](parameters["W"] * 0.5))
                parameters["W"] = given[-1]
            copies = [W.copy() for W in given]
    assert_alike(engine_on_cpu, planned, plain, 2e-5)
    for W, copy in zip(given, copies, strict=True):
        np.testing.assert_array_equal(W, copy)  # what was given has not been changed


def _exchange(network: Sequential) -> None:
    network.layers[-1] = FullyConnected(4)


def _exchange_inside(network: Sequential) -> None:
    network.layers[2].body.layers.append(FullyConnected(4))


def _activate(network: Sequential) -> None:
    network.layers[0].body.layers[0].act_fn = Tanh()


def _exchange_body(network: Sequential) -> None:
    network.layers[0].body = Sequential([Conv2D(2, (1, 1))])


def _drop_shortcut(network: Sequential) -> None:
    network.layers[2].shortcut = None


def _dilate(network: Sequential) -> None:
    network.layers[2].shortcut.layers[0].dilation = [1, 0]


def _pad(network: Sequential) -> None:
    network.layers[1].layers[0].set_params({"pad": 1})


CHANGES = [
    (_exchange, "the layers of Sequential"),
    (_exchange_inside, "the layers of Residual body"),
    (_activate, "the activation of a Conv2D, which was ReLU"),
    (_exchange_body, "the parts of Residual"),
    (_drop_shortcut, "the parts of Residual"),
    (_dilate, "the dilation of a Conv2D, which was 0"),
    (_pad, "the pad of a Deconv2D, which was 0"),
]


@pytest.mark.parametrize("change, what", CHANGES[:2])
def test_a_plan_of_something_else_is_refused(backend: Any, change: Any, what: str) -> None:
    check_refused(backend, change, what)


@pytest.mark.parametrize("change, what", CHANGES[2:])
def test_other_changes_are_refused(numpy_backend: Any, change: Any, what: str) -> None:
    check_refused(numpy_backend, change, what)


def check_refused(backend: Any, change: Any, what: str) -> None:
    network = twins(mixed, backend)[0]
    plan = network.compile(batch_shape=(6, *IMAGE))
    ((X, labels),) = batches(backend, 1, 6)
    plan.step(X, labels)
    change(network)
    with pytest.raises(ParameterError, match=f"Sequential: changed since .*made: {what}; compile"):
        plan.step(X, labels)


def test_another_loss_is_refused(numpy_backend: Any) -> None:
    loss = SoftmaxCrossEntropy()
    plan = twins(by_example, numpy_backend)[0].compile(batch_shape=(6, *IMAGE), loss=loss)
    ((X, labels),) = batches(numpy_backend, 1, 6)
    loss.label_smoothing = 0.1
    with pytest.raises(ParameterError, match="since the plan was made: the loss; compile again"):
        plan.step(X, labels)


def test_pooling_of_another_kind_is_refused(numpy_backend: Any) -> None:
    network = twins(fused, numpy_backend)[0]
    plan = network.compile(batch_shape=(6, *IMAGE))
    ((X, labels),) = batches(numpy_backend, 1, 6)
    network.layers[1].set_params({"mode": "average"})
    with pytest.raises(ParameterError, match="the mode of a Pool2D, which was max"):
        plan.step(X, labels)
    network.layers[1].mode = "max"
    plan.step(X, labels)
    network.layers[0].stride = 2  # the first two in one pass, which went on with the old one
    with pytest.raises(ParameterError, match="the stride of a Conv2D, which was 1"):
        plan.step(X, labels)


def test_parameters_in_another_dict(engine_on_cpu: Any) -> None:
    plain, planned = twins(by_example, engine_on_cpu)
    plan = planned.compile(batch_shape=(6, *IMAGE))
    for i, (X, labels) in enumerate(batches(engine_on_cpu, 2, 6)):
        plain_step(plain, SoftmaxCrossEntropy(), X, labels)
        plan.step(X, labels)
        if i == 0:
            for layer in (plain.layers[-1], planned.layers[-1]):
                layer.parameters = {k: 2 * v for k, v in layer.parameters.items()}
    assert_alike(engine_on_cpu, planned, plain, 2e-5)
    last = planned.layers[-1]
    last.parameters = {**last.parameters, "W": last.parameters["W"][:-1]}
    with pytest.raises(
        ShapeError, match=r"parameter '3.W': the plan was made for shape \(100, 4\)"
    ):
        plan.step(X, labels)


def test_a_parameter_of_another_size_is_refused(backend: Any) -> None:
    network = twins(by_example, backend)[0]
    plan = network.compile(batch_shape=(6, *IMAGE))
    ((X, labels),) = batches(backend, 1, 6)
    parameters = network.layers[-1].parameters
    kept = parameters["W"]
    for wrong, error, words in (
        (kept[:-1], ShapeError, r"made for shape \(\d+, 4\), got .*; compile again"),
        (kept.astype(np.float64), DTypeError, "made for float32, got float64; compile again"),
        ([1.0], DTypeError, "expected a numpy"),
    ):
        parameters["W"] = wrong
        with pytest.raises(error, match=rf"Sequential: parameter '\d+.W': .*{words}"):
            plan.step(X, labels)
    parameters["W"] = kept
    assert np.isfinite(float(plan.step(X, labels)))


# ------------------------------------------------------------------------------------- bad calls


def test_bad_batches_change_nothing(backend: Any) -> None:
    network = by_example()
    plan = network.compile(batch_shape=(4, *IMAGE))
    before = {k: backend.asnumpy(v).copy() for k, v in network.parameters.items()}
    ((X, labels),) = batches(backend, 1, 4)
    with pytest.raises(ShapeError, match=r"made for batches of shape \(4, 12, 10, 2\), got"):
        plan.step(X[:, :11], labels)
    with pytest.raises(ShapeError, match="at most 4 examples a batch, got 5"):
        plan.step(backend.asarray(np.zeros((5, *IMAGE), np.float32)), labels)
    with pytest.raises(ShapeError, match=r"labels of shape \(4,\), got \(3,\)"):
        plan.step(X, labels[:3])
    with pytest.raises(DTypeError, match="labels must be integers, got float32"):
        plan.step(X, labels.astype(np.float32))
    with pytest.raises(DTypeError, match="floating or uint8 batch, got int64"):
        plan.step(X.astype(np.int64), labels)
    with pytest.raises(DTypeError, match=r"Sequential: the labels: expected a numpy .*got list"):
        plan.step(X, [0, 1, 0, 1])
    for name, value in network.parameters.items():
        np.testing.assert_array_equal(backend.asnumpy(value), before[name])
    assert np.isfinite(float(plan.step(X, labels)))


def test_a_batch_of_the_other_library(emulated: Any) -> None:
    plan = by_example().compile(batch_shape=(4, *IMAGE))
    with pytest.raises(BackendError, match="made for cupy arrays, the batch is a numpy array"):
        plan.step(np.zeros((4, *IMAGE), np.float32), np.zeros(4, np.int64))


def test_bad_arguments() -> None:
    network = by_example()
    for shape in (5, (4,), (0, *IMAGE), (4.0, *IMAGE), (True, *IMAGE), "ab"):
        with pytest.raises(ParameterError, match="batch_shape must be"):
            network.compile(batch_shape=shape)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match=r"unknown loss 'crossentropy'.*mean 'cross_entropy'"):
        network.compile(batch_shape=(4, *IMAGE), loss="crossentropy")
    with pytest.raises(ParameterError, match="needs the methods forward"):
        network.compile(batch_shape=(4, *IMAGE), loss=object())
    with pytest.raises(ParameterError, match=r"unknown precision 'fp33'"):
        network.compile(batch_shape=(4, *IMAGE), precision="fp33")
    with pytest.raises(ShapeError, match="layer 0"):
        network.compile(batch_shape=(4, 12, 10))


@pytest.mark.parametrize("precision, dtype", [("fp64", "float64"), ("fp16", "float16")])
def test_a_network_that_was_never_updated_is_converted(
    backend: Any, precision: str, dtype: str
) -> None:
    """A step is then that of a network whose parameters were rounded by hand."""
    ours, theirs = twins(by_example, backend)
    before = dict(ours.parameters)
    plan = ours.compile(batch_shape=(4, *IMAGE), precision=precision)
    for _, layer in theirs.walk():
        layer.parameters.update({k: p.astype(dtype) for k, p in layer.parameters.items()})
    other = theirs.compile(batch_shape=(4, *IMAGE))
    for X, labels in batches(backend, 2, 4):
        assert float(plan.step(X, labels)) == float(other.step(X, labels))
    assert all(array.dtype == "float32" for array in before.values())
    for name, array in ours.parameters.items():
        assert array.dtype == dtype, name
        np.testing.assert_array_equal(*map(backend.asnumpy, (array, theirs.parameters[name])))


def test_a_network_that_was_updated_is_not_converted(backend: Any) -> None:
    network = by_example()
    ((X, labels),) = batches(backend, 1, 4)
    network.forward(X)
    words = "'fp64' needs parameters of float64, these are float32; they are converted before the"
    with pytest.raises(DTypeError, match=words):
        network.compile(batch_shape=(4, *IMAGE), precision="fp64")
    network.flush_gradients()
    network.compile(batch_shape=(4, *IMAGE), optimizer="Adam").step(X, labels)
    with pytest.raises(DTypeError, match=words.replace("fp64", "fp16").replace("64", "16")):
        network.compile(batch_shape=(4, *IMAGE), precision="fp16")
    assert network.dtype == "float32"


def test_a_step_in_bfloat16(backend: Any) -> None:
    """NumPy makes float32 of a bfloat16 array times a number."""
    dtype: Any = pytest.importorskip("ml_dtypes").bfloat16
    network = Sequential([FullyConnected(5, act_fn="Tanh"), FullyConnected(3)], "SGD(lr=0.1)")
    X = backend.asarray(np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32))
    labels = backend.asarray(np.arange(8) % 3)
    plan = network.compile(batch_shape=(8, 5), precision="bf16")
    first = float(plan.step(X, labels))
    for _ in range(20):
        last = float(plan.step(X, labels))
    assert network.dtype == dtype and last < first
    loss = SoftmaxCrossEntropy()
    loss.forward(labels, network.forward(X.astype(dtype), False))
    assert loss.backward().dtype == dtype
