"""Steps of a planned network as lists of kernel calls, where the kernels are compiled ones.

Small networks spend a good part of a step in Python, between kernels that take microseconds. The
plan's memory stays where it is, so a step's calls are the same again and again, but for the batch:
they are noted down once, and then run as one call.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpulayers import threads
from gpulayers.backend import Array, xp_of
from gpulayers.models.plan_node import Node
from gpulayers.ops._kernels import kernels_of_module
from gpulayers.ops.workspace import Workspace, trusted

__all__ = ["Recordings", "Results"]

_MOST = 2  # sizes of batches whose steps are kept: the whole one, and the last of an epoch
_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))

Results = tuple[Array, Array]  # outputs, losses


class _Step:
    """The forward and backward pass of a batch of one size."""

    def __init__(self, nodes: list[Node], settings: tuple[Any, ...]) -> None:
        self.workspace = Workspace(small=0)
        self.usable = False
        self._nodes, self._settings = nodes, settings
        # their addresses are noted
        layers = [layer for node in nodes for layer in node.layers if layer.parameters]
        self._layers = [(la, la.trainable, la.parameters, dict(la.parameters)) for la in layers]
        self._gradients: list[list[dict[str, Array]]] = []
        self._counts: list[int] = []

    def fits(self, settings: tuple[Any, ...]) -> bool:
        """Whether the step is still the same."""
        if settings != self._settings:
            return False
        for layer, trainable, parameters, known in self._layers:
            if layer.trainable is not trainable or layer.parameters is not parameters:
                return False
            for name, array in known.items():
                if parameters.get(name) is not array:
                    return False
        return True

    def record(
        self, recorder: Any, run: Callable[[Workspace, Array], Results], X: Array, labels: Array
    ) -> Results | None:
        """Do the step with `run` and note its calls; None if they cannot stand for it."""
        with recorder:
            results = run(self.workspace, labels)
        self._calls, self._results = recorder, results
        self._gradients = [node.gradients for node in self._nodes]
        parameters = [array for _, _, _, known in self._layers for array in known.values()]
        recorder.finish(self.workspace, [X, labels, *parameters])
        self._places = [recorder.places(_address(array)) for array in (X, labels)]
        self.usable = recorder.refusal is None and self._repeats([*results])
        if not self.usable:
            return None
        self._counts = [sys.getrefcount(grad) for grad in self._gradient_arrays()]
        return results[0].copy(), results[1]

    def _repeats(self, found: list[Array]) -> bool:
        """Whether the calls give the same bits again when all memory has been overwritten: nothing
        was computed in another way between them."""
        found += self._gradient_arrays()
        kept = [array.copy() for array in found]
        self.workspace.fill(0xFF)
        same = not self._calls.run()
        for array, right in zip(found, kept, strict=True):
            same = same and array.tobytes() == right.tobytes()
            array[...] = right
        return same

    def run(self, X: Array, labels: Array) -> Results | None:
        """The step with another batch; None if a kernel could not do its work."""
        calls, (images, classes) = self._calls, self._places
        calls.replace(images, _address(X))
        calls.replace(classes, _address(labels))
        if calls.run():
            return None
        for node, gradients in zip(self._nodes, self._gradients, strict=True):
            node.gradients = gradients
        return self._results[0].copy(), self._results[1]

    def is_held(self) -> bool:
        """Whether somebody still has gradients of the last batch, which are then left to him."""
        return [sys.getrefcount(grad) for grad in self._gradient_arrays()] != self._counts

    def _gradient_arrays(self) -> Iterator[Array]:
        for layers in self._gradients:
            for grads in layers:
                yield from grads.values()


def _address(array: Array) -> int:
    return array.__array_interface__["data"][0]


class Recordings:
    """The recorded steps of one chain of nodes.

    Attributes
    ----------
    shown : bool
        Whether gradients have been given away since the last step.
    """

    def __init__(self, nodes: list[Node], dtype: Any) -> None:
        self._nodes, self._dtype = nodes, dtype
        self._possible = trusted and dtype in _DTYPES and all(node.recordable for node in nodes)
        self._steps: dict[int, _Step] = {}
        self.shown = False

    def __reduce__(self) -> Any:
        return Recordings, (self._nodes, self._dtype)  # a copy's arrays lie somewhere else

    def run(
        self,
        X: Array,
        labels: Array,
        scale: float,
        run: Callable[[Workspace, Array], Results],
    ) -> Results | None:
        """Outputs and losses of a batch, as ``run(workspace, labels)`` gives them, and the nodes'
        gradients; None where it must be computed in the ordinary way.

        Parameters
        ----------
        X, labels : checked; X C-contiguous of the network's dtype
        scale : float
            Of the losses' gradient.
        """
        if not self._possible or xp_of(X) is not np or not X.flags.aligned:
            return None
        kernels: Any = kernels_of_module(np)
        maker, n = getattr(kernels, "recorder", None), len(X)
        if maker is None or n == 0:
            return None
        labels = np.ascontiguousarray(labels, dtype=np.int64)
        settings = (kernels, threads.thread_count(), scale, [n.settings() for n in self._nodes])
        step = self._steps.get(n)
        if step is not None and step.fits(settings):
            if not step.usable or (self.shown and step.is_held()):
                return None
            self.shown = False
            return step.run(X, labels)
        # At once: the ordinary way takes other products, whose last bits differ, and a run that is
        # resumed here must go on as the one that was not interrupted.
        if n not in self._steps and len(self._steps) >= _MOST:
            self._steps.pop(next(iter(self._steps)))
        step = self._steps[n] = _Step(self._nodes, settings)
        return step.record(maker(self._dtype), run, X, labels)
