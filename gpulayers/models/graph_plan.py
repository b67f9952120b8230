"""A network prepared for training on a GPU: the step as one CUDA graph.

A batch of a size that is new runs launch by launch, its kernels compiled before; the next one of
that size is captured, and from then on a step is the launch of its graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import numpy as np

from gpulayers import backend
from gpulayers.backend import Array
from gpulayers.cuda.table import INT32_LIMIT
from gpulayers.models.graph_draws import Draws
from gpulayers.models.graph_layers import DropoutStep
from gpulayers.models.graph_loss import StepLoss
from gpulayers.models.graph_node import Place
from gpulayers.models.graph_nodes import (
    Fused,
    acts_of,
    backward_into,
    graph_nodes,
    leaves,
    places_of,
    refusal,
)
from gpulayers.models.graph_program import Program
from gpulayers.models.graph_scale import LossScale
from gpulayers.models.graph_sequence import SequenceStep
from gpulayers.models.graph_update import FlatUpdate, Kept, numbers_of
from gpulayers.models.plan import CompiledNetwork
from gpulayers.models.plan_checks import check_device, check_targets
from gpulayers.models.plan_node import Node
from gpulayers.ops._kernels import current_engine, use_engine
from gpulayers.optimizers._master import is_half

__all__ = ["APART", "GraphNetwork", "draws_for"]

# sizes of batches whose graphs are kept: whole ones, the last one of an epoch, and two more
_KEPT = 4
# numbers between the beginnings of parameters: 16 bytes of a half type, what one load can bring
APART = 8


def draws_for(nodes: list[Any]) -> Draws | None:
    """Random numbers for a step of these nodes, if it draws any."""
    return Draws() if any(isinstance(node, DropoutStep) for node in leaves(nodes)) else None


class GraphNetwork(CompiledNetwork):
    """`CompiledNetwork` on a GPU: forward, loss, backward and update as one CUDA graph.

    Captured are networks whose layers treat examples one by one, or normalise batches, trained on
    cross-entropy; for others `describe` says why not, and the step is launched operation by
    operation. Half types: the loss is computed in float32, the update changes float32 copies of the
    parameters, and in float16 the loss is scaled; a step whose gradients are not finite is left
    out, which the device decides by itself (`loss_scale`). A step that is left out counts for
    schedules, and for the optimizers until somebody asks for the scale. The parameters are moved
    into one array, of which the layers hold views, and updated by one launch if every layer has the
    same optimizer (SGD, AdaGrad, RMSProp, Adam or AdamW); two more look at the gradients, where
    they are clipped by their norm or the loss is scaled.
    """

    def __init__(
        self, network: Any, loss: Any, batch_shape: tuple[int, ...], precision: str | None
    ) -> None:
        from gpulayers.cuda import precision as products  # needs CuPy

        super().__init__(network, loss, batch_shape, precision)
        self._scale: LossScale | None = None
        asked = products.current() if precision is None else precision
        self._multiplied = asked if asked in products.PRECISIONS else "fp32"
        self._step_loss = StepLoss(self.loss)
        self._why_not = self._reason()
        self._programs: dict[Any, Program] = {}
        self._choices: dict[Any, Any] = {}
        self._layers: Any = None
        self._nodes: list[Any] = []
        self._signature: Any = None
        self._recorder: Any = None
        self._flat: FlatUpdate | None = None
        self._last: Program | None = None
        self._summed = False

    def _check_tf32(self) -> None:
        from gpulayers.cuda import precision  # needs CuPy

        precision.check(f"{self.network.name}.compile", "tf32")

    def _exactly(self) -> contextlib.AbstractContextManager[Any]:
        """Within it float32 is multiplied as the plan was asked to."""
        from gpulayers.cuda import precision  # needs CuPy

        return precision.use_precision(self._multiplied)

    def _reason(self) -> str | None:
        if not self._step_loss.serves:
            return "the loss is neither SoftmaxCrossEntropy nor the squared error"
        numbers = sum(p.size for _, la in self.network.walk() for p in la.parameters.values())
        if numbers > INT32_LIMIT:
            return f"its parameters are {numbers} numbers, one update takes {INT32_LIMIT}"
        return refusal(self._shown())

    def _shown(self) -> list[Node]:
        nodes = graph_nodes(self.network.layers)
        for node in leaves(nodes):
            if isinstance(node, SequenceStep):
                with self._exactly():
                    node.say(self.batch_shape[0], np.dtype(self.network.dtype))
        return nodes

    # ------------------------------------------------------------------------------------ building

    def _build(self) -> None:
        """Nodes, parameters and graphs anew, when a layer was frozen or a rule changed."""
        from gpulayers.cuda import graph  # needs CuPy

        if self._layers is None:
            self._layers = [layer for _, layer in self.network.walk()]
        signature = [(layer.trainable, numbers_of(layer.optimizer)) for layer in self._layers]
        signature += acts_of(self._layers)
        settings = [node.settings() for node in leaves(self._nodes)]
        if (signature, settings) == self._signature:
            return
        # until all is there: what fails on the way is made anew by the next step
        self._signature = self._flat = self._last = None
        self._programs.clear()
        self._nodes, self._places = nodes, _ = self.new_nodes()
        learned = {(id(layer), name) for layer, name in self._places}
        others = [(layer, name) for layer in self._layers for name in layer.parameters]
        self._kept = Kept([(la, name) for la, name in others if (id(la), name) not in learned])
        self._draws = draws_for(nodes)
        self.prepare_nodes(nodes)
        self._step_loss.prepare(self.network.dtype)
        self._recorder = graph.Recorder()
        dtype = self.network.dtype
        if dtype == np.float16 and self._scale is None:
            self._scale = self._new_scale()
        flat = None
        if self._places:
            flat = FlatUpdate(self._places, dtype, self._scale, apart=APART)
            xp = backend.module("cupy")
            self._sums = xp.empty(flat.total, dtype=flat.wide)
            rows = [flat.section(i, at, 1, 0) for i, at in enumerate(flat.starts)]
            self._whole = xp.asarray(np.array(rows, dtype=np.int64))
        self._flat, self._signature = flat, (signature, [n.settings() for n in leaves(nodes)])

    def new_nodes(self) -> tuple[list[Any], list[Place]]:
        """The nodes of a step, and the parameters in them that learn."""
        nodes = graph_nodes(self.network.layers)
        return nodes, [place for node in leaves(nodes) for place in places_of(node)]

    def prepare_nodes(self, nodes: list[Any]) -> None:
        """Have the nodes make what outlives the steps."""
        for node in leaves(nodes):
            if isinstance(node, Fused):
                node.prepare(self._draws)

    def _new_scale(self) -> LossScale:
        """A loss scale on the device, which a trainer's goes on in."""
        scaler = getattr(self.loss, "scaler", None)
        scale = LossScale() if scaler is None else scaler.on_device(LossScale)
        scale.on_skipped = lambda steps: self._flat.take_back(steps) if self._flat else None
        return scale

    # ------------------------------------------------------------------------------------ the step

    def _captures(self, X: Array) -> bool:
        engine = current_engine()
        return self._why_not is None and len(X) > 0 and engine not in ("cublas", "reference")

    def step(self, X: Array, labels: Array) -> float | Array:
        if not self._captures(X):
            with self._exactly():
                return super().step(X, labels)
        program = self._staged(X, labels)
        update = self._flat
        if update is None or not update.serves:
            self._execute(program, False)
            self.update(None)
        else:
            self._execute(program, True)
        return program.loss.copy().reshape(())

    def gradients(self, X: Array, labels: Array) -> float | Array:
        if not self._captures(X):
            self._last = None
            return self._by_layers(X, labels)
        program = self._staged(X, labels)
        self._execute(program, False)
        return program.loss.copy().reshape(())

    def _by_layers(self, X: Array, labels: Array) -> float | Array:
        """`gradients`, launched operation by operation."""
        with self._exactly():
            return super().gradients(X, labels)

    def _staged(self, X: Array, labels: Array) -> Program:
        """The program for such a batch, which is copied to where that takes it from."""
        X = self._checked(X)
        if self._step_loss.takes_labels:
            self._check_labels(labels, X)
        else:
            shape = (len(X), *self.output_shape)
            check_targets(self.network.name, self.device, labels, X, shape)
        self._ready()
        program = self._program(X.shape)
        program.X[...] = X
        program.labels[...] = labels
        return program

    def _ready(self) -> None:
        """See to it that a graph would find what the layers have."""
        self._build()
        self._kept.adopt()
        if self._flat is not None:
            self._flat.adopt()

    def _program(self, shape: tuple[int, ...], source: Any = None) -> Program:
        """The program for batches of this shape; of the oldest ones some are forgotten."""
        key = shape[0], id(source), current_engine()  # the program keeps the source
        program = self._programs.get(key)
        if program is None:
            while len(self._programs) >= _KEPT:
                del self._programs[next(iter(self._programs))]
            program = self._programs[key] = self.new_program(shape, source)
        return program

    def new_program(self, shape: tuple[int, ...], source: Any = None, dry: bool = False) -> Program:
        """One for batches of this shape."""
        dtype = self.network.dtype
        labels = self._step_loss.room(shape[0], self.output_shape, dtype)
        return Program(shape, dtype, labels, source, dry)

    def _execute(self, program: Program, update: bool) -> None:
        """Launch the step, with the update or without, by its graph where there is one."""
        from gpulayers.cuda import graph  # needs CuPy

        update_all, fresh = self._flat, program.outputs is None
        if not fresh and update not in program.graphs:
            with self._settings(fresh):
                program.graphs[update] = self._recorder.capture(
                    f"{self.network.name}, batches of {len(program.X)}: the step",
                    lambda: self._launch(program, update),
                )
                program.results[update] = program.outputs
        if update and update_all is not None:
            update_all.prepare(None, counted=False)
        if self._draws is not None:
            self._draws.prepare()
        if fresh:
            self._recorder.tidy()
            with self._settings(fresh):
                self._launch(program, update)
        else:
            program.outputs = program.results[update]
            graph.launch(program.graphs[update])
        if update_all is not None:
            update_all.was_counted()
            if update:
                update_all.count()
        if self._draws is not None:
            self._draws.was_launched(program.draws, moved=update_all is not None)
        self.outputs, self._last, self._summed = program.outputs, program, False

    @contextlib.contextmanager
    def _settings(self, measure: bool) -> Generator[None]:
        """The plan's kernels and precision; the engine is looked up once, not by each operation."""
        from gpulayers.cuda import tune  # needs CuPy

        pinned = tune.pinned(self._choices, self.deterministic, measure=measure)
        with use_engine(current_engine()), pinned, self._exactly():
            yield

    def _launch(self, program: Program, update: bool) -> None:
        """Forward, loss, backward and, if wanted, update."""
        flat_update, draws = self._flat, self._draws
        loss_scale = None if self._scale is None else self._scale.state.scale
        try:
            if draws is not None:
                draws.begin()
            self._fetch(program)
            Y = program.X
            for node in self._nodes:
                Y = node.forward(Y)
            losses, dY = self._step_loss.launch(Y, program.labels, loss_scale)
            counter = self._counter() if flat_update is None else flat_update.step
            self._finish(program, losses, Y, counter, self._step_loss.scale(len(Y)))
            if flat_update is not None:
                if program.work is None:
                    program.make_room(self._nodes, flat_update)
                backward_into(self._nodes, program.grads, dY)
                if update:
                    flat_update.launch(program.work, program.sections, scaled=True)
            program.outputs = Y
            program.draws = 0 if draws is None else draws.taken
        finally:
            for node in self._nodes:
                node.forget()

    def _fetch(self, program: Program) -> None:
        """Have the batch where the first node takes it from: `_staged` has copied it there."""

    def _finish(
        self, program: Program, losses: Array, Y: Array, counter: Array, scale: float
    ) -> None:
        """The batch's loss, from that of each example; and the step is counted."""
        from gpulayers.cuda import flat  # needs CuPy

        flat.finish_loss(losses, program.loss, counter, scale)

    def _counter(self) -> Array:
        """Of steps that nobody asks for."""
        if getattr(self, "_unused", None) is None:
            self._unused = backend.module("cupy").zeros(1, dtype="int32")
        return self._unused

    # ---------------------------------------------------------------------------- second half of it

    def gradient_arrays(self) -> list[Array]:
        from gpulayers.cuda import flat  # needs CuPy

        program, update = self._last, self._flat_of_last()
        if program is None or update is None:
            return super().gradient_arrays() if program is None else []
        if not self._summed:
            scale = None if self._scale is None else self._scale.state.scale
            flat.sum_sections(program.work, program.sections, self._sums, scale)
            self._summed = True
        cuts = zip(update.starts, update.sizes, update.shapes, strict=True)
        return [self._sums[a : a + size].reshape(shape) for a, size, shape in cuts]

    def _flat_of_last(self) -> FlatUpdate | None:
        return self._flat if self._last is not None else None

    def update(self, cur_loss: float | None = None) -> None:
        program = self._last
        if program is None:
            super().update(cur_loss)
            return
        check_device(self.network.name, self.device)
        update = self._flat
        if update is None:
            return
        update.adopt()
        if update.serves:
            update.prepare(cur_loss, counted=True)
            if self._summed:
                update.launch(self._sums, self._whole, scaled=False)
            else:
                update.launch(program.work, program.sections, scaled=True)
            update.count()
            return
        gradients = self.gradient_arrays()
        if self._scale is not None:
            update.judge(self._sums, self._whole, scaled=False)
            if not int(backend.to_cpu(self._scale.state.good)[0]):  # the host must know
                self._scale.noticed()
                return
        self._update_one_by_one(gradients, cur_loss)

    def _update_one_by_one(self, gradients: list[Array], cur_loss: float | None) -> None:
        last = None
        for (layer, name), grad in zip(self._places, gradients, strict=True):
            if layer is not last:
                layer.optimizer.step()
                last = layer
            layer.optimizer.update_(layer.parameters[name], grad, name, cur_loss)

    @property
    def scales(self) -> bool:
        return self._last is not None and is_half(self.network.dtype)

    @property
    def loss_scale(self) -> dict[str, Any] | None:
        """Scale and counts of a step in float16, as `LossScale.read`, which waits for the device;
        None for other types, or before the first step."""
        return None if self._scale is None else self._scale.read()

    @property
    def arena_bytes(self) -> int:
        """Bytes that the graphs keep for what they compute in between."""
        return 0 if self._recorder is None else self._recorder.nbytes

    def describe(self) -> str:
        """Return what is computed in one pass, a line each, and whether it is one graph."""
        if self._why_not is None:
            how = "captured as one CUDA graph"
        else:
            how = f"launched one by one: {self._why_not}"
        if self._multiplied != "fp32":
            how += f"\nproducts in {self._multiplied.upper()}"
        return f"{super().describe()}\n{how}"
