"""A network prepared for training on a GPU: whole steps, and many of them, as one kernel launch.

For tiny networks, whose steps are bound by launches rather than by arithmetic. `mega_layers` says
which networks these are, ``cuda/mega_kernel.cuh`` how they are trained.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator
from typing import Any

import numpy as np

from gpulayers import _spec, backend
from gpulayers.backend import Array
from gpulayers.cuda.mega_constants import CONSTANTS, RULES
from gpulayers.cuda.rules import Numbers
from gpulayers.errors import BackendError, ParameterError
from gpulayers.models.graph_draws import Draws
from gpulayers.models.graph_memory import Need, by_layers, short
from gpulayers.models.graph_node import Place
from gpulayers.models.graph_resident import checked_batch_size
from gpulayers.models.graph_sections import Sections
from gpulayers.models.graph_update import FlatUpdate, Kept, numbers_of
from gpulayers.models.mega_layers import Chain, chain_of
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
        from gpulayers.cuda import precision as products  # needs CuPy

        self._what = f'{network.name}.compile: engine "mega"'
        asked = precision or (products.current() if network.dtype == "float32" else network.dtype)
        if asked != "fp32":  # before parameters are converted
            raise ParameterError(
                f"{self._what} computes in float32, asked for was {asked}; engine 'auto' has all"
            )
        super().__init__(network, loss, batch_shape, precision)
        if not self._plain_loss:
            raise ParameterError(f"{self._what} needs a plain cross-entropy as the loss")
        self._image = _image(self.batch_shape[1:])
        self._kernels: dict[str, Any] = {}
        self._flat: Any = None
        self._labels: Any = None
        with self._telling():
            self._build()
            self._draws = Draws()
            xp = backend.module("cupy")
            self._order = xp.arange(self.batch_shape[0], dtype="int32")
            self._unused = xp.zeros(1, dtype="int32"), xp.zeros(1, dtype="int32")
            self._plain = xp.zeros((2, self._image[2]), dtype="float32")
        self._sent: list[list[float]] = []
        self._rates: Any = None
        self._program("float32")

    # ----------------------------------------------------------------------------------- the kernel

    def _build(self) -> None:
        """Stages, kernels and the arrays of the parameters, anew when a layer was frozen or has got
        another hyperparameter. What is there stays until all of it is made."""
        chain = chain_of(self.network, self.batch_shape[1:])
        self._common_rule(chain)
        flat = FlatUpdate(chain.learned, self.network.dtype)
        still, kept = _in_a_row(chain.still)
        self._chain, self._flat, self._still, self._kept = chain, flat, still, kept
        self._kernels.clear()

    def _current(self) -> Numbers:
        """See to it that the arrays are those of the layers and rules as they are now; return the
        rule's numbers."""
        if self._chain.is_stale:
            self._build()
        numbers = self._common_rule(self._chain)
        if numbers != self._flat.numbers:
            self._flat = FlatUpdate(self._chain.learned, self.network.dtype)
        return numbers

    def _common_rule(self, chain: Chain) -> Numbers:
        """Return that of the layers' optimizers.

        Raises
        ------
        ParameterError
            If a rule is not the kernel's, or they differ.
        """
        rules: list[tuple[object, Numbers]] = []
        for layer, name in zip(chain.layers, chain.names, strict=True):
            if not layer.trainable:
                continue
            numbers = numbers_of(layer.optimizer)
            if numbers is None or not _is_known(numbers):
                raise ParameterError(
                    f"{self._what} cannot have {name}: its optimizer {layer.optimizer} is not "
                    "SGD, AdaGrad, RMSProp, Adam or AdamW without extras"
                )
            known: object = layer.optimizer
            rules.append((type(known), numbers))
            if rules[-1] != rules[0]:
                raise ParameterError(
                    f"{self._what} cannot have {name}: its optimizer {layer.optimizer} is another "
                    "one than the first layer's"
                )
        return rules[0][1]

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
        with self._telling():
            X = self._checked(X)
            self._check_labels(labels, X)
            return self._step(X, labels) if len(X) else super().step(X, labels)

    def _step(self, X: Array, labels: Array) -> Array:
        from gpulayers.cuda.mega import Data, Record  # needs CuPy

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
        BackendError
            If the driver refuses the launch.
        DeviceMemoryError
            If the memory is too small for what the blocks leave for one another.
        BackendError, ShapeError, DTypeError, ParameterError
            If the data does not fit the plan. In all these cases nothing is changed.
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
        with self._telling():
            self._launch(data, record, batch, steps)
        for _ in range(steps):
            resident.taken(min(batch, resident.left))
        return steps

    def why_not_resident(self) -> str | None:
        """Why `run` would refuse, whatever the dataset: it does not."""
        return None

    def _launch(self, data: Any, record: Any, batch: int, steps: int) -> None:
        numbers = self._current()
        kernel = self._kernel(data.images.dtype.name)
        self._flat.adopt()
        self._kept.adopt()
        if not self._flat.serves:
            raise ParameterError(
                f"{self._what}: the layers' optimizers have not done the same number of steps"
            )
        updates = self._prepare(steps)
        last = data.total - data.begin - (steps - 1) * batch
        drawn = self._chain.masks(batch) * (steps - 1) + self._chain.masks(last)
        if drawn:
            self._draws.prepare()
        kernel.launch(
            *(data, self._flat.param, self._flat.states, self._rates, record),
            **{"batch": batch, "steps": steps, "updates": updates, "numbers": numbers},
            **{"draws": self._draws.state, "still": self._still},
        )
        self._count(steps)
        if drawn:
            self._draws.was_launched(drawn, moved=True)
        self.outputs = kernel.outputs[:last]

    def _prepare(self, steps: int) -> int:
        """Send the learning rates of the next steps where the device has others; return how many
        were done before."""
        rows = self._rows(steps)
        if all(row == rows[0] for row in rows):
            rows = rows[:1]
        if rows != self._sent:
            self._rates = backend.module("cupy").asarray(np.array(rows, dtype=np.float32))
            self._sent = rows
        layer, name = self._flat.places[0]
        return layer.optimizer.cache[name]["t"] if self._flat.names else 0

    def _rows(self, steps: int) -> list[list[float]]:
        """The rates of each step, of all parameters."""
        optimizers = [la.optimizer for la in self._chain.layers if la.trainable]
        counts = {id(optimizer): optimizer.cur_step for optimizer in optimizers}
        rows: list[list[float]] = []
        for _ in range(steps):
            row: list[float] = []
            for optimizer in optimizers:
                counts[id(optimizer)] += 1
                row += [float(optimizer.lr_scheduler(counts[id(optimizer)], None))] * 2
            rows.append(row)
        return rows

    def _count(self, steps: int) -> None:
        """So many steps have been launched."""
        for layer in self._chain.layers:
            for _ in range(steps if layer.trainable else 0):
                layer.optimizer.step()
        for layer, name in self._flat.places if self._flat.names else ():
            layer.optimizer.cache[name]["t"] += steps

    # ----------------------------------------------------------------------------- when it fails

    def gradients(self, X: Array, labels: Array) -> float | Array:
        try:
            value = super().gradients(X, labels)
        except MemoryError as error:
            raise short(self, error, len(X), lambda: by_layers(self, labels)) from error
        self._labels = labels[:0]  # what kind they are
        return value

    def update(self, cur_loss: float | None = None) -> None:
        try:
            super().update(cur_loss)
        except MemoryError as error:
            n = len(self.outputs)
            raise short(self, error, n, lambda: by_layers(self, self._labels)) from error

    @contextlib.contextmanager
    def _telling(self) -> Generator[None]:
        """Within it too little memory is told with what the plan's batches take: the blocks have
        room for the largest."""
        try:
            yield
        except MemoryError as error:
            raise short(self, error, self.batch_shape[0], self._need) from error

    def _need(self) -> Need:
        from gpulayers.cuda import mega  # needs CuPy

        chain = chain_of(self.network, self.batch_shape[1:])
        program = write(self._image, chain.stages, "float", self.loss.reduction == "mean")
        room = program.layout.saved, program.layout.partial, chain.stages[-1].outputs
        once, numbers = 0, numbers_of(chain.learned[0][0].optimizer)
        if self._flat is None or self._chain.is_stale or self._flat.numbers != numbers:
            still = sum(layer.parameters[name].nbytes for layer, name in chain.still)
            once = Sections(chain.learned, self.network.dtype).nbytes + still
        return lambda n: once + mega.bytes_between(n, *room)

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
