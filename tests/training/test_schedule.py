"""Schedules that fit a run: what a description leaves open, and a run that goes on for longer."""

from __future__ import annotations

import itertools

import pytest

from gpulayers.errors import ParameterError
from gpulayers.optimizers import OptimizerBase
from gpulayers.schedulers import CosineScheduler, ExponentialScheduler, NoamScheduler
from gpulayers.training import Trainer, load_checkpoint
from gpulayers.training.schedule import fit_schedule, schedule_text
from tests.training.networks import assert_same_run, dense, in_step, run

# of 10 steps an epoch
FITTED = [
    "cosine",
    "exponential",
    "onecycle",
    "exponential(staircase=True)",
    "cosine(final_lr=1e-4)",
]
UNCHANGED = ["constant", "king", "warmup", "noam", "cosine(total_steps=25)"]


def bare(rate: str = "SGD(lr=0.1)"):
    return dense(rate)


# ------------------------------------------------------------------------------------ what is open


@pytest.mark.parametrize(
    "description, expected",
    [
        ("cosine(final_lr=0.01)", CosineScheduler(0.1, 30, 0.01)),
        ("CosineScheduler", CosineScheduler(0.1, 30)),
        ({"id": "cosine", "warmup_steps": 5}, CosineScheduler(0.1, 30, 0.0, 5)),
        ("cosine(0.5)", CosineScheduler(0.5, 30)),
        ("cosine(total_steps=7)", CosineScheduler(0.1, 7)),
        ("step", ExponentialScheduler(0.1, 30, False, 0.05)),
        ("exponential(decay=0.5)", ExponentialScheduler(0.1, 30, False, 0.5)),
        ("exponential(stage_length=5)", ExponentialScheduler(0.1, 5, False, 0.1)),
        ("exponential(staircase=True)", ExponentialScheduler(0.1, 10, True, 0.05 ** (1 / 3))),
        ("noam(model_dim=64)", NoamScheduler(64, 1, 10)),
        ("noam(warmup_steps=4)", NoamScheduler(1, 0.2, 4)),
        (CosineScheduler(0.5), CosineScheduler(0.5)),
    ],
)
def test_the_run_fills_in_what_a_description_leaves_open(description, expected):
    assert str(fit_schedule(description, 0.1, 10, 3)) == str(expected)


def test_the_schedule_behind_a_warm_up_is_fitted_too():
    made = fit_schedule("warmup(warmup_steps=3, scheduler=cosine)", 0.1, 10, 3)
    assert made.warmup_steps == 3 and str(made.scheduler) == str(CosineScheduler(0.1, 30))
    for text in ("warmup", "warmup(scheduler=none)"):
        assert fit_schedule(text, 0.1, 10, 3)(10) == 0.1


def test_a_bad_description_says_what_is_wrong():
    for text, words in (
        ("noam(warmup_steps=x)", "warmup_steps must be a finite number, got 'x'"),
        ("cosine(lr=1)", "unknown argument 'lr'"),
        ("cos", "did you mean 'cosine'"),
        (3, "expected None, a scheduler"),
    ):
        with pytest.raises(ParameterError, match=words):
            fit_schedule(text, 0.1, 10, 3)


@pytest.mark.parametrize(
    "schedule", ["cosine(initial_lr=0.5)", CosineScheduler(0.5), "noam(model_dim=64)"]
)
def test_two_rates_are_refused_and_one_is_taken(digits, schedule):
    with pytest.raises(ParameterError, match=r"Trainer: SGD: lr=0\.3 .*(CosineSch|NoamSch)"):
        Trainer(dense(None), digits, 32, optimizer="SGD(lr=0.3)", schedule=schedule)
    trainer = Trainer(dense(None), digits, 32, 2, optimizer="SGD", schedule=schedule)
    made = trainer.network[1].optimizer
    assert str(made.lr_scheduler) == str(fit_schedule(schedule, 0.01, 10, 2))
    if isinstance(schedule, str) and "cosine" in schedule:
        assert made.lr == 0.5 and made.lr_scheduler.total_steps == 20


def test_the_rate_of_an_optimizer_of_ones_own_is_kept(digits):
    class Plain(OptimizerBase):
        """A user's optimizer, which has no attribute lr."""

        def update(self, param, param_grad, param_name, cur_loss=None):
            return param - self.lr_scheduler(self.cur_step, cur_loss) * param_grad

    trainer = run(dense(None), digits, optimizer=Plain(0.25), schedule="constant", epochs=1)
    assert trainer.history.last.lr == 0.25


def test_a_second_training_of_a_network_begins_its_schedule_anew(digits):
    net = bare()
    first = run(net, digits, schedule="cosine")
    again = run(net, digits, schedule="cosine")
    assert first.history.column("lr") == again.history.column("lr") == pytest.approx([0.05, 0.0])
    slower = run(net, digits, schedule="cosine(initial_lr=0.01)")  # lr=0.1 was the first run's
    assert slower.history[0].lr == pytest.approx(0.005)


def test_text_of_a_dict():
    given = {"id": "warmup", "warmup_steps": 3, "scheduler": {"id": "cosine", "final_lr": 0.5}}
    text = schedule_text(given)
    assert str(fit_schedule(text, 0.1, 10, 3)) == str(fit_schedule(given, 0.1, 10, 3))
    assert schedule_text("cosine") == "cosine" and schedule_text(CosineScheduler()) is None


# ------------------------------------------------------------------------------ another length


def rates(trainer) -> list[float]:
    return trainer.history.column("lr")


@pytest.mark.parametrize("schedule", [*FITTED, {"id": "cosine", "final_lr": 1e-4}])
@pytest.mark.parametrize("given", [True, False])
def test_a_run_that_goes_on_for_longer_has_the_rates_of_the_longer_run(
    digits, tmp_path, schedule, given
):
    short = run(bare(), digits, epochs=1, schedule=schedule, out=tmp_path)
    whole = run(bare(), digits, epochs=3, schedule=schedule)
    options = {"schedule": schedule} if given else {}
    longer = run(bare(), digits, epochs=3, resume=tmp_path, **options)
    assert rates(longer) == [*rates(short), *rates(whole)[1:]]
    assert rates(longer)[0] != rates(whole)[0] and max(rates(longer)[1:]) > 0.01
    assert longer.history[1].val_loss != longer.history[2].val_loss


@pytest.mark.parametrize("schedule", UNCHANGED)
def test_where_the_length_does_not_matter_the_longer_run_is_the_same(digits, tmp_path, schedule):
    whole = run(bare(), digits, epochs=3, seed=3, schedule=schedule)
    run(bare(), digits, epochs=1, seed=3, schedule=schedule, out=tmp_path)
    assert_same_run(whole, run(bare(), digits, epochs=3, seed=3, resume=tmp_path))


@pytest.mark.parametrize("again", [None, "cosine"])
def test_in_the_middle_of_an_epoch_and_once_more(digits, tmp_path, again):
    options = {"seed": 3, "out": tmp_path}
    with pytest.raises(SystemExit):
        cut = in_step(bare(), 7, lambda: (_ for _ in ()).throw(SystemExit))
        run(cut, digits, epochs=1, schedule="cosine", checkpoint_batches=3, **options)
    state = load_checkpoint(tmp_path / "model.safetensors").trainer
    assert (state["schedule"], state["epochs"], state["step"]) == ("cosine", 1, 6)
    trainer = Trainer(bare(), digits, 32, 2, resume=tmp_path, schedule=again, **options)
    assert trainer.learning_rate == CosineScheduler(0.1, 20)(6)
    with pytest.raises(SystemExit):  # and what is saved now is of two epochs
        cut = in_step(bare(), 9, lambda: (_ for _ in ()).throw(SystemExit))
        run(cut, digits, epochs=2, resume=tmp_path, schedule=again, checkpoint_batches=2, **options)
    last = run(bare(), digits, epochs=2, resume=tmp_path, seed=3)
    assert str(last.network[1].optimizer.lr_scheduler) == str(CosineScheduler(0.1, 20))
    longest = run(bare(), digits, epochs=4, resume=tmp_path, seed=3)
    assert str(longest.network[1].optimizer.lr_scheduler) == str(CosineScheduler(0.1, 40))


def test_epochs_that_are_set_before_fit_goes_on(digits, tmp_path):
    trainer = run(bare(), digits, epochs=1, schedule="cosine", out=tmp_path)
    trainer.epochs = 3
    trainer.fit()
    assert rates(trainer)[1:] == [CosineScheduler(0.1, 30)(n) for n in (20, 30)]
    other = run(bare(), digits, epochs=1, schedule="cosine")
    for layer in other.network:
        layer.optimizer.lr_scheduler = ExponentialScheduler(0.5)
    other.epochs = 2
    other.fit()  # one put in by hand is left alone
    assert rates(other)[1] == ExponentialScheduler(0.5)(20)


@pytest.mark.parametrize(
    "given", [CosineScheduler(0.3, 50), "cosine(initial_lr=0.3, total_steps=50)"]
)
def test_a_schedule_given_on_resume_is_taken_up_there(digits, tmp_path, given):
    run(bare(), digits, epochs=1, schedule="cosine", out=tmp_path)
    for epochs, (schedule, rate) in itertools.product(
        (2, 3),
        (("constant", 0.1), ("constant(lr=0.02)", 0.02), (given, CosineScheduler(0.3, 50)(20))),
    ):
        longer = run(bare(), digits, epochs=epochs, resume=tmp_path, schedule=schedule)
        assert rates(longer)[:2] == [0.0, rate]


@pytest.mark.parametrize("again", [None, "king"])
def test_what_stays_as_it_was_keeps_its_state(digits, tmp_path, again):
    trainer = run(bare(), digits, epochs=1, schedule="king", out=tmp_path)
    for layer in trainer.network:
        layer.optimizer.lr_scheduler.current_lr = 0.03
    trainer.save_checkpoint()
    longer = Trainer(bare(), digits, 32, 3, resume=tmp_path, schedule=again)
    assert longer.learning_rate == 0.03


def test_an_object_is_fitted_to_nothing(digits, tmp_path):
    run(bare(), digits, epochs=1, schedule=CosineScheduler(0.1, 10), out=tmp_path)
    assert rates(run(bare(), digits, epochs=2, resume=tmp_path)) == [0.0, 0.0]


def test_a_checkpoint_from_before_schedules_were_kept(digits, tmp_path, monkeypatch):
    from gpulayers.training import trainer as module

    plain = module.state_of

    def older(trainer):
        state = plain(trainer)
        del state["schedule"]
        return state

    monkeypatch.setattr(module, "state_of", older)
    run(bare(), digits, epochs=1, schedule="cosine", out=tmp_path)
    monkeypatch.undo()
    assert rates(run(bare(), digits, epochs=2, resume=tmp_path)) == [0.0, 0.0]
    fitted = run(bare(), digits, epochs=2, resume=tmp_path, schedule="cosine", out=tmp_path / "b")
    assert str(fitted.network[1].optimizer.lr_scheduler) == str(CosineScheduler(0.1, 20))


@pytest.mark.parametrize("other", ["Adam", "SGD(momentum=0.5)", "SGD(lr=0.2)"])
def test_another_optimizer_on_resume_is_refused(digits, tmp_path, other):
    options = {"optimizer": "SGD(lr=0.1)", "schedule": "cosine"}
    run(dense(None), digits, epochs=1, out=tmp_path, **options)
    with pytest.raises(ParameterError, match=r"resume: optimizer is .*, but the run in .* has SGD"):
        Trainer(dense(None), digits, 32, 2, resume=tmp_path, optimizer=other)
    for same in ("SGD(lr=0.1)", "SGD", None):
        Trainer(dense(None), digits, 32, 2, resume=tmp_path, optimizer=same)
