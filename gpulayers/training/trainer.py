"""The training loop: `Trainer`."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from gpulayers import backend, random
from gpulayers.errors import DivergedError, GPULayersError, ParameterError, ShapeError
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models import Pixels, Sequential
from gpulayers.training import resume as _resume
from gpulayers.training.checkpoint import save, write_atomically
from gpulayers.training.data import Dataset, Normalizer
from gpulayers.training.evaluation import BATCH, evaluate_feed
from gpulayers.training.feed import SHARE, Feed
from gpulayers.training.history import Epoch, History
from gpulayers.training.interrupt import DeferredInterrupt
from gpulayers.training.mixed import MixedLoss
from gpulayers.training.progress import NoProgress, Progress, make_progress
from gpulayers.training.samplers import Sampler, ShuffledSampler
from gpulayers.training.schedule import fit_schedule, is_blind
from gpulayers.training.settings import count, device_backend, max_norm, parameter_dtype
from gpulayers.training.step import Step
from gpulayers.training.transforms import make_transform

__all__ = ["BEST_FILE", "LOG_FILE", "MODEL_FILE", "Trainer"]

MODEL_FILE, BEST_FILE, LOG_FILE = "model.safetensors", "best.safetensors", "log.csv"
_LOOK_STEPS = 50  # on a GPU: steps between two looks at the losses, each of which stalls it
_LOOK_SECONDS = 0.2  # on the CPU a look is free; showing the figures is not


class Trainer:
    """Train a classifier on a dataset: shuffled batches, validation, checkpoints, progress.

    The same seed gives the same result, bit for bit on the same backend and machine. Parameters
    (drawn at the first batch) and dropout come from `gpulayers.random`'s default generator, which
    `fit` seeds; the order of the examples in an epoch depends on seed and epoch alone.

    Parameters
    ----------
    network : Sequential
        Its outputs are what `loss` takes, logits (n, classes).
    data : Dataset
        `data.train` is trained on; `data.test` is the validation after each epoch.
    batch_size : int
        The last batch of an epoch may be smaller.
    epochs : int
    loss : object with ``forward(labels, outputs)``, ``backward()`` and ``loss(labels, outputs)``
        None is `losses.SoftmaxCrossEntropy`.
    optimizer : str or optimizer, optional
        Copied into every layer; None keeps the layers' own.
    schedule : str or scheduler, optional
        Learning-rate schedule put into every layer's optimizer, see `schedule.fit_schedule`.
    seed : int
    out : path, optional
        Folder for ``model.safetensors`` (after each epoch, and on Ctrl-C), ``best.safetensors``
        (highest validation accuracy) and ``log.csv``. None: nothing is written.
    device : "cpu", "gpu", "auto", or None for the current backend
    dtype : dtype, optional
        Of the parameters; None is the default dtype.
    progress : bool or Progress
        True shows a bar on a terminal (if rich is installed) and one line an epoch elsewhere.
    callbacks : callables ``callback(trainer, epoch_record)``
        Called after each epoch.
    normalize : bool
        Standardise uint8 images with the training images' mean and standard deviation of each
        channel (kept in the network, see `Sequential.pixels`). False divides by 255.
    resume : path, optional
        A checkpoint that a `Trainer` wrote, or its folder: go on from there. The result is that of
        an uninterrupted run. `network` must be built alike; optimizers and schedules come from the
        checkpoint.
    info : dict, optional
        Plain values to keep in the checkpoints.
    compile : bool, optional
        Train by the network's plan (`Sequential.compile`): the same steps in less time. None: on
        the CPU yes, on a GPU no.
    clip_global_norm : float, optional
        Scale the gradients of a step down to this norm, all together (see
        `optimizers.clip_global_norm`).
    transform : str or transforms, optional
        How training batches are varied, as `make_transform` takes it: ``"crop(4), flip"``. With
        mixup the loss becomes `MixedLoss`, and the training accuracy counts the label that weighs
        more.
    sampler : Sampler, optional
        Which examples an epoch takes, in which order; None is all of them, shuffled.
    threads : int, optional
        That prepare batches ahead; see `Feed`. The result does not depend on it.
    device_share : float
        Of a GPU's free memory that each split may take to live there; see `Feed`.

    Attributes
    ----------
    history : History
    config : dict
        What the result depends on besides the network; kept in checkpoints.

    Raises
    ------
    ParameterError
        If a value is out of range, or differs from the checkpoint's on resume.
    CheckpointError
        If `resume` cannot be read or is of another network.
    BackendError
        If the device cannot be used.
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
        progress: bool | Progress = True,
        callbacks: Iterable[Callable[[Trainer, Epoch], Any]] = (),
        normalize: bool = True,
        resume: str | os.PathLike[str] | None = None,
        info: dict[str, Any] | None = None,
        compile: bool | None = None,
        clip_global_norm: float | None = None,
        transform: Any = None,
        sampler: Sampler | None = None,
        threads: int | None = None,
        device_share: float = SHARE,
    ) -> None:
        self.network, self.data = network, data
        self.batch_size = count("batch_size", batch_size)
        self.epochs = count("epochs", epochs)
        self.seed = random.Generator(seed).key[0]  # checks it
        self.transform = make_transform(transform)
        self.sampler = ShuffledSampler(len(data.train)) if sampler is None else sampler
        self.threads, self.device_share = threads, device_share
        self.loss = SoftmaxCrossEntropy() if loss is None else loss
        if self.transform is not None and self.transform.mixes:
            self.loss = MixedLoss(self.loss)
        self.out = None if out is None else Path(out)
        self.device = device_backend(device)
        self.dtype = parameter_dtype(dtype, network)
        self.progress = progress
        self.callbacks = tuple(callbacks)
        self.info = dict(info or {})
        self.compile = compile
        self.clip_global_norm = max_norm(clip_global_norm)
        self.history = History()
        self.steps = -(-len(self.sampler) // self.batch_size)  # batches in an epoch
        self.config: dict[str, Any] = {
            "data": data.name,
            "train_examples": len(data.train),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "dtype": self.dtype.name,
            "normalize": bool(normalize),
            "clip_global_norm": self.clip_global_norm,
            "transform": None if self.transform is None else repr(self.transform),
            "sampler": None if sampler is None else repr(sampler),
        }
        self._epoch = self._step = 0  # finished epochs; finished batches of the current one
        self._seconds = self._train_seconds = 0.0  # spent on the current epoch so far
        self._losses: Any = None  # mean loss and number of hits of each batch of the epoch,
        self._hits: Any = None  # on the device
        self._random_state: dict[str, Any] | None = None  # None before the first step
        if resume is not None:
            _resume.restore(self, Path(resume))
        else:
            self._set_up(optimizer, schedule, normalize)

    def _set_up(self, optimizer: Any, schedule: Any, normalize: bool) -> None:
        """Optimizers, schedule and treatment of pixels of a new run."""
        if optimizer is not None:
            self.network.set_optimizer(optimizer)
        if schedule is not None:
            for _, layer in self.network.walk():
                lr = getattr(layer.optimizer, "lr", 0.01)
                fitted = fit_schedule(schedule, lr, self.steps, self.epochs)
                layer.optimizer.lr_scheduler = fitted.copy()
        self.network.pixels = Pixels()
        if normalize and self.data.train.images.dtype == np.uint8:
            channels = Normalizer.fit(self.data.train)
            self.network.pixels = Pixels(channels.mean.tolist(), channels.std.tolist())

    # ------------------------------------------------------------------------------------ the run

    def fit(self) -> History:
        """Train until `epochs` are done; return the history.

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
        progress = make_progress() if self.progress is True else self.progress or NoProgress()
        former_dtype = backend.default_dtype()
        with backend.use_backend(self.device):
            backend.set_default_dtype(self.dtype)
            try:
                # overflow is looked for in the loss, and reported with the layer
                with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                    self._fit(progress)
            finally:
                progress.stop()
                backend.set_default_dtype(former_dtype)
        return self.history

    def _fit(self, progress: Progress) -> None:
        fresh = self._random_state is None
        if self._random_state is None:
            random.seed(self.seed)
            self._random_state = random.get_state()
        if self.out is not None and (fresh or not (self.out / MODEL_FILE).exists()):
            self._save(MODEL_FILE)  # so that there is a good checkpoint from the beginning
        random.set_state(self._random_state)
        place = backend.current_backend()
        if self.network.home is not None:
            self.network.to(place)
        normalize = functools.partial(self.network.pixels, dtype=self.dtype)
        options = (self.threads, self.device_share)
        train = Feed(self.data.train, place, self.transform, normalize, *options)
        test = Feed(self.data.test, place, None, None, *options)
        progress.start(self.epochs, self.steps, self._epoch * self.steps + self._step)
        with DeferredInterrupt() as interrupt:
            while self._epoch < self.epochs:
                if self._run_epoch(train, progress, interrupt):
                    record = self._finish_epoch(test, progress)
                    progress.epoch_done(record)
                    for callback in self.callbacks:
                        callback(self, record)
                if interrupt.requested and self._epoch < self.epochs:
                    self._stop(progress)

    def _run_epoch(self, feed: Feed, progress: Progress, interrupt: DeferredInterrupt) -> bool:
        """Run the batches that are left of the current epoch; return False if interrupted."""
        network, size = self.network, self.batch_size
        xp, on_cpu = feed.xp, feed.xp is np
        losses, hits = self._buffers(xp)
        batches = feed.batches(size, self.sampler, self.seed, self._epoch, self._step)
        wants_loss = on_cpu or not all(
            is_blind(layer.optimizer.lr_scheduler) for _, layer in network.walk()
        )
        by_plan = on_cpu if self.compile is None else self.compile
        step: Step | None = None
        X: Any = None
        first = looked = self._step
        begin = shown = time.perf_counter()
        while self._step < self.steps and not interrupt.requested:
            i = self._step
            X, labels = next(batches)
            if step is None:
                shape = (min(size, len(self.sampler)), *X.shape[1:])
                limits = (self.clip_global_norm, self._check_outputs)
                step = Step(network, self.loss, by_plan, shape, *limits)
            losses[i], outputs = step.forward(X, labels)
            hits[i] = (outputs.argmax(axis=1) == getattr(labels, "main", labels)).sum()
            value = float(losses[i]) if wants_loss else None
            if value is not None and not math.isfinite(value):
                self._diverged(i, value, X)
            step.update(value)
            self._step = i + 1
            now = time.perf_counter()
            if (now - shown > _LOOK_SECONDS) if on_cpu else (i + 1 - looked >= _LOOK_STEPS):
                shown, looked = now, self._look(looked, X)
                self._show(progress, (i + 1 - first) * size / (now - begin))
        if self._step > first:
            self._look(looked, X)  # waits for the device, so that the time counts all the work
        spent = time.perf_counter() - begin
        self._seconds += spent
        self._train_seconds += spent
        return self._step == self.steps

    def _buffers(self, xp: Any) -> tuple[Any, Any]:
        """Arrays on the device with room for each batch's loss and hits."""
        if self._losses is None:
            dtype = np.float64 if self.dtype == np.float64 else np.float32
            self._losses = xp.zeros(self.steps, dtype)
            self._hits = xp.zeros(self.steps, np.int64)
        elif backend.xp_of(self._losses) is not xp:
            self._losses, self._hits = xp.asarray(self._losses), xp.asarray(self._hits)
        return self._losses, self._hits

    def _look(self, start: int, X: Any) -> int:
        """Read the losses of the steps since `start`; raise if one is not finite."""
        values = backend.to_cpu(self._losses[start : self._step])
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            self._diverged(start + int(bad[0]), float(values[bad[0]]), X)
        return self._step

    def _means(self) -> tuple[float, float]:
        """Mean loss and accuracy of the epoch's batches so far."""
        losses = backend.to_cpu(self._losses[: self._step]).astype(np.float64)
        hits = int(backend.to_cpu(self._hits[: self._step]).sum())
        sizes = np.full(self._step, float(self.batch_size))
        count = min(self._step * self.batch_size, len(self.sampler))
        sizes[-1] = count - (self._step - 1) * self.batch_size
        summed = getattr(self.loss, "reduction", "mean") == "sum"
        total = losses.sum() if summed else float(losses @ sizes)
        return float(total) / count, hits / count

    def _show(self, progress: Progress, rate: float) -> None:
        progress.step(self._epoch + 1, self._step, *self._means(), rate)

    def _finish_epoch(self, test: Feed, progress: Progress) -> Epoch:
        """Validate, record, save; the next epoch begins."""
        begin = time.perf_counter()
        progress.validating(self._epoch + 1)
        result = evaluate_feed(self.network, test, self.loss, max(self.batch_size, BATCH))
        train_loss, train_accuracy = self._means()
        spent = time.perf_counter() - begin
        record = Epoch(
            epoch=self._epoch + 1,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            val_loss=result.loss,
            val_accuracy=result.accuracy,
            lr=self.learning_rate,
            examples_per_second=len(self.sampler) / max(self._train_seconds, 1e-9),
            seconds=self._seconds + spent,
        )
        best = max(self.history.column("val_accuracy"), default=-1.0)
        self.history.epochs.append(record)
        self.history.step_losses += backend.to_cpu(self._losses).tolist()
        self._epoch, self._step = self._epoch + 1, 0
        self._seconds = self._train_seconds = 0.0
        self._losses = self._hits = None
        self._random_state = random.get_state()
        if self.out is not None:
            if record.val_accuracy > best:
                self._save(BEST_FILE)
            self._save(MODEL_FILE)
            write_atomically(self.out / LOG_FILE, self.history.to_csv().encode())
        return record

    @property
    def learning_rate(self) -> float:
        """The learning rate of the last step, of the first layer that learns."""
        for _, layer in self.network.walk():
            if layer.trainable and layer.gradients:
                optimizer = layer.optimizer
                if is_blind(optimizer.lr_scheduler):
                    return float(optimizer.lr_scheduler(max(optimizer.cur_step, 1)))
                return float(getattr(optimizer.lr_scheduler, "current_lr", math.nan))
        return 0.0

    # ----------------------------------------------------------------------- stopping and failing

    def _save(self, name: str) -> Path:
        """Write network and state to `out`."""
        if self.out is None:
            raise ParameterError("Trainer: there is no folder to save to, give out=...")
        return save(self.out / name, self.network, trainer=_resume.state_of(self), info=self.info)

    def _stop(self, progress: Progress) -> NoReturn:
        """Save after Ctrl-C and raise KeyboardInterrupt with what to do next."""
        self._random_state = random.get_state()
        where = f"epoch {self._epoch + 1} of {self.epochs}, {self._step} of {self.steps} batches"
        if self.out is None:
            raise KeyboardInterrupt(
                f"stopped in {where}; fit() goes on. Nothing was saved, there is no out folder."
            )
        path = self._save(MODEL_FILE)
        raise KeyboardInterrupt(
            f"stopped in {where}; saved to {path}, from where resume={str(path.parent)!r} goes on"
        )

    def _diverged(self, step: int, value: float, X: Any) -> NoReturn:
        layer = None
        try:
            with np.errstate(all="ignore"):
                layer = self.network.first_not_finite(X)
        except GPULayersError:
            pass  # it only helps to explain
        found = (
            f"the first layer whose output is not finite is {layer}"
            if layer
            else "every layer's output is finite, so the loss itself overflowed"
        )
        half, kept = "", ""
        if self.dtype.itemsize < 4:
            half = f" {self.dtype.name} parameters lose small gradients: float32 may do."
        if self.out is not None:
            kept = f" The last good checkpoint, after epoch {self._epoch}, is kept: "
            kept += str(self.out / MODEL_FILE)
        raise DivergedError(
            f"the loss became {value} in epoch {self._epoch + 1}, batch {step + 1} of "
            f"{self.steps}: {found}. Try a smaller learning rate (it is {self.learning_rate:g}), "
            f"or clip_norm in the optimizer.{half}{kept}"
        )

    def _check_outputs(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 2 or shape[1] < len(self.data.classes):
            raise ShapeError(
                f"Trainer: {self.data.name} has {len(self.data.classes)} classes, so "
                f"{self.network.name} must give outputs (n, {len(self.data.classes)}), got {shape}"
            )
