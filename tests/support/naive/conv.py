"""Convolution, its gradients, the transposed convolution, im2col and col2im.

Images are (n, rows, cols, ch), weights (fr, fc, in_ch, out_ch); `pad` is (top, bottom, left,
right); `spacing` is the distance between taps (1 = dense).

    Z[m, r, c, o] = b[o] + sum_{i,j,k} X[m, r*sr + i*dr - top, c*sc + j*dc - left, k] W[i, j, k, o]

with X zero outside its bounds. The innermost loops go over lists, whose entries are reached ten
times as fast as an array's.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

Pair = tuple[int, int]
Pad = tuple[int, int, int, int]


def positions(size: int, kernel: int, stride: int, before: int, after: int, spacing: int) -> int:
    """How many times the kernel fits, found by trying one position after the other."""
    count = 0
    while count * stride + (kernel - 1) * spacing < before + size + after:
        count += 1
    return count


def same_pad(size: int, kernel: int, stride: int, spacing: int) -> Pair:
    """The smallest padding with as many outputs as inputs; the odd one goes to the end."""
    total = 0
    while positions(size, kernel, stride, total, 0, spacing) < size:
        total += 1
    return total // 2, total - total // 2


def output_size(rows: int, cols: int, kernel: Pair, stride: Pair, pad: Pad, spacing: Pair) -> Pair:
    return (
        positions(rows, kernel[0], stride[0], pad[0], pad[1], spacing[0]),
        positions(cols, kernel[1], stride[1], pad[2], pad[3], spacing[1]),
    )


def taps(
    x_shape: tuple[int, ...], kernel: Pair, stride: Pair, pad: Pad, spacing: Pair
) -> Iterator[tuple[int, int, int, int, int, int, int]]:
    """Yield (m, r, c, i, j, y, x): in example m, output (r, c) sees pixel (y, x) by tap (i, j)."""
    n, rows, cols, _ = x_shape
    out_rows, out_cols = output_size(rows, cols, kernel, stride, pad, spacing)
    for m in range(n):
        for r in range(out_rows):
            for c in range(out_cols):
                for i in range(kernel[0]):
                    for j in range(kernel[1]):
                        y = r * stride[0] + i * spacing[0] - pad[0]
                        x = c * stride[1] + j * spacing[1] - pad[2]
                        if 0 <= y < rows and 0 <= x < cols:
                            yield m, r, c, i, j, y, x


def conv2d(X, W, b, stride: Pair, pad: Pad, spacing: Pair = (1, 1)) -> np.ndarray:
    X, W = np.asarray(X, np.float64), np.asarray(W, np.float64)
    kernel, out_ch = W.shape[:2], W.shape[3]
    out = output_size(X.shape[1], X.shape[2], kernel, stride, pad, spacing)
    Z = np.zeros((X.shape[0], *out, out_ch))
    sums, pixels, weights = Z.tolist(), X.tolist(), W.tolist()
    for m, r, c, i, j, y, x in taps(X.shape, kernel, stride, pad, spacing):
        total, pixel, weight = sums[m][r][c], pixels[m][y][x], weights[i][j]
        for k in range(X.shape[3]):
            for o in range(out_ch):
                total[o] += pixel[k] * weight[k][o]
    Z = np.array(sums).reshape(Z.shape)
    if b is not None:
        for m, r, c, o in np.ndindex(Z.shape):
            Z[m, r, c, o] += float(b[o])
    return Z


def conv2d_input_grad(dZ, W, x_shape, stride: Pair, pad: Pad, spacing: Pair = (1, 1)) -> np.ndarray:
    dZ, W = np.asarray(dZ, np.float64), np.asarray(W, np.float64)
    sums, pixels, weights = np.zeros(x_shape).tolist(), dZ.tolist(), W.tolist()
    for m, r, c, i, j, y, x in taps(x_shape, W.shape[:2], stride, pad, spacing):
        total, pixel, weight = sums[m][y][x], pixels[m][r][c], weights[i][j]
        for k in range(x_shape[3]):
            for o in range(W.shape[3]):
                total[k] += pixel[o] * weight[k][o]
    return np.array(sums).reshape(x_shape)


def conv2d_weight_grad(X, dZ, kernel: Pair, stride: Pair, pad: Pad, spacing: Pair = (1, 1)):
    X, dZ = np.asarray(X, np.float64), np.asarray(dZ, np.float64)
    dW = np.zeros((*kernel, X.shape[3], dZ.shape[3]))
    sums, images, gradients = dW.tolist(), X.tolist(), dZ.tolist()
    for m, r, c, i, j, y, x in taps(X.shape, kernel, stride, pad, spacing):
        total, image, gradient = sums[i][j], images[m][y][x], gradients[m][r][c]
        for k in range(X.shape[3]):
            for o in range(dZ.shape[3]):
                total[k][o] += image[k] * gradient[o]
    return np.array(sums).reshape(dW.shape)


def bias_grad(dZ) -> np.ndarray:
    """The sum over every axis but the last."""
    dZ = np.asarray(dZ, np.float64)
    db = np.zeros(dZ.shape[-1])
    for index in np.ndindex(dZ.shape):
        db[index[-1]] += dZ[index]
    return db


def im2col(X, kernel: Pair, stride: Pair, pad: Pad, spacing: Pair = (1, 1)) -> np.ndarray:
    """Row (m, r, c); within it tap (i, j) row-major, channels fastest; padding reads zero."""
    X = np.asarray(X, np.float64)
    n, rows, cols, ch = X.shape
    out_rows, out_cols = output_size(rows, cols, kernel, stride, pad, spacing)
    columns = np.zeros((n * out_rows * out_cols, kernel[0] * kernel[1] * ch))
    for m, r, c, i, j, y, x in taps(X.shape, kernel, stride, pad, spacing):
        for k in range(ch):
            row = (m * out_rows + r) * out_cols + c
            columns[row, (i * kernel[1] + j) * ch + k] = X[m, y, x, k]
    return columns


def col2im(columns, x_shape, kernel: Pair, stride: Pair, pad: Pad, spacing: Pair = (1, 1)):
    """Each entry of `columns` added to the pixel it was read from."""
    columns = np.asarray(columns, np.float64)
    out_rows, out_cols = output_size(x_shape[1], x_shape[2], kernel, stride, pad, spacing)
    X = np.zeros(x_shape)
    for m, r, c, i, j, y, x in taps(x_shape, kernel, stride, pad, spacing):
        for k in range(x_shape[3]):
            row = (m * out_rows + r) * out_cols + c
            X[m, y, x, k] += columns[row, (i * kernel[1] + j) * x_shape[3] + k]
    return X


# --------------------------------------------------------------------------- one dimension


def conv1d(X, W, b, stride: int, pad: Pair, spacing: int = 1) -> np.ndarray:
    """X (n, length, in_ch), W (fw, in_ch, out_ch)."""
    X, W = np.asarray(X, np.float64), np.asarray(W, np.float64)
    n, length, in_ch = X.shape
    width, _, out_ch = W.shape
    Z = np.zeros((n, positions(length, width, stride, *pad, spacing), out_ch))
    for m, t, o in np.ndindex(Z.shape):
        Z[m, t, o] = 0.0 if b is None else float(b[o])
        for j in range(width):
            x = t * stride + j * spacing - pad[0]
            if 0 <= x < length:
                for k in range(in_ch):
                    Z[m, t, o] += X[m, x, k] * W[j, k, o]
    return Z


def conv1d_grads(X, W, dZ, stride: int, pad: Pair, spacing: int = 1):
    """(dX, dW, db)."""
    X, W, dZ = (np.asarray(a, np.float64) for a in (X, W, dZ))
    dX, dW, db = np.zeros(X.shape), np.zeros(W.shape), np.zeros(W.shape[2])
    for m, t, o in np.ndindex(dZ.shape):
        db[o] += dZ[m, t, o]
        for j in range(W.shape[0]):
            x = t * stride + j * spacing - pad[0]
            if 0 <= x < X.shape[1]:
                for k in range(X.shape[2]):
                    dX[m, x, k] += dZ[m, t, o] * W[j, k, o]
                    dW[j, k, o] += dZ[m, t, o] * X[m, x, k]
    return dX, dW, db


# ------------------------------------------------------------------- transposed convolution


def deconv2d(X, W, b, stride: Pair, pad: Pad) -> np.ndarray:
    """Each input pixel stamps its weighted kernel onto the output, which is then cropped by `pad`.

    W is (fr, fc, in_ch, out_ch); the full output has stride * (size - 1) + kernel rows.
    """
    X, W = np.asarray(X, np.float64), np.asarray(W, np.float64)
    n, rows, cols, _ = X.shape
    fr, fc, _, out_ch = W.shape
    top, bottom, left, right = pad
    out_rows = stride[0] * (rows - 1) + fr - top - bottom
    out_cols = stride[1] * (cols - 1) + fc - left - right
    Z = np.zeros((n, out_rows, out_cols, out_ch))
    for m, y, x, k in np.ndindex(X.shape):
        for i, j in np.ndindex(fr, fc):
            r, c = y * stride[0] + i - top, x * stride[1] + j - left
            if 0 <= r < out_rows and 0 <= c < out_cols:
                for o in range(out_ch):
                    Z[m, r, c, o] += X[m, y, x, k] * W[i, j, k, o]
    if b is not None:
        for m, r, c, o in np.ndindex(Z.shape):
            Z[m, r, c, o] += float(b[o])
    return Z


def deconv2d_grads(X, W, dZ, stride: Pair, pad: Pad):
    """(dX, dW, db)."""
    X, W, dZ = (np.asarray(a, np.float64) for a in (X, W, dZ))
    fr, fc, _, out_ch = W.shape
    dX, dW = np.zeros(X.shape), np.zeros(W.shape)
    for m, y, x, k in np.ndindex(X.shape):
        for i, j, o in np.ndindex(fr, fc, out_ch):
            r, c = y * stride[0] + i - pad[0], x * stride[1] + j - pad[2]
            if 0 <= r < dZ.shape[1] and 0 <= c < dZ.shape[2]:
                dX[m, y, x, k] += dZ[m, r, c, o] * W[i, j, k, o]
                dW[i, j, k, o] += dZ[m, r, c, o] * X[m, y, x, k]
    return dX, dW, bias_grad(dZ)
