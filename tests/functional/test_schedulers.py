"""Schedules: the formulas, King's stall test, parameters, state, bad input."""

import math

import numpy as np
import pytest

from gpulayers import schedulers
from gpulayers.errors import CheckpointError, ParameterError
from gpulayers.initializers import SchedulerInitializer
from gpulayers.schedulers import king

EXAMPLES = (
    schedulers.ConstantScheduler(0.25),
    schedulers.ExponentialScheduler(initial_lr=0.5, stage_length=10, staircase=True, decay=0.3),
    schedulers.NoamScheduler(model_dim=64, scale_factor=2.0, warmup_steps=7),
    schedulers.KingScheduler(initial_lr=0.2, patience=5, decay=0.5),
    schedulers.CosineScheduler(initial_lr=0.2, total_steps=30, final_lr=0.0, warmup_steps=3),
    schedulers.OneCycleScheduler(max_lr=0.2, total_steps=30, rise=0.4, final_divisor=100),
    schedulers.WarmupScheduler(
        warmup_steps=40, scheduler="ExponentialScheduler(initial_lr=0.5, stage_length=10)"
    ),
)
each = pytest.mark.parametrize("scheduler", EXAMPLES, ids=lambda s: type(s).__name__)


def test_every_public_scheduler_has_an_example():
    public = {getattr(schedulers, n) for n in schedulers.__all__ if n.endswith("Scheduler")}
    assert public == {type(s) for s in EXAMPLES}


def test_constant():
    assert [schedulers.ConstantScheduler(0.3)(step) for step in (None, 0, 1, 10**9)] == [0.3] * 4
    assert schedulers.ConstantScheduler()() == 0.01


@pytest.mark.parametrize("staircase", [False, True])
def test_exponential(staircase):
    scheduler = schedulers.ExponentialScheduler(0.5, 10, staircase, 0.3)
    for step in (0, 1, 9, 10, 11, 25, 1000):
        power = step // 10 if staircase else step / 10
        assert scheduler(step) == pytest.approx(0.5 * 0.3**power, rel=1e-14)


def test_noam():
    scheduler = schedulers.NoamScheduler(64, 2.0, 7)
    for step in range(1, 40):
        gold = 2.0 / math.sqrt(64) * min(1 / math.sqrt(step), step / math.sqrt(7**3))
        assert scheduler(step) == pytest.approx(gold, rel=1e-14)
    assert scheduler(0) == 0.0
    rates = [scheduler(step) for step in range(30)]
    assert max(rates) == scheduler(7)


def test_gaussian_cdf():
    assert schedulers.gaussian_cdf(1.0, 0.0, 4.0) == pytest.approx(0.6914624612740131, rel=1e-15)
    assert schedulers.gaussian_cdf(3.0, 3.0, 0.5) == 0.5
    assert [schedulers.gaussian_cdf(x, 1.0, 0.0) for x in (0.9, 1.0, 1.1)] == [0.0, 0.5, 1.0]
    with pytest.raises(ParameterError, match="var must be >= 0, got -1"):
        schedulers.gaussian_cdf(0, 0, -1)


# -------------------------------------------------------------------------------------------- King


def rates(scheduler, losses):
    return [scheduler(step, loss) for step, loss in enumerate(losses, 1)]


@pytest.mark.parametrize("patience", [1, 2, 3, 10, 20, 98, 99, 100, 150, 400])
def test_king_decays_for_any_patience_when_the_loss_rises(patience):
    scheduler = schedulers.KingScheduler(initial_lr=1.0, patience=patience, decay=0.5)
    got = rates(scheduler, [1.0 + 0.01 * i for i in range(2 * patience + 10)])
    first = next(i for i, lr in enumerate(got, 1) if lr < 1.0)
    assert patience < first <= 1.2 * patience + 3
    # stalled from then on: one decay at each step
    assert got[-1] == 0.5 ** (len(got) - first + 1)


@pytest.mark.parametrize("patience", [3, 20, 150])
def test_king_keeps_the_rate_while_the_loss_falls(patience):
    noise = np.random.default_rng(0).normal(0, 0.02, 3 * patience + 20)
    losses = [10.0 - 0.1 * i + noise[i] for i in range(len(noise))]
    assert set(rates(schedulers.KingScheduler(1.0, patience, 0.5), losses)) == {1.0}


def test_king_decays_on_a_constant_loss_of_any_size():
    for loss in (0.1, 1e-8, 1e6, 0.0):
        got = rates(schedulers.KingScheduler(1.0, 10, 0.5), [loss] * 20)
        assert got[:10] == [1.0] * 10
        assert got[-1] < 1.0


def test_king_takes_a_spike_for_a_spike():
    losses = [10.0 - 0.1 * i for i in range(40)]
    losses[36] = 500.0  # a line through the last 11 losses rises, without the spike it falls
    tail = np.array(losses[-11:])
    assert np.polyfit(range(11), tail, 1)[0] > 0
    assert set(rates(schedulers.KingScheduler(1.0, 10, 0.5), losses)) == {1.0}


def test_king_probability_is_that_of_the_slope():
    losses = np.array([3.0, 2.9, 3.1, 2.7, 2.95, 2.8, 2.85])
    n, x = len(losses), np.arange(len(losses), dtype=float)
    (slope, intercept), covariance = np.polyfit(x, losses, 1, cov="unscaled")
    residual = losses - slope * x - intercept
    var = covariance[0, 0] * (residual @ residual) / (n - 2)
    gold = 0.5 * (1 + math.erf(-slope / math.sqrt(2 * var)))
    assert 0.6 < gold < 0.99
    assert king._probability_decreasing(losses) == pytest.approx(gold, rel=1e-10)


def test_king_counts_the_parameters_of_a_layer_as_one_step():
    losses = [1.0 + 0.1 * i for i in range(30)]
    once, twice = schedulers.KingScheduler(1.0, 5, 0.5), schedulers.KingScheduler(1.0, 5, 0.5)
    for step, loss in enumerate(losses, 1):
        expected = once(step, loss)
        assert [twice(step, loss), twice(step, loss)] == [expected] * 2
    assert expected < 1.0


def test_king_without_loss_or_with_a_broken_one_keeps_its_rate():
    scheduler = schedulers.KingScheduler(0.5, 2, 0.1)
    for step in range(20):
        assert scheduler(step) == 0.5
        assert scheduler(step, math.nan) == scheduler(step, math.inf) == 0.5
    assert scheduler.loss_history == []


def test_king_history_is_bounded(backend):
    scheduler = schedulers.KingScheduler(patience=10)
    for step in range(100):
        scheduler(step, backend.asarray(np.float32(step)).reshape(()))
    assert len(scheduler.loss_history) == scheduler.max_history == 13
    assert all(type(loss) is float for loss in scheduler.loss_history)


def test_king_state_goes_on_exactly():
    losses = list(1.0 + np.random.default_rng(1).normal(0, 0.1, 60))
    whole, first, second = (schedulers.KingScheduler(1.0, 8, 0.9) for _ in range(3))
    gold = rates(whole, losses)
    rates(first, losses[:30])
    second.load_state_dict(first.state_dict())
    assert [second(step, loss) for step, loss in enumerate(losses[30:], 31)] == gold[30:]
    assert gold[-1] < 1.0
    for bad in ({}, {"current_lr": "x", "loss_history": [], "last": None}):
        with pytest.raises(CheckpointError, match="KingScheduler: bad state"):
            second.load_state_dict(bad)


# ---------------------------------------------------------------------------------- all schedules


@each
def test_string_and_dict_describe_the_scheduler(scheduler):
    for form in (
        str(scheduler),
        str(scheduler).lower(),
        str(scheduler).replace("Scheduler(", "(", 1),
        {"hyperparameters": scheduler.hyperparameters},
        scheduler.hyperparameters,
    ):
        again = SchedulerInitializer(form)()
        assert type(again) is type(scheduler)
        assert again.hyperparameters == scheduler.hyperparameters
        assert str(again) == str(scheduler)
    assert SchedulerInitializer(scheduler)() is scheduler


@each
def test_copy_is_independent(scheduler):
    twin = scheduler.copy()
    assert type(twin) is type(scheduler) and twin is not scheduler
    assert twin.state_dict() == scheduler.state_dict()
    before = str(scheduler)
    field = next(k for k in scheduler.hyperparameters if k != "id")
    twin.set_params({field: 123})
    assert str(scheduler) == before != str(twin)


@each
def test_set_params_changes_the_rate(scheduler):
    scheduler = scheduler.copy()
    field = {
        "ConstantScheduler": "lr",
        "NoamScheduler": "scale_factor",
        "OneCycleScheduler": "max_lr",
        "WarmupScheduler": "warmup_steps",
    }.get(type(scheduler).__name__, "initial_lr")
    before = scheduler(4, 1.0)
    scheduler.set_params({"id": type(scheduler).__name__, field: 8 * getattr(scheduler, field)})
    assert scheduler(5, 1.0) != before
    assert scheduler.hyperparameters[field] == getattr(scheduler, field)
    factor = 1 / 8 if field == "warmup_steps" else 8
    assert scheduler(4, 1.0) == pytest.approx(factor * before)


@each
def test_bad_parameters_are_refused(scheduler):
    name, cls = type(scheduler).__name__, type(scheduler)
    field = next(iter(cls._fields))
    before = scheduler.hyperparameters
    for value in (-1, math.nan, math.inf, "0.1", True, None):
        with pytest.raises(ParameterError, match=f"{name}: {field} must be"):
            cls(**{field: value})
        with pytest.raises(ParameterError, match=f"{name}: {field} must be"):
            scheduler.set_params({field: value})
    with pytest.raises(ParameterError, match=f"{name}: unknown argument 'decoy', expected one of"):
        cls(decoy=1)
    with pytest.raises(
        ParameterError, match=f"{name}.set_params: unknown argument '{field}x'.*did"
    ):
        scheduler.set_params({field + "x": 1})
    with pytest.raises(ParameterError, match="got hyperparameters of 'Other'"):
        scheduler.set_params({"id": "Other"})
    assert scheduler.hyperparameters == before


@pytest.mark.parametrize("patience", [True, 1.0, 0, -3, "5", None])
def test_patience_is_a_positive_integer(patience):
    with pytest.raises(
        ParameterError, match="KingScheduler: patience must be an integer >= 1, got"
    ):
        schedulers.KingScheduler(patience=patience)
    assert schedulers.KingScheduler(patience=np.int64(4)).hyperparameters["patience"] == 4


@pytest.mark.parametrize("cls", [schedulers.ExponentialScheduler, schedulers.NoamScheduler])
def test_step_is_needed(cls):
    with pytest.raises(ParameterError, match=f"{cls.__name__}: the learning rate needs the step"):
        cls()()
    with pytest.raises(ParameterError, match="step must be in"):
        cls()(-1)


def test_initializer():
    assert SchedulerInitializer(None, 0.3)()(1) == 0.3
    for alias in ("StepScheduler", "step", "exponential", "Exponential Scheduler"):
        assert type(SchedulerInitializer(alias)()) is schedulers.ExponentialScheduler
    assert (
        SchedulerInitializer({"hyperparameters": {"id": "StepScheduler", "decay": 0.7}})().decay
        == 0.7
    )
    for bad, message in {
        None: "give a scheduler or a learning rate, got neither",
        "nom": "unknown scheduler 'nom', expected one of ConstantScheduler, .*did you mean 'noam'",
        3: "expected None, a scheduler, a string .* got int",
    }.items():
        with pytest.raises(ParameterError, match=message):
            SchedulerInitializer(bad)()
    for bad in ({}, {"hyperparameters": {}}, {"hyperparameters": 3}, {"id": None}):
        with pytest.raises(ParameterError, match="a dict needs the entry 'hyperparameters'"):
            SchedulerInitializer(bad)()


@pytest.mark.parametrize("loss", ["high", [1.0, 2.0]])
def test_king_names_a_loss_that_is_no_number(loss):
    schedule = schedulers.KingScheduler(0.1, patience=1)
    with pytest.raises(ParameterError, match="KingScheduler: cur_loss must be a number, got"):
        schedule(1, loss)
    assert schedule.loss_history == [] and schedule(1, 2.0) == 0.1


def test_a_rate_that_grows_without_end_is_named():
    schedule = schedulers.ExponentialScheduler(0.1, stage_length=1, decay=10.0)
    assert schedule(300) == pytest.approx(1e299)
    with pytest.raises(ParameterError, match=r"decay=10.0\): the learning rate at step 400 is too"):
        schedule(400)
