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
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models import Sequential
from gpulayers.training import Trainer, evaluate, load, load_checkpoint, save
from gpulayers.training.callbacks import WeightAverage
from gpulayers.training.data import Dataset, Split
from tests.training.networks import assert_same_run, conv, dense, in_step, run

# ------------------------------------------------------------------------------ saving and resuming


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_files_of_a_run(digits, tmp_path):
    trainer = run(dense(), digits, epochs=3, out=tmp_path / "a" / "b", info={"note": "x"})
    folder = tmp_path / "a" / "b"
    assert sorted(os.listdir(folder)) == [
        "best.safetensors",
        "checkpoints",
        "log.csv",
        "model.safetensors",
    ]
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
        ({"accumulate": 2}, "accumulate is 2"),
        ({"label_smoothing": 0.1}, "label_smoothing is 0.1"),
        ({"loss": SoftmaxCrossEntropy("sum")}, r"loss is 'SoftmaxCrossEntropy\(reduction=sum"),
        ({"callbacks": [WeightAverage()]}, "are WeightAverage, but the run in .* has none"),
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
        Trainer(dense(), digits, 32, resume=tmp_path / "model.safetensors")


def test_resume_refuses_another_dataset(digits, tmp_path):
    """Of the same name and size: the labels, or the images, are others."""
    run(dense(), digits, epochs=1, out=tmp_path)
    train = digits.train
    other_labels = Split(train.images, (train.labels + 1) % 10)
    other_images = Split(255 - train.images, train.labels)
    for split in (other_labels, other_images):
        data = Dataset(digits.name, split, digits.test, digits.classes)
        with pytest.raises(ParameterError, match="data_sum"):
            Trainer(dense(), data, 32, resume=tmp_path)


# ------------------------------------------------------------------- checkpoints inside an epoch


class Killed(BaseException):
    """The end of a process, as far as files are concerned."""


def killed(network, data, step, **options):
    """Run until the forward pass of `step`, and leave the folder as kill -9 does."""

    def die():
        raise Killed

    with pytest.raises(Killed):
        run(in_step(network, step, die), data, **options)


@pytest.mark.parametrize("make, compile", [(dense, None), (conv, None), (conv, False)])
@pytest.mark.parametrize("step", [1, 5, 18])
def test_killed_in_the_middle_of_an_epoch(digits, tmp_path, make, step, compile):
    """Checkpoints after every 3rd batch of 10: the end is that of an uninterrupted run."""
    options = {"epochs": 3, "seed": 3, "schedule": "king", "compile": compile, "accumulate": 2}
    whole = run(make(), digits, **options)
    killed(make(), digits, step * 2, out=tmp_path, checkpoint_batches=3, **options)
    state = load_checkpoint(tmp_path / "model.safetensors").trainer
    done = state["epoch"] * 10 + state["step"]
    assert done == max(d for d in (0, 3, 6, 9, 10, 13, 16, 19, 20, 23, 26, 29) if d < step)
    random.seed(99)
    resumed = run(make(), digits, resume=tmp_path, out=tmp_path, **options)
    assert_same_run(whole, resumed)


def test_checkpoints_by_time(digits, tmp_path):
    options = {"checkpoint_seconds": 1e-9, "out": tmp_path, "keep_last": 100, "epochs": 1}
    run(dense(), digits, **options)
    names = sorted(os.listdir(tmp_path / "checkpoints"))
    assert names == [f"epoch-00000-batch-{i:08d}.safetensors" for i in range(10)]
    states = [load_checkpoint(tmp_path / "checkpoints" / n).trainer["step"] for n in names]
    assert states == list(range(10))


@pytest.mark.parametrize("keep, left", [(1, 0), (2, 1), (4, 3)])
def test_keep_last(digits, tmp_path, keep, left):
    run(dense(), digits, epochs=2, out=tmp_path, keep_last=keep, checkpoint_batches=5)
    folder = tmp_path / "checkpoints"
    names = sorted(os.listdir(folder)) if folder.exists() else []
    all_names = [f"epoch-{e:05d}-batch-{b:08d}.safetensors" for e in (0, 1) for b in (0, 5)]
    assert names == all_names[len(all_names) - left :]


@pytest.mark.parametrize("damage", ["cut", "bit", "foreign", "empty", "gone"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(digits, tmp_path, damage):
    whole = run(dense(), digits, epochs=3, seed=1)
    killed(dense(), digits, 28, epochs=3, seed=1, out=tmp_path, checkpoint_batches=2)
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "bit":
        content[len(content) // 2] ^= 4
    content = {"cut": content[:-100], "foreign": b"x" * 99, "empty": b""}.get(damage, content)
    path.write_bytes(content)
    if damage == "gone":
        path.unlink()
    with pytest.warns(RuntimeWarning, match=r"checkpoint before it is used: .*00002-batch-0*4"):
        resumed = run(dense(), digits, epochs=3, seed=1, resume=tmp_path, out=tmp_path, keep_last=9)
    assert_same_run(whole, resumed)
    for older in (tmp_path / "checkpoints").iterdir():
        load_checkpoint(older)  # the damaged one is not among them
    assert load_checkpoint(path).trainer["epoch"] == 3, "the damaged one is replaced"
    if damage != "gone":
        path.write_bytes(content)
        with pytest.raises(CheckpointError):  # asked for by name, it is not replaced by another
            Trainer(dense(), digits, 32, resume=path)


def test_when_no_checkpoint_is_whole(digits, tmp_path):
    run(dense(), digits, epochs=1, out=tmp_path)
    for path in [tmp_path / "model.safetensors", *(tmp_path / "checkpoints").iterdir()]:
        path.write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"model\.safetensors .*Neither can epoch-00000"):
        Trainer(dense(), digits, 32, resume=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no checkpoint.*start it anew"):
        Trainer(dense(), digits, 32, resume=tmp_path / "empty")


def test_what_another_run_left_in_the_folder_is_never_gone_on_with(digits, tmp_path):
    run(dense(), digits, epochs=3, out=tmp_path, keep_last=9)
    (tmp_path / ".model.safetensors.abc.part").write_bytes(b"half")  # of a killed process
    run(dense(), digits, epochs=1, seed=5, out=tmp_path, keep_last=9)
    assert os.listdir(tmp_path / "checkpoints") == ["epoch-00000-batch-00000000.safetensors"]
    assert not list(tmp_path.glob(".*"))
    first = tmp_path / "checkpoints" / "epoch-00000-batch-00000000.safetensors"
    resumed = run(dense(), digits, epochs=1, seed=5, resume=first, out=tmp_path)
    assert_same_run(resumed, run(dense(), digits, epochs=1, seed=5))


def test_an_older_checkpoint_replaces_what_came_behind_it(digits, tmp_path):
    run(dense(), digits, epochs=4, out=tmp_path, keep_last=9)
    old = tmp_path / "checkpoints" / "epoch-00001-batch-00000000.safetensors"
    run(dense(), digits, epochs=2, resume=old, out=tmp_path, keep_last=9)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == [
        "epoch-00000-batch-00000000.safetensors",
        "epoch-00001-batch-00000000.safetensors",
    ]
    assert load_checkpoint(tmp_path / "model.safetensors").trainer["epoch"] == 2


@pytest.mark.parametrize("link", [True, False])
def test_there_is_a_whole_checkpoint_at_every_moment(digits, tmp_path, monkeypatch, link):
    """Before each call that changes the folder, the run could go on from what is there."""
    trainer = run(dense(), digits, epochs=1, out=tmp_path)
    trainer.epochs, looked = 3, []

    def watch(name):
        real = getattr(os, name)

        def call(*args, **kwargs):
            if name == "link" and not link:
                raise OSError("no links here")
            state = load_checkpoint(tmp_path / "model.safetensors").trainer
            looked.append((state["epoch"], state["step"]))
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    for name in ("replace", "link", "unlink", "fsync"):
        watch(name)
    trainer.fit()
    monkeypatch.undo()
    assert looked == sorted(looked) and looked[0] == (1, 0) and looked[-1] == (3, 0)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == [
        "epoch-00002-batch-00000000.safetensors"
    ]


def test_a_run_that_was_stopped_after_its_last_step_only_finishes(digits, tmp_path):
    """Killed between the last checkpoint and the end of fit."""
    average = WeightAverage(0.9)
    whole = run(dense(), digits, epochs=1, callbacks=[average])
    callbacks = [WeightAverage(0.9)]

    def die(trainer, record):
        raise Killed

    with pytest.raises(Killed):
        run(dense(), digits, epochs=1, out=tmp_path, callbacks=[*callbacks, die])
    resumed = run(dense(), digits, epochs=1, resume=tmp_path, callbacks=[WeightAverage(0.9)])
    assert_same_run(whole, resumed)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"checkpoint_batches": 0}, "checkpoint_batches must be a positive integer"),
        ({"checkpoint_seconds": 0}, "checkpoint_seconds must be in"),
        ({"checkpoint_seconds": float("nan")}, "checkpoint_seconds must be a finite"),
        ({"keep_last": 0}, "keep_last must be a positive"),
        ({"accumulate": 0}, "accumulate must be a positive"),
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"progress": "kurve"}, "progress .*did you mean 'curve'"),
        ({"sampler": []}, r"sampler must be a Sampler or None, .* got \[\]"),
    ],
)
def test_bad_settings(digits, options, words):
    with pytest.raises(ParameterError, match=words):
        Trainer(dense(), digits, 32, **options).fit()


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
