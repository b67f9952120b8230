"""Bias and activation on the CPU: few passes in place, in blocks, without temporaries.

Covered are ReLU, tanh and the logistic function in float32 and float64; the others are the
reference's array formulas.
"""

from __future__ import annotations

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops._protocol import Activation
from gpulayers.ops.cpu._blocks import (
    BLOCK,
    SMALL,
    add_tiled,
    block_lengths,
    blocks,
    relu,
    row_shares,
    tiled_bias,
)
from gpulayers.ops.reference.activation import ReferenceActivation
from gpulayers.threads import run_shares

_PASSES = {"relu": 2, "tanh": 16, "sigmoid": 16}  # what they cost, in passes of an addition
_LARGEST_EXPONENT = {4: 87.0, 8: 708.0}  # whose exp is finite, by the bytes of a number


class CpuActivation(ReferenceActivation):
    """The formulas of `gpulayers.activations` by ufuncs with ``out=``."""

    def bias_activation(self, Z: Array, b: Array | None, act: Activation) -> Array:
        name = _name(act)
        if Z.dtype.itemsize < 4 or not Z.size or (b is None and name not in _PASSES):
            return super().bias_activation(Z, b, act)
        Y = workspace.empty(Z.shape, Z.dtype) if name in _PASSES else Z
        ch = Z.shape[-1] if b is not None else 1
        tiled = None if b is None else tiled_bias(b, Z.size // ch)
        if Z.size <= SMALL and name in _PASSES:
            if tiled is not None:
                add_tiled(Z.reshape(-1, ch), tiled)
            _apply(name, Z.reshape(-1), Y.reshape(-1))
            return Y
        step = max(1, 4 * BLOCK // ch)  # few passes: calls cost more than the cache saves
        rows, out = Z.reshape(-1, ch), Y.reshape(-1, ch)
        parts = row_shares(len(rows), ch, _PASSES.get(name, 0) + (b is not None))
        steps = block_lengths(parts, step)

        def work(i: int, part: slice) -> None:
            for block in blocks(part, steps[i]):
                x = rows[block]
                if tiled is not None:
                    add_tiled(x, tiled)
                if name in _PASSES:
                    _apply(name, x.reshape(-1), out[block].reshape(-1))

        run_shares(work, parts, blas=False)
        return Y if name in _PASSES else super().bias_activation(Z, None, act)

    def activation_backward(self, dY: Array, Z: Array, act: Activation) -> Array:
        # chain rule: dL/dZ = dL/dY * act'(Z)
        name = _name(act)
        if name not in _PASSES or Z.dtype.itemsize < 4 or not Z.size:
            return super().activation_backward(dY, Z, act)
        dZ = workspace.empty(Z.shape, Z.dtype)
        dy, z, dz = dY.reshape(-1), Z.reshape(-1), dZ.reshape(-1)
        if z.size <= SMALL:
            np.multiply(dy, _slope(name, z, dz, _scratch(name, z.size, Z.dtype)), out=dz)
            return dZ
        parts = row_shares(z.size, 1, _PASSES[name])
        steps = block_lengths(parts, 4 * BLOCK)
        scratch = [_scratch(name, step, Z.dtype) for step in steps]

        def work(i: int, part: slice) -> None:
            for block in blocks(part, steps[i]):
                x, out = z[block], dz[block]
                slope = _slope(name, x, out, scratch[i][: x.size])
                np.multiply(dy[block], slope, out=out)

        run_shares(work, parts, blas=False)
        return dZ


def _name(act: Activation) -> str:
    return "" if act.kernel is None else act.kernel[0]


def _apply(name: str, x: Array, out: Array) -> None:
    """out = act(x)."""
    if name == "relu":
        relu(x, out)
    elif name == "tanh":
        np.tanh(x, out=out)
    else:  # 1 / (1 + exp(-x)), the exponent cut where 1 / (1 + exp) has left the normal numbers
        np.negative(x, out=out)
        np.minimum(out, x.dtype.type(_LARGEST_EXPONENT[x.dtype.itemsize]), out=out)
        np.exp(out, out=out)
        np.add(out, x.dtype.type(1), out=out)
        np.reciprocal(out, out=out)


def _scratch(name: str, size: int, dtype: np.dtype) -> Array:
    return workspace.empty((size,), np.bool_ if name == "relu" else dtype)


def _slope(name: str, x: Array, out: Array, scratch: Array) -> Array:
    """act'(x), in `out` or in `scratch`."""
    one = x.dtype.type(1)
    if name == "relu":
        return np.greater(x, 0, out=scratch)
    if name == "tanh":  # 1 - tanh^2
        np.tanh(x, out=out)
        np.multiply(out, out, out=out)
        return np.subtract(one, out, out=out)
    np.abs(x, out=out)  # s (1 - s) = e / (1 + e)^2 with e = exp(-|x|)
    np.negative(out, out=out)
    np.exp(out, out=out)
    np.add(out, one, out=scratch)
    np.multiply(scratch, scratch, out=scratch)
    return np.divide(out, scratch, out=out)
