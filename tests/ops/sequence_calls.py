"""Calls of the operations on whole sequences, and their results by the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from gpulayers import activations
from gpulayers.ops import sequence, use_engine
from gpulayers.ops.sequence import Trace, Weights
from tests.support.compare import assert_close, assert_same_bits, host

TANH, SIGMOID = activations.Tanh(), activations.Sigmoid()


class Kind(NamedTuple):
    """One kind of network: its operations, and the sizes of its parameters in blocks of n_out."""

    forward: Callable[..., Trace]
    backward: Callable[..., Any]
    acts: tuple[Any, ...]
    blocks: int
    biases: tuple[int, ...]
    states: int = 1


KINDS = {
    "rnn": Kind(sequence.rnn_forward, sequence.rnn_backward, (TANH,), 1, (1, 1)),
    "rnn-relu": Kind(sequence.rnn_forward, sequence.rnn_backward, (activations.ReLU(),), 1, (1, 1)),
    "rnn-sigmoid": Kind(sequence.rnn_forward, sequence.rnn_backward, (SIGMOID,), 1, (1, 1)),
    "rnn-elu": Kind(sequence.rnn_forward, sequence.rnn_backward, (activations.ELU(),), 1, (1, 1)),
    "lstm": Kind(sequence.lstm_forward, sequence.lstm_backward, (TANH, SIGMOID), 4, (4,), 2),
    "lstm-other": Kind(
        sequence.lstm_forward,
        sequence.lstm_backward,
        (activations.ELU(), activations.HardSigmoid()),
        *(4, (4,), 2),
    ),
    "gru": Kind(sequence.gru_forward, sequence.gru_backward, (TANH, SIGMOID), 3, (4,)),
    "gru-other": Kind(sequence.gru_forward, sequence.gru_backward, (SIGMOID, TANH), 3, (4,)),
}
every_kind = pytest.mark.parametrize("name", KINDS)
main_kinds = pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
dtypes = pytest.mark.parametrize("dtype", ["float64", "float32"])
# (n_t, n_ex, n_in, n_out): single ones, parts of vectors and tiles, and enough for many threads
SHAPES = [
    (1, 1, 1, 1),
    (1, 3, 2, 17),
    (4, 0, 3, 5),
    (5, 1, 3, 3),
    (3, 7, 5, 1),
    (2, 13, 70, 24),
    (6, 37, 9, 40),
    (4, 50, 33, 33),
]
MANY = SHAPES[-2]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


class Call:
    """Arguments of both ways, drawn small enough that nothing saturates, and the results."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: str, **how: Any) -> None:
        self.kind, self.dtype = KINDS[name], dtype
        n_t, n, n_in, h = self.shape = shape
        self.rng = np.random.default_rng(0)
        blocks, k = self.kind.blocks, self.kind.states
        self.X = self.draw(n_t, n, n_in)
        scale = 1 / np.sqrt(h + n_in)
        self.weights = Weights(
            self.draw(h, blocks * h) * self.X.dtype.type(scale),
            self.draw(n_in, blocks * h) * self.X.dtype.type(scale),
            tuple(self.draw(b * h) for b in self.kind.biases),
        )
        self.first: Any = tuple(self.draw(n, h) for _ in range(k))
        self.dA: Any = self.draw(n_t, n, h)
        self.last: Any = tuple(self.draw(n, h) for _ in range(k))
        self.mask: Any = None
        self.truncate: Any = None
        self.wanted = {"params": True, "inputs": True}
        vars(self).update(how)
        if self.mask is not None:
            self.X = np.where(self.mask, self.X, self.X.dtype.type(0))
            self.dA = np.where(self.mask, self.dA, self.X.dtype.type(0))

    def draw(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(self.dtype)

    def arguments(self) -> list[np.ndarray]:
        weights = [self.weights.recurrent, self.weights.input, *self.weights.biases]
        given = [self.X, self.dA, *(self.first or ()), *(self.last or ()), *weights, self.mask]
        return [array for array in given if array is not None]

    def ahead(self) -> Trace:
        return self.kind.forward(self.X, self.first, self.mask, self.weights, *self.kind.acts)

    def back(self, trace: Trace) -> dict[str, Any]:
        acts = self.kind.acts
        grads = self.kind.backward(
            self.dA, self.last, trace, self.weights, *acts, self.truncate, **self.wanted
        )
        results = {f"state {k}": s for k, s in enumerate(trace.states)}
        results |= {f"first {k}": s for k, s in enumerate(grads.states)}
        if grads.X is not None:
            results["dX"] = grads.X
        if grads.weights is not None:
            results |= {"dW_a": grads.weights.recurrent, "dW_x": grads.weights.input}
            results |= {f"db {k}": b for k, b in enumerate(grads.weights.biases)}
        for k, kept in enumerate(trace.kept):  # one array a step, or one array
            if kept is not None and k != 2:
                results[f"kept {k}"] = np.stack([np.asarray(step) for step in kept])
        return results

    def run(self) -> dict[str, Any]:
        """All results; the arguments must stay as they were."""
        before = [(array, array.copy()) for array in self.arguments()]
        results = self.back(self.ahead())
        for array, copy in before:
            assert_same_bits(array, copy)
        return results

    def reference(self) -> dict[str, Any]:
        with use_engine("reference"):
            return self.run()

    def check(self, factor: float = 10) -> None:
        expected, got = self.reference(), self.run()
        assert got.keys() == expected.keys()
        for what, array in expected.items():
            assert got[what].dtype == self.dtype
            assert_close(got[what], host(array), factor=factor)


def ragged(n_t: int, n: int) -> np.ndarray:
    """Lengths 0, 1, .., n_t, and holes in every fourth sequence."""
    lengths = np.arange(n) % (n_t + 1)
    mask = np.arange(n_t)[:, None] < lengths
    mask[:, 3::4] = np.arange(n_t)[:, None] % 2 == 1
    return mask[:, :, None].copy()
