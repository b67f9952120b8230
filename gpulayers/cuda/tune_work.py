"""The operations that `tune_measure` measures: random arrays, the launch, and what must come out.

What must come out is worked out by `gpulayers.ops.reference` in float64 on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import cupy
import numpy as np

from gpulayers.backend import Array
from gpulayers.cuda import conv, conv_step, product
from gpulayers.cuda.fusible import RELU
from gpulayers.cuda.geometry import window_arguments
from gpulayers.cuda.tune_key import Key
from gpulayers.ops._sums import sum_dtype
from gpulayers.ops.reference import Reference
from gpulayers.ops.window import Window

__all__ = ["WORKS", "Work"]

Host = np.ndarray[Any, Any]
# bytes of the windows of an image that are held at a time on the host
_MOST_BYTES = 1 << 28


class Work(Protocol):
    """An operation for one key.

    Attributes
    ----------
    terms : int
        Of its longest sums.
    constants : str
        What its kernels are compiled with, see `compile.get_kernel`.
    """

    terms: int
    constants: str

    def inputs(self) -> list[Array]:
        """Random arrays to work on."""
        ...

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Launch it by the candidate that `tune.pinned` gives; return what it writes."""
        ...

    def expected(self, inputs: Sequence[Host], outputs: Sequence[Host]) -> list[tuple[Host, Host]]:
        """Pairs of what must come out, in float64, and what of `outputs` must be that."""
        ...


def _uniform(seed: int, shape: tuple[int, ...], dtype: str) -> Array:
    """Random numbers of -1 to 1."""
    values = np.random.default_rng(seed).random(shape, np.float32)
    return cupy.asarray(values * np.float32(2) - np.float32(1)).astype(dtype)


def _parts(shape: tuple[int, ...], like: Array) -> Array:
    """Room for the parts of a gradient."""
    return cupy.empty(shape, dtype=sum_dtype(like))


class Gemm:
    """``product.gemm``; key.shape is (rows, cols, terms)."""

    constants = ""

    def __init__(self, key: Key) -> None:
        self._dtype, (self._rows, self._cols, self.terms) = key.dtype, key.shape
        self._a, self._b = (letter == "t" for letter in key.op.removeprefix("gemm_"))

    def inputs(self) -> list[Array]:
        a, b = (self._rows, self.terms), (self.terms, self._cols)
        return [
            _uniform(0, a[::-1] if self._a else a, self._dtype),
            _uniform(1, b[::-1] if self._b else b, self._dtype),
        ]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        A, B = inputs
        return [product.gemm(A, B, self._a, self._b)]

    def expected(self, inputs: Sequence[Host], outputs: Sequence[Host]) -> list[tuple[Host, Host]]:
        A, B = inputs
        return [((A.T if self._a else A) @ (B.T if self._b else B), outputs[0])]


class DenseBackward:
    """``product.dense_backward`` behind a ReLU; key.shape is (batch, inputs, outputs)."""

    constants = ""

    def __init__(self, key: Key) -> None:
        self._dtype, self._shape = key.dtype, key.shape
        self.terms = max(key.shape[0], key.shape[2])

    def inputs(self) -> list[Array]:
        batch, rows, cols = self._shape
        shapes = ((batch, rows), (rows, cols), (batch, cols))
        return [_uniform(i, shape, self._dtype) for i, shape in enumerate(shapes)]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        X, W, dZ = inputs
        batch, rows, cols = self._shape
        parts = product.dense_choice(batch, rows, cols, X.dtype).parts
        grads = _parts((parts, rows + 1, cols), X)
        dX = product.dense_backward(X, W, dZ, grads, RELU, True)
        return [grads, dX]

    def expected(self, inputs: Sequence[Host], outputs: Sequence[Host]) -> list[tuple[Host, Host]]:
        X, W, dZ = inputs
        grads, dX = outputs
        dW = np.concatenate([X.T @ dZ, dZ.sum(axis=0)[None]])
        return [(dW, grads.sum(axis=0)), ((dZ @ W.T) * (X > 0), dX)]


class _Conv:
    """A convolution; key.shape is (n, rows, cols, channels, filters), key.detail the window, flags
    of the operation, ``pooled`` and ``special``."""

    def __init__(self, key: Key) -> None:
        self._dtype = key.dtype
        *image, self._filters = key.shape
        n, rows, cols, channels = image
        self._x_shape = (n, rows, cols, channels)
        d = key.detail
        self._window = Window(d[0:2], d[2:4], d[4:8], d[8:10])  # type: ignore[arg-type]
        self._flags, self._special = d[10:-1], bool(d[-1])
        self._pooled = bool(self._flags[-1])
        self._out = self._window.output_size(rows, cols)
        numbers = window_arguments(self._x_shape, self._window)
        constants = conv.constants_of(numbers, self._filters, self._pooled)
        self.constants = constants if self._special else ""
        self.terms = self._window.taps * channels
        self._w_shape = (*self._window.kernel, channels, self._filters)

    @property
    def _z_shape(self) -> tuple[int, int, int, int]:
        """Of what comes out, after the pooling if there is one."""
        step = 2 if self._pooled else 1
        return self._x_shape[0], self._out[0] // step, self._out[1] // step, self._filters

    def _winners(self) -> Array | None:
        """Random places of a window's maximum, 4 for none."""
        if not self._pooled:
            return None
        values = np.random.default_rng(3).integers(0, 5, self._z_shape, np.uint8)
        return cupy.asarray(values)

    def _unpooled(self, dZ: Host, winners: Host) -> Host:
        """The gradient at every output pixel."""
        n, rows, cols, filters = self._z_shape
        whole = np.zeros((n, *self._out, filters))
        for place in range(4):
            i, j = divmod(place, 2)
            whole[:, i : 2 * rows : 2, j : 2 * cols : 2] = np.where(winners == place, dZ, 0.0)
        return whole

    def _shares(self) -> Iterator[slice]:
        """Images whose windows fit into `_MOST_BYTES`."""
        n, pixels = self._x_shape[0], math.prod(self._out)
        columns = 8 * self._window.taps * max(self._x_shape[3], self._filters)
        step = max(1, _MOST_BYTES // max(pixels * columns, 1))
        return (slice(start, start + step) for start in range(0, n, step))

    def _input_grad(self, dZ: Host, W: Host) -> Host:
        parts = [
            Reference().conv2d_input_grad(
                dZ[share], W, (len(dZ[share]), *self._x_shape[1:]), self._window
            )
            for share in self._shares()
        ]
        return np.concatenate(parts)

    def _weight_grad(self, X: Host, dZ: Host) -> Host:
        """The bias's gradient is the last row."""
        dW = np.zeros(self._w_shape)
        for share in self._shares():
            dW += Reference().conv2d_weight_grad(X[share], dZ[share], self._window)
        rows = dW.reshape(-1, self._filters)
        return np.concatenate([rows, dZ.sum(axis=(0, 1, 2))[None]])


class ConvForward(_Conv):
    """``conv.forward`` with bias and ReLU."""

    def inputs(self) -> list[Array]:
        shapes = (self._x_shape, self._w_shape, (self._filters,))
        return [_uniform(i, shape, self._dtype) for i, shape in enumerate(shapes)]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        X, W, b = inputs
        args = (X, W, b, self._window, RELU, self._pooled)
        return list(conv.forward(*args, special=self._special))

    def expected(self, inputs: Sequence[Host], outputs: Sequence[Host]) -> list[tuple[Host, Host]]:
        X, W, b = inputs
        Z, winners = outputs
        parts = [
            Reference().conv2d_forward(X[share], W, b, self._window) for share in self._shares()
        ]
        full = np.maximum(np.concatenate(parts), 0.0)
        if not self._pooled:
            return [(full, Z)]
        _, rows, cols, _ = self._z_shape
        four = np.stack(
            [
                full[:, i : 2 * rows : 2, j : 2 * cols : 2]
                for i, j in ((0, 0), (0, 1), (1, 0), (1, 1))
            ]
        )
        # where two are nearly equal either may win, so look at what the winner has
        place = np.minimum(winners.astype(np.int64), 4)
        zero = np.zeros((1, *Z.shape))
        won = np.take_along_axis(np.concatenate([four, zero]), place[None], axis=0)[0]
        return [(four.max(axis=0), Z), (four.max(axis=0), won)]


class ConvInputGrad(_Conv):
    """``conv.input_grad``."""

    def __init__(self, key: Key) -> None:
        super().__init__(key)
        self.terms = self._window.taps * self._filters

    def inputs(self) -> list[Array]:
        return [_uniform(i, s, self._dtype) for i, s in enumerate((self._z_shape, self._w_shape))]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        dZ, W = inputs
        return [conv.input_grad(dZ, W, self._x_shape, self._window)]

    def expected(self, inputs: Sequence[Host], outputs: Sequence[Host]) -> list[tuple[Host, Host]]:
        return [(self._input_grad(*inputs), outputs[0])]


class ConvWeightGrad(_Conv):
    """``conv.weight_grad``; the first flag says whether there is a bias."""

    def __init__(self, key: Key) -> None:
        super().__init__(key)
        self.terms = self._x_shape[0] * math.prod(self._out)
        self._bias = bool(self._flags[0])

    def inputs(self) -> list[Array]:
        return [_uniform(i, s, self._dtype) for i, s in enumerate((self._x_shape, self._z_shape))]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        X, dZ = inputs
        return [conv.weight_grad(X, dZ, self._window, self._bias)]

    def expected(self, inputs: Sequence[Host], outputs: Sequence[Host]) -> list[tuple[Host, Host]]:
        rows = self._weight_grad(*inputs)
        return [(rows if self._bias else rows[:-1], outputs[0])]


class ConvBackward(_Conv):
    """``conv_step.backward`` behind a ReLU; the first flag says whether it gives the input's
    gradient."""

    def __init__(self, key: Key) -> None:
        super().__init__(key)
        pixels = self._x_shape[0] * math.prod(self._out)
        self.terms = max(pixels, self._window.taps * self._filters)
        self._both = bool(self._flags[0])

    def inputs(self) -> list[Array]:
        shapes = (self._x_shape, self._z_shape, self._w_shape)
        arrays = [_uniform(i, shape, self._dtype) for i, shape in enumerate(shapes)]
        winners = self._winners()
        return arrays if winners is None else [*arrays, winners]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        X, dZ, W, *winners = inputs
        how = self._filters, self._window, self._pooled, self._both, X.dtype
        parts = conv_step.backward_choice(self._x_shape, *how).parts
        grads = _parts((parts, self._window.taps * X.shape[3] + 1, self._filters), X)
        won = winners[0] if winners else None
        dX = conv_step.backward(X, dZ, W, self._window, won, grads, self._both, act=RELU)
        return [grads] if dX is None else [grads, dX]

    def expected(self, inputs: Sequence[Host], outputs: Sequence[Host]) -> list[tuple[Host, Host]]:
        X, dZ, W, *winners = inputs
        if winners:
            dZ = self._unpooled(dZ, winners[0])
        pairs = [(self._weight_grad(X, dZ), outputs[0].sum(axis=0))]
        if self._both:
            pairs.append((self._input_grad(dZ, W) * (X > 0), outputs[1]))
        return pairs


#: operation -> its work; what is not here is not measured
WORKS: dict[str, Callable[[Key], Work]] = {
    **{f"gemm_{a}{b}": Gemm for a in "nt" for b in "nt"},
    "dense_backward": DenseBackward,
    "conv2d_forward": ConvForward,
    "conv2d_input_grad": ConvInputGrad,
    "conv2d_weight_grad": ConvWeightGrad,
    "conv2d_backward": ConvBackward,
}
