"""`Trainer` on a GPU takes many steps at a time: the run is the one that it takes one by one."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from gpulayers.errors import BackendError, DivergedError, ParameterError
from gpulayers.layers import Flatten, FullyConnected
from gpulayers.models import Sequential
from gpulayers.training import Trainer
from gpulayers.training.callbacks import Callback
from gpulayers.training.data import Dataset, Split
from gpulayers.training.feed import Feed
from gpulayers.training.runs import Runs
from gpulayers.training.samplers import WeightedSampler
from tests.conftest import Backend

pytestmark = pytest.mark.emulated

COUNT, BATCH = 22, 4  # the last batch has two examples


def noise(seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)

    def split(n: int) -> Split:
        return Split(rng.integers(0, 256, (n, 3, 3, 2), np.uint8), rng.integers(0, 3, n))

    return Dataset("noise", split(COUNT), split(5), ("a", "b", "c"))


def trainer(**options: Any) -> Trainer:
    layers = [Flatten(), FullyConnected(6, act_fn="ReLU"), FullyConnected(3)]
    options = {"optimizer": "Adam(lr=0.01)", "epochs": 2, "progress": False, **options}
    return Trainer(Sequential(layers), noise(), BATCH, **options)


class Steps(Callback):
    """What a callback sees after each step."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []
        self.weights: list[float] = []

    def on_step_end(self, trainer: Trainer) -> None:
        self.seen.append((trainer.epoch, trainer.step))
        self.weights.append(float(trainer.network[1].parameters["W"].sum()))


@pytest.fixture
def stretches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many steps were launched at a time."""
    found: list[int] = []
    inner = Runs._run

    def watched(self: Runs, *args: Any) -> int:
        found.append(inner(self, *args))
        return found[-1]

    monkeypatch.setattr(Runs, "_run", watched)
    return found


def same(one: Trainer, other: Trainer) -> None:
    np.testing.assert_allclose(
        one.history.step_losses, other.history.step_losses, rtol=2e-4, atol=2e-5
    )
    for ours, theirs in zip(one.history.epochs, other.history.epochs, strict=True):
        assert ours.train_accuracy == theirs.train_accuracy
        assert ours.lr == theirs.lr
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=2e-4)
        assert ours.val_loss == pytest.approx(theirs.val_loss, rel=2e-4)


@pytest.mark.parametrize(
    "options",
    [{}, {"schedule": "cosine"}, {"sampler": WeightedSampler(np.arange(COUNT) + 1.0, 10)}],
    ids=["plain", "schedule", "sampler"],
)
def test_the_run_is_that_of_the_layers(
    emulated: Backend, options: Any, stretches: list[int]
) -> None:
    plain, planned = trainer(compile=False, **options), trainer(log_every=3, **options)
    plain.fit()
    assert not stretches
    planned.fit()
    assert max(stretches) == min(3, planned.steps)
    assert sum(stretches) == 2 * planned.steps - 1, "the first step draws the parameters"
    same(planned, plain)


def test_what_needs_each_step_gets_it(emulated: Backend, stretches: list[int]) -> None:
    plain, planned = Steps(), Steps()
    trainer(compile=False, callbacks=plain).fit()
    trainer(callbacks=planned).fit()
    assert set(stretches) == {1}
    assert planned.seen == plain.seen
    assert len(planned.seen) == 12
    np.testing.assert_allclose(planned.weights, plain.weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate": 2},
        {"clip_global_norm": 0.1},
        {"transform": "flip"},
        {"label_smoothing": 0.1},
        {"schedule": "king"},
        {"device_share": 0.0},
        {"epochs": 1},
    ],
    ids=lambda o: next(iter(o)),
)
def test_what_looks_at_single_steps_is_trained_by_them(emulated: Backend, options: Any) -> None:
    run = trainer(**options)
    run.network.forward(emulated.xp.zeros((1, 3, 3, 2), "float32"), False)
    place = None if run.transform is None else run.network.pixels
    feed = Feed(run.data.train, "cupy", run.transform, place, share=run.device_share)
    runs = Runs(run, feed)
    runs.begin()
    assert 1 <= runs.advance(3) <= 3
    assert (runs._resident is not None) == (options in ({"epochs": 1}, {"label_smoothing": 0.1}))
    runs.close()


def test_goes_on_from_the_midst_of_an_epoch(
    emulated: Backend, tmp_path: Any, stretches: list[int]
) -> None:
    """To the bit; the checkpoint is written when it is due, not at the next look."""
    whole = trainer(seed=3)
    whole.fit()
    stretches.clear()
    trainer(seed=3, out=tmp_path, checkpoint_batches=4, keep_last=9, epochs=1).fit()
    assert stretches == [3, 2]
    rest = trainer(
        seed=3, resume=tmp_path / "checkpoints" / "epoch-00000-batch-00000004.safetensors"
    )
    rest.fit()
    assert rest.history.step_losses == whole.history.step_losses
    assert rest.history.epochs[0].train_accuracy == whole.history.epochs[0].train_accuracy


def test_a_bad_loss_is_found_at_the_next_look(emulated: Backend) -> None:
    run = trainer(optimizer="SGD(lr=1e30)", log_every=2)
    with pytest.raises(DivergedError, match=r"epoch 1, batch \d of 6: the first layer whose") as e:
        run.fit()
    step = int(re.findall(r"batch (\d)", str(e.value))[0])
    assert step <= run.step <= step + 2


def test_bad_log_every() -> None:
    with pytest.raises(ParameterError, match="log_every must be a positive integer, got 0"):
        trainer(log_every=0)


@pytest.mark.parametrize("fault", ["later", "kernel", "gone"])
def test_a_plan_that_fails_leaves_the_run_to_the_layers(
    emulated: Backend,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The capture of the last batch, in the midst of a stretch; an operation of the plan's
    own. Where the GPU is lost, nothing can go on."""
    from gpulayers.cuda import flat, graph  # the stand-in's, in this test

    plain, planned = trainer(compile=False), trainer(log_every=3)
    plain.fit()
    inner = graph.Recorder._captured

    def broken(*args: Any) -> Any:
        if f"batches of {COUNT % BATCH}" in args[1]:
            raise BackendError("refused")
        return inner(*args)

    def failed(*args: Any) -> None:
        raise RuntimeError("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES")

    monkeypatch.setattr(graph.Recorder, "_captured", broken)
    if fault == "kernel":
        monkeypatch.setattr(flat, "flat_update", failed)
    if fault == "gone":
        monkeypatch.setattr(emulated.xp.cuda.Device, "synchronize", failed)
        with pytest.raises(BackendError, match="the GPU has stopped computing"):
            planned.fit()
        return
    planned.fit()
    same(planned, plain)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 1
    assert "its layers compute one by one from now on" in told[0]
    with pytest.raises(RuntimeError):
        trainer(compile=True).fit()


def test_batches_handed_over_go_on_by_the_layers_too(
    emulated: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from gpulayers.cuda import graph

    plain, planned = (trainer(clip_global_norm=0.5, compile=c) for c in (False, None))
    plain.fit()

    def broken(*args: Any) -> Any:
        raise BackendError("refused")

    monkeypatch.setattr(graph.Recorder, "_captured", broken)
    planned.fit()
    same(planned, plain)
    assert sum(record.levelname == "WARNING" for record in caplog.records) == 1
