"""Sequential on each array library: training by hand, moving, inputs of the host."""

from __future__ import annotations

import numpy as np

from gpulayers.losses import SoftmaxCrossEntropy
from tests.training.networks import conv, dense


def test_training_by_hand_lowers_the_loss_on_each_backend(backend):
    rng = np.random.default_rng(0)
    X = backend.asarray(rng.integers(0, 256, (8, 10, 10, 1), dtype=np.uint8))
    labels = backend.asarray(np.arange(8) % 4)
    net, objective = conv("Adam(lr=0.01)"), SoftmaxCrossEntropy()
    losses = []
    for _ in range(6):
        losses.append(float(objective(labels, net.forward(X))))
        net.backward(objective.backward(), input_grad=False)
        net.update()
    assert losses[-1] < 0.6 * losses[0]
    assert net.home == backend.library


def test_a_step_neither_copies_nor_waits(backend):
    X = backend.asarray(np.zeros((8, 10, 10, 1), np.uint8))
    labels = backend.asarray(np.arange(8) % 4)
    net, objective = conv("Adam(lr=0.01)"), SoftmaxCrossEntropy()

    def step() -> None:
        objective(labels, net.forward(X))
        net.backward(objective.backward(), input_grad=False)
        net.update()

    step()
    with backend.forbid("sync", "h2d", "d2h"):
        step()


def test_moving_a_network_keeps_its_outputs(backend):
    X = np.random.default_rng(0).standard_normal((3, 10, 10, 1)).astype(np.float32)
    net = conv()
    net.to("numpy")
    expected = net.predict(X)
    assert net.to(backend.library) is net
    assert net.home in (None, backend.library)
    moved = backend.asnumpy(net.predict(backend.asarray(X)))
    np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-5)
    net.to("numpy")
    assert net.home == "numpy"
    np.testing.assert_allclose(net.predict(X), expected, rtol=1e-4, atol=1e-5)


def test_host_images_go_to_where_the_network_is(backend):
    X = np.random.default_rng(0).integers(0, 256, (5, 10, 10, 1), dtype=np.uint8)
    net = dense()
    net.forward(backend.asarray(X), retain_derived=False)
    assert isinstance(net.predict(X, 2), np.ndarray)
    np.testing.assert_allclose(
        net.predict(X, 2), backend.asnumpy(net.predict(backend.asarray(X))), rtol=1e-4, atol=1e-5
    )
