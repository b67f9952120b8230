"""Gradients of the WGAN and the noise contrastive loss."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpulayers.losses import DiscreteSampler, NCELoss, WGAN_GPLoss
from tests.conftest import Backend
from tests.defects.support import assert_mended
from tests.support.compare import assert_close


@pytest.mark.defect(36)
def test_the_critics_gradient_is_that_of_its_loss(backend: Backend) -> None:
    """numpy-ml's dY_fake and dY_real have each other's sign: -0.5 and 0.5 for two examples."""
    loss = WGAN_GPLoss(lambda_=10)
    fake, real, slopes = (
        backend.asarray(np.array(rows))
        for rows in ([[1.0], [2.0]], [[3.0], [5.0]], [[3.0, 4.0], [0.0, 1.0]])
    )
    # mean(fake) - mean(real) + 10 mean((|slope| - 1)^2)
    assert math.isclose(float(loss(fake, "C", real, slopes)), 1.5 - 4 + 10 * 4**2 / 2)
    d_fake, d_real, d_slopes = loss.grad(fake, "C", real, slopes)
    assert_mended(d_fake, [[0.5], [0.5]], [[-0.5], [-0.5]])
    assert_mended(d_real, [[-0.5], [-0.5]], [[0.5], [0.5]])
    assert_close(d_slopes, [[24.0, 32.0], [0.0, 0.0]])
    assert_close(loss.grad(fake, "G"), [[-0.5], [-0.5]])


@pytest.mark.defect(37)
def test_a_target_drawn_as_noise_keeps_its_gradient(backend: Backend) -> None:
    """numpy-ml loses the target's part, 0.830094 - 1, when the target 0 is drawn too: row 0 of dW
    is 0.830094 and 1.660188, db 0.830094."""
    loss = NCELoss(4, DiscreteSampler(np.full(4, 0.25)), 2)
    X = backend.asarray(np.array([[[1.0, 2.0]]]))
    target, noise = backend.asarray(np.array([0])), backend.asarray(np.array([0, 1]))
    loss(X, target, noise, retain_derived=False)
    W = np.arange(8.0).reshape(4, 2) / 10
    loss.parameters["W"][...] = backend.asarray(W)
    loss.parameters["b"][...] = 0
    loss(X, target, noise)
    dX = loss.grad(update_params=False)
    p = [1 / (1 + math.exp(-(w @ [1.0, 2.0]) + math.log(0.25))) for w in W]
    assert math.isclose(p[0], 0.830094, rel_tol=1e-6)
    rows = [[p[0] - 1 + p[0]], [p[1]], [0], [0]]
    numpy_ml = [[p[0]], [p[1]], [0], [0]]
    x = np.array([[1.0, 2.0]])
    assert_mended(loss.gradients["W"], rows @ x, numpy_ml @ x)
    assert_mended(loss.gradients["b"], np.transpose(rows), np.transpose(numpy_ml))
    assert_close(dX, [(np.transpose(rows) @ W)])
