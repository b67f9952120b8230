"""Softmax and softmax cross-entropy on a GPU."""

from __future__ import annotations

from typing import Any

import cupy

from gpulayers.backend import Array
from gpulayers.cuda import table
from gpulayers.cuda.compile import launch, launch_elements
from gpulayers.cuda.geometry import LONG_ROW, launch_rows
from gpulayers.ops.reference import Reference


def _launch_rows(name: str, arrays: tuple[Array, ...], rows: int, classes: int) -> None:
    launch_rows(name, arrays[0].dtype, (*arrays, rows, classes), rows, classes)


class CudaSoftmax(Reference):
    """A label outside [0, classes) gives a NaN loss: to raise would need a synchronisation."""

    def softmax_forward(self, Z: Array) -> Array:
        Y = cupy.empty(Z.shape, dtype=Z.dtype)
        _launch_rows("softmax_forward", (Z, Y), *Z.shape)
        return Y

    def softmax_backward(self, dY: Array, Y: Array) -> Array:
        dZ = cupy.empty(Y.shape, dtype=Y.dtype)
        _launch_rows("softmax_backward", (dY, Y, dZ), *Y.shape)
        return dZ

    def softmax_cross_entropy_forward(self, logits: Array, labels: Array) -> tuple[Array, Array]:
        losses = cupy.empty(logits.shape[0], dtype=logits.dtype)
        probs = cupy.empty(logits.shape, dtype=logits.dtype)
        wide = cupy.ascontiguousarray(labels, dtype=cupy.int64)
        arrays = (logits, wide, losses, probs)
        _launch_rows("softmax_cross_entropy_forward", arrays, *logits.shape)
        return losses, probs

    def softmax_cross_entropy_backward(self, probs: Array, labels: Array, scale: float) -> Array:
        dlogits = cupy.empty(probs.shape, dtype=probs.dtype)
        wide = cupy.ascontiguousarray(labels, dtype=cupy.int64)
        args = (probs, wide, dlogits, probs.size, probs.shape[1], scale)
        launch_elements(
            "softmax_cross_entropy_backward",
            probs.dtype,
            probs.size,
            args,
            table.index_for(probs.size),
        )
        return dlogits

    def softmax_cross_entropy_both(
        self: Any, logits: Array, labels: Array, scale: float
    ) -> tuple[Array, Array]:
        rows, classes = logits.shape
        if classes >= LONG_ROW:
            return Reference.softmax_cross_entropy_both(self, logits, labels, scale)
        losses = cupy.empty(rows, dtype=logits.dtype)
        dlogits = cupy.empty(logits.shape, dtype=logits.dtype)
        wide = cupy.ascontiguousarray(labels, dtype=cupy.int64)
        name = "softmax_cross_entropy_both"
        if logits.size:
            grid = (-(-rows // (table.KERNELS[name].block // 32)),)
            args = (logits, wide, losses, dlogits, rows, classes, scale)
            launch(name, logits.dtype, grid, args, table.index_for(logits.size))
        return losses, dlogits
