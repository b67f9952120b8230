"""Warm-up, cosine and one-cycle schedules: formulas, PyTorch, nesting, state."""

import math

import numpy as np
import pytest

from gpulayers.errors import ParameterError
from gpulayers.initializers import OptimizerInitializer, SchedulerInitializer
from gpulayers.optimizers import SGD
from gpulayers.schedulers import (
    CosineScheduler,
    KingScheduler,
    OneCycleScheduler,
    WarmupScheduler,
)


def torch_rates(make, steps, lr):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    schedule = make(torch.optim.lr_scheduler, optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_cosine():
    scheduler = CosineScheduler(initial_lr=2.0, total_steps=12, final_lr=1.0, warmup_steps=4)
    expected = {0: 0.0, 1: 0.5, 3: 1.5, 4: 2.0, 8: 1.5, 10: 1 + 0.5 * (1 - math.sqrt(0.5))}
    for step, rate in {**expected, 12: 1.0, 13: 1.0, 10**6: 1.0}.items():
        assert scheduler(step) == pytest.approx(rate), step
    assert CosineScheduler(warmup_steps=5, total_steps=3)(4) == pytest.approx(0.008)
    with pytest.raises(ParameterError, match="needs the step number"):
        CosineScheduler()()


def test_cosine_against_torch():
    theirs = torch_rates(
        lambda s, o: s.CosineAnnealingLR(o, T_max=20, eta_min=0.01), steps=20, lr=0.3
    )
    scheduler = CosineScheduler(initial_lr=0.3, total_steps=20, final_lr=0.01)
    np.testing.assert_allclose([scheduler(step) for step in range(20)], theirs, rtol=1e-12)


@pytest.mark.parametrize("total, rise", [(50, 0.3), (7, 0.5), (100, 0.9)])
def test_one_cycle_against_torch(total, rise):
    theirs = torch_rates(
        lambda s, o: s.OneCycleLR(
            o, max_lr=0.5, total_steps=total, pct_start=rise, div_factor=10, final_div_factor=100
        ),
        steps=total - 1,
        lr=0.1,
    )
    scheduler = OneCycleScheduler(0.5, total, rise, 10, 100)
    ours = [scheduler(step) for step in range(1, total)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)
    assert scheduler(total) == scheduler(total + 9) == pytest.approx(0.5 / 10 / 100)


def test_one_cycle_of_few_steps_stays_in_its_range():
    for total in (1, 2, 3, 5):
        scheduler = OneCycleScheduler(1.0, total)
        rates = [scheduler(step) for step in range(total + 2)]
        assert all(1 / 25 / 1e4 <= rate <= 1.0 for rate in rates)
        assert rates[-1] == pytest.approx(1 / 25 / 1e4)


def test_warmup_multiplies_another_schedule():
    scheduler = WarmupScheduler(4, "exponential(initial_lr=1.0, stage_length=1, decay=0.5)")
    assert [scheduler(s) for s in (0, 1, 2, 4, 5)] == [0.0, 0.125, 0.125, 0.0625, 0.03125]
    assert WarmupScheduler(10)(5) == 0.005


def test_warmup_owns_its_schedule_and_keeps_its_state():
    inner = KingScheduler(initial_lr=1.0, patience=2, decay=0.5)
    scheduler = WarmupScheduler(1, inner)
    for step in range(1, 20):
        scheduler(step, 1.0)
    assert inner.current_lr == 1.0 > scheduler.scheduler.current_lr
    again = WarmupScheduler(1, inner)
    again.load_state_dict(scheduler.state_dict())
    assert again(20, 1.0) == scheduler(20, 1.0)


@pytest.mark.parametrize(
    "text",
    [
        "SGD(lr_scheduler=WarmupScheduler(warmup_steps=7, scheduler=NoamScheduler(model_dim=8)))",
        "adam(lr_scheduler=cosine(total_steps=9))",
        "AdamW(lr_scheduler=OneCycle(max_lr=0.2, total_steps=9))",
    ],
)
def test_nested_strings_round_trip(text):
    optimizer = OptimizerInitializer(text)()
    again = OptimizerInitializer(str(optimizer))()
    assert str(again) == str(optimizer)
    assert again.lr_scheduler(3) == optimizer.lr_scheduler(3) > 0


def test_bad_values():
    with pytest.raises(ParameterError, match="OneCycleScheduler: rise must be in"):
        OneCycleScheduler(rise=1.0)
    with pytest.raises(ParameterError, match="CosineScheduler: total_steps must be in"):
        CosineScheduler(total_steps=0)
    with pytest.raises(ParameterError, match=r"unknown scheduler 'cosin'.*did you mean 'cosine'"):
        SchedulerInitializer("cosin")()
    with pytest.raises(ParameterError, match="unknown scheduler 'nom'"):
        WarmupScheduler(3, "nom")
    assert SGD(lr_scheduler="warmup").lr_scheduler(1) == pytest.approx(1e-5)
