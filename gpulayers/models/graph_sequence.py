"""Recurrent layers of a planned network on a GPU: all their time steps are a launch each way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpulayers.backend import Array
from gpulayers.cuda.fusible import Formula
from gpulayers.layers import GRU, LSTM, RNN
from gpulayers.models.graph_node import Fused, Place
from gpulayers.models.plan_node import Node, contiguous
from gpulayers.models.plan_nodes import PublicNode, has_own_methods
from gpulayers.ops._kernels import kernels_for
from gpulayers.ops._sequence import SequenceGradients, Trace, Weights

__all__ = ["SequenceStep", "sequence_step"]

_KINDS: dict[type[Any], str] = {RNN: "rnn", LSTM: "lstm", GRU: "gru"}


class SequenceStep(Fused):
    """A recurrent layer: three launches forward and two back, one each more for all the outputs or
    the input's gradient, and one each for the counters of blocks that keep the weights together.

    Ahead: time to the front and the weights side by side; the input's products; all steps. Back:
    all steps; the gradients of all parameters. States begin at zero, as in a call of the layer
    without `initial_state`; the layer's `final_state` and `derived_variables` stay as they are.

    Attributes
    ----------
    time_first_in, time_first_out : bool
        Whether input and output have time first, between recurrent layers in a row.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__([layer], type(layer).__name__)
        self._kind = _KINDS[type(layer)]
        self.time_first_in = self.time_first_out = False

    def join(self, after: Node) -> None:
        """Leave time in front for the node behind, if that is a recurrent layer too."""
        if isinstance(after, SequenceStep) and self.layers[0].return_sequences:
            self.time_first_out = after.time_first_in = True

    def takes_slope_of(self, act: Formula) -> bool:
        return False

    def settings(self) -> Any:
        layer = self.layers[0]
        return layer.return_sequences, layer.truncate, *map(str, self._acts())

    def _acts(self) -> tuple[Any, ...]:
        layer = self.layers[0]
        return (layer.act_fn,) if self._kind == "rnn" else (layer.act_fn, layer.gate_fn)

    def say(self, batch: int, dtype: Any) -> None:
        """Have the name tell how it goes through the steps of so many examples."""
        from gpulayers.cuda import sequence  # needs CuPy

        layer = self.layers[0]
        how = sequence.goes(self._kind, batch, layer.n_out, dtype, self._acts())
        self.name = f"{type(layer).__name__}: {how}"

    def places(self) -> list[Place]:
        from gpulayers.cuda.sequence_plan import PLACES  # needs CuPy

        return [(self.layers[0], name) for name in PLACES[self._kind]] if self.learns else []

    def forward(self, X: Array) -> Array:
        from gpulayers.cuda import sequence_plan  # needs CuPy

        layer = self.layers[0]
        X, weights = sequence_plan.prepare(
            self._kind, contiguous(X), layer.parameters, self.time_first_in
        )
        k: Any = kernels_for(X)
        trace: Trace = getattr(k, f"{self._kind}_forward")(X, None, None, weights, *self._acts())
        self._saved = trace, weights
        A = trace.states[0]
        if not layer.return_sequences:
            return A[-1]
        return A[1:] if self.time_first_out else k.time_last(A[1:])

    def parts(self) -> int:
        from gpulayers.cuda import sequence, sequence_plan  # needs CuPy

        trace, _ = self._saved
        if sequence.way_back(self._kind, trace, self._acts()) is None:
            return 1
        return sequence_plan.weight_parts(self._kind, trace)

    def backward(self, dY: Array, inputs: bool) -> Array | None:
        from gpulayers.cuda import sequence, sequence_plan  # needs CuPy

        trace, weights = self._saved
        layer, k, dY = self.layers[0], kernels_for(dY), contiguous(dY)
        dA = last = None
        if layer.return_sequences:
            dA = dY if self.time_first_out else k.time_first(dY, False)
        else:
            last = (dY, *[None] * (len(trace.states) - 1))
        acts, truncate = self._acts(), layer.truncate
        found = sequence.back(self._kind, dA, last, trace, weights, acts, truncate)
        if found is None:
            dX = self._step_by_step(dA, last, trace, weights, inputs)
        else:
            if self.learns:
                sequence_plan.weight_grad(self._kind, found[0], trace, self.grads)
            dX = sequence_plan.input_grad(found[0], weights, trace) if inputs else None
        return dX if dX is None or self.time_first_in else k.time_last(dX)

    def _step_by_step(
        self, dA: Array | None, last: Any, trace: Trace, weights: Weights, inputs: bool
    ) -> Array | None:
        """The gradient of the input; those of the parameters go where the step wants them."""
        k: Any = kernels_for(trace.X)
        if last is not None:
            zeros = trace.states[0][0]  # which every sequence begins with
            last = tuple(zeros if state is None else state for state in last)
        backward = getattr(k, f"{self._kind}_backward")
        how = self.layers[0].truncate, self.learns, inputs
        grads: SequenceGradients = backward(dA, last, trace, weights, *self._acts(), *how)
        if grads.weights is not None:
            named, start = self.layers[0]._named(grads.weights), 0
            for _, name in self.places():
                size = named[name].size
                self.grads[0, start : start + size] = named[name].reshape(-1)
                start += size
        return grads.X


def sequence_step(nodes: Sequence[Node], i: int) -> Node | None:
    """A node for the recurrent layer that node `i` is, None if it is something else."""
    node = nodes[i]
    if type(node) is not PublicNode:
        return None
    layer = node.layers[0]
    if type(layer) not in _KINDS or has_own_methods(layer):
        return None
    return SequenceStep(layer)
