"""Callbacks: what they do, and that a run that is interrupted goes on with their state."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpulayers.errors import CheckpointError, ParameterError
from gpulayers.models import Sequential
from gpulayers.training import (
    BestModel,
    Callback,
    CSVLogger,
    EarlyStopping,
    Epoch,
    Trainer,
    WeightAverage,
    evaluate,
    load,
    load_checkpoint,
)
from tests.training.networks import assert_same_run, conv, dense, run
from tests.training.test_resume import Killed, killed
from tests.training.test_showing import hidden  # noqa: F401 - a fixture


def record(epoch: int, **figures: float) -> Epoch:
    values = {
        "train_loss": 1.0,
        "train_accuracy": 0.5,
        "val_loss": 1.0,
        "val_accuracy": 0.5,
        "lr": 0.1,
        "examples_per_second": 1.0,
        "seconds": 1.0,
    }
    return Epoch(epoch=epoch, **{**values, **figures})


class Told:
    """Stands for a trainer that is told to stop."""

    reason = None

    def stop(self, reason: str) -> None:
        self.reason = reason


# --------------------------------------------------------------------------------- early stopping


@pytest.mark.parametrize(
    "values, patience, delta, mode, stops_at",
    [
        ([3, 2, 2, 2, 1], 2, 0.0, "min", 4),
        ([3, 2, 2, 1, 1, 1], 2, 0.0, "min", 6),
        ([3, 2, 2, 1], 1, 0.0, "auto", 3),
        ([3, 2.95, 2.9, 2.85], 2, 0.2, "min", 3),
        ([3, 2.9, 2.7, 2.5, 2.3], 2, 0.2, "min", None),
        ([1, 2, 3, 2, 2], 2, 0.0, "max", 5),
        ([math.nan, math.nan, 1.0], 2, 0.0, "min", 2),
        ([1.0, math.nan, 0.5, math.nan, math.nan], 2, 0.0, "min", 5),
        ([math.inf, math.inf], 2, 0.0, "min", 2),
    ],
)
def test_early_stopping_counts(values, patience, delta, mode, stops_at):
    callback = EarlyStopping("val_loss", patience, mode, delta)
    for epoch, value in enumerate(values, 1):
        trainer = Told()
        callback.on_epoch_end(trainer, record(epoch, val_loss=value))
        if trainer.reason:
            assert epoch == stops_at
            return
    assert stops_at is None


def test_early_stopping_ends_a_run_which_stays_ended(digits, tmp_path, capsys):
    """Nothing is learned, so the loss never falls."""
    callback = EarlyStopping("train_loss", patience=2, min_delta=9.0)
    trainer = run(
        dense("SGD(lr=0.001)"), digits, epochs=9, callbacks=callback, out=tmp_path, progress=True
    )
    assert len(trainer.history) == 3 and trainer.stopped.endswith("epoch 1)")
    assert "stopped after epoch 3: train_loss has not become better" in capsys.readouterr().out
    assert len(trainer.fit()) == 3
    again = EarlyStopping("train_loss", patience=2)
    resumed = run(dense(), digits, epochs=9, callbacks=[again], resume=tmp_path)
    assert len(resumed.history) == 3 and again.best == callback.best and again.waited == 2
    longer = EarlyStopping("train_loss", patience=4, min_delta=9.0)
    assert len(run(dense(), digits, epochs=9, callbacks=[longer], resume=tmp_path).history) == 5


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: EarlyStopping(patience=0), "patience"),
        (lambda: EarlyStopping(patience=1.5), "patience"),
        (lambda: EarlyStopping("val_los"), "did you mean 'val_loss'"),
        (lambda: EarlyStopping(mode="mni"), "did you mean 'min'"),
        (lambda: EarlyStopping(min_delta=math.nan), "min_delta"),
        (lambda: BestModel("epoch"), "unknown figure 'epoch'"),
        (lambda: BestModel(restore=1), "restore"),
        (lambda: WeightAverage(1.0), "decay"),
        (lambda: WeightAverage(-0.1), "decay"),
    ],
)
def test_bad_arguments(make, words):
    with pytest.raises(ParameterError, match=words):
        make()


@pytest.mark.parametrize("callbacks", [[3], ["x"], [Callback], [None], 3, Callback, print])
def test_what_is_no_callback(digits, callbacks):
    with pytest.raises(ParameterError, match="callbacks must be Callback objects or functions"):
        Trainer(dense(), digits, callbacks=callbacks)
    same = BestModel()
    with pytest.raises(ParameterError, match="twice"):
        Trainer(dense(), digits, callbacks=[same, same])


# --------------------------------------------------------------------------------- average, best


class Weights(Callback):
    """Remembers the weights after each step, in float64."""

    def __init__(self) -> None:
        self.steps: list[dict[str, np.ndarray]] = []

    def on_step_end(self, trainer) -> None:
        parameters = trainer.network.parameters
        self.steps.append({k: np.asarray(v, np.float64).copy() for k, v in parameters.items()})


@pytest.mark.parametrize("warmup, compile", [(True, None), (False, False)])
def test_the_average_is_what_its_formula_says(digits, warmup, compile, tmp_path):
    seen, average = Weights(), WeightAverage(0.8, warmup)
    options = {"epochs": 2, "out": tmp_path, "compile": compile}
    trainer = run(conv(), digits, callbacks=[seen, average], **options)
    expected = {k: v.copy() for k, v in seen.steps[0].items()}
    for t, weights in enumerate(seen.steps[1:], 1):
        decay = min(0.8, (1 + t) / (10 + t)) if warmup else 0.8
        for k in expected:
            expected[k] = decay * expected[k] + (1 - decay) * weights[k]
    for name, array in trainer.network.parameters.items():  # fit ends with the average
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5)
    result = evaluate(trainer.network, digits.test)
    assert result.accuracy == trainer.history.last.val_accuracy, "validated with the average"
    plain = run(conv(), digits, epochs=2, compile=compile)
    for name in ("train_loss", "train_accuracy"):
        assert trainer.history.column(name) == plain.history.column(name), "training is the same"
    assert trainer.history.last.val_loss != plain.history.last.val_loss
    best = load(tmp_path / "best.safetensors")
    assert evaluate(best, digits.test).accuracy == trainer.history.best.val_accuracy
    last = load(tmp_path / "model.safetensors")
    for name, array in trainer.network.parameters.items():
        np.testing.assert_array_equal(last.parameters[name], array)


def test_the_average_of_half_precision_is_kept_in_float32(digits):
    average = WeightAverage(0.9)
    trainer = run(dense("SGD(lr=0.01)"), digits, epochs=1, dtype="float16", callbacks=[average])
    assert {a.dtype for a in average.average.values()} == {np.dtype(np.float32)}
    assert trainer.network.dtype == np.float16


class Collapse(Callback):
    """Makes the network useless in the last steps of the second epoch."""

    def __init__(self, last: int = 1) -> None:
        self.last = last

    def on_step_end(self, trainer) -> None:
        if trainer.epoch == 1 and trainer.step > trainer.steps - self.last:
            trainer.network.parameters["3.W"][...] = 0.0


def test_the_best_weights_come_back(digits, tmp_path):
    best = BestModel()
    trainer = run(dense(), digits, epochs=2, callbacks=[Collapse(), best], out=tmp_path)
    assert best.best_epoch == 1 and trainer.history[1].val_accuracy < 0.3
    accuracy = trainer.history[0].val_accuracy
    assert evaluate(trainer.network, digits.test).accuracy == accuracy
    assert evaluate(load(tmp_path / "model.safetensors"), digits.test).accuracy == accuracy
    kept = BestModel(restore=False)
    trainer = run(dense(), digits, epochs=2, callbacks=[Collapse(), kept])
    assert not trainer.network.parameters["3.W"].any() and kept.weights["3.W"].any()


@pytest.mark.parametrize("swapped", [False, True])
def test_the_average_goes_first_in_whatever_order_they_are_given(digits, swapped):
    """The best epoch is not the last one, so the last average must not replace it."""
    callbacks = [WeightAverage(0.5), BestModel("val_loss"), Collapse(8)]
    options = {"epochs": 2, "callbacks": callbacks[::-1] if swapped else callbacks}
    trainer = run(dense(), digits, **options)
    assert callbacks[1].best_epoch == 1
    loss = evaluate(trainer.network, digits.test).loss
    assert loss == pytest.approx(trainer.history[0].val_loss, rel=1e-6)


def all_of_them() -> list[Callback]:
    """In the less obvious order: the average goes first all the same."""
    return [BestModel("val_loss"), EarlyStopping(patience=4), WeightAverage(0.9)]


@pytest.mark.parametrize("step", [4, 14, 30])
def test_their_state_goes_through_checkpoints_bit_for_bit(digits, tmp_path, step):
    options = {"epochs": 3, "seed": 2}
    expected = all_of_them()
    whole = run(conv(), digits, callbacks=expected, **options)
    more = {"out": tmp_path, "checkpoint_batches": 4}
    killed(conv(), digits, step, callbacks=all_of_them(), **more, **options)
    callbacks = all_of_them()
    resumed = run(conv(), digits, resume=tmp_path, callbacks=callbacks, **options)
    assert_same_run(whole, resumed)
    best, stopping, average = callbacks
    assert (best.best, best.best_epoch) == (expected[0].best, expected[0].best_epoch)
    assert (stopping.best, stopping.waited) == (expected[1].best, expected[1].waited)
    assert average.steps == expected[2].steps == 30
    for name, array in expected[2].average.items():
        np.testing.assert_array_equal(average.average[name], array)
        np.testing.assert_array_equal(best.weights[name], expected[0].weights[name])


def test_a_finished_run_goes_on_with_the_weights_it_trained(digits, tmp_path):
    """The network in the files has other weights: the average, the best."""
    options = {"epochs": 3, "seed": 2}
    expected = run(conv(), digits, callbacks=all_of_them(), **options)
    first = run(conv(), digits, epochs=2, seed=2, callbacks=all_of_them(), out=tmp_path)
    first.epochs = 3
    first.out = None
    first.fit()
    assert_same_run(expected, first)
    for file in ("model.safetensors", "best.safetensors"):
        path = tmp_path / file
        resumed = run(conv(), digits, callbacks=all_of_them(), resume=path, **options)
        assert_same_run(expected, resumed)


def test_resume_with_other_callbacks(digits, tmp_path):
    run(dense(), digits, epochs=1, callbacks=[WeightAverage()], out=tmp_path)
    options = {"batch_size": 32, "resume": tmp_path}
    with pytest.raises(ParameterError, match=r"are none, but the run in .* has WeightAverage"):
        Trainer(dense(), digits, **options)
    with pytest.raises(ParameterError, match="are BestModel, but"):
        Trainer(dense(), digits, callbacks=[BestModel()], **options)
    log = CSVLogger(tmp_path / "x.csv")  # keeps nothing
    Trainer(dense(), digits, callbacks=[log, WeightAverage()], **options)

    class Other(WeightAverage):
        def load_state_dict(self, state):
            raise KeyError("steps")

    Other.__name__ = "WeightAverage"
    with pytest.raises(CheckpointError, match="state of the callback WeightAverage"):
        Trainer(dense(), digits, callbacks=[Other()], **options)
    run(dense(), digits, epochs=1, callbacks=[BestModel("val_loss")], out=tmp_path / "b")
    options["resume"] = tmp_path / "b"
    with pytest.raises(ParameterError, match="watches val_accuracy, but watched val_loss"):
        Trainer(dense(), digits, callbacks=[BestModel()], **options)


class Killer(Callback):
    """Ends the run, as far as files are concerned, after so many batches."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def on_step_end(self, trainer: Trainer) -> None:
        self.left -= 1
        if not self.left:
            raise Killed


def test_a_run_with_all_of_them_on_each_backend(digits, backend, tmp_path):
    train, test = digits.train.take(slice(0, 70)), digits.test.take(slice(0, 20))
    small = type(digits)("small", train, test, digits.classes)
    options = {"epochs": 2, "seed": 2, "accumulate": 2}
    whole = run(conv(), small, callbacks=all_of_them(), **options)
    assert whole.network.home == backend.library
    more = {"out": tmp_path, "checkpoint_batches": 2}
    with pytest.raises(Killed):  # behind the last batch
        run(conv(), small, callbacks=[*all_of_them(), Killer(6)], **more, **options)
    assert load_checkpoint(tmp_path / "model.safetensors").trainer["step"] == 2
    resumed = run(conv(), small, callbacks=all_of_them(), resume=tmp_path, **options)
    assert whole.history.step_losses == resumed.history.step_losses
    for name, array in whole.network.parameters.items():
        np.testing.assert_array_equal(
            backend.asnumpy(array), backend.asnumpy(resumed.network.parameters[name])
        )


# ------------------------------------------------------------------------------------------ order


def test_the_moments_and_their_order(digits, tmp_path):
    events: list[str] = []

    class Spy(Callback):
        def __init__(self, name: str) -> None:
            self.name = name

        def __getattribute__(self, what: str):
            if what.startswith("on_") and what != "on_step_end":
                events.append(f"{what[3:]} {self.name}")
            return super().__getattribute__(what)

    class Saved(Callback):
        def state_dict(self):
            events.append("state")
            return {}

    def function(trainer, record):
        events.append(
            f"function {load_checkpoint(tmp_path / 'model.safetensors').trainer['epoch']}"
        )

    run(dense(), digits, epochs=1, callbacks=[Spy("a"), function, Spy("b"), Saved()], out=tmp_path)
    shown = [e for e in events if not e.startswith("state")]
    assert shown == [
        "fit_begin b",
        "fit_begin a",
        "validation_begin a",
        "validation_begin b",
        "epoch_end a",
        "epoch_end b",
        "validation_end b",
        "validation_end a",
        "function 1",
        "fit_end a",
        "fit_end b",
        "close a",
        "close b",
    ]
    assert events.index("state", events.index("epoch_end b")) < events.index("function 1")


def test_an_error_in_the_validation_leaves_the_trained_weights(digits, monkeypatch):
    average = WeightAverage(0.9)
    seen = Weights()
    trainer = Trainer(dense(), digits, 32, 1, callbacks=[average, seen], progress=False)

    def fail(*args, **kwargs):
        raise ValueError("no")

    monkeypatch.setattr("gpulayers.training.trainer.evaluate_feed", fail)
    with pytest.raises(ValueError, match="no"):
        trainer.fit()
    for name, array in trainer.network.parameters.items():
        np.testing.assert_array_equal(array, seen.steps[-1][name].astype(array.dtype))


def test_a_network_class_of_ones_own_is_averaged(digits):
    class Mine(Sequential):
        """Not trained by the plan."""

    average = WeightAverage(0.9)
    run(Mine(dense().layers), digits, epochs=1, callbacks=[average])
    assert average.steps == 10
