"""Learning rates that decay, and settings that count."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers import layers, optimizers, schedulers
from tests.conftest import Backend
from tests.defects.support import known
from tests.support.compare import assert_close


def after_600_rising_losses(patience: int) -> float:
    king = schedulers.KingScheduler(initial_lr=0.1, patience=patience)
    return [king(step, float(step)) for step in range(1, 601)][-1]


@pytest.mark.defect(39)
def test_king_decays_for_any_patience() -> None:
    """numpy-ml's rate stays 0.1 for a patience of 100 or more, and for many below, such as 19, 88
    and 98; for 20 it falls to 0.000303, as here."""
    assert after_600_rising_losses(20) == pytest.approx(0.000303045, rel=1e-5)
    for patience in (
        19,
        88,
        98,
        100,
        150,
        400,
    ):  # 0.99 at every step once the history is long enough
        decays = np.log(after_600_rising_losses(patience) / 0.1) / np.log(0.99)
        assert 600 - 1.2 * patience - 3 <= decays <= 600 - patience, patience


@pytest.mark.defect(40)
def test_noam_has_a_rate_at_step_zero() -> None:
    """numpy-ml raises ZeroDivisionError."""
    noam = schedulers.NoamScheduler(model_dim=64, warmup_steps=100)
    assert noam(0) == 0.0
    assert noam(1) == pytest.approx(64**-0.5 * 100**-1.5)


@pytest.mark.defect(40)
def test_set_params_changes_the_rate_that_is_used(backend: Backend) -> None:
    """numpy-ml changes what is shown alone: the rates stay 0.1, 0.5 and 0.1."""
    constant = schedulers.ConstantScheduler(lr=0.1)
    constant.set_params({"lr": 5})
    assert constant(1) == 5 != 0.1
    decaying = schedulers.ExponentialScheduler(initial_lr=1.0, stage_length=10, decay=0.5)
    decaying.set_params({"stage_length": 1})
    assert decaying(10) == pytest.approx(0.5**10) != 0.5
    sgd = optimizers.SGD(lr=0.1)
    sgd.set_params({"lr": 5})
    one = backend.asarray(np.ones(1))
    assert_close(sgd(backend.xp.zeros_like(one), one, "W"), [-5.0])


@pytest.mark.defect(40)
def test_king_keeps_its_rate_when_no_loss_is_known(backend: Backend) -> None:
    """numpy-ml raises ValueError (cur_loss must be a float) at every update() without a loss."""
    king = schedulers.KingScheduler(initial_lr=0.5)
    layer = layers.FullyConnected(1, optimizer=optimizers.SGD(lr_scheduler=king))
    known(layer, backend, (1, 1))
    one = backend.asarray(np.ones((1, 1)))
    layer.forward(one)
    layer.backward(one)
    layer.update()
    assert_close(layer.parameters["W"], [[-0.5]])
