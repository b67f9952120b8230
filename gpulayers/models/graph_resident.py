"""Steps of a planned network on a GPU that take their batches from a dataset there."""

from __future__ import annotations

import contextlib
from typing import Any

from gpulayers import _spec, backend
from gpulayers.backend import Array
from gpulayers.errors import (
    BackendError,
    DeviceMemoryError,
    DTypeError,
    ParameterError,
    ShapeError,
)
from gpulayers.models.graph_ahead import compile_ahead
from gpulayers.models.graph_failure import Before, moving
from gpulayers.models.graph_memory import by_layers, captured, short
from gpulayers.models.graph_plan import GraphNetwork
from gpulayers.models.graph_program import Program
from gpulayers.models.plan_checks import check_device
from gpulayers.models.plan_node import contiguous
from gpulayers.models.resident import Resident
from gpulayers.ops._kernels import current_engine

__all__ = ["ResidentNetwork", "checked_batch_size"]


class ResidentNetwork(GraphNetwork):
    """`GraphNetwork` that can be run on a `Resident` too: the first launch of its graph gathers the
    batch, the loss stays on the device. Such a step is one launch of a graph: the host copies
    nothing, waits for nothing and hands over nothing.

    A step that fails counts for nobody, and leaves parameters, running statistics, optimizers and
    the place in the dataset as they were before it."""

    _largest = 0  # batch that was computed operation by operation
    _labels: Any = None

    def why_not_resident(self) -> str | None:
        """Why `run` would refuse, whatever the dataset; None if it does not."""
        if self._why_not is not None:
            return self._why_not
        if current_engine() in ("cublas", "reference"):
            return f"the engine is {current_engine()}"
        if not self._step_loss.takes_labels:
            return "the loss takes targets of the outputs' shape, a Resident has labels"
        if len(self.output_shape) != 1:
            return f"an output has shape {self.output_shape}, cross-entropy takes (n_classes,)"
        return None

    def run(self, resident: Resident, steps: int, batch_size: int | None = None) -> int:
        """Train on the next batches of a dataset on the device; return how many there were.

        Losses and hits are left in the resident's record; nothing waits for the device. The first
        step of a size is launched kernel by kernel, which compiles them, the second is captured,
        from the third on a step is one launch.

        Parameters
        ----------
        resident : Resident
        steps : int
            At most so many; it ends with the epoch, whose last batch may be smaller.
        batch_size : int, optional
            At most that of `batch_shape`, which None stands for.

        Raises
        ------
        BackendError
            If the network's step cannot be captured; the message says why.
        DeviceMemoryError
            If the memory is too small for a step of so many examples. The steps before it are done:
            `Resident.left` says how many examples there are still.
        ShapeError, DTypeError, ParameterError
            If the data does not fit the plan; nothing is changed then.
        """
        steps = _spec.integer(f"{self.network.name}.run", "steps", steps, 0)
        size = self._checked_resident(resident, batch_size)
        done = 0
        try:
            self._ready()
            while done < steps and resident.left:
                self._resident_step(resident, min(size, resident.left))
                done += 1
        except MemoryError as error:
            n = min(size, resident.left)
            raise short(self, error, n, lambda: captured(self, resident)) from error
        return done

    def _resident_step(self, resident: Resident, n: int) -> None:
        program = self._program((n, *self.batch_shape[1:]), resident)
        update = self._flat
        if update is None or not update.serves:
            self._execute(program, False)
            try:
                self.update(None)
            except BaseException:
                self._realign(program)
                raise
        else:
            self._execute(program, True)
        resident.taken(n)

    # ----------------------------------------------------------------------------- when it fails

    def step(self, X: Array, labels: Array) -> float | Array:
        try:
            return super().step(X, labels)
        except MemoryError as error:
            raise self._short(error, X, labels) from error

    def gradients(self, X: Array, labels: Array) -> float | Array:
        try:
            return super().gradients(X, labels)
        except MemoryError as error:
            raise self._short(error, X, labels) from error

    def update(self, cur_loss: float | None = None) -> None:
        try:
            super().update(cur_loss)
        except MemoryError as error:
            raise self._short(error, self.outputs, self._labels) from error

    def _short(self, error: MemoryError, X: Array, labels: Any) -> DeviceMemoryError:
        if self._captures(X):
            return short(self, error, len(X), lambda: captured(self, None))
        return short(self, error, len(X), lambda: by_layers(self, labels))

    def _by_layers(self, X: Array, labels: Array) -> float | Array:
        # where memory runs out, it does so in the first step of a size
        before = Before(moving(self.network)) if len(X) > self._largest else None
        try:
            value = super()._by_layers(X, labels)
        except BaseException:
            if before is not None:
                before.restore()
            raise
        self._largest = max(self._largest, len(X))
        self._labels = labels[:0]  # what kind they are
        return value

    def _execute(self, program: Program, update: bool) -> None:
        before = None
        try:
            if program.outputs is None:
                scale = () if self._scale is None else self._scale.arrays()
                before = Before([*self._kept.moving(), *scale])
                compile_ahead(self, program, update)
            super()._execute(program, update)
        except BaseException as error:
            self._undo(program, before, isinstance(error, MemoryError))
            raise

    def _undo(self, program: Program, before: Before | None, short: bool) -> None:
        """The failed step counts for nobody; if it was the first one of its size, or the memory was
        too short for it, its memory is given back."""
        if self._flat is not None:
            self._flat.failed()
        if before is not None:
            before.restore()
        self._realign(program)
        self._last = self.outputs = None
        if not short and program.outputs is not None:
            return
        for key in [k for k, known in self._programs.items() if known is program]:
            del self._programs[key]
        program.X = program.labels = program.work = program.outputs = None
        program.grads, program.graphs, program.results = [], {}, {}

    def _realign(self, program: Program) -> None:
        if program.source is not None:
            with contextlib.suppress(Exception):  # of a device that does not answer any more
                program.source.realign()

    def _fetch(self, program: Program) -> None:
        from gpulayers.cuda import feed  # needs CuPy

        if program.source is not None:
            feed.gather(program.source, program.X, program.labels)

    def _finish(
        self, program: Program, losses: Array, Y: Array, counter: Array, scale: float
    ) -> None:
        from gpulayers.cuda import feed  # needs CuPy

        if program.source is None:
            super()._finish(program, losses, Y, counter, scale)
        else:
            feed.finish_step(
                *(program.source, losses, contiguous(Y), program.labels, program.loss, counter),
                scale,
            )

    def _checked_resident(self, resident: Resident, batch_size: int | None) -> int:
        """The size of the batches, if the plan can take them from there."""
        name, reason = self.network.name, self.why_not_resident()
        if reason is not None:
            raise BackendError(f"{name}.run: the step cannot take batches by itself: {reason}")
        return checked_batch_size(self, resident, batch_size)


def checked_batch_size(plan: Any, resident: Resident, batch_size: int | None) -> int:
    """The size of the batches that a plan takes from there.

    Raises
    ------
    BackendError, ShapeError, DTypeError, ParameterError
        If the data does not fit the plan.
    """
    plan.makeup.check()
    name, home = plan.network.name, backend.backend_of(resident.images)
    if home != "cupy":
        raise BackendError(f"{name}.run: the plan was made for cupy arrays, the data is {home}")
    check_device(f"{name}.run", plan.device, resident.images)
    if resident.example_shape != plan.batch_shape[1:]:
        raise ShapeError(
            f"{name}.run: the plan was made for examples of shape {plan.batch_shape[1:]}, got "
            f"{resident.example_shape}; compile again for another shape"
        )
    if resident.dtype != plan.network.dtype:
        raise DTypeError(
            f"{name}.run: the parameters are {plan.network.dtype}, the data was prepared for "
            f"{resident.dtype}: Resident(..., dtype=network.dtype)"
        )
    loss = getattr(plan.loss, "base", plan.loss)
    low, high = resident.range_of_labels(getattr(loss, "ignore_index", None))
    if not 0 <= low <= high < plan.output_shape[0]:
        raise ParameterError(
            f"{name}.run: labels must be in 0..{plan.output_shape[0] - 1}, got {low}..{high}"
        )
    if batch_size is None:
        return plan.batch_shape[0]
    size = _spec.integer(f"{name}.run", "batch_size", batch_size, 1)
    if size > plan.batch_shape[0]:
        raise ShapeError(
            f"{name}.run: the plan was made for at most {plan.batch_shape[0]} examples a "
            f"batch, got {size}; compile again for larger batches"
        )
    return size
