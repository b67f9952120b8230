"""The steps of a trainer's epoch: one after the other, or many launched at a time on a GPU."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from gpulayers.errors import BackendError, FrozenLayerError, NotInitializedError, ParameterError
from gpulayers.models import Sequential
from gpulayers.models.plan_nodes import has_own_methods
from gpulayers.models.resident import Resident
from gpulayers.training.feed import Feed
from gpulayers.training.precision import WideLoss
from gpulayers.training.schedule import is_blind
from gpulayers.training.setup import make_step, output_check
from gpulayers.training.step import Step
from gpulayers.training.stopping import diverged

if TYPE_CHECKING:
    from gpulayers.training.trainer import Trainer

__all__ = ["Runs"]

_log = logging.getLogger("gpulayers")


class Runs:
    """What a `Trainer` does between two looks at the figures.

    A step takes a batch of the feed. On a GPU the network's plan takes its batches itself, many
    steps in a row without the host, where that gives the same: the images lie there as they are,
    the step can be captured, and nothing in between needs a step's loss or gradients. A network's
    first step is taken by its layers, which draws the parameters in their order.

    A plan that nobody asked for may fail on a GPU, say where a kernel of its own does not compile.
    Then a warning says so, and the layers go on from the last good step, on the same GPU.

    Parameters
    ----------
    trainer : Trainer
    feed : Feed
        Of the training images.
    """

    def __init__(self, trainer: Trainer, feed: Feed) -> None:
        self._trainer, self._feed = trainer, feed
        self.on_cpu = feed.xp is np
        # on the CPU the images always are where the batches are made
        self._plans = feed.resident if trainer.compile is None else trainer.compile
        self._step: Step | None = None
        self._batches: Iterator[tuple[Any, Any]] | None = None
        self._X: Any = None
        self._plan: Any = None
        self._resident: Resident | None = None
        self._asked = (self.on_cpu and trainer.engine == "auto") or not self._plans
        self._begun = False

    # ---------------------------------------------------------------------------------- an epoch

    def begin(self) -> None:
        """An epoch begins, or goes on where the trainer stands."""
        trainer, self._begun = self._trainer, False
        if self.on_cpu:
            self._step = None
        trainer._tally.place(np if self._resident is not None else self._feed.xp)
        layers = [layer for _, layer in trainer.network.walk()]
        self._blind = all(is_blind(layer.optimizer.lr_scheduler) for layer in layers)

    def advance(self, most: int) -> int:
        """Take one step, or up to `most`; return how many."""
        try:
            if not self._asked and self._trainer.network.home is not None:
                self._asked = True
                self._plan_ahead()
            if self._resident is not None and self._blind:
                return self._run(self._resident, most)
        except RuntimeError as error:
            done = self._without_plan(error)
            if done:
                return done
        self._one()
        return 1

    def look(self) -> None:
        """Bring the trainer's tally up to the last step; waits for a GPU."""
        resident, trainer = self._resident, self._trainer
        if resident is not None and resident.unread:
            start = trainer.step - resident.unread
            trainer._tally.store(start, *resident.read())

    def batch(self, step: int) -> Any:
        """Images that tell which layer's output is not finite since that step."""
        if self._resident is None or not self._begun:
            return self._X
        size = self._trainer.batch_size
        return self._resident.batch(step * size, (step + 1) * size)[0]

    def close(self) -> None:
        """The epoch is left: threads that read batches ahead end."""
        if self._batches is not None:
            self._batches.close()  # type: ignore[attr-defined] # a generator
            self._batches = None

    # ----------------------------------------------------------------------------------- by itself

    def _plan_ahead(self) -> None:
        """Have the plan and the data on the device, if many steps can be taken at a time."""
        t = self._trainer
        plain = t.accumulate == 1 and t.clip_global_norm is None
        if not plain or type(t.network) is not Sequential or has_own_methods(t.network):
            return self._needed("a plain Sequential, and steps that are not changed on their way")
        if not self._blind:
            return self._needed("learning rates that do not depend on the loss")
        shape = min(t.batch_size, t.examples), *self._feed.image_shape
        slots = min(t.log_every, t.steps)
        resident = self._feed.on_device(t.network.pixels, t.network.dtype, t.examples, slots)
        if resident is None:
            return self._needed("the training images, untransformed, in a GPU's memory")
        loss = t.train_loss if t.scaler is None else WideLoss(t.train_loss, t.scaler)
        plan: Any = t.network.compile(shape, loss=loss, engine=t.engine)
        output_check("Trainer", t.network.name, t.data)((shape[0], *plan.output_shape))
        if plan.why_not_resident() is None:
            self._plan, self._resident = plan, resident
            t._tally.place(np)

    def _needed(self, what: str) -> None:
        """Say that the engine that was asked for is not possible; "auto" has another way."""
        if self._trainer.engine != "auto":
            raise ParameterError(f'Trainer: compile="{self._trainer.engine}" needs {what}')

    def _run(self, resident: Resident, most: int) -> int:
        t = self._trainer
        if not self._begun:
            self.close()
            order = self._feed.order_of(t.sampler, t.seed, t.epoch)
            resident.begin(order, t.step * t.batch_size)
            self._begun = True
        return self._plan.run(resident, min(most, t.steps - t.step))

    # ------------------------------------------------------------------------- when the plan fails

    def _without_plan(self, error: RuntimeError) -> int:
        """From now on the layers compute; return how many steps the plan has done before.

        Raises
        ------
        RuntimeError
            The error itself, where the layers would not help: the plan was asked for, the memory
            is too small, or the fault is not the plan's.
        BackendError
            If the GPU does not answer any more.
        """
        t, xp = self._trainer, self._feed.xp
        asked = t.compile is not None or not self._plans or self.on_cpu
        if asked or isinstance(error, (MemoryError, FrozenLayerError, NotInitializedError)):
            raise error
        try:
            xp.cuda.Device().synchronize()
        except Exception as gone:  # of the driver, which repeats it from now on
            raise BackendError(
                f"the GPU has stopped computing for this process: {gone}; start anew, from the "
                "last checkpoint if there is one"
            ) from error
        _log.warning(
            "%s: the step could not be prepared for the GPU, its layers compute one by one from "
            "now on, which takes longer: %s",
            *(t.network.name, error),
        )
        done, resident = 0, self._resident
        if resident is not None and self._begun:
            done = -(-(resident.count - resident.left) // t.batch_size) - t.step
            if resident.unread:
                t._tally.store(t.step + done - resident.unread, *resident.read())
        self._plans, self._plan, self._resident, self._step = False, None, None, None
        t._tally.place(xp)
        return done

    # ------------------------------------------------------------------------------ batch by batch

    def _one(self) -> None:
        t = self._trainer
        i = t.step
        if self._batches is None:
            self._batches = self._feed.batches(t.batch_size, t.sampler, t.seed, t.epoch, i)
        X, labels = next(self._batches)
        if self._step is None:
            self._step = make_step(t, X.shape, self._plans)
        self._X = X
        try:
            loss, hits = self._step.forward(X, labels)
        except RuntimeError as error:
            self._without_plan(error)
            self._step = make_step(t, X.shape, False)
            loss, hits = self._step.forward(X, labels)
        t._tally.record(i, loss, hits)
        value = float(loss) if self.on_cpu or not self._blind else None
        if value is not None and not math.isfinite(value):
            diverged(t, i, value, X)
        self._step.update(value)
