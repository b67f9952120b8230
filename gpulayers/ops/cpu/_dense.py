"""A dense layer with bias and ReLU (or none) in memory taken once, for batches of one size.

For a thread that computes alone, or with BLAS's threads: a small layer takes less time than looking
for memory and cutting work for each of its operations.
"""

from __future__ import annotations

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops import workspace

Gradients = tuple[Array, Array]  # dW and db


class DenseLayer:
    """Y = X W + b, with max(Y, 0) if `relu`.

    Outputs and parameters' gradients are new arrays (of the workspace), the gradient of the input
    stands in the same memory each time.

    Parameters
    ----------
    n : examples of a batch
    shape : (n_in, n_out) of W
    dtype : float32 or float64
    relu : bool
    """

    def __init__(self, n: int, shape: tuple[int, int], dtype: np.dtype, relu: bool) -> None:
        n_in, n_out = shape
        self.relu, self.dtype = relu, dtype
        self.zeros = workspace.zeros((n, n_out), dtype)
        self.above = workspace.empty((n, n_out), np.bool_)
        self.dZ = workspace.empty((n, n_out), dtype)
        self.dX = workspace.empty((n, n_in), dtype)
        self.ones = np.ones(n, dtype)

    def forward(self, X: Array, W: Array, b: Array) -> Array:
        """X is (n, n_in), b (n_out,)."""
        Y = np.matmul(X, W, out=workspace.empty(self.zeros.shape, self.dtype))
        np.add(Y, b, out=Y)
        return np.maximum(Y, self.zeros, out=Y) if self.relu else Y

    def backward(
        self, dY: Array, X: Array, Y: Array, W: Array, params: bool, inputs: bool
    ) -> tuple[Gradients | None, Array | None]:
        """dW and db if `params`, dX if `inputs`."""
        dZ = dY
        if self.relu:
            np.greater(Y, self.zeros, out=self.above)
            dZ = np.multiply(dY, self.above, out=self.dZ)
        gradients = None
        if params:
            dW = np.matmul(X.T, dZ, out=workspace.empty(W.shape, self.dtype))
            gradients = dW, np.matmul(self.ones, dZ)
        return gradients, np.matmul(dZ, W.T, out=self.dX) if inputs else None
