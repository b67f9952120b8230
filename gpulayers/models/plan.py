"""A network prepared for training on batches of one shape: `Sequential.compile` makes it."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpulayers import backend, threads
from gpulayers.backend import Array
from gpulayers.errors import BackendError, DTypeError, ParameterError, ShapeError
from gpulayers.layers import Embedding
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models._watch import first_layer
from gpulayers.models.plan_checks import (
    Makeup,
    check_device,
    checked_loss,
    checked_shape,
    converted,
    device_of,
)
from gpulayers.models.plan_copy import Copy, add_gradients, multiplications
from gpulayers.models.plan_node import Node, backward_through
from gpulayers.models.plan_recorded import Recordings, Results
from gpulayers.ops._kernels import current_engine, kernels_for, kernels_of_module, use_engine
from gpulayers.ops.workspace import Workspace

__all__ = ["CompiledNetwork"]

# Multiplications of a batch's forward pass from which Python threads pay: below, handing the
# interpreter from one to the other costs more than the second core gives, and BLAS has the threads.
_WORTH_THREADS = 3e8


class CompiledNetwork:
    """The training step of a network as a fixed plan: forward, loss, backward, update.

    It gives what the layers give one by one, up to rounding, in less time: layers in a row are
    computed in one pass where that wins, intermediate results live in memory that is used again,
    and the checks of the layers are done once, here. The parameters are the network's own, updated
    in place, so `forward`, `save` and all else of the network see each step.

    In pure NumPy a large batch is cut into one part for each thread, if every layer treats its
    examples one by one; their gradients are added up in a fixed order, so results depend on the
    number of threads alone. A small batch leaves the threads to BLAS, within each product. The
    compiled kernels use their threads within each operation.

    Attributes
    ----------
    network : Sequential
    batch_shape : tuple
        The largest batch; a batch may have fewer examples.
    output_shape : tuple
        Of one example's output.
    device : int or None
        The CUDA device it was made on, and for; None on the CPU.
    makeup : Makeup
        What it was made of, looked at before each step.
    outputs : array (n, ...)
        What the network gave for the last batch, before the update.
    deterministic : bool
        Whether it keeps to kernels whose results have the same bits in every run.
    """

    deterministic = True

    def __init__(
        self, network: Any, loss: Any, batch_shape: tuple[int, ...], precision: str | None
    ) -> None:
        self.network = network
        self.batch_shape = checked_shape(network.name, batch_shape)
        self.loss = checked_loss(network.name, loss)
        self.device = device_of(network)
        check_device(f"{network.name}.compile", self.device)
        self._takes_ids = isinstance(first_layer(network), Embedding)
        self.output_shape = self._initialize()
        if precision == "tf32":
            self._check_tf32()
        if converted(network, precision):
            self.output_shape = self._initialize()
        self.makeup = Makeup(network, self.loss)
        first = Copy(network.layers)
        self._copies = [first]
        self._plain_loss = type(self.loss) is SoftmaxCrossEntropy and self.loss._plain
        self._by_example = self._plain_loss and all(n.by_example for n in first.nodes)
        self._recordings = Recordings(first.nodes, network.dtype)
        self._updates: Any = None
        self._work = multiplications(first, self._zeros()) if self._by_example else math.inf
        self.outputs: Any = None

    def _zeros(self) -> Array:
        """One example."""
        place = self.network.home or backend.current_backend()
        dtype = np.int64 if self._takes_ids else self.network.dtype
        return backend.module(place).zeros((1, *self.batch_shape[1:]), dtype)

    def _initialize(self) -> tuple[int, ...]:
        """Run one example of zeros, which tells the layers their sizes and finds what misfits;
        return the shape of its output."""
        return self.network.forward(self._zeros(), False).shape[1:]

    def _check_tf32(self) -> None:
        """Raise if there is nothing here that multiplies in TF32."""
        raise ParameterError(
            f"{self.network.name}.compile: precision 'tf32' is that of a GPU's tensor cores, this "
            "network computes on the CPU; use 'fp32', or network.to('cupy')"
        )

    # ------------------------------------------------------------------------------------ the step

    def step(self, X: Array, labels: Array) -> float | Array:
        """Train on one batch; return its loss.

        The same as ``loss.forward(labels, network.forward(X))``, ``network.backward`` and
        ``network.update``.

        Parameters
        ----------
        X : (n, ...), n at most `batch_shape[0]`, floating or uint8 (see `Sequential.pixels`)
        labels : what the loss takes, for cross-entropy (n,) integer

        Returns
        -------
        loss : float on the CPU, a 0-d array on a GPU (nothing waits for the device)

        Raises
        ------
        ShapeError, DTypeError, BackendError, ParameterError
            If the batch does not fit the plan; nothing is changed then.
        """
        value = self.gradients(X, labels)
        self.update(value if isinstance(value, float) else None)
        return value

    def gradients(self, X: Array, labels: Array) -> float | Array:
        """The first half of `step`: forward, loss and backward, ready for `update`."""
        X = self._checked(X)
        if self._plain_loss:
            self._check_labels(labels, X)
        scale = 1.0
        if self._plain_loss and self.loss.reduction == "mean":
            scale = 1.0 / max(len(X), 1)
        if self._plain_loss and self._run_recorded(self._copies[0], X, labels, scale):
            return self._collect(self._copies[:1], scale)
        try:
            return self._in_parts(X, labels, scale)
        except BaseException:
            for copy in self._copies:
                copy.drop()
            raise

    def _in_parts(self, X: Array, labels: Array, scale: float) -> float | Array:
        parts = self._parts(len(X))
        while len(self._copies) < len(parts):
            self._copies.append(Copy(self.network.layers))
        copies = self._copies[: len(parts)]

        def work(i: int, part: slice) -> None:
            self._run(copies[i], X[part], labels[part], scale)

        if len(parts) == 1:
            with self._blas(len(X)):
                work(0, parts[0])
        else:
            threads.run_shares(_in_context(work, len(parts)), parts)
            for copy in copies[1:]:
                add_gradients(copies[0], copy)
        return self._collect(copies, scale)

    def _run(self, copy: Copy, X: Array, labels: Array, scale: float) -> None:
        """Forward, loss and backward of one part of the batch."""
        with copy.workspace, use_engine(current_engine()):  # looked up once, not by each operation
            copy.forget()
            copy.workspace.next_round()
            logits = copy.forward(X)
            copy.outputs = logits
            if self._plain_loss:
                k = kernels_for(logits)
                copy.losses, dY = k.softmax_cross_entropy_both(logits, labels, scale)
            else:
                copy.losses = self.loss.forward(labels, logits)
                dY = self.loss.backward()
            backward_through(copy.nodes, dY, False)

    def _run_recorded(self, copy: Copy, X: Array, labels: Array, scale: float) -> bool:
        """`_run` as calls that were noted down, where that is possible."""

        def run(workspace: Workspace, labels: Array) -> Results:
            copy.workspace = workspace
            try:
                with threads.single_threaded_blas():
                    self._run(copy, X, labels, scale)
            finally:
                copy.workspace = Workspace()
            return copy.outputs, copy.losses

        results = self._recordings.run(X, labels, scale, run)
        if results is None:
            return False
        copy.outputs, copy.losses = results
        return True

    def _collect(self, copies: list[Copy], scale: float) -> float | Array:
        xp = backend.xp_of(copies[0].outputs)
        outputs = [copy.outputs for copy in copies]
        self.outputs = outputs[0] if len(outputs) == 1 else xp.concatenate(outputs)
        if not self._plain_loss:
            total = copies[0].losses
            return float(total) if xp is np else total
        if xp is not np:
            wide = np.float32 if copies[0].losses.dtype.itemsize == 2 else None
            return copies[0].losses.sum(dtype=wide) * scale
        return math.fsum(float(copy.losses.sum(dtype=np.float64)) for copy in copies) * scale

    @property
    def scales(self) -> bool:
        """Whether the last gradients are free of the loss scale and the update looks after it."""
        return False

    def gradient_arrays(self) -> list[Array]:
        """The gradients that `gradients` gave, of all parameters that learn; to be read, or changed
        in place before `update`."""
        self._recordings.shown = True
        return [grad for node in self._copies[0].leaves() for grad in node.gradient_arrays()]

    def update(self, cur_loss: float | None = None) -> None:
        """The second half of `step`: every layer's optimizer takes one step.

        Parameters
        ----------
        cur_loss : float, optional
            For schedules that look at the loss.
        """
        check_device(self.network.name, self.device)
        if self._copies[0].outputs is None:
            raise ParameterError(
                f"{self.network.name}: there are no gradients to update by; call "
                "gradients(X, labels) before update()"
            )
        with self._copies[0].workspace, use_engine(current_engine()):
            self._update(cur_loss)
        for copy in self._copies:
            copy.forget()

    def _update(self, cur_loss: float | None) -> None:
        rules = self._rules()
        try:
            for node in self._copies[0].leaves():
                node.update(cur_loss, node.gradients, rules)
        finally:
            if rules is not None:
                rules.run()

    def _rules(self) -> Any:
        """What does all updates in one call; None where there is no such thing."""
        place = self.network.home or backend.current_backend()
        maker = getattr(kernels_of_module(backend.module(place)), "updates", None)
        if maker is None:
            return None
        if type(self._updates) is not maker:
            self._updates = maker(self.network.dtype)
        return self._updates

    def _parts(self, n: int) -> list[slice]:
        """How a batch is cut: one part, or one for each thread in pure NumPy."""
        if not self._by_example or self._in_kernel_threads() or self._is_small(n):
            return [slice(0, n)]
        return threads.shares(n, grain=4)

    def _is_small(self, n: int) -> bool:
        return n * self._work < _WORTH_THREADS

    def _blas(self, n: int) -> contextlib.AbstractContextManager[None]:
        """Who has the threads on the CPU. A small batch in pure NumPy: BLAS, in each product.
        Otherwise the operations, and BLAS has one: its threads go on looking for work after a
        product, on the cores of what follows it."""
        if (self.network.home or backend.current_backend()) != "numpy":
            return contextlib.nullcontext()
        if self._is_small(n) and not self._in_kernel_threads():
            return threads.threaded_blas()
        return threads.single_threaded_blas()

    def _in_kernel_threads(self) -> bool:
        """Whether operations run in threads (or on a GPU) of their own."""
        place = self.network.home or backend.current_backend()
        kernels: Any = kernels_of_module(backend.module(place))
        return place != "numpy" or getattr(kernels, "threaded", False)

    # -------------------------------------------------------------------------------------- looking

    def describe(self) -> str:
        """Return what is computed in one pass, a line each."""
        lines = [node.name for node in self._shown()]
        how = "each example by itself" if self._by_example else "the batch as a whole"
        return "\n".join([f"{self.network.name}, batches of {self.batch_shape}, {how}:", *lines])

    def _shown(self) -> list[Node]:
        return self._copies[0].nodes

    def __repr__(self) -> str:
        return f"<CompiledNetwork {self.network.name!r} for batches of {self.batch_shape}>"

    # --------------------------------------------------------------------------------------- checks

    def _checked(self, X: Array) -> Array:
        """Return the batch as the first node takes it."""
        self.makeup.check()
        name, place = self.network.name, self.network.home or backend.current_backend()
        home = backend.home_of(name, "the batch", X)
        if home != place:
            raise BackendError(
                f"{name}: the plan was made for {place} arrays, the batch is a {home} array; "
                f"gpulayers.backend.to_backend(batch, {place!r}) moves it"
            )
        if home == "cupy":
            check_device(name, self.device, X)
        if X.ndim != len(self.batch_shape) or X.shape[1:] != self.batch_shape[1:]:
            raise ShapeError(
                f"{name}: the plan was made for batches of shape {self.batch_shape}, "
                f"got {X.shape}; compile again for another shape"
            )
        if len(X) > self.batch_shape[0]:
            raise ShapeError(
                f"{name}: the plan was made for at most {self.batch_shape[0]} examples a batch, "
                f"got {len(X)}; compile again for larger batches"
            )
        if self._takes_ids:
            if X.dtype.kind not in "iu":
                raise DTypeError(f"{name}: expected a batch of ids, int64 say, got {X.dtype}")
            return backend.xp_of(X).ascontiguousarray(X)
        if X.dtype == np.uint8:
            return self.network.pixels(X, self.network.dtype)
        if not backend.is_floating(X.dtype):
            raise DTypeError(f"{name}: expected a floating or uint8 batch, got {X.dtype}")
        dtype = self.network.dtype
        return backend.xp_of(X).ascontiguousarray(X.astype(dtype, copy=False))

    def _check_labels(self, labels: Any, X: Array) -> None:
        name, n = self.network.name, len(X)
        if len(self.output_shape) != 1:
            raise ShapeError(
                f"{name}: cross-entropy needs outputs (n_ex, n_classes), the network gives "
                f"(n_ex, {', '.join(map(str, self.output_shape))})"
            )
        home, place = backend.home_of(name, "the labels", labels), backend.backend_of(X)
        if home != place:
            raise BackendError(
                f"{name}: the batch is a {place} array, the labels are a {home} array"
            )
        if home == "cupy":
            check_device(name, self.device, labels)
        if labels.dtype.kind not in "iu":
            raise DTypeError(f"{name}: labels must be integers, got {labels.dtype}")
        if labels.shape != (n,):
            raise ShapeError(f"{name}: expected labels of shape ({n},), got {labels.shape}")
        # on a GPU looking would stall the device: there the loss of such an example is NaN
        if home == "numpy" and n and not 0 <= labels.min() <= labels.max() < self.output_shape[0]:
            raise ParameterError(
                f"{name}: labels must be in 0..{self.output_shape[0] - 1}, "
                f"got {labels.min()}..{labels.max()}"
            )


def _in_context(work: Callable[[int, slice], None], count: int) -> Callable[[int, slice], None]:
    """`work` for threads that see the caller's settings (engine, backend, error state)."""
    contexts = [contextvars.copy_context() for _ in range(count)]
    return lambda i, part: contexts[i].run(work, i, part)
