"""A network prepared for training on a GPU: whole steps, and many of them, as one kernel launch.

For tiny networks, whose steps are bound by launches rather than by arithmetic. `mega_layers` says
which networks these are, ``cuda/mega_kernel.cuh`` how they are trained.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpulayers import _spec, backend
from gpulayers.backend import Array
from gpulayers.cuda.mega_constants import CONSTANTS, RULES
from gpulayers.cuda.rules import Numbers
from gpulayers.errors import BackendError, ParameterError
from gpulayers.models.graph_draws import Draws
from gpulayers.models.graph_node import Place
from gpulayers.models.graph_resident import checked_batch_size
from gpulayers.models.graph_update import FlatUpdate, Kept, numbers_of
from gpulayers.models.mega_layers import chain_of
from gpulayers.models.mega_source import Program, write
from gpulayers.models.plan import CompiledNetwork
from gpulayers.models.resident import Resident

__all__ = ["MegaNetwork"]


class MegaNetwork(CompiledNetwork):
    """`CompiledNetwork` on a GPU whose steps are one launch of one kernel, written for the network.

    Each block takes examples through all layers and back in its shared memory; the blocks meet
    twice a step, to add up gradients and to update the parameters, and twice more at each batch
    normalisation, for the moments and for the gradient's. Sums are taken in a fixed order: results
    are the same in every run, and depend on the GPU by its count of multiprocessors alone. The
    parameters are moved into one array, and those that do not learn into another, of which the
    layers hold views. Dropout draws the masks that the layers would draw.

    Raises
    ------
    ParameterError
        If a layer or an optimizer is not among those that the kernel has; it says which and why.
    BackendError
        If a block's shared memory does not suffice.
    """

    def __init__(
        self, network: Any, loss: Any, batch_shape: tuple[int, ...], precision: str | None
    ) -> None:
        super().__init__(network, loss, batch_shape, precision)
        self._what = f'{network.name}.compile: engine "mega"'
        if not self._plain_loss:
            raise ParameterError(f"{self._what} needs a plain cross-entropy as the loss")
        if network.dtype.name != "float32" or precision not in (None, "fp32"):
            raise ParameterError(
                f"{self._what} computes in float32, asked for was {precision or network.dtype}"
            )
        self._image = _image(self.batch_shape[1:])
        self._kernels: dict[str, Any] = {}
        self._build()
        self._draws = Draws()
        xp = backend.module("cupy")
        self._order = xp.arange(self.batch_shape[0], dtype="int32")
        self._unused = xp.zeros(1, dtype="int32"), xp.zeros(1, dtype="int32")
        self._plain = xp.zeros((2, self._image[2]), dtype="float32")
        self._sent: list[list[float]] = []
        self._rates: Any = None
        self._program("float32")

    def _check_tf32(self) -> None:
        raise ParameterError(
            f'{self.network.name}.compile: engine "mega" multiplies in float32, not in "tf32"; '
            "engine 'auto' does"
        )

    # ----------------------------------------------------------------------------------- the kernel

    def _build(self) -> None:
        """Stages, kernels and the arrays of the parameters, anew when a layer was frozen or has got
        another hyperparameter."""
        self._chain = chain_of(self.network, self.batch_shape[1:])
        self._common_rule()
        self._kernels.clear()
        self._flat = FlatUpdate(self._chain.learned, self.network.dtype)
        self._still, self._kept = _in_a_row(self._chain.still)

    def _common_rule(self) -> Numbers:
        """Return that of the layers' optimizers.

        Raises
        ------
        ParameterError
            If a rule is not the kernel's, or they differ.
        """
        rules: list[Numbers] = []
        for layer, name in zip(self._chain.layers, self._chain.names, strict=True):
            if not layer.trainable:
                continue
            numbers = numbers_of(layer.optimizer)
            if numbers is None or not _is_known(numbers):
                raise ParameterError(
                    f"{self._what} cannot have {name}: its optimizer {layer.optimizer} is not "
                    "SGD, AdaGrad, RMSProp, Adam or AdamW without extras"
                )
            if rules and numbers != rules[0]:
                raise ParameterError(
                    f"{self._what} cannot have {name}: its optimizer {layer.optimizer} is another "
                    "one than the first layer's"
                )
            rules.append(numbers)
        return rules[0]

    def _program(self, dtype: str) -> Program:
        """The kernel for images of this dtype, as a text.

        Raises
        ------
        BackendError
            If a block has not enough shared memory on this GPU.
        """
        from gpulayers.cuda import mega  # needs CuPy

        pixel = "unsigned char" if dtype == "uint8" else "float"
        program = write(self._image, self._chain.stages, pixel, self.loss.reduction == "mean")
        most = mega.most_shared_bytes()
        if program.shared_bytes > most:
            raise BackendError(
                f"{self._what}: an example takes {program.shared_bytes} bytes of shared memory "
                f"through the network, this GPU has {most}; engine 'auto' has no such limit"
            )
        return program

    def _kernel(self, dtype: str) -> Any:
        """The same, compiled when it is first needed."""
        from gpulayers.cuda import mega  # needs CuPy

        if dtype not in self._kernels:
            program = self._program(dtype)
            self._kernels[dtype] = mega.Kernel(
                program.source,
                program.shared_bytes,
                batch=self.batch_shape[0],
                classes=self._chain.stages[-1].outputs,
                saved=program.layout.saved,
                partial=program.layout.partial,
            )
        return self._kernels[dtype]

    # ------------------------------------------------------------------------------------ the steps

    def step(self, X: Array, labels: Array) -> float | Array:
        from gpulayers.cuda.mega import Data, Record  # needs CuPy

        X = self._checked(X)
        self._check_labels(labels, X)
        if not len(X):
            return super().step(X, labels)
        xp = backend.module("cupy")
        record = Record(xp.empty((1, 2), dtype="float32"), *self._unused)
        labels = xp.ascontiguousarray(labels.astype("int64", copy=False))
        self._launch(Data(X, labels, self._order, self._plain, 0, len(X)), record, len(X), 1)
        return record.record[0, 0]

    def run(self, resident: Resident, steps: int, batch_size: int | None = None) -> int:
        """Train on the next batches of a dataset on the device, all in one launch; return how many
        there were.

        Parameters
        ----------
        resident : Resident
            Losses and hits are left in its record.
        steps : int
            At most so many; it ends with the epoch, whose last batch may be smaller.
        batch_size : int, optional
            At most that of `batch_shape`, which None stands for.

        Raises
        ------
        BackendError, ShapeError, DTypeError, ParameterError
            If the data does not fit the plan; nothing is changed then.
        """
        from gpulayers.cuda.mega import Data, Record  # needs CuPy

        steps = _spec.integer(f"{self.network.name}.run", "steps", steps, 0)
        batch = checked_batch_size(self, resident, batch_size)
        steps = min(steps, -(-resident.left // batch))
        if not steps:
            return 0
        begin = resident.count - resident.left
        data = Data(
            *(resident.images, resident.labels, resident.order, resident.factors),
            *(begin, min(begin + steps * batch, resident.count)),
        )
        record = Record(resident.record, resident.done, resident.position)
        self._launch(data, record, batch, steps)
        for _ in range(steps):
            resident.taken(min(batch, resident.left))
        return steps

    def why_not_resident(self) -> str | None:
        """Why `run` would refuse, whatever the dataset: it does not."""
        return None

    def _launch(self, data: Any, record: Any, batch: int, steps: int) -> None:
        if self._chain.is_stale:
            self._build()
        numbers = self._common_rule()
        kernel = self._kernel(data.images.dtype.name)
        self._flat.adopt()
        self._kept.adopt()
        if not self._flat.serves:
            raise ParameterError(
                f"{self._what}: the layers' optimizers have not done the same number of steps"
            )
        updates = self._count(steps)
        last = data.total - data.begin - (steps - 1) * batch
        drawn = self._chain.masks(batch) * (steps - 1) + self._chain.masks(last)
        if drawn:
            self._draws.prepare()
        kernel.launch(
            *(data, self._flat.param, self._flat.states, self._rates, record),
            **{"batch": batch, "steps": steps, "updates": updates, "numbers": numbers},
            **{"draws": self._draws.state, "still": self._still},
        )
        if drawn:
            self._draws.was_launched(drawn, moved=True)
        self.outputs = kernel.outputs[:last]

    def _count(self, steps: int) -> int:
        """Count the steps, and send their learning rates where the device has others; return how
        many were done before."""
        rows = [self._next_rates() for _ in range(steps)]
        if all(row == rows[0] for row in rows):
            rows = rows[:1]
        if rows != self._sent:
            self._rates = backend.module("cupy").asarray(np.array(rows, dtype=np.float32))
            self._sent = rows
        before = 0
        if self._flat.names:
            for layer, name in self._flat.places:
                entry = layer.optimizer.cache[name]
                before = entry["t"]
                entry["t"] = before + steps
        return before

    def _next_rates(self) -> list[float]:
        rates: list[float] = []
        for optimizer in (la.optimizer for la in self._chain.layers if la.trainable):
            optimizer.step()
            rates += [float(optimizer.lr_scheduler(optimizer.cur_step, None))] * 2
        return rates

    def describe(self) -> str:
        """Return the stages, a line each, and what a block needs."""
        needed = self._program("float32").shared_bytes
        how = "any number of steps in one launch, each block with"
        return f"{super().describe()}\n{how} {needed} bytes of shared memory"


def _is_known(numbers: Numbers) -> bool:
    """Whether the kernel has this rule and all that belongs to it."""
    return numbers.rule in RULES and numbers == Numbers(
        numbers.rule, **{name: getattr(numbers, name) for name in CONSTANTS}
    )


def _in_a_row(places: list[Place]) -> tuple[Array, Kept]:
    """One array with all these parameters, of which the layers hold views."""
    total = sum(layer.parameters[name].size for layer, name in places)
    row, end = backend.module("cupy").zeros(max(1, total), dtype="float32"), 0
    for layer, name in places:
        value = layer.parameters[name]
        begin, end = end, end + value.size
        view = row[begin:end].reshape(value.shape)
        view[...] = value
        layer.parameters[name] = view
    return row, Kept(places)


def _image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """An example as rows, columns and channels."""
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    return 1, math.prod(shape[:-1]), shape[-1]
