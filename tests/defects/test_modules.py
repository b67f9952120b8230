"""Modules: more than one training step, every documented argument, attention over sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpulayers import modules
from tests.conftest import Backend
from tests.layers.harness import values
from tests.modules.cases import named
from tests.support.compare import assert_close, host
from tests.support.naive.attention import attention, attention_grads


def identity(**kwargs: Any) -> modules.SkipConnectionIdentityModule:
    return modules.SkipConnectionIdentityModule(2, (3, 3), (3, 3), **kwargs)


def convolutional(pad1: Any = 1, pad2: Any = 1, **kwargs: Any) -> modules.SkipConnectionConvModule:
    return modules.SkipConnectionConvModule(
        2, 2, (3, 3), (3, 3), (1, 1), pad1=pad1, pad2=pad2, **kwargs
    )


def wavenet(**kwargs: Any) -> modules.WavenetResidualModule:
    return modules.WavenetResidualModule(2, 3, 1, **{"kernel_width": 2, **kwargs})


def bidirectional(**kwargs: Any) -> modules.BidirectionalLSTM:
    return modules.BidirectionalLSTM(3, **kwargs)


def heads(**kwargs: Any) -> modules.MultiHeadedAttentionModule:
    return modules.MultiHeadedAttentionModule(2, **kwargs)


PICTURE, SEQUENCE, STEPS, QUERIES = (2, 4, 4, 2), (1, 6, 2), (2, 2, 3), (2, 3, 4)
MODULES = [
    pytest.param(identity, [PICTURE], id="identity"),
    pytest.param(convolutional, [PICTURE], id="convolution"),
    pytest.param(wavenet, [SEQUENCE, SEQUENCE], id="wavenet"),
    pytest.param(bidirectional, [STEPS], id="bidirectional"),
]
ATTENTION = pytest.param(heads, [QUERIES] * 3, id="attention")
every = pytest.mark.parametrize("make, shapes", [*MODULES, ATTENTION])


def on(backend: Backend, shapes: list[tuple[int, ...]]) -> list[Any]:
    return [backend.asarray(values(shape, k + 1)) for k, shape in enumerate(shapes)]


def listed(out: Any) -> list[Any]:
    return list(out) if isinstance(out, tuple) else [out]


def assert_trains(make: Callable[..., Any], shapes: list[Any], backend: Backend) -> None:
    """Every step goes down the gradient, and the squared outputs with it."""
    module = make(optimizer="SGD(lr=0.001)")
    losses = []
    for _ in range(4):
        Ys = listed(module.forward(*on(backend, shapes)))
        losses.append(sum(float((Y**2).sum()) for Y in Ys) / 2)
        module.backward(*reversed(Ys))  # WaveNet takes the skip connection's gradient first
        before = {k: host(a).copy() for k, a in named(module, "parameters").items()}
        grads = {k: host(a).copy() for k, a in named(module, "gradients").items()}
        module.update(cur_loss=losses[-1])
        for name, grad in grads.items():
            assert_close(named(module, "parameters")[name], before[name] - 0.001 * grad)
    assert losses[0] > losses[1] > losses[2] > losses[3]


@pytest.mark.defect(14)
@pytest.mark.parametrize("make, shapes", MODULES)
def test_modules_train_for_more_than_one_step(
    make: Callable[..., Any], shapes: list[Any], backend: Backend
) -> None:
    """After the first update() numpy-ml's forward raises AttributeError ('NoneType' object has no
    attribute 'append'), BidirectionalLSTM's a TypeError."""
    assert_trains(make, shapes, backend)


@pytest.mark.defect(15)
@pytest.mark.parametrize("pads", [("same", "same"), ((1, 1, 1, 1), 1)], ids=repr)
def test_a_skip_module_takes_every_documented_padding(pads: Any, backend: Backend) -> None:
    """numpy-ml raises ValueError (not enough values to unpack)."""
    Xs = on(backend, [PICTURE])
    module, plain = convolutional(*pads), convolutional(1, 1)
    Y = module.forward(*Xs)
    assert Y.shape == (2, 4, 4, 2)
    plain.forward(*Xs, retain_derived=False)
    plain.set_params({"parameters": module.summary()["parameters"]})
    assert_close(Y, host(plain.forward(*Xs)))


@pytest.mark.defect(15)
def test_a_module_describes_itself_before_its_first_input() -> None:
    """numpy-ml raises AttributeError (no attribute 'conv2') for hyperparameters, parameters and
    freeze()."""
    module = identity(act_fn="Tanh")
    assert module.hyperparameters["act_fn"] == "Tanh"
    assert set(named(module, "parameters").values()) == {None}
    module.freeze()
    assert not any(layer.trainable for layer in module.components)


@pytest.mark.defect(15)
def test_every_component_has_the_optimizer(numpy_backend: Backend) -> None:
    """numpy-ml's batch normalisations have SGD in a module made with optimizer="Adam"."""
    for make in (identity, convolutional):
        parts = make(optimizer="Adam").hyperparameters["components"]
        kinds = {p["optimizer"]["hyperparameters"]["id"] for p in parts.values()}
        assert kinds == {"Adam"}


@pytest.mark.defect(15)
def test_set_params_of_a_module_sets_everything(backend: Backend) -> None:
    """numpy-ml leaves act_fn at Affine(slope=1, intercept=0) and the optimizer at None."""
    X = backend.asarray(values(PICTURE, 1))
    for make in (identity, convolutional):
        source, other = make(act_fn="Tanh", optimizer="Adam"), make()
        source.backward(source.forward(X))
        source.update()
        other.forward(X, retain_derived=False)
        other.set_params(source.summary())
        assert str(other.act_fn) == "Tanh"
        assert str(other.conv1.optimizer) == str(source.conv1.optimizer)
        assert_close(other.forward(X), host(source.forward(X)))


@pytest.mark.defect(16)
def test_the_first_wavenet_block_needs_no_skip_input(backend: Backend) -> None:
    """numpy-ml's forward(X) raises AttributeError ('NoneType' object has no attribute 'copy')."""
    module = wavenet()
    X = backend.asarray(values(SEQUENCE, 1))
    main, skip = module.forward(X)
    expected = [host(Y) for Y in module.forward(X, backend.xp.zeros_like(X))]
    assert_close(main, expected[0])
    assert_close(skip, expected[1])


@pytest.mark.defect(16)
def test_wavenet_obeys_kernel_width(backend: Backend) -> None:
    """numpy-ml makes weights (2, 2, 3) for kernel_width=3."""
    module = wavenet(kernel_width=3)
    module.forward(*on(backend, [SEQUENCE, SEQUENCE]))
    assert module.conv_dilation.parameters["W"].shape == (3, 2, 3)


@pytest.mark.defect(17)
def test_both_directions_multiplied_have_a_gradient(backend: Backend) -> None:
    """numpy-ml's backward raises UnboundLocalError for merge_mode="multiply" (a typing error)."""
    module = bidirectional(merge_mode="multiply")
    X, dY = values((1, 2, 3), 1), values((1, 3, 3), 2)

    def loss(X: np.ndarray) -> float:
        return float(np.sum(host(module.forward(backend.asarray(X), retain_derived=False)) * dY))

    loss(X)
    module.forward(backend.asarray(X))
    dX = host(module.backward(backend.asarray(dY)))
    for i in np.ndindex(X.shape):
        step = np.zeros_like(X)
        step[i] = 1e-5
        assert dX[i] == pytest.approx((loss(X + step) - loss(X - step)) / 2e-5, rel=1e-6, abs=1e-9)


@pytest.mark.defect(18)
def test_heads_attend_over_sequences(backend: Backend) -> None:
    """numpy-ml raises ValueError for (n_ex, T, d). In its form (n_ex, d) every attention weight is
    1, and dQ and dK are zero."""
    module = heads()
    Xs, dY = [values(QUERIES, k) for k in (1, 2, 3)], values(QUERIES, 4)
    module.forward(*(backend.asarray(X) for X in Xs), retain_derived=False)
    for name, array in named(module, "parameters").items():
        array[...] = backend.asarray(np.eye(4) if name.endswith("W") else np.zeros((1, 4)))
    Y = module.forward(*(backend.asarray(X) for X in Xs))
    dXs = module.backward(backend.asarray(dY))
    weights = host(module.derived_variables["attention_weights"][0])
    assert weights.shape == (2, 2, 3, 3)
    assert not np.isclose(weights, 1.0).any()
    for head, part in enumerate((slice(0, 2), slice(2, 4))):
        mine = [X[..., part] for X in Xs]
        right, right_weights = attention(*mine)
        assert_close(Y[..., part], right)
        assert_close(backend.asarray(weights[:, head]), right_weights)
        for dX, gold in zip(dXs, attention_grads(*mine, dY[..., part]), strict=True):
            assert_close(dX[..., part], gold)
            assert np.abs(gold).max() > 1e-2


@pytest.mark.defect(19)
def test_attention_modules_train_all_their_parts(backend: Backend) -> None:
    """numpy-ml's update() raises AttributeError ('trainable'), and its components are the
    attention alone, without the four projections."""
    module = heads()
    assert len(module.components) == 5
    assert module.hyperparameters["n_heads"] == 2  # before the first input, too
    assert_trains(heads, [QUERIES] * 3, backend)
    module.freeze()
    assert not any(layer.trainable for layer in module.components)
