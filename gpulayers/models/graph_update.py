"""The update of a planned network on a GPU: all parameters in one array, one launch for all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpulayers import backend
from gpulayers._types import is_dict
from gpulayers.backend import Array
from gpulayers.cuda.rules import Numbers
from gpulayers.errors import ShapeError
from gpulayers.models.graph_node import Place
from gpulayers.models.graph_scale import LossScale
from gpulayers.models.graph_sections import Sections
from gpulayers.optimizers import SGD, AdaGrad, Adam, AdamW, RMSProp
from gpulayers.optimizers._master import MASTER, STATE, is_half

__all__ = ["FlatUpdate", "Kept", "numbers_of"]


def numbers_of(optimizer: Any) -> Numbers | None:
    """The optimizer's rule as `gpulayers.cuda.flat` takes it, None if that has no such rule."""
    known: object = optimizer
    o, kind = optimizer, type(known)
    if kind not in (SGD, AdaGrad, RMSProp, Adam, AdamW):
        return None
    first = {
        "limit": o.clip_value or 0.0,
        "pull": 0.0 if kind is AdamW else o.weight_decay,
        "longest": o.clip_norm or 0.0,
    }
    if kind is SGD:
        return Numbers("nesterov" if o.nesterov else "sgd", a=o.momentum, **first)
    if kind is AdaGrad:
        return Numbers("adagrad", eps=o.eps, **first)
    if kind is RMSProp:
        return Numbers("rmsprop", a=o.decay, b=1.0 - o.decay, eps=o.eps, **first)
    if not o.decay1 or not o.decay2:  # whose logarithm is infinite
        return None
    return Numbers(
        "adam",
        *(o.decay1, 1.0 - o.decay1, o.decay2, 1.0 - o.decay2),
        *(math.log(o.decay1), math.log(o.decay2), o.eps),
        o.weight_decay if kind is AdamW else 0.0,
        **first,
    )


class Kept:
    """Parameters that no optimizer changes: running statistics, those of frozen layers. A graph
    has their addresses.

    Parameters
    ----------
    places : list of (layer, name)
    """

    def __init__(self, places: list[Place]) -> None:
        self._arrays = [(layer, name, layer.parameters[name]) for layer, name in places]

    def moving(self) -> list[Array]:
        """Those that a step changes on its way: the running statistics."""
        return [array for layer, _, array in self._arrays if layer.trainable]

    def adopt(self) -> None:
        """As `FlatUpdate.adopt`."""
        for layer, name, array in self._arrays:
            value = layer.parameters[name]
            if value is not array:
                layer.parameters[name] = _taken(value, array, f"{layer}, {name!r}")


def _taken(value: Array, view: Array, what: str) -> Array:
    """`view`, with the values of an array that somebody put into its place."""
    if value.shape != view.shape:
        raise ShapeError(
            f"{what}: the plan was made for shape {view.shape}, got {value.shape}; compile again"
        )
    view[...] = backend.to_backend(value, "cupy").astype(view.dtype, copy=False)
    return view


class FlatUpdate(Sections):
    """Parameters one after the other in one array, of which the layers hold views, and their
    optimizers' state the same way. For half types there are two such arrays: the parameters, and
    the float32 copies that the rule changes (see `gpulayers.optimizers`).

    What changes from step to step is kept on the device: the learning rates and Adam's number of
    steps. They are written there only when they are not what the device has already.

    Parameters
    ----------
    places : list of (layer, name)
        The parameters that learn, in the order of their gradients.
    dtype : of all of them
    scale : LossScale, optional
        The loss scale of a half type.
    apart : int
        Each parameter starts at a multiple of so many numbers.

    Attributes
    ----------
    serves : bool
        Whether one launch can update all.
    """

    def __init__(
        self, places: list[Place], dtype: Any, scale: LossScale | None = None, apart: int = 1
    ) -> None:
        super().__init__(places, dtype, apart)
        self.scale = scale
        self.xp = backend.module("cupy")
        self.numbers = numbers_of(places[0][0].optimizer)
        self.param = self.xp.empty(self.total, dtype=self.wide)
        self.narrow = self.xp.empty(self.total, dtype=dtype) if is_half(dtype) else None
        # a loop: a comprehension's frame would keep `self`, and so its memory, in a MemoryError
        self.states: list[Array] = []
        for _ in self.names or (0,):
            self.states.append(self.xp.zeros(self.total, dtype=self.wide))
        held = self.param if self.narrow is None else self.narrow
        self._views = [self._cut(held, i) for i in range(len(places))]
        self._masters = [self._cut(self.param, i) for i in range(len(places))]
        self._state_views = [[self._cut(s, i) for s in self.states] for i in range(len(places))]
        self.rates = self.xp.zeros(len(places), dtype=self.wide)
        self._sent_rates: list[float] = [0.0] * len(places)
        self.step = self.xp.zeros(1, dtype="int32")
        self._sent_step = 0
        optimizers: list[object] = [layer.optimizer for layer, _ in places]
        self.one_kind = len({type(o) for o in optimizers}) == 1 and self.numbers is not None
        self._adopted = False
        self.serves = False
        self._judgement = self._room_to_judge()
        self.adopt()

    def _cut(self, array: Array, i: int) -> Array:
        return array[self.starts[i] : self.starts[i] + self.sizes[i]].reshape(self.shapes[i])

    def _fits(self) -> bool:
        """Whether one rule with the same constants and the same number of steps holds for all."""
        if not self.one_kind:  # they keep their states themselves
            return False
        if any(numbers_of(layer.optimizer) != self.numbers for layer, _ in self.places):
            return False
        return len({self._entry(i).get("t", 0) for i in range(len(self.places))}) == 1

    def _entry(self, i: int) -> dict[str, Any]:
        """What the optimizer keeps for a parameter, by name; empty before the first step."""
        layer, name = self.places[i]
        entry = layer.optimizer.cache.get(name)
        if entry is None:
            return {}
        return entry if is_dict(entry) else {STATE: entry}

    def adopt(self) -> None:
        """Take over arrays that somebody put into a layer or an optimizer (a checkpoint,
        `set_params`): their values are copied, and the layers hold the views again.

        Raises
        ------
        ShapeError
            If a parameter has another shape now.
        """
        if self._adopted and self._holds_all():
            return
        for i, (layer, name) in enumerate(self.places):
            value, view = layer.parameters[name], self._views[i]
            if value is not view:
                layer.parameters[name] = _taken(value, view, f"{layer}, {name!r}")
            if self.one_kind:
                self._adopt_state(i)
        self.serves = self._fits()
        self._adopted = True

    def _holds_all(self) -> bool:
        """Whether the layers and optimizers still have the views; asked in each step."""
        for i, (layer, name) in enumerate(self.places):
            if layer.parameters[name] is not self._views[i]:
                return False
            if self.one_kind and not self._holds_state(layer.optimizer.cache.get(name), i):
                return False
        return True

    def _holds_state(self, entry: Any, i: int) -> bool:
        states = self._state_views[i]
        if not self.names and self.narrow is None:
            return entry is states[0]
        if not is_dict(entry):
            return False
        if self.narrow is not None and entry.get(MASTER) is not self._masters[i]:
            return False
        for key, state in zip(self.names or (STATE,), states, strict=True):
            if entry.get(key) is not state:
                return False
        return True

    def _adopt_state(self, i: int) -> None:
        (layer, name), entry = self.places[i], self._entry(i)
        what = f"the optimizer of {layer}, {name!r}"
        for key, state in zip(self.names or (STATE,), self._state_views[i], strict=True):
            if entry.get(key) is None:
                state.fill(0)
            elif entry[key] is not state:
                _taken(entry[key], state, what)
            entry[key] = state
        if self.narrow is not None:
            master = entry.get(MASTER)
            if master is None:
                self._masters[i][...] = self._views[i].astype(self.wide)
            elif master is not self._masters[i]:
                _taken(master, self._masters[i], what)
            entry[MASTER] = self._masters[i]
        else:
            entry.pop(MASTER, None)
        if self.names:
            entry.setdefault("t", 0)
        plain = not self.names and self.narrow is None
        layer.optimizer.cache[name] = entry[STATE] if plain else entry

    def _room_to_judge(self) -> Any:
        """Memory for `flat.judge`, if there is something to judge."""
        from gpulayers.cuda import flat  # needs CuPy

        if self.scale is None and (self.numbers is None or not self.numbers.longest):
            return None
        rows: list[tuple[int, int, int]] = []
        bounds = [0]
        for i, (start, size) in enumerate(zip(self.starts, self.sizes, strict=True)):
            ends = range(start, start + size, flat.CHUNK)
            rows += [(i, first, min(first + flat.CHUNK, start + size)) for first in ends]
            bounds.append(len(rows))
        xp = self.xp
        return flat.Judgement(
            xp.asarray(np.array(rows, np.int64)),
            xp.asarray(np.array(bounds, np.int32)),
            *(xp.zeros(len(rows), self.wide), xp.zeros(len(rows), self.wide)),
            xp.zeros(len(self.sizes), self.wide),
        )

    # ------------------------------------------------------------------------------------ the step

    def prepare(self, cur_loss: float | None, counted: bool) -> None:
        """See to it that the device has the numbers of the next step; `count` counts it, once it
        has been launched.

        Parameters
        ----------
        counted : bool
            Whether the loss of this step was computed before; else it is in the same graph and
            counts the step on the device by itself.
        """
        rates: list[float] = []
        counts: dict[int, int] = {}
        last = None
        for layer, _ in self.places:
            optimizer = layer.optimizer
            if layer is not last:
                done = counts.get(id(optimizer))
                counts[id(optimizer)] = (optimizer.cur_step if done is None else done) + 1
                last = layer
            rates.append(float(optimizer.lr_scheduler(counts[id(optimizer)], cur_loss)))
        if rates != self._sent_rates:
            self._sent_rates = []  # nobody knows, until all are written
            if len(set(rates)) == 1:
                self.rates.fill(rates[0])
            else:
                for i, rate in enumerate(rates):
                    self.rates[i : i + 1].fill(rate)
            self._sent_rates = rates
        if not self.names:
            return
        wanted = self._entry(0)["t"] + (1 if counted else 0)
        if self._sent_step != wanted:
            self.step.fill(wanted)
            self._sent_step = wanted

    def count(self) -> None:
        """The step that was prepared has been launched: the optimizers have done one more."""
        last = None
        for layer, _ in self.places:
            if layer is not last:
                layer.optimizer.step()
                last = layer
        for i in range(len(self.places) if self.names else 0):
            entry = self._entry(i)
            entry["t"] += 1

    def was_counted(self) -> None:
        """The device has computed a loss, and so counted a step."""
        self._sent_step += 1

    def failed(self) -> None:
        """A step failed on its way: nobody knows whether the device has counted it."""
        self._sent_step = -1

    def take_back(self, steps: int) -> None:
        """So many of the steps counted were left out on the device, which did not count them."""
        for optimizer in {id(la.optimizer): la.optimizer for la, _ in self.places}.values():
            optimizer.cur_step -= steps
        if self.names:
            for i in range(len(self.places)):
                self._entry(i)["t"] -= steps
            self._sent_step = -1  # these arrays may have been written from the counts since then

    def judge(self, work: Array, sections: Array, scaled: bool) -> None:
        """Find out what the update needs to know of all gradients, if anything; see `launch`."""
        from gpulayers.cuda import flat  # needs CuPy

        if self._judgement is not None:
            numbers = self.numbers or Numbers("sgd")
            state = None if self.scale is None else self.scale.state
            # only there is something else done than to clip
            top = float(np.finfo(np.float16).max) if self.scale is not None and scaled else None
            flat.judge(work, sections, numbers, self._judgement, state, scaled, self.step, top)

    def launch(self, work: Array, sections: Array, scaled: bool) -> None:
        """Update all parameters by gradients that lie in `work` as `sections` say.

        Parameters
        ----------
        scaled : bool
            The gradients are too long by the loss scale.
        """
        from gpulayers.cuda import flat  # needs CuPy

        numbers = self.numbers
        if numbers is None:
            return
        self.judge(work, sections, scaled)
        state = None if self.scale is None else self.scale.state
        flat.flat_update(
            *(self.param, self.states, self.narrow, work, sections, self.rates, self.step),
            *(numbers, self._judgement, state),
        )
