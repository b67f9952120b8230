"""Optimizer rules on the CPU: block by block, in place, with one block of temporaries.

Weighted sums are BLAS's where it has them (`_blas`): half the passes over memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from gpulayers.backend import Array
from gpulayers.ops import workspace
from gpulayers.ops.cpu import _blas
from gpulayers.ops.cpu._blocks import BLOCK, SMALL, block_lengths, blocks, row_shares
from gpulayers.ops.reference.update import ReferenceUpdate
from gpulayers.threads import run_shares, shares

_ALONE = 1 << 22  # elements of two sums that one thread has done before a second is awake

Rule = Callable[..., None]


def _in_blocks(
    rule: Rule, arrays: tuple[Array, ...], scratch: int, passes: int, blas: bool = False
) -> None:
    """Call ``rule(*blocks of the arrays, *scratch arrays of a block)`` for all blocks. A rule that
    uses `blas` is given a list of the addresses of these besides."""
    flat = [array.reshape(-1) for array in arrays]
    n, dtype = flat[0].size, flat[0].dtype
    if n <= SMALL:
        rule(*flat, *(workspace.empty((n,), dtype) for _ in range(scratch)))
        return
    parts = row_shares(n, 1, passes)
    # few cheap passes: calls cost more than the cache saves
    steps = block_lengths(parts, 4 * BLOCK)
    own = [[workspace.empty((step,), dtype) for _ in range(scratch)] for step in steps]
    places = [_blas.address(array) for array in flat] if blas else []
    own_places = [[_blas.address(free) for free in mine] if blas else [] for mine in own]

    def work(i: int, part: slice) -> None:
        for block in blocks(part, steps[i]):
            count, skip = block.stop - block.start, block.start * dtype.itemsize
            arguments = [*(array[block] for array in flat), *(free[:count] for free in own[i])]
            if blas:
                rule(*arguments, [*(place + skip for place in places), *own_places[i]])
            else:
                rule(*arguments)

    run_shares(work, parts, blas)


class CpuUpdate(ReferenceUpdate):
    """The reference's rules, without its temporaries of a parameter's size."""

    def sgd_update(
        self, param: Array, grad: Array, velocity: Array, lr: float, momentum: float
    ) -> None:
        if param.dtype.itemsize < 4:
            return super().sgd_update(param, grad, velocity, lr, momentum)
        blas = _blas.serves((param, velocity), (lr, momentum))
        if blas is not None:
            size, item = param.size, param.dtype.itemsize
            p, g, v = (_blas.address(array) for array in (param, grad, velocity))

            def work(_: int, part: slice) -> None:
                n, skip = part.stop - part.start, part.start * item
                blas.axpby(n, lr, g + skip, 1, momentum, v + skip, 1)
                blas.axpy(n, -1.0, v + skip, 1, p + skip, 1)

            return run_shares(work, shares(size, _ALONE))
        rate, keep = (param.dtype.type(value) for value in (lr, momentum))

        def rule(p: Array, g: Array, v: Array, step: Array) -> None:
            np.multiply(v, keep, out=v)
            np.multiply(g, rate, out=step)
            np.add(v, step, out=v)
            np.subtract(p, v, out=p)

        _in_blocks(rule, (param, grad, velocity), scratch=1, passes=4)

    def adagrad_update(
        self, param: Array, grad: Array, cache: Array, lr: float, eps: float
    ) -> None:
        if param.dtype.itemsize < 4:
            return super().adagrad_update(param, grad, cache, lr, eps)
        rate, small = (param.dtype.type(value) for value in (lr, eps))

        def rule(p: Array, g: Array, c: Array, a: Array, b: Array) -> None:
            np.multiply(g, g, out=a)
            np.add(c, a, out=c)
            _descend(p, g, c, rate, small, a, b)

        return _in_blocks(rule, (param, grad, cache), scratch=2, passes=9)

    def rmsprop_update(
        self, param: Array, grad: Array, cache: Array, lr: float, decay: float, eps: float
    ) -> None:
        if param.dtype.itemsize < 4:
            return super().rmsprop_update(param, grad, cache, lr, decay, eps)
        number = param.dtype.type
        rate, keep, take, small = number(lr), number(decay), number(1.0 - decay), number(eps)

        def rule(p: Array, g: Array, c: Array, a: Array, b: Array) -> None:
            np.multiply(c, keep, out=c)
            np.multiply(g, g, out=a)
            np.multiply(a, take, out=a)
            np.add(c, a, out=c)
            _descend(p, g, c, rate, small, a, b)

        return _in_blocks(rule, (param, grad, cache), scratch=2, passes=11)

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
    ) -> None:
        if param.dtype.itemsize < 4:
            return super().adam_update(param, grad, mean, var, lr, decay1, decay2, eps, t)
        number = param.dtype.type
        keep1, take1 = number(decay1), number(1.0 - decay1)
        keep2, take2 = number(decay2), number(1.0 - decay2)
        # both averages started at zero; the corrections take that bias out. With r = sqrt(1 - d2^t)
        # numerator and denominator are multiplied by r: lr r m / (1 - d1^t) / (sqrt(v) + r eps)
        root = math.sqrt(1.0 - decay2**t)
        rate, small = number(lr * root / (1.0 - decay1**t)), number(eps * root)

        def rule(p: Array, g: Array, m: Array, v: Array, a: Array) -> None:
            np.multiply(m, keep1, out=m)
            np.multiply(g, take1, out=a)
            np.add(m, a, out=m)
            np.multiply(v, keep2, out=v)
            np.multiply(g, g, out=a)
            np.multiply(a, take2, out=a)
            np.add(v, a, out=v)
            np.sqrt(v, out=a)
            np.add(a, small, out=a)
            np.divide(m, a, out=a)
            np.multiply(a, rate, out=a)
            np.subtract(p, a, out=p)

        arrays = (param, grad, mean, var)
        blas = _blas.serves((param, mean, var), (keep1, take1, keep2, take2, rate))
        if blas is None:
            return _in_blocks(rule, arrays, scratch=1, passes=14)
        factors = [float(factor) for factor in (take1, keep1, take2, keep2, -rate)]

        def rule_of_blas(
            p: Array, g: Array, m: Array, v: Array, a: Array, places: list[int]
        ) -> None:
            (at_p, at_g, at_m, at_v, at_a), n = places, p.size
            new, old, new_square, old_square, down = factors
            blas.axpby(n, new, at_g, 1, old, at_m, 1)
            np.multiply(g, g, out=a)
            blas.axpby(n, new_square, at_a, 1, old_square, at_v, 1)
            np.sqrt(v, out=a)
            np.add(a, small, out=a)
            np.divide(m, a, out=a)
            blas.axpy(n, down, at_a, 1, at_p, 1)

        return _in_blocks(rule_of_blas, arrays, scratch=1, passes=14, blas=True)


def _descend(p: Array, g: Array, c: Array, rate: float, small: float, a: Array, b: Array) -> None:
    """p -= rate * g / (sqrt(c) + small)."""
    np.sqrt(c, out=a)
    np.add(a, small, out=a)
    np.multiply(g, rate, out=b)
    np.divide(b, a, out=b)
    np.subtract(p, b, out=p)
