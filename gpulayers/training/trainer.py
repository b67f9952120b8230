"""The training loop: `Trainer`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpulayers import _spec, backend, random
from gpulayers.errors import ParameterError
from gpulayers.models import Sequential
from gpulayers.training import settings
from gpulayers.training.callbacks import Callback, Callbacks
from gpulayers.training.checkpoint import save, write_atomically
from gpulayers.training.data import Dataset
from gpulayers.training.evaluation import BATCH, evaluate_feed
from gpulayers.training.feed import SHARE, Feed
from gpulayers.training.history import Epoch, History
from gpulayers.training.interrupt import DeferredInterrupt
from gpulayers.training.keeper import BEST_FILE, LOG_FILE, MODEL_FILE, Keeper, position_name
from gpulayers.training.precision import chosen, multiplying
from gpulayers.training.progress import Progress, checked_progress, choose_progress
from gpulayers.training.resume import config_of, fit_to_length, restore, state_of
from gpulayers.training.runs import Runs
from gpulayers.training.samplers import Sampler
from gpulayers.training.schedule import learning_rate, schedule_text
from gpulayers.training.setup import set_up
from gpulayers.training.stopping import diverged, interrupted
from gpulayers.training.tally import Tally
from gpulayers.training.transforms import Transform, make_transform

__all__ = ["BEST_FILE", "LOG_FILE", "MODEL_FILE", "Trainer"]

_LOOK_SECONDS = 0.2  # on the CPU a look is free; showing the figures is not


class Trainer:
    """Train a classifier on a dataset: shuffled batches, validation, checkpoints, progress.

    The same seed gives the same result, bit for bit on the same backend and machine, whether the
    run was interrupted or not. Parameters (drawn at the first batch) and dropout come from
    `gpulayers.random`'s default generator, which `fit` seeds; order and variations of the examples
    are functions of the seed, the epoch and the batch's number.

    Parameters
    ----------
    network : Sequential
        Its outputs are what `loss` takes, logits (n, classes).
    data : Dataset
        `data.train` is trained on; `data.held_out` (the validation split, or without one the
        test split) is the validation after each epoch.
    batch_size : int
        Examples in a step; the last batch of an epoch may be smaller.
    epochs : int
        A run that goes on with another number (on resume, or set before `fit`) has from there on
        the learning rates of one of that length; what `schedule` stated, or an object, stays.
    loss : object with ``forward(labels, outputs)``, ``backward()`` and ``loss(labels, outputs)``
        None is `losses.SoftmaxCrossEntropy`.
    optimizer : str or optimizer, optional
        Copied into every layer; None keeps the layers' own.
    schedule : str or scheduler, optional
        Learning-rate schedule put into every layer's optimizer, from its first step on; what a
        description leaves open is fitted to the run, see `schedule.fit_schedule`.
    seed : int
    out : path, optional
        Folder for ``model.safetensors`` (the last checkpoint), ``checkpoints/`` (those before it),
        ``best.safetensors`` (highest validation accuracy) and ``log.csv``. None writes nothing.
    device : "cpu", "gpu", "auto", or None for the current backend
    dtype : dtype, optional
        Of the parameters; None is the default dtype.
    progress : bool, "curve" or Progress
        True shows a bar on a terminal (if rich is installed) and one line an epoch elsewhere;
        "curve" draws the curves in a notebook while they grow, and is True elsewhere.
    callbacks : Callback objects, or functions ``callback(trainer, epoch_record)``
        See `gpulayers.training.callbacks`; functions are called after each epoch's checkpoint.
    normalize : bool
        Standardise uint8 images with the training images' mean and standard deviation of each
        channel (kept in the network, see `Sequential.pixels`). False divides by 255. Floats are
        taken as they are, with an ImageScaleWarning where they are far from 1.
    resume : path, optional
        A checkpoint that a `Trainer` wrote, or its folder: go on from there, also in the middle of
        an epoch; in a folder the last checkpoint that is whole. The result is that of an
        uninterrupted run. `network` must be built alike; optimizers come from the checkpoint, the
        schedule too unless another is given, which is taken up there.
    info : dict, optional
        Plain values to keep in the checkpoints.
    compile : bool or "mega", optional
        Train by the network's plan (`Sequential.compile`): the same steps in less time. None: on
        the CPU yes, on a GPU if it has memory for the training images; should it fail there, the
        layers go on, with a warning. "mega": by that engine, up to `log_every` steps a launch; an
        error says what is in the way (on a CPU at once).
    clip_global_norm : float, optional
        Scale longer gradients of a step down to this norm, see `optimizers.clip_global_norm`.
    accumulate : int
        Compute each batch in as many parts and add up their gradients: the same step up to
        rounding, in less memory (batch normalisation sees the parts).
    label_smoothing : float in [0, 1]
        Of the training loss, see `losses.SoftmaxCrossEntropy`; the validation's has none.
    transform : str or Transform, optional
        Done to the training batches, see `transforms.make_transform`: ``"crop(4), flip"``.
    sampler : Sampler, optional
        Which examples an epoch takes, in which order; None shuffles them all.
    threads : int, optional
        That prepare batches, see `Feed`.
    device_share : float in [0, 1]
        Of a GPU's free memory that the training images may take, see `Feed`.
    checkpoint_batches, checkpoint_seconds : int, float, optional
        A checkpoint inside an epoch after as many batches, or seconds; there is one after each
        epoch in any case.
    keep_last : int
        How many checkpoints stay, the last one included.
    precision : "fp32", "tf32", "bf16" or "fp16", optional
        Instead of `dtype`: parameters and arithmetic in that type, of a half type with master
        weights and the loss in float32, and for "fp16" a dynamic loss scale, see `LossScaler`.
        "tf32" is float32 multiplied by a GPU's tensor cores, see `gpulayers.cuda.precision`.
    log_every : int
        On a GPU: steps between two looks at the losses, each of which waits for the device.

    Attributes
    ----------
    history : History
    config : dict
        What the result depends on besides the network; kept in checkpoints.
    stopped : str or None
        Why a callback ended the run before its last epoch.
    scaler : LossScaler or None
        Of "bf16" and "fp16": the loss scale, and how many steps were skipped.

    Raises
    ------
    ParameterError
        If a value is out of range or of the wrong type, or differs from the checkpoint's on resume.
    CheckpointError
        If `resume` cannot be read or is of another network.
    BackendError
        If the device cannot be used, or `compile` needs a GPU and there is none.
    """

    def __init__(
        self,
        network: Sequential,
        data: Dataset,
        batch_size: int = 64,
        epochs: int = 3,
        loss: Any = None,
        optimizer: Any = None,
        schedule: Any = None,
        seed: int = 0,
        out: str | os.PathLike[str] | None = None,
        device: str | None = None,
        dtype: Any = None,
        progress: bool | str | Progress = True,
        callbacks: Iterable[Callback | Callable[..., Any]] | Callback = (),
        normalize: bool = True,
        resume: str | os.PathLike[str] | None = None,
        info: dict[str, Any] | None = None,
        compile: bool | str | None = None,
        clip_global_norm: float | None = None,
        accumulate: int = 1,
        label_smoothing: float = 0.0,
        transform: str | Transform | None = None,
        sampler: Sampler | None = None,
        threads: int | None = None,
        device_share: float = SHARE,
        checkpoint_batches: int | None = None,
        checkpoint_seconds: float | None = None,
        keep_last: int = 2,
        precision: str | None = None,
        log_every: int = 50,
    ) -> None:
        self.network, self.data = settings.parts(network, data)
        self.batch_size = settings.count("batch_size", batch_size)
        self.epochs = settings.count("epochs", epochs)
        self.seed = random.Generator(seed).key[0]  # checks it
        self.transform = make_transform(transform)
        self.sampler = settings.sampling(sampler, len(data.train))
        self.threads, self.device_share = settings.feeding(threads, device_share)
        self.loss, self.train_loss = settings.losses(loss, label_smoothing, self.transform)
        self.out = settings.folder(out)
        self.device = settings.device_backend(device)
        dtype, self.scaler = chosen(precision, dtype)
        self.precision = precision
        with backend.use_backend(self.device):
            multiplying(precision, self.device)  # says what cannot be
        self.dtype = settings.parameter_dtype(dtype, network)
        self.progress = checked_progress(progress)
        self.callbacks = Callbacks(callbacks)
        self.info = settings.extras(info)
        self.compile, self.engine = settings.plan(compile, self.device)
        self.log_every = settings.count("log_every", log_every)
        self.clip_global_norm = settings.max_norm(clip_global_norm)
        self.accumulate = settings.count("accumulate", accumulate)
        self.history = History()
        self.stopped: str | None = None
        self.saved: tuple[Path, int, int] | None = None  # last checkpoint: file, epochs, batches
        self.examples = settings.count("the sampler's length", len(self.sampler))  # in an epoch
        self.steps = -(-self.examples // self.batch_size)  # batches in an epoch
        normalize = _spec.flag("Trainer", "normalize", normalize)
        self.config = config_of(self, normalize, label_smoothing, sampler)
        summed = getattr(self.train_loss, "reduction", "mean") == "sum"
        self._tally = Tally(self.steps, self.batch_size, self.examples, self.dtype, summed)
        self._keeper = Keeper(keep_last, checkpoint_batches, checkpoint_seconds)
        self._epoch = self._step = 0  # finished epochs; finished batches of the current one
        self._seconds = self._train_seconds = 0.0  # spent on the current epoch so far
        self._random_state: dict[str, Any] | None = None  # None before the first step
        self.schedule, self._fitted = schedule_text(schedule), self.epochs
        start = settings.folder(resume, "resume", "the path of a checkpoint or its folder")
        if start is not None:
            restore(self, start, optimizer, schedule)
        else:
            set_up(network, data.train, optimizer, schedule, normalize, self.steps, self.epochs)

    def fit(self) -> History:
        """Train until `epochs` are done, or a callback stops the run; return the history.

        After Ctrl-C, calling it again goes on where it stopped.

        Raises
        ------
        DivergedError
            If the loss is not finite: names the first layer whose output is not, and the last
            good checkpoint, which is kept.
        KeyboardInterrupt
            On Ctrl-C: the running step is finished, the state saved, and the message says how to
            resume. A second Ctrl-C stops at once.
        ShapeError, DTypeError, BackendError
            If the data does not fit the network.
        CheckpointError
            If a checkpoint cannot be written.
        """
        progress = choose_progress(self.progress, self.history)
        former_dtype = backend.default_dtype()
        with backend.use_backend(self.device), multiplying(self.precision, self.device):
            backend.set_default_dtype(self.dtype)
            try:
                # overflow is looked for in the loss, and reported with the layer
                with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                    self._fit(progress)
            finally:
                progress.stop()
                self.callbacks.close(self)
                backend.set_default_dtype(former_dtype)
        return self.history

    def _fit(self, progress: Progress) -> None:
        fresh = self._random_state is None
        if self._random_state is None:
            random.seed(self.seed)
            self._random_state = random.get_state()
        self.stopped = None
        fit_to_length(self)
        self.callbacks.fit_begin(self)
        if self.out is not None:
            position = None if fresh else position_name(self._epoch, self._step)
            self._keeper.begin(self.out, position)
            if fresh or not (self.out / MODEL_FILE).exists():
                self.save_checkpoint()  # so that there is a good checkpoint from the beginning
        random.set_state(self._random_state)
        place = backend.current_backend()
        if self.network.home is not None:
            self.network.to(place)
        self.network.flush_gradients()  # of somebody's own calls, or of a step that was cut off
        pixels = partial(self.network.pixels, dtype=self.dtype)
        more = self.threads, self.device_share
        train = Feed(self.data.train, place, self.transform, pixels, *more)
        test = Feed(self.data.held_out, place, None, None, *more)
        runs = Runs(self, train)
        progress.start(self.epochs, self.steps, self._epoch * self.steps + self._step)
        with DeferredInterrupt() as interrupt:
            while self._epoch < self.epochs and self.stopped is None:
                if self._run_epoch(runs, progress, interrupt):
                    record = self._finish_epoch(test, progress)
                    progress.epoch_done(record)
                    self.callbacks.saved(self, record)
                if interrupt.requested and self._epoch < self.epochs:
                    self._random_state = random.get_state()
                    interrupted(self)
        if self.stopped is not None:
            progress.message(f"stopped after epoch {self._epoch}: {self.stopped}")
        self.callbacks.fit_end(self)
        if self.out is not None and self.callbacks.hold_weights:
            self.save_checkpoint()

    def _run_epoch(self, runs: Runs, progress: Progress, interrupt: DeferredInterrupt) -> bool:
        """Run the batches that are left of the current epoch; return False if interrupted."""
        first = looked = self._step
        begin = shown = mark = time.perf_counter()
        with contextlib.closing(runs):
            runs.begin()
            while self._step < self.steps:
                most = min(looked + self.log_every - self._step, self._keeper.most)
                count = runs.advance(1 if self.callbacks.watch_steps else int(most))
                self._step += count
                self.callbacks.step_end(self)
                now = time.perf_counter()
                late = now - shown > _LOOK_SECONDS
                if late if runs.on_cpu else self._step - looked >= self.log_every:
                    shown, looked = now, self._look(looked, runs)
                    rate = (self._step - first) * self.batch_size / (now - begin)
                    means = self._tally.means(self._step)
                    progress.step(self._epoch + 1, self._step, *means, rate)
                if interrupt.requested:
                    break
                due = self._keeper.due(count)
                if due and self.out is not None and self._step < self.steps:
                    looked = self._look(looked, runs)
                    self._count_time(mark)
                    self._random_state = random.get_state()
                    self.save_checkpoint()
                    mark = time.perf_counter()
            if self._step > first:  # waits for the device, so that the time counts all the work
                self._look(looked, runs)
        self._count_time(mark)
        return self._step == self.steps

    def _count_time(self, since: float) -> None:
        """Add the time since then to the epoch's."""
        spent = time.perf_counter() - since
        self._seconds, self._train_seconds = self._seconds + spent, self._train_seconds + spent

    def _look(self, start: int, runs: Runs) -> int:
        """Read the losses of the steps since `start`; raise if one is not finite."""
        runs.look()
        bad = self._tally.first_bad(start, self._step)
        if bad is not None:
            diverged(self, *bad, runs.batch(bad[0]))
        return self._step

    def _finish_epoch(self, test: Feed, progress: Progress) -> Epoch:
        """Validate, record, save; the next epoch begins."""
        begin = time.perf_counter()
        progress.validating(self._epoch + 1)
        self.callbacks.validation_begin(self)
        try:
            result = evaluate_feed(self.network, test, self.loss, max(self.batch_size, BATCH))
            train_loss, train_accuracy = self._tally.means(self._step)
            record = Epoch(
                epoch=self._epoch + 1,
                train_loss=train_loss,
                train_accuracy=train_accuracy,
                val_loss=result.loss,
                val_accuracy=result.accuracy,
                lr=self.learning_rate,
                examples_per_second=self.examples / max(self._train_seconds, 1e-9),
                seconds=self._seconds + time.perf_counter() - begin,
            )
            best = max(self.history.column("val_accuracy"), default=-1.0)
            self.history.epochs.append(record)
            self.history.step_losses += self._tally.take()
            self._epoch, self._step = self._epoch + 1, 0
            self._seconds = self._train_seconds = 0.0
            self.callbacks.epoch_end(self, record)
            self._random_state = random.get_state()
            if self.out is not None and record.val_accuracy > best:
                self._save(self.out / BEST_FILE)  # with the weights that were evaluated
        finally:
            self.callbacks.validation_end(self)
        if self.out is not None:
            self.save_checkpoint()
            write_atomically(self.out / LOG_FILE, self.history.to_csv().encode())
        return record

    @property
    def epoch(self) -> int:
        """How many epochs are finished."""
        return self._epoch

    @property
    def step(self) -> int:
        """How many batches of the current epoch are finished, of `steps`."""
        return self._step

    @property
    def learning_rate(self) -> float:
        """The learning rate of the last step, of the first layer that learns."""
        return learning_rate(self.network)

    def stop(self, reason: str = "a callback asked for it") -> None:
        """End the run after the current epoch; for callbacks."""
        self.stopped = str(reason)

    def save_checkpoint(self) -> Path:
        """Write the last checkpoint now; return its path.

        Raises
        ------
        ParameterError
            If the trainer has no `out` folder.
        CheckpointError
            If it cannot be written.
        """
        if self.out is None:
            raise ParameterError("Trainer: there is no folder to save to, give out=...")
        path = self._keeper.keep(position_name(self._epoch, self._step), self._save)
        self.saved = (path, self._epoch, self._step)
        return path

    def _save(self, path: Path) -> Path:
        return save(path, self.network, trainer=state_of(self), info=self.info)
