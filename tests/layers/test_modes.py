"""Training and evaluation: BatchNorm1D/2D and Dropout differ, LayerNorm1D/2D do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers import layers, random
from gpulayers.errors import ShapeError
from tests.conftest import Backend
from tests.layers import gold as golds
from tests.layers import harness
from tests.support.compare import assert_close, assert_same_bits, host
from tests.support.naive import normalization as naive

NORMS: dict[Any, tuple[int, ...]] = {layers.BatchNorm1D: (20, 2), layers.BatchNorm2D: (3, 4, 2, 2)}
with_norms = pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.__name__)


@pytest.fixture(autouse=True)
def float64():
    with harness.default_dtype("float64"):
        yield


def batch_statistics(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = X.reshape(-1, X.shape[-1])
    _, _, mean, var, _ = naive.batchnorm(rows, np.ones(2), np.zeros(2), 0.0)
    return mean, var


@with_norms
@pytest.mark.parametrize("momentum", [0.9, 0.5, 0.0, 1.0])
def test_running_statistics(backend: Backend, norm: Any, momentum: float) -> None:
    layer = norm(momentum=momentum)
    mean, var = np.zeros(2), np.ones(2)
    for seed in (1, 2, 3):
        X = 3.0 + 2.0 * harness.values(NORMS[norm], seed)
        layer.forward(backend.asarray(X))
        batch_mean, batch_var = batch_statistics(X)
        mean = momentum * mean + (1 - momentum) * batch_mean
        var = momentum * var + (1 - momentum) * batch_var
        assert_close(layer.parameters["running_mean"], mean)
        assert_close(layer.parameters["running_var"], var)
    layer.flush_gradients()
    assert_close(layer.parameters["running_mean"], mean)


@with_norms
def test_batchnorm_starts_as_the_identity_of_normalised_data(backend: Backend, norm: Any) -> None:
    layer = norm()
    X = 5.0 + 3.0 * harness.values(NORMS[norm], 4)
    Y = host(layer.forward(backend.asarray(X))).reshape(-1, 2)
    np.testing.assert_allclose(Y.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(Y.std(axis=0), 1, rtol=1e-4)


def evaluated(layer: Any, X: np.ndarray) -> np.ndarray:
    """scaler * (x - running mean) / sqrt(running var + eps) + intercept, one number at a time."""
    p = {name: host(value) for name, value in layer.parameters.items()}
    Y = np.zeros(X.shape)
    for index in np.ndindex(X.shape):
        k = index[-1]
        x_hat = (X[index] - p["running_mean"][k]) / (p["running_var"][k] + layer.epsilon) ** 0.5
        Y[index] = p["scaler"][k] * x_hat + p["intercept"][k]
    return Y


@with_norms
@pytest.mark.parametrize("how", ["retain_derived", "freeze"])
def test_evaluation_uses_the_running_statistics(backend: Backend, norm: Any, how: str) -> None:
    layer = norm(epsilon=0.01)
    layer.forward(backend.asarray(2.0 + harness.values(NORMS[norm], 5)))
    layer.flush_gradients()
    layer.parameters["scaler"][...] = backend.asarray([0.5, -2.0])
    layer.parameters["intercept"][...] = backend.asarray([1.0, 3.0])
    before = harness.snapshot(layer.parameters)
    X = harness.values(NORMS[norm], 6)[:2]
    if how == "freeze":
        layer.freeze()
    Y = layer.forward(backend.asarray(X), retain_derived=how == "freeze")
    assert_close(Y, evaluated(layer, X))
    for name, array in before.items():
        assert_same_bits(layer.parameters[name], array)
    if how == "freeze":  # the statistics are constants: a plain scaling
        dY = harness.values(Y.shape, 7)
        dX = layer.backward(backend.asarray(dY))
        factor = before["scaler"] / np.sqrt(before["running_var"] + 0.01)
        assert_close(dX, dY * factor)
        harness.assert_no_grads(layer)


@with_norms
def test_reset_running_stats(backend: Backend, norm: Any) -> None:
    layer = norm()
    layer.reset_running_stats()  # before the first input, too
    layer.forward(backend.asarray(2.0 + harness.values(NORMS[norm], 8)))
    layer.reset_running_stats()
    assert_same_bits(layer.parameters["running_mean"], np.zeros(2))
    assert_same_bits(layer.parameters["running_var"], np.ones(2))


@with_norms
def test_the_optimizer_leaves_the_running_statistics_alone(backend: Backend, norm: Any) -> None:
    layer = norm(optimizer="SGD(lr=0.1, momentum=0.9)")
    Y = layer.forward(backend.asarray(harness.values(NORMS[norm], 9)))
    layer.backward(harness.gradient_like(Y, backend))
    assert layer.gradients.keys() == {"scaler", "intercept"}
    before = harness.snapshot(layer.parameters)
    layer.update()
    for name in ("running_mean", "running_var"):
        assert_same_bits(layer.parameters[name], before[name])
    assert layer.optimizer.cache.keys() == {"scaler", "intercept"}


# ------------------------------------------------------------------------------ layer normalisation


@pytest.mark.parametrize("layer", [layers.LayerNorm1D(), layers.LayerNorm2D()], ids=repr)
def test_layer_normalisation_is_the_same_in_evaluation(backend: Backend, layer: Any) -> None:
    layer = type(layer)()
    X = backend.asarray(5.0 + 3.0 * harness.values((6, 4, 3, 2)[: layer._ndim], 12))
    Y = layer.forward(X)
    # numpy-ml draws the scaler from [0, 1)
    assert_same_bits(layer.parameters["scaler"], np.ones(X.shape[1:]))
    assert_same_bits(layer.parameters["intercept"], np.zeros(X.shape[1:]))
    rows = host(Y).reshape(6, -1)
    np.testing.assert_allclose(rows.mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(rows.var(axis=1), 1, rtol=1e-3)
    assert_same_bits(layer.forward(X, retain_derived=False), Y)
    assert_close(layer.forward(X[2:3]), host(Y)[2:3])  # no example depends on another


def test_group_normalisation_between_layer_and_instance(backend: Backend) -> None:
    X = backend.asarray(5.0 + 3.0 * harness.values((2, 5, 4, 6), 13))
    one, layer = layers.GroupNorm(1), layers.LayerNorm2D()
    assert_close(one.forward(X), host(layer.forward(X)))  # one group: the whole image
    Y = host(layers.GroupNorm(6).forward(X))  # as many groups as channels: each alone
    np.testing.assert_allclose(Y.mean(axis=(1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(Y.var(axis=(1, 2)), 1, rtol=1e-3)
    large = backend.asarray(harness.values((1, 7, 9, 6), 14))
    assert one.forward(large).shape == (1, 7, 9, 6)  # images of another size fit


def test_images_of_another_size_are_refused(backend: Backend) -> None:
    layer = layers.LayerNorm2D()
    layer.forward(backend.asarray(np.ones((1, 3, 4, 2))))
    with pytest.raises(ShapeError, match=r"LayerNorm2D: .*rows = 3 and cols = 4.*\(1, 4, 3, 2\)"):
        layer.forward(backend.asarray(np.ones((1, 4, 3, 2))))
    assert len(layer.X) == 1


# ------------------------------------------------------------------------------------- Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_expected_share_and_value(backend: Backend, p: float) -> None:
    random.seed(3)
    layer, X = layers.Dropout(p), np.ones((40, 50))
    Y = host(layer.forward(backend.asarray(X)))
    assert set(np.unique(Y)) <= {0.0, np.float64(1 / (1 - p))}
    dropped = np.mean(Y == 0)
    assert abs(dropped - p) < 5 * (p * (1 - p) / X.size) ** 0.5
    assert abs(Y.mean() - 1) < 5 * (p / (1 - p) / X.size) ** 0.5


def test_the_mask_is_the_generators(backend: Backend) -> None:
    random.seed(golds.SEED)
    layer = layers.Dropout(0.4)
    Y = layer.forward(backend.asarray(np.ones((5, 7))))
    kept = golds.kept_by_dropout(0.4, (5, 7), golds.SEED)
    assert_close(Y, kept / 0.6)
    mask = layer.derived_variables["dropout_mask"][0]
    assert_close(mask, kept / 0.6)


def test_dropout_drops_gradients_where_it_dropped_inputs(backend: Backend) -> None:
    layer = layers.Dropout(0.5)
    Y = host(layer.forward(backend.asarray(np.ones((6, 6)))))
    dX = host(layer.backward(backend.asarray(np.ones((6, 6)))))
    assert_same_bits(dX, Y)  # numpy-ml forgets the mask on the way back


def test_each_forward_draws_anew(backend: Backend) -> None:
    layer, X = layers.Dropout(0.5), backend.asarray(np.ones((8, 8)))
    first, second = host(layer.forward(X)), host(layer.forward(X))
    assert not np.array_equal(first, second)
    dX = layer.backward([backend.asarray(np.ones((8, 8)))] * 2)
    assert_same_bits(host(dX[0]), first)
    assert_same_bits(host(dX[1]), second)


@pytest.mark.parametrize("how", ["retain_derived", "freeze", "p"])
def test_dropout_is_the_identity_in_evaluation(backend: Backend, how: str) -> None:
    layer = layers.Dropout(0.0 if how == "p" else 0.7)
    before = random.get_state()
    if how == "freeze":
        layer.freeze()
    X = harness.values((4, 5), 10)
    Y = layer.forward(backend.asarray(X), retain_derived=how != "retain_derived")
    assert_same_bits(Y, X)
    assert random.get_state() == before  # nothing is drawn
    if how != "retain_derived":
        dY = harness.values((4, 5), 11)
        assert_same_bits(layer.backward(backend.asarray(dY)), dY)
        assert layer.derived_variables["dropout_mask"] == [None]


def test_the_average_of_a_large_image_keeps_its_digits(backend: Backend) -> None:
    """Added up one by one, a million numbers lose two of them."""
    X = (1 + np.random.default_rng(0).random((1, 512, 512, 3))).astype("float32")
    Y = host(layers.GlobalAvgPool2D().forward(backend.asarray(X)))
    np.testing.assert_allclose(Y, X.mean(axis=(1, 2), dtype="float64"), rtol=2e-6)
