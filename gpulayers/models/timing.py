"""Where the time of a training step goes, layer by layer.

print(gpulayers.profile(network, images, labels))
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gpulayers import backend
from gpulayers.backend import Array
from gpulayers.layers import _arguments as check
from gpulayers.layers._group import LayerGroup
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models._watch import as_table, bare, forward, undisturbed, watched
from gpulayers.models.network import Sequential
from gpulayers.modules import WavenetResidualModule

__all__ = ["Profile", "Timed", "profile"]

_Times = dict[tuple[str, str], float]  # seconds by layer and method
_WARM_UP = 2  # steps: the first ones create parameters and buffers, and compile kernels


@dataclass(frozen=True)
class Timed:
    """One layer's times.

    Attributes
    ----------
    name : str
        Where it stands, as its parameters are called: ``"3.body.0"``.
    layer : str
        Its class.
    output : shape of one example
    forward_seconds, backward_seconds : float
    """

    name: str
    layer: str
    output: tuple[int, ...]
    forward_seconds: float
    backward_seconds: float

    @property
    def seconds(self) -> float:
        return self.forward_seconds + self.backward_seconds


@dataclass(frozen=True)
class Profile:
    """What `profile` returns; ``print`` shows it as a table.

    Attributes
    ----------
    batch_size, repeats : int
    rows : list of Timed
        Layers in the order in which data runs through them.
    step_seconds : float
        Forward and backward through the whole network, with what lies between the layers.

    All times are those of one step, the median one of `repeats`: so they add up.
    """

    batch_size: int
    repeats: int
    rows: list[Timed]
    step_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        head = ("layer", "output", "forward ms", "backward ms", "share")
        lines: list[tuple[str, ...]] = [head]
        for row in self.rows:
            share = row.seconds / self.step_seconds if self.step_seconds else 0.0
            lines.append(
                (
                    f"{row.name} {row.layer}".strip(),
                    str(row.output),
                    f"{row.forward_seconds * 1e3:.3f}",
                    f"{row.backward_seconds * 1e3:.3f}",
                    f"{share:.1%}",
                )
            )
        between = self.step_seconds - sum(row.seconds for row in self.rows)
        share = between / self.step_seconds if self.step_seconds else 0.0
        lines.append(("between the layers", "", "", f"{between * 1e3:.3f}", f"{share:.1%}"))
        lines.append(("step", "", "", f"{self.step_seconds * 1e3:.3f}", "100.0%"))
        note = f"the median of {self.repeats} steps on {self.batch_size} examples"
        return f"{as_table(lines)}\n{note}"


def profile(network: Any, X: Any, labels: Array | None = None, repeats: int = 10) -> Profile:
    """Measure every layer's forward and backward time in training steps on one batch.

    Parameters
    ----------
    network : Sequential, layer, wrapped layer or module
        A copy is timed: parameters, statistics and random numbers stay as they are.
    X : array, or list of arrays for a layer of several inputs
        The batch, on the backend where it is to be measured.
    labels : (n_ex,) integer array, optional
        The loss is then cross-entropy; without, the gradient that comes from above is all ones.
    repeats : int
        Steps that are measured, after two that warm up.

    Returns
    -------
    Profile

    Raises
    ------
    ParameterError
        If repeats is no positive integer.
    GPULayersError
        If the network does not take such a batch.

    Notes
    -----
    On a GPU each layer is waited for before and after, so the sum is more than the time of a step
    that is not watched. Layers run one by one: what `network.compile` fuses is not seen here.
    """
    repeats = check.integer("profile", "repeats", repeats)
    inputs: list[Array] = _listed(X)
    for array in inputs:
        backend.home_of("profile", "X", array)
    xp = backend.xp_of(*inputs)
    watch = _Watch(xp)
    twin = watched(network, watch, "forward", "backward")
    leaves = dict(twin.walk()) if isinstance(twin, LayerGroup) else {"": twin}
    steps: list[tuple[float, _Times]] = []
    with undisturbed():
        for _ in range(_WARM_UP + repeats):
            watch.times = {}
            before = watch.now()
            loss_seconds = _step(twin, inputs, labels, watch)
            steps.append((watch.now() - before - loss_seconds, watch.times))
            twin.flush_gradients()
    measured = sorted(steps[_WARM_UP:], key=lambda step: step[0])
    seconds, times = measured[(len(measured) - 1) // 2]
    rows = [
        Timed(
            name,
            type(bare(leaves[name])).__name__,
            shape,
            *(times.get((name, way), 0.0) for way in ("forward", "backward")),
        )
        for name, shape in watch.shapes.items()
    ]
    return Profile(len(inputs[0]), repeats, rows, seconds)


class _Watch:
    """Times and output shapes of the layers, as `watched` tells of their calls."""

    def __init__(self, xp: Any) -> None:
        self._xp = xp
        self.times: _Times = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def now(self) -> float:
        """Seconds, once a GPU has done what it was given."""
        if self._xp is not np:
            self._xp.cuda.get_current_stream().synchronize()
        return time.perf_counter()

    def __call__(self, name: str, method: str, part: Any, call: Any, args: tuple[Any, ...]) -> Any:
        if isinstance(part, LayerGroup):
            return call()
        before = self.now()
        result = call()
        seconds = self.now() - before
        self.times[name, method] = self.times.get((name, method), 0.0) + seconds
        if method == "forward":
            output = _listed(result)[0]
            self.shapes.setdefault(name, getattr(output, "shape", ())[1:])
        return result


def _listed(value: Any) -> list[Any]:
    """One array, or several in a list or tuple, as a list."""
    several: list[Any] = []
    if isinstance(value, (list, tuple)):
        several.extend(value)  # pyright: ignore[reportUnknownArgumentType]
    else:
        several.append(value)
    return several


def _step(network: Any, inputs: list[Array], labels: Array | None, watch: _Watch) -> float:
    """One way ahead and back; return the seconds that the loss between them took."""
    Y = forward(network, inputs, True)
    before = watch.now()
    if labels is None:
        gradients = [backend.xp_of(y).ones_like(y) for y in _listed(Y)]
    else:
        loss = SoftmaxCrossEntropy()
        loss.forward(labels, Y)
        gradients = [loss.backward()]
    after = watch.now()
    if isinstance(network, Sequential):
        network.backward(gradients[0], input_grad=False)  # as training does
    elif isinstance(network, WavenetResidualModule):
        network.backward(gradients[1], gradients[0])
    else:
        network.backward(gradients[0])
    return after - before
