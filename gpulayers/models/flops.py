"""How many floating-point operations a layer's forward pass takes.

A multiplication and an addition count one each, so a product of (m, k) and (k, n) matrices counts
2 m k n, the bias included (it is the k-th addition). An activation counts one for each element,
whatever it is made of; copying, padding and looking up count nothing. That is the usual way to
count, e.g. in the appendix of Hoffmann et al., "Training compute-optimal large language models"
(2022); others count a multiplication with its addition as one (a MAC), which is half as many.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from gpulayers import layers
from gpulayers.activations import Identity
from gpulayers.models.blocks import Activation, GatedActivation

Shape = tuple[int, ...]

__all__ = ["flops"]

STANDARDIZE = 7  # per element: two sums, centre, square, times 1 / std, scaler, intercept
SOFTMAX = 5  # per element: maximum, difference, exponential, sum, quotient
GATED = 9  # per unit and step of LSTM and GRU, besides the products: gates, candidate, states


def flops(layer: Any, inputs: list[Shape], output: Shape) -> int | None:
    """Return the operations of one forward pass, None for a layer that is not gpulayers' own.

    Parameters
    ----------
    layer : layer, initialised
    inputs : list of shapes, batch included
    output : shape, batch included
    """
    kind: type[Any] = layer.__class__
    counted = _COUNTS.get(kind)
    return None if counted is None else counted(layer, inputs, output)


def _activated(layer: Any, output: Shape) -> int:
    plain = layer.act_fn is None or isinstance(layer.act_fn, Identity)
    return 0 if plain else math.prod(output)


def _convolution(layer: Any, inputs: list[Shape], output: Shape) -> int:
    """Each output is a sum over all taps and input channels."""
    W = layer.parameters["W"]
    return 2 * (W.size // W.shape[-1]) * math.prod(output) + _activated(layer, output)


def _deconvolution(layer: Any, inputs: list[Shape], output: Shape) -> int:
    """Each input pixel paints all taps of all output channels."""
    W = layer.parameters["W"]
    return 2 * W.size * math.prod(inputs[0][:3]) + _activated(layer, output)


def _pool(layer: Any, inputs: list[Shape], output: Shape) -> int:
    return math.prod(layer.kernel_shape) * math.prod(output)


def _embedding(layer: Any, inputs: list[Shape], output: Shape) -> int:
    return 0 if layer.pool is None else math.prod(inputs[0]) * layer.n_out


def _merge(layer: Any, inputs: list[Shape], output: Shape) -> int:
    return (len(inputs) - 1) * math.prod(output) + _activated(layer, output)


def _attention(layer: Any, inputs: list[Shape], output: Shape) -> int:
    """Scores, softmax, weighted sum; each score is scaled."""
    (*lead, n_q, d_k), (*_, n_k, _), (*_, d_v) = inputs
    per_score = 2 * d_k + SOFTMAX + layer.scale + 2 * d_v
    return math.prod(lead) * n_q * n_k * per_score


def _recurrent(products: int, elementwise: int) -> Callable[[Any, list[Shape], Shape], int]:
    """`products` of [A, X] with (n_out + n_in, n_out) weights at every step."""

    def counted(layer: Any, inputs: list[Shape], output: Shape) -> int:
        n_ex, n_in, *rest = inputs[0]
        steps = n_ex * (rest[0] if rest else 1)
        return steps * layer.n_out * (2 * products * (n_in + layer.n_out) + elementwise)

    return counted


def _of_output(count: int) -> Callable[[Any, list[Shape], Shape], int]:
    return lambda layer, inputs, output: count * math.prod(output)


def _of_input(count: int) -> Callable[[Any, list[Shape], Shape], int]:
    return lambda layer, inputs, output: count * math.prod(inputs[0])


_COUNTS: dict[type, Callable[[Any, list[Shape], Shape], int]] = {
    Activation: lambda layer, inputs, output: _activated(layer, output),
    GatedActivation: _of_output(3),  # tanh, sigmoid, product
    layers.Add: _merge,
    layers.BatchNorm1D: _of_output(STANDARDIZE),
    layers.BatchNorm2D: _of_output(STANDARDIZE),
    layers.Conv1D: _convolution,
    layers.Conv2D: _convolution,
    layers.Deconv2D: _deconvolution,
    layers.DotProductAttention: _attention,
    layers.Dropout: _of_output(1),
    layers.Embedding: _embedding,
    layers.Flatten: _of_output(0),
    layers.FullyConnected: _convolution,
    layers.GRU: _recurrent(3, GATED),
    layers.GRUCell: _recurrent(3, GATED),
    layers.GlobalAvgPool2D: _of_input(1),
    layers.GroupNorm: _of_output(STANDARDIZE),
    layers.LSTM: _recurrent(4, GATED),
    layers.LSTMCell: _recurrent(4, GATED),
    layers.LayerNorm1D: _of_output(STANDARDIZE),
    layers.LayerNorm2D: _of_output(STANDARDIZE),
    layers.Multiply: _merge,
    layers.Pool2D: _pool,
    layers.RNN: _recurrent(1, 1),
    layers.RNNCell: _recurrent(1, 1),
    layers.Softmax: _of_output(SOFTMAX),
    layers.SparseEvolution: _convolution,
    layers.Upsample2D: _of_output(0),
    layers.ZeroPad2D: _of_output(0),
}
