"""What every implementation of the operations satisfies.

These are `ops.reference.Reference` (array formulas on xp, the specification), `ops.cpu.Cpu` (fast
NumPy), `ops.compiled.Compiled` (C kernels, where they are built) and `gpulayers.cuda.Cuda`
(RawKernels); `ops._kernels` chooses one. The public functions in the family files check their
arguments; so an implementation gets arrays of one library and one floating dtype, of checked
shapes, C-contiguous, and does no checking of its own. Results are new arrays unless stated.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Protocol

from gpulayers.backend import Array
from gpulayers.ops._sequence import SequenceGradients, Trace, Weights
from gpulayers.ops.window import Window

Shape4 = tuple[int, int, int, int]
States = tuple[Array, ...]


class Activation(Protocol):
    """What the operations need to know of an activation function (see `gpulayers.activations`)."""

    kernel: tuple[str, float, float] | None

    def fn(self, z: Array) -> Array: ...
    def grad(self, x: Array) -> Array: ...


class Kernels(Protocol):
    """One implementation of every operation. Images are (n, rows, cols, ch)."""

    # ---- op(A) op(B), op the matrix or its transpose; rows may lie apart, their numbers do not
    def matmul(self, A: Array, B: Array, transpose_a: bool, transpose_b: bool) -> Array: ...
    def add_matmul(
        self, total: Array, A: Array, B: Array, transpose_a: bool, transpose_b: bool
    ) -> None: ...  # total += op(A) op(B)
    def batched_matmul(
        self, A: Array, B: Array, transpose_a: bool, transpose_b: bool
    ) -> Array: ...  # op(A[i]) op(B[i]) for every i

    # ---- convolution: columns are (n*out_rows*out_cols, fr*fc*ch), within a row tap by tap
    def im2col(self, X: Array, window: Window) -> Array: ...
    def col2im(self, columns: Array, x_shape: Shape4, window: Window, mode: str) -> Array: ...
    def conv2d_forward(self, X: Array, W: Array, b: Array | None, window: Window) -> Array: ...
    def conv2d_input_grad(self, dZ: Array, W: Array, x_shape: Shape4, window: Window) -> Array: ...
    def conv2d_weight_grad(self, X: Array, dZ: Array, window: Window) -> Array: ...
    def bias_grad(self, dZ: Array) -> Array: ...

    # ---- pooling: argmax is uint8, i*fc + j inside the window (int32 for more than 256 taps)
    def max_pool2d_forward(self, X: Array, window: Window) -> tuple[Array, Array]: ...
    def max_pool2d_backward(
        self, dY: Array, argmax: Array, x_shape: Shape4, window: Window
    ) -> Array: ...
    def avg_pool2d_forward(self, X: Array, window: Window) -> Array: ...
    def avg_pool2d_backward(self, dY: Array, x_shape: Shape4, window: Window) -> Array: ...

    # ---- bias and activation: Z is changed in place (the bias is added), Y is new
    def bias_activation(self, Z: Array, b: Array | None, act: Activation) -> Array: ...
    def activation_backward(self, dY: Array, Z: Array, act: Activation) -> Array: ...

    # ---- softmax over the rows of (m, classes)
    def softmax_forward(self, Z: Array) -> Array: ...
    def softmax_backward(self, dY: Array, Y: Array) -> Array: ...
    def softmax_cross_entropy_forward(
        self, logits: Array, labels: Array
    ) -> tuple[Array, Array]: ...
    def softmax_cross_entropy_backward(
        self, probs: Array, labels: Array, scale: float
    ) -> Array: ...

    # ---- optimizer updates: param and state are changed in place
    def sgd_update(
        self, param: Array, grad: Array, velocity: Array, lr: float, momentum: float
    ) -> None: ...
    def adagrad_update(
        self, param: Array, grad: Array, cache: Array, lr: float, eps: float
    ) -> None: ...
    def rmsprop_update(
        self, param: Array, grad: Array, cache: Array, lr: float, decay: float, eps: float
    ) -> None: ...
    def adam_update(
        self,
        param: Array,
        grad: Array,
        mean: Array,
        var: Array,
        lr: float,
        decay1: float,
        decay2: float,
        eps: float,
        t: int,
    ) -> None: ...

    # ---- recurrent step: the arrays a step fills are given (A, C, M, dZ), gates change in place
    def rnn_step_forward(
        self,
        projected: Array,
        recurrent: Array,
        ba: Array,
        bx: Array,
        act: Activation,
        A: Array | None,
    ) -> tuple[Array, Array]: ...
    def rnn_step_backward(
        self, dA: Array, accumulator: Array | None, Z: Array, act: Activation, dZ: Array | None
    ) -> Array: ...
    def lstm_step_forward(
        self,
        gates: Array,
        recurrent: Array,
        bias: Array,
        C_prev: Array,
        act: Activation,
        gate: Activation,
        C: Array,
        A: Array,
    ) -> Array | None: ...
    def lstm_step_backward(
        self,
        dA: Array,
        dA_next: Array,
        dC_next: Array,
        Z: Array | None,
        gates: Array,
        C_prev: Array,
        C: Array,
        act: Activation,
        gate: Activation,
        dZ: Array,
    ) -> Array: ...
    def gru_step_forward(
        self,
        gates: Array,
        recurrent: Array,
        bias: Array,
        A_prev: Array,
        act: Activation,
        gate: Activation,
        M: Array,
        A: Array,
    ) -> Array | None: ...
    def gru_step_backward(
        self,
        dA: Array,
        dA_next: Array,
        Z: Array | None,
        gates: Array,
        M: Array,
        A_prev: Array,
        act: Activation,
        gate: Activation,
        dZ: Array,
    ) -> Array: ...

    # ---- recurrent networks over whole sequences: (n_t, n, ..), the mask is (n_t, n, 1)
    def time_first(self, X: Array, gated: bool) -> Array: ...
    def time_last(self, X: Array) -> Array: ...
    def joined(self, arrays: list[Array], axis: int) -> Array: ...
    def rnn_forward(
        self, X: Array, first: States | None, mask: Array | None, weights: Weights, act: Activation
    ) -> Trace: ...
    def rnn_backward(
        self,
        dA: Array | None,
        last: States | None,
        trace: Trace,
        weights: Weights,
        act: Activation,
        truncate: int | None,
        params: bool,
        inputs: bool,
    ) -> SequenceGradients: ...
    def lstm_forward(
        self,
        X: Array,
        first: States | None,
        mask: Array | None,
        weights: Weights,
        act: Activation,
        gate: Activation,
    ) -> Trace: ...
    def lstm_backward(
        self,
        dA: Array | None,
        last: States | None,
        trace: Trace,
        weights: Weights,
        act: Activation,
        gate: Activation,
        truncate: int | None,
        params: bool,
        inputs: bool,
    ) -> SequenceGradients: ...
    def gru_forward(
        self,
        X: Array,
        first: States | None,
        mask: Array | None,
        weights: Weights,
        act: Activation,
        gate: Activation,
    ) -> Trace: ...
    def gru_backward(
        self,
        dA: Array | None,
        last: States | None,
        trace: Trace,
        weights: Weights,
        act: Activation,
        gate: Activation,
        truncate: int | None,
        params: bool,
        inputs: bool,
    ) -> SequenceGradients: ...

    # ---- normalisation over the rows of (m, ch)
    def batchnorm_forward(
        self, X: Array, scaler: Array, intercept: Array, eps: float
    ) -> tuple[Array, Array, Array, Array, Array]: ...
    def batchnorm_backward(
        self, dY: Array, X_hat: Array, scaler: Array, inv_std: Array
    ) -> tuple[Array, Array, Array]: ...

    # ---- standardisation over some axes (not negative), the others each alone
    def standardize_forward(
        self, X: Array, axes: tuple[int, ...], eps: float
    ) -> tuple[Array, Array]: ...
    def standardize_backward(
        self, dX_hat: Array, X_hat: Array, inv_std: Array, axes: tuple[int, ...]
    ) -> Array: ...

    # ---- layer normalisation of the rows of (m, width): standardisation over axis 1, then a scaler
    # and an intercept of each column; inv_std as standardize_forward gives it
    def layernorm_forward(
        self, X: Array, scaler: Array, intercept: Array, eps: float
    ) -> tuple[Array, Array, Array]: ...
    def layernorm_backward(
        self, dY: Array, X_hat: Array, scaler: Array, inv_std: Array
    ) -> tuple[Array, Array, Array]: ...

    # ---- rows of a table by their number (ids are a vector of int64), and their sums
    def embedding_forward(self, W: Array, ids: Array) -> Array: ...
    def embedding_backward(self, dY: Array, ids: Array, count: int) -> Array: ...

    # ---- for a planned training step: several operations in one pass; b is (out_ch,)
    def conv2d_relu_forward(self, X: Array, W: Array, b: Array | None, window: Window) -> Array: ...
    def conv2d_param_grads(self, X: Array, dZ: Array, window: Window) -> tuple[Array, Array]: ...
    def conv2d_grads(
        self, X: Array, dZ: Array, W: Array, window: Window
    ) -> tuple[Array, Array, Array]: ...  # dX, dW, db
    def dense_forward(self, X: Array, W: Array, b: Array, relu: bool) -> Array: ...
    def relu_backward(self, dY: Array, Y: Array) -> Array: ...
    def max_pool2d_relu_backward(
        self, dY: Array, argmax: Array, Y: Array, x_shape: Shape4, window: Window
    ) -> Array: ...
    def softmax_cross_entropy_both(
        self, logits: Array, labels: Array, scale: float
    ) -> tuple[Array, Array]: ...

    # ---- variations of images (n, rows, cols, channels), uint8 or floating; no gradients
    def crop(
        self,
        images: Array,
        tops: Array,
        lefts: Array,
        size: tuple[int, int],
        reflect: bool,
        fill: Any,
    ) -> Array: ...
    def flip_columns(self, images: Array, chosen: Array) -> Array: ...
    def cut_squares(
        self, images: Array, rows: Array, cols: Array, side: int, fill: Any
    ) -> Array: ...
    def mix(self, images: Array, partners: Array, weight: float) -> Array: ...

    # ---- random words
    def philox_words(self, xp: ModuleType, key: tuple[int, int], counter: int, n: int) -> Array: ...
