"""Saving, stopping and going on: the result is that of an uninterrupted run."""

from __future__ import annotations

import os
import signal
import sys
import threading

import numpy as np
import pytest

from gpulayers import random
from gpulayers.errors import (
    CheckpointError,
    ParameterError,
)
from gpulayers.layers import Dropout, Flatten, FullyConnected
from gpulayers.models import Sequential
from gpulayers.training import Trainer, evaluate, load, load_checkpoint, save
from tests.training.networks import assert_same_run, conv, dense, in_step, run

# ------------------------------------------------------------------------------ saving and resuming


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_files_of_a_run(digits, tmp_path):
    trainer = run(dense(), digits, epochs=3, out=tmp_path / "a" / "b", info={"note": "x"})
    folder = tmp_path / "a" / "b"
    assert sorted(os.listdir(folder)) == ["best.safetensors", "log.csv", "model.safetensors"]
    expected = trainer.network.predict(digits.test.images)
    np.testing.assert_array_equal(
        load(folder / "model.safetensors").predict(digits.test.images), expected
    )
    best = load(folder / "best.safetensors")
    assert evaluate(best, digits.test).accuracy == trainer.history.best.val_accuracy
    assert load_checkpoint(folder / "model.safetensors").info == {"note": "x"}
    lines = (folder / "log.csv").read_text().splitlines()
    assert len(lines) == 4 and lines[0].startswith("epoch,train_loss,train_accuracy,val_loss")
    assert float(lines[3].split(",")[4]) == trainer.history.last.val_accuracy


def test_best_is_the_best_and_not_the_last(digits, tmp_path):
    class Collapse:
        """Makes the network useless after the second epoch."""

        def __call__(self, trainer, record):
            if record.epoch == 2:
                trainer.network.parameters["3.W"][...] = 0.0

    trainer = run(dense(), digits, epochs=3, out=tmp_path, callbacks=[Collapse()])
    assert trainer.history.best.epoch == 2 > 0
    assert evaluate(load(tmp_path / "best.safetensors"), digits.test).accuracy == (
        trainer.history[1].val_accuracy
    )


@pytest.mark.parametrize("make", [dense, conv])
@pytest.mark.parametrize("stop", [0, 1, 13, 20, 27])
def test_resumed_equals_uninterrupted_bit_for_bit(digits, tmp_path, make, stop):
    """Stop after `stop` steps of 30 (10 an epoch), with Ctrl-C as the signal it is."""
    options = {"epochs": 3, "seed": 3, "schedule": "exponential"}
    whole = run(make(), digits, **options)
    if stop:
        cut = in_step(make(), stop, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt, match=r"saved to .*model\.safetensors"):
            run(cut, digits, out=tmp_path, **options)
        state = load_checkpoint(tmp_path / "model.safetensors").trainer
        assert state["epoch"] * 10 + state["step"] == stop, "the running step is finished, no other"
    else:  # only the checkpoint from before the first step
        with pytest.raises(SystemExit):
            run(in_step(make(), 2, sys.exit), digits, out=tmp_path, **options)
    random.seed(99)
    random.default_generator().uniform(5)
    resumed = Trainer(make(), digits, 32, 3, seed=3, progress=False, resume=tmp_path)
    resumed.fit()
    assert_same_run(whole, resumed)


def test_a_run_killed_at_any_moment_resumes_from_its_last_epoch(digits, tmp_path):
    whole = run(conv(), digits, epochs=3, seed=3)

    with pytest.raises(SystemExit):  # nothing is saved on the way out, as with kill -9
        run(in_step(conv(), 26, sys.exit), digits, epochs=3, seed=3, out=tmp_path)
    assert load_checkpoint(tmp_path / "model.safetensors").trainer["epoch"] == 2
    resumed = run(conv(None), digits, epochs=3, seed=3, resume=tmp_path / "model.safetensors")
    assert_same_run(whole, resumed)


def test_a_resumed_run_with_another_folder_has_a_checkpoint_there_from_the_beginning(
    digits, tmp_path
):
    run(dense(), digits, epochs=1, out=tmp_path / "a")
    old = (tmp_path / "a" / "model.safetensors").read_bytes()
    with pytest.raises(SystemExit):
        run(
            in_step(dense(), 2, sys.exit),
            digits,
            resume=tmp_path / "a",
            out=tmp_path / "b",
        )
    assert load_checkpoint(tmp_path / "b" / "model.safetensors").trainer["epoch"] == 1
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == old


def test_fit_again_after_ctrl_c_goes_on(digits):
    whole = run(dense(), digits, epochs=2, seed=4)

    cut = in_step(dense(), 5, press_ctrl_c)
    trainer = Trainer(cut, digits, 32, 2, seed=4, progress=False)
    with pytest.raises(KeyboardInterrupt, match=r"epoch 1 of 2, 5 of 10 batches.*fit.. goes on"):
        trainer.fit()
    trainer.fit()
    assert_same_run(whole, trainer)
    trainer.epochs = 4
    assert len(trainer.fit()) == 4


def test_a_second_ctrl_c_stops_at_once(digits):
    def twice() -> None:
        press_ctrl_c()
        press_ctrl_c()
        raise AssertionError("not reached")

    former = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(in_step(dense(), 3, twice), digits)
    assert signal.getsignal(signal.SIGINT) is former


def test_training_in_another_thread(digits):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(dense(), digits, seed=1)))
    thread.start()
    thread.join()
    assert_same_run(results[0], run(dense(), digits, seed=1))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"batch_size": 16}, "batch_size is 16, but the run in .* has 32"),
        ({"seed": 1}, "seed is 1, but"),
        ({"normalize": False}, "normalize is False"),
        ({"dtype": "float64"}, "dtype is 'float64'"),
    ],
)
def test_resume_refuses_other_settings(digits, tmp_path, change, words):
    run(dense(), digits, epochs=1, out=tmp_path)
    with pytest.raises(ParameterError, match=words):
        Trainer(dense(), digits, **{"batch_size": 32, **change}, resume=tmp_path)


def test_resume_refuses_another_network_and_other_files(digits, tmp_path):
    run(dense(), digits, epochs=1, out=tmp_path)
    with pytest.raises(CheckpointError, match="holds another network"):
        Trainer(conv(), digits, 32, resume=tmp_path)
    wider = Sequential(
        [Flatten(), FullyConnected(33), Dropout(0.2), FullyConnected(10)], name="dense"
    )
    with pytest.raises(CheckpointError, match=r"n_out of layer 1 .* is 32 there, 33 here"):
        Trainer(wider, digits, 32, resume=tmp_path)
    load_checkpoint(tmp_path / "model.safetensors")
    save(tmp_path / "bare.safetensors", dense())
    with pytest.raises(CheckpointError, match="no training state"):
        Trainer(dense(), digits, 32, resume=tmp_path / "bare.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"PK broken")
    with pytest.raises(CheckpointError, match="truncated or corrupted"):
        Trainer(dense(), digits, 32, resume=tmp_path)


def test_a_network_class_of_ones_own_resumes(digits, tmp_path):
    class Mine(Sequential):
        """A subclass whose class the resuming network tells."""

    whole = run(Mine(dense().layers, name="m"), digits, epochs=2)
    run(Mine(dense().layers, name="m"), digits, epochs=1, out=tmp_path)
    with pytest.raises(CheckpointError, match="'Mine'"):
        load(tmp_path / "model.safetensors")
    assert type(load(tmp_path / "model.safetensors", custom=[Mine])) is Mine
    resumed = run(Mine(dense().layers, name="m"), digits, epochs=2, resume=tmp_path)
    assert_same_run(whole, resumed)
