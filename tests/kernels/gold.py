"""What the kernels should compute: plain loops in float64, sharing nothing with the library."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Geometry:
    """An NHWC image and a window over it; out sizes are found by counting."""

    n: int
    rows: int
    cols: int
    ch: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, bottom, left, right
    dilation: tuple[int, int] = (1, 1)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.n, self.rows, self.cols, self.ch

    @property
    def out(self) -> tuple[int, int]:
        top, bottom, left, right = self.pad
        sizes = []
        for axis, padded in enumerate((top + self.rows + bottom, left + self.cols + right)):
            reach = (self.kernel[axis] - 1) * self.dilation[axis]
            sizes.append(
                len([s for s in range(0, padded, self.stride[axis]) if s + reach < padded])
            )
        return sizes[0], sizes[1]

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        return self.n, *self.out, self.ch

    @property
    def columns_shape(self) -> tuple[int, int]:
        return self.n * math.prod(self.out), math.prod(self.kernel) * self.ch

    @property
    def numbers(self) -> tuple[int, ...]:
        """The window parameters of the kernels."""
        top, _, left, _ = self.pad
        return (
            *(self.rows, self.cols, self.ch, *self.out, *self.kernel, *self.stride),
            *(top, left, *self.dilation),
        )

    def reads(self) -> Iterator[tuple[tuple[int, int, int], tuple[int, int], tuple[int, int]]]:
        """(image, out_row, out_col), (i, j), (row, col) for each tap of each window, in order."""
        for n in range(self.n):
            for r in range(self.out[0]):
                for c in range(self.out[1]):
                    for i in range(self.kernel[0]):
                        for j in range(self.kernel[1]):
                            row = r * self.stride[0] + i * self.dilation[0] - self.pad[0]
                            col = c * self.stride[1] + j * self.dilation[1] - self.pad[2]
                            yield (n, r, c), (i, j), (row, col)

    def inside(self, row: int, col: int) -> bool:
        return 0 <= row < self.rows and 0 <= col < self.cols


def im2col(x: np.ndarray, g: Geometry) -> np.ndarray:
    columns = np.zeros((g.n, *g.out, *g.kernel, g.ch))
    for (n, r, c), (i, j), (row, col) in g.reads():
        if g.inside(row, col):
            columns[n, r, c, i, j] = x[n, row, col]
    return columns.reshape(g.columns_shape)


def col2im(columns: np.ndarray, g: Geometry) -> np.ndarray:
    x = np.zeros(g.shape)
    columns = columns.reshape(g.n, *g.out, *g.kernel, g.ch)
    for (n, r, c), (i, j), (row, col) in g.reads():
        if g.inside(row, col):
            x[n, row, col] += columns[n, r, c, i, j]
    return x


def max_pool(x: np.ndarray, g: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """First maximum in row-major order, first NaN before all; padding is never chosen."""
    y, argmax = np.zeros(g.out_shape), np.full(g.out_shape, -1)
    for (n, r, c), (i, j), (row, col) in g.reads():
        if not g.inside(row, col):
            continue
        for k in range(g.ch):
            value, best = x[n, row, col, k], y[n, r, c, k]
            if argmax[n, r, c, k] == -1 or (
                not math.isnan(best) and (math.isnan(value) or value > best)
            ):
                y[n, r, c, k], argmax[n, r, c, k] = value, i * g.kernel[1] + j
    return y, argmax.astype(np.uint8)


def max_pool_grad(dy: np.ndarray, argmax: np.ndarray, g: Geometry) -> np.ndarray:
    dx = np.zeros(g.shape)
    for n, r, c, k in np.ndindex(*g.out_shape):
        i, j = divmod(int(argmax[n, r, c, k]), g.kernel[1])
        row = r * g.stride[0] + i * g.dilation[0] - g.pad[0]
        col = c * g.stride[1] + j * g.dilation[1] - g.pad[2]
        dx[n, row, col, k] += dy[n, r, c, k]
    return dx


def avg_pool(x: np.ndarray, g: Geometry) -> np.ndarray:
    y = np.zeros(g.out_shape)
    for (n, r, c), _, (row, col) in g.reads():
        if g.inside(row, col):
            y[n, r, c] += x[n, row, col] / (g.kernel[0] * g.kernel[1])
    return y


def avg_pool_grad(dy: np.ndarray, g: Geometry) -> np.ndarray:
    dx = np.zeros(g.shape)
    for (n, r, c), _, (row, col) in g.reads():
        if g.inside(row, col):
            dx[n, row, col] += dy[n, r, c] / (g.kernel[0] * g.kernel[1])
    return dx


# ------------------------------------------------------------------------------------- activations


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def _sigmoid(z: float) -> float:
    return 1 / (1 + _exp(-z)) if z > -700 else _exp(z)


def _normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def _normal_pdf(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _softplus(z: float) -> float:
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))


_ROOT = math.sqrt(2 / math.pi)


def _gelu_tanh(z: float) -> float:
    return 0.5 * z * (1 + math.tanh(_ROOT * (z + 0.044715 * z**3)))


def _gelu_tanh_slope(z: float) -> float:
    t = math.tanh(_ROOT * (z + 0.044715 * z**3))
    return 0.5 * (1 + t) + 0.5 * z * (1 - t**2) * _ROOT * (1 + 3 * 0.044715 * z**2)


Function = Callable[[float, float, float], float]
#: name -> (value, slope), each of (z, alpha, beta)
ACTIVATIONS: dict[str, tuple[Function, Function]] = {
    "identity": (lambda z, a, b: z, lambda z, a, b: 1.0),
    "sigmoid": (lambda z, a, b: _sigmoid(z), lambda z, a, b: _sigmoid(z) * _sigmoid(-z)),
    "relu": (lambda z, a, b: max(z, 0.0), lambda z, a, b: 1.0 if z > 0 else 0.0),
    "leaky_relu": (lambda z, a, b: a * z if z < 0 else z, lambda z, a, b: a if z < 0 else 1.0),
    "gelu_tanh": (lambda z, a, b: _gelu_tanh(z), lambda z, a, b: _gelu_tanh_slope(z)),
    "gelu_erf": (
        lambda z, a, b: z * _normal_cdf(z),
        lambda z, a, b: _normal_cdf(z) + z * _normal_pdf(z),
    ),
    "tanh": (lambda z, a, b: math.tanh(z), lambda z, a, b: 1 / math.cosh(min(abs(z), 300.0)) ** 2),
    "affine": (lambda z, a, b: a * z + b, lambda z, a, b: a),
    "elu": (
        lambda z, a, b: z if z > 0 else a * (math.exp(z) - 1),
        lambda z, a, b: 1.0 if z > 0 else a * math.exp(z),
    ),
    "exponential": (lambda z, a, b: _exp(z), lambda z, a, b: _exp(z)),
    "selu": (
        lambda z, a, b: b * (z if z > 0 else a * (math.exp(z) - 1)),
        lambda z, a, b: b * (1.0 if z > 0 else a * math.exp(z)),
    ),
    "hard_sigmoid": (
        lambda z, a, b: min(max(0.2 * z + 0.5, 0.0), 1.0),
        lambda z, a, b: 0.2 if -2.5 <= z <= 2.5 else 0.0,
    ),
    "softplus": (lambda z, a, b: _softplus(z), lambda z, a, b: _sigmoid(z)),
}

_INF = math.inf
#: name -> value at minus and plus infinity, slope at minus and plus infinity, of (alpha, beta)
LIMITS: dict[str, Callable[[float, float], tuple[float, float, float, float]]] = {
    "identity": lambda a, b: (-_INF, _INF, 1.0, 1.0),
    "sigmoid": lambda a, b: (0.0, 1.0, 0.0, 0.0),
    "relu": lambda a, b: (0.0, _INF, 0.0, 1.0),
    "leaky_relu": lambda a, b: (-_INF, _INF, a, 1.0),
    "gelu_tanh": lambda a, b: (0.0, _INF, 0.0, 1.0),
    "gelu_erf": lambda a, b: (0.0, _INF, 0.0, 1.0),
    "tanh": lambda a, b: (-1.0, 1.0, 0.0, 0.0),
    "affine": lambda a, b: (-_INF, _INF, a, a),
    "elu": lambda a, b: (-a, _INF, 0.0, 1.0),
    "exponential": lambda a, b: (0.0, _INF, 0.0, _INF),
    "selu": lambda a, b: (-a * b, _INF, 0.0, b),
    "hard_sigmoid": lambda a, b: (0.0, 1.0, 0.0, 0.0),
    "softplus": lambda a, b: (0.0, _INF, 0.0, 1.0),
}


def activation(name: str, z: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    fn = ACTIVATIONS[name][0]
    return np.array([fn(v, alpha, beta) for v in z.ravel().tolist()]).reshape(z.shape)


def slope(name: str, z: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    fn = ACTIVATIONS[name][1]
    return np.array([fn(v, alpha, beta) for v in z.ravel().tolist()]).reshape(z.shape)


# ------------------------------------------------------------------------------------ softmax, sums


def softmax(z: np.ndarray) -> np.ndarray:
    y = np.zeros(z.shape)
    for m, row in enumerate(z.tolist()):
        top = max(row)
        parts = [math.exp(v - top) for v in row]
        y[m] = [p / math.fsum(parts) for p in parts]
    return y


def softmax_grad(dy: np.ndarray, y: np.ndarray) -> np.ndarray:
    dz = np.zeros(y.shape)
    for m in range(len(y)):
        for i in range(y.shape[1]):
            for j in range(y.shape[1]):  # the Jacobian, entry by entry
                dz[m, i] += dy[m, j] * y[m, j] * ((i == j) - y[m, i])
    return dz


def cross_entropy(z: np.ndarray, labels: np.ndarray) -> np.ndarray:
    losses = []
    for row, label in zip(z.tolist(), labels.tolist(), strict=True):
        if 0 <= label < len(row):
            top = max(row)
            losses.append(top + math.log(math.fsum(math.exp(v - top) for v in row)) - row[label])
        else:
            losses.append(math.nan)
    return np.array(losses)


def column_sums(x: np.ndarray) -> np.ndarray:
    return np.array([math.fsum(x[:, c].tolist()) for c in range(x.shape[1])])


# ------------------------------------------------------------------------- normalisation, embedding


def standardized(values: list[float], eps: float) -> tuple[list[float], float, float, float]:
    """The numbers less their mean over the root of their variance + eps; mean, variance, 1/root."""
    mean = math.fsum(values) / len(values)
    var = math.fsum((v - mean) ** 2 for v in values) / len(values)
    inv_std = 1 / math.sqrt(var + eps)
    return [(v - mean) * inv_std for v in values], mean, var, inv_std


def standardized_grad(dy: list[float], x_hat: list[float], inv_std: float) -> list[float]:
    """By the Jacobian: d x_hat_i / d x_j = inv_std * ([i = j] - 1/n - x_hat_i * x_hat_j / n)."""
    n = len(dy)
    return [
        math.fsum(dy[i] * inv_std * ((i == j) - 1 / n - x_hat[i] * x_hat[j] / n) for i in range(n))
        for j in range(n)
    ]


def embedding_sums(dy: np.ndarray, ids: list[int], count: int) -> np.ndarray:
    sums = np.zeros((count, dy.shape[1]))
    for row, k in zip(dy, ids, strict=True):
        if 0 <= k < count:
            sums[k] += row
    return sums


# ------------------------------------------------------------------------------------------ Philox


def philox(key: tuple[int, int], counter: int, n: int) -> list[int]:
    """Philox4x64-10 in Python integers; the counter is counted up before each block."""
    mask = 2**64 - 1
    words: list[int] = []
    while len(words) < n:
        counter += 1
        c = [counter >> 64 * k & mask for k in range(4)]
        k0, k1 = key
        for _ in range(10):
            p0, p1 = c[0] * 0xD2E7470EE14C6C93, c[2] * 0xCA5A826395121157
            c = [(p1 >> 64) ^ c[1] ^ k0, p1 & mask, (p0 >> 64) ^ c[3] ^ k1, p0 & mask]
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
        words += c
    return words[:n]
