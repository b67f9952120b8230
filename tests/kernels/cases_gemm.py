"""gemm.cu: sides that overhang tiles by one or more, all layouts, shared sums, what follows."""

from __future__ import annotations

import functools
import re

import numpy as np

from gpulayers.cuda.fusible import RELU, Formula, constants
from gpulayers.cuda.table_tiles import TILES
from tests.kernels import fused
from tests.kernels.arrays import (
    COMBINATIONS,
    WIDE,
    Launcher,
    blocks,
    close,
    load,
    poisoned,
    random,
    rounded,
    store,
    tf32,
)


def seen(values: np.ndarray, name: str, dtype: str) -> np.ndarray:
    """What a kernel multiplies: for tensor cores rounded to TF32."""
    return tf32(values) if "_tensor" in name and dtype == "float32" else values


def _of(tile: str, layout: str) -> str:
    """The kernel of a tile: for tensor cores one for each layout."""
    return f"gemm_{layout}{tile}" if TILES[tile].tensor else f"gemm{tile}"


def _matrix(
    rows: int, cols: int, dtype: str, transposed: bool, apart: int
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Its memory, with `apart` numbers between the lines that nobody may use, its values, and how
    far apart rows and columns lie."""
    values = random(rows, cols, seed=f"{dtype}{apart}")
    lying = values.T if transposed else values
    padded = np.full((lying.shape[0], lying.shape[1] + apart), np.nan)
    padded[:, : lying.shape[1]] = lying
    stored = store(padded, dtype)
    step = padded.shape[1]
    return stored, load(store(values, dtype), dtype), (1, step) if transposed else (step, 1)


def product(
    launcher: Launcher,
    size: tuple[int, int, int],
    dtype: str = "float32",
    index: str = "int32",
    name: str = "gemm",
    layout: str = "nn",
    parts: int = 1,
    extras: bool = False,
    apart: int = 0,
    askew: bool = False,
    act: Formula = RELU,
) -> None:
    """`askew`: the result begins where no 16 bytes can be stored."""
    rows, cols, terms = size
    ones = rows - 1 if extras else -1
    a, x, a_steps = _matrix(rows - extras, terms, dtype, layout[0] == "t", apart)
    b, y, b_steps = _matrix(terms, cols, dtype, layout[1] == "t", apart)
    bias, shift = rounded(random(cols, seed="bias"), dtype)
    mask, gate = fused.outputs(act, dtype, rows, cols, seed="mask")
    c = poisoned(rows * cols + askew, dtype)[int(askew) :].reshape(rows, cols)
    partial = poisoned((parts, rows, cols) if parts > 1 else 0, WIDE[dtype])
    span = -(-terms // parts)
    tile = TILES[re.sub("^gemm(_[nt]{2})?", "", name)]
    grid = (-(-rows // tile.rows), -(-cols // tile.cols), parts)
    numbers = (rows, cols, terms, span, *a_steps, *b_steps, ones, extras, extras, extras)
    args, known = (a, b, bias, mask, c, partial, *numbers), constants(act)
    launcher.launch(name, dtype, index, grid, args, constants=known)
    if parts > 1:
        args = (partial, bias, mask, c, c.size, parts, cols, extras, extras, extras)
        grid = blocks(c.size, "sum_parts")
        launcher.launch("sum_parts", dtype, index, grid, args, constants=known)
    x, y = seen(x, name, dtype), seen(y, name, dtype)
    want = np.zeros((rows, cols))
    for k in range(terms):
        want[: rows - extras] += np.outer(x[:, k], y[k])
        want[rows - extras :] += y[k]
    if extras:
        want = fused.value(act, want + shift) * fused.slope_at_value(act, gate)
    close(c, want, dtype, factor=4)


def dense_backward(
    launcher: Launcher,
    size: tuple[int, int, int],
    dtype: str = "float32",
    index: str = "int32",
    parts: int = 1,
    masked: bool = True,
    name: str = "dense_backward",
) -> None:
    batch, inputs, outputs = size
    x, values = rounded(random(batch, inputs, seed="x"), dtype)
    w, weights = rounded(random(inputs, outputs, seed="w"), dtype)
    dz, gradient = rounded(random(batch, outputs, seed="dz"), dtype)
    grads, dx = poisoned((parts, inputs + 1, outputs), WIDE[dtype]), poisoned(x.shape, dtype)
    tile = TILES[name.removeprefix("dense_backward")]
    weight_blocks = -(-(inputs + 1) // tile.rows) * -(-outputs // tile.cols) * parts
    grid = (weight_blocks + -(-batch // tile.rows) * -(-inputs // tile.cols),)
    numbers = (batch, inputs, outputs, -(-batch // parts), parts, weight_blocks, masked)
    launcher.launch(name, dtype, index, grid, (x, w, dz, grads, dx, *numbers))
    dw = store(load(grads, WIDE[dtype]).sum(axis=0), dtype)
    gates = values > 0
    values, weights, gradient = (seen(v, name, dtype) for v in (values, weights, gradient))
    close(dw, np.vstack([values.T @ gradient, gradient.sum(axis=0)]), dtype, factor=4)
    want = gradient @ weights.T
    close(dx, np.where(gates, want, 0) if masked else want, dtype, factor=4)


def batches(
    launcher: Launcher,
    size: tuple[int, int, int],
    dtype: str = "float32",
    index: str = "int32",
    name: str = "batched_gemm",
    layout: str = "nn",
    count: int = 3,
) -> None:
    """`count` products side by side; nothing of one may reach the next."""
    rows, cols, terms = size
    a, x = rounded(random(count, rows, terms, seed="a"), dtype)
    b, y = rounded(random(count, terms, cols, seed="b"), dtype)
    turned = [letter == "t" for letter in layout]
    a, b = (
        np.ascontiguousarray(m.swapaxes(1, 2)) if turn else m
        for m, turn in zip((a, b), turned, strict=True)
    )
    c = poisoned((count, rows, cols), dtype)
    tile = TILES[re.sub("^batched_gemm(_[nt]{2})?", "", name)]
    grid = (-(-rows // tile.rows), -(-cols // tile.cols), count)
    launcher.launch(name, dtype, index, grid, (a, b, c, rows, cols, terms, *turned))
    x, y = seen(x, name, dtype), seen(y, name, dtype)
    want = np.zeros((count, rows, cols))
    for i in range(count):
        for k in range(terms):
            want[i] += np.outer(x[i, :, k], y[i, k])
    close(c, want, dtype, factor=4)


CASES = [
    *(functools.partial(batches, size=(66, 5, 19), dtype=d, index=i) for d, i in COMBINATIONS),
    *(
        functools.partial(batches, size=(7, 67, 18), layout=layout, index="int64")
        for layout in ("nt", "tn", "tt")
    ),
    functools.partial(batches, size=(3, 2, 0)),
    *(
        functools.partial(batches, size=size, name=f"batched_gemm_{layout}_tensor", **more)
        for layout, size in (
            ("nn", (130, 72, 24)),
            ("nt", (5, 68, 72)),
            ("tn", (136, 8, 43)),
        )
        for more in (
            {"layout": layout},
            {"layout": layout, "index": "int64", "count": 2},
        )
    ),
    *(
        functools.partial(
            batches, size=size, name=f"batched_gemm_{layout}_tensor", layout=layout, dtype=d
        )
        for d in ("float16", "bfloat16")
        for layout, size in (
            ("nn", (130, 72, 40)),
            ("nt", (5, 67, 72)),
            ("tn", (136, 8, 43)),
        )
    ),
    functools.partial(dense_backward, size=(21, 64, 66), parts=2),
    functools.partial(dense_backward, size=(66, 3, 5), dtype="float64", index="int64"),
    functools.partial(dense_backward, size=(64, 66, 5)),  # one tile down, two along
    functools.partial(dense_backward, size=(65, 66, 5)),
    functools.partial(dense_backward, size=(3, 66, 2), masked=False),
    *(functools.partial(product, size=(66, 67, 19), dtype=d, index=i) for d, i in COMBINATIONS),
    *(
        functools.partial(product, size=(5, 9, 37), dtype=d, index=i, parts=3, extras=True)
        for d, i in (*COMBINATIONS, ("float32", "int64"))
    ),
    functools.partial(product, size=(5, 9, 37), parts=3, extras=True, act=fused.ELU),
    functools.partial(product, size=(66, 11, 9), extras=True, act=fused.SIGMOID),
    functools.partial(product, size=(65, 3, 17), layout="nt", apart=3, extras=True),
    functools.partial(product, size=(3, 65, 17), layout="tn", apart=2),
    functools.partial(product, size=(4, 6, 5), layout="tt", apart=1),
    functools.partial(product, size=(258, 17, 11), name="gemm_narrow", extras=True),
    functools.partial(product, size=(7, 5, 9), name="gemm_narrow", layout="tt", index="int64"),
    *(
        functools.partial(product, size=size, name=_of(tile, layout), layout=layout, **more)
        for tile in ("_tall", "_large", "_tensor", "_tensor_large", "_tensor_tall")
        for size, layout, more in (
            ((132, 68, 20), "nn", {"apart": 4}),
            ((5, 132, 200), "nt", {"extras": True, "parts": 2}),
            ((133, 8, 83), "tn", {"extras": True, "index": "int64"}),
        )
    ),
    *(
        functools.partial(
            product, size=size, name=_of(tile, layout), layout=layout, dtype=d, **more
        )
        for tile in (
            *("_tensor", "_tensor_large", "_tensor_tall"),
            *("_warpgroup", "_warpgroup_large"),
        )
        for d in ("float16", "bfloat16")
        for size, layout, more in (
            ((41, 136, 480), "nn", {"extras": True, "parts": 3, "apart": 8}),
            ((17, 8, 165), "tn", {"extras": True, "index": "int64"}),
            ((3, 136, 40), "nt", {}),
        )
    ),
    *(  # lines of both warpgroups, and stages enough to come back to the first one twice
        functools.partial(product, size=size, name=_of(tile, layout), layout=layout, dtype=d)
        for tile, d, size, layout in (
            ("_warpgroup", "bfloat16", (264, 72, 264), "tn"),
            ("_warpgroup", "float16", (9, 72, 584), "nn"),
            ("_warpgroup_large", "bfloat16", (260, 136, 264), "nt"),
            ("_warpgroup_large", "float16", (9, 136, 456), "nn"),
        )
    ),
    *(
        functools.partial(dense_backward, size=(16, 8, 24), name=f"dense_backward{tile}", **more)
        for tile, dtypes in (
            ("", ("float16", "bfloat16")),
            ("_tall", ("float32",)),
            ("_large", ("float32",)),
            ("_tensor", ("float32", "float16", "bfloat16")),
            ("_tensor_large", ("float32", "float16", "bfloat16")),
            ("_tensor_tall", ("float32", "float16", "bfloat16")),
            ("_warpgroup", ("float16", "bfloat16")),
            ("_warpgroup_large", ("float16", "bfloat16")),
        )
        for d in dtypes
        for more in ({"dtype": d, "parts": 2}, {"dtype": d, "index": "int64", "masked": False})
    ),
    functools.partial(product, size=(6, 8, 4), askew=True),
    functools.partial(product, size=(1, 1, 1)),
    functools.partial(product, size=(2, 3, 0)),
]
