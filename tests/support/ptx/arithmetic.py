"""What instructions make of numbers alone, lane by lane, as the PTX ISA says ("Integer arithmetic",
"Floating point", "Comparison and selection", "Logic and shift", "Data movement: cvt").

`formula` gives for an opcode a function of NumPy arrays, the types of its sources and that of its
result. Approximations (ex2.approx, rcp.approx ...) are the exact value rounded once: PTX allows a
few last places more. fma of float32 goes through float64, so it can be rounded twice: once in about
2^29 times the last place differs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.support.ptx import arithmetic_bits
from tests.support.ptx.arithmetic_float import Float, flushed, half_bits, to_tf32
from tests.support.ptx.formula import Formula, UnknownError, same
from tests.support.ptx.types import NUMPY, is_float, size_of

__all__ = ["formula"]

Array = np.ndarray[Any, Any]


@functools.cache
def formula(parts: tuple[str, ...]) -> Formula:
    """What an opcode works out.

    Raises
    ------
    UnknownError
    """
    maker = _MAKERS.get(parts[0])
    if maker is None:
        raise UnknownError(f"{'.'.join(parts)} is not interpreted")
    found = maker(list(parts[1:]))
    if found is None:
        raise UnknownError(f"{'.'.join(parts)} is not interpreted in this form")
    return found


def _unsigned(kind: str) -> str:
    return kind if is_float(kind) or kind == "pred" else f"u{kind[1:]}"


# ---------------------------------------------------------------------------- integers


def _wide(kind: str) -> str:
    return f"{kind[0]}{2 * int(kind[1:])}"


def _high(a: Array, b: Array) -> Array:
    """The upper half of the product of two integers."""
    kind = a.dtype
    if kind.itemsize == 4:
        wide = np.dtype(f"{kind.kind}8")
        return ((a.astype(wide) * b.astype(wide)) >> wide.type(32)).astype(kind)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    x, y = a.view("u8"), b.view("u8")
    xl, xh, yl, yh = x & low, x >> half, y & low, y >> half
    middle = xh * yl + (xl * yl >> half)
    other = xl * yh + (middle & low)
    result = xh * yh + (middle >> half) + (other >> half)
    if kind.kind == "i":
        zero = np.uint64(0)
        result = result - np.where(a < 0, y, zero) - np.where(b < 0, x, zero)
    return result.view(kind)


def _product(parts: list[str], added: bool) -> Formula | None:
    kind = parts[-1]
    if is_float(kind):
        return None if added else Float(parts).make("mul")
    match parts[:-1]:
        case ["lo"]:
            form = _unsigned(kind)
            if added:
                return same(lambda a, b, c: a * b + c, form, 3)
            return same(lambda a, b: a * b, form, 2)
        case ["hi"] if size_of(kind) in (4, 8):
            if added:
                return same(lambda a, b, c: _high(a, b) + c, kind, 3)
            return same(_high, kind, 2)
        case ["wide"] if size_of(kind) < 8:
            wide = _wide(kind)
            as_wide = NUMPY[wide]
            if added:
                return Formula(
                    lambda a, b, c: a.astype(as_wide) * b.astype(as_wide) + c,
                    (kind, kind, wide),
                    wide,
                )
            return Formula(lambda a, b: a.astype(as_wide) * b.astype(as_wide), (kind, kind), wide)
    return None


def _quotient(a: Array, b: Array) -> Array:
    """Towards zero, as in C."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    return (a - np.fmod(a, safe)) // safe


def _division(parts: list[str]) -> Formula | None:
    if is_float(parts[-1]):
        return Float(parts).make("div")
    zero = (lambda a, b: np.broadcast_to(b == 0, np.broadcast_shapes(a.shape, b.shape))), "by zero"
    return Formula(_quotient, (parts[0],) * 2, parts[0], zero) if len(parts) == 1 else None


def _remainder(parts: list[str]) -> Formula | None:
    zero = (lambda a, b: np.broadcast_to(b == 0, np.broadcast_shapes(a.shape, b.shape))), "by zero"

    def remainder(a: Array, b: Array) -> Array:
        return np.fmod(a, np.where(b == 0, b.dtype.type(1), b))

    return Formula(remainder, (parts[0],) * 2, parts[0], zero) if len(parts) == 1 else None


def _sum(name: str, function: Callable[..., Array]) -> Callable[[list[str]], Formula | None]:
    def make(parts: list[str]) -> Formula | None:
        if is_float(parts[-1]):
            return Float(parts).make(name)
        return same(function, _unsigned(parts[0]), 2) if len(parts) == 1 else None

    return make


def _one(name: str, function: Callable[..., Array]) -> Callable[[list[str]], Formula | None]:
    def make(parts: list[str]) -> Formula | None:
        if is_float(parts[-1]):
            return Float(parts).make(name)
        return same(function, parts[0], 1) if len(parts) == 1 else None

    return make


def _extreme(name: str, function: Callable[..., Array]) -> Callable[[list[str]], Formula | None]:
    def make(parts: list[str]) -> Formula | None:
        if is_float(parts[-1]):
            return Float(parts).make(name)
        return same(function, parts[0], 2) if len(parts) == 1 else None

    return make


# ---------------------------------------------------------------------------- choosing, comparing

_ORDERED = {
    "eq": np.equal,
    "ne": lambda a, b: (a < b) | (a > b) if a.dtype.kind == "f" else a != b,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_UNSIGNED = {"lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal}
_JOINED = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _compare(parts: list[str]) -> Formula | None:
    """setp, with `ftz` and with one predicate more (.and, .or, .xor)."""
    relation, *others, kind = parts
    flush = "ftz" in others
    joined = [word for word in others if word in _JOINED]
    if [word for word in others if word != "ftz" and word not in _JOINED] or len(joined) > 1:
        return None
    base = _relation(relation, kind)
    if base is None:
        return None

    def compared(a: Array, b: Array) -> Array:
        return base(flushed(a), flushed(b)) if flush else base(a, b)

    if joined:
        join = _JOINED[joined[0]]
        return Formula(lambda a, b, p: join(compared(a, b), p), (kind, kind, "pred"), "pred")
    return Formula(compared, (kind, kind), "pred")


def _relation(name: str, kind: str) -> Callable[..., Array] | None:
    if not is_float(kind):
        return _ORDERED.get(name) or (_UNSIGNED.get(name) if kind.startswith("u") else None)
    if name in _ORDERED:
        return _ORDERED[name]

    def either_nan(a: Array, b: Array) -> Array:
        return np.isnan(a) | np.isnan(b)

    if name in ("nan", "num"):
        return either_nan if name == "nan" else lambda a, b: ~either_nan(a, b)
    ordered = _ORDERED.get(name.removesuffix("u"))
    return (lambda a, b: ordered(a, b) | either_nan(a, b)) if ordered else None


def _select(parts: list[str]) -> Formula | None:
    kind = parts[0]
    return Formula(lambda a, b, p: np.where(p, a, b), (kind, kind, "pred"), kind)


def _by_sign(parts: list[str]) -> Formula | None:
    """slct: a where c >= 0, else b (also where c is NaN)."""
    *others, kind, tested = parts
    if others not in ([], ["ftz"]):
        return None
    return Formula(lambda a, b, c: np.where(c >= 0, a, b), (kind, kind, tested), kind)


# ---------------------------------------------------------------------------- conversions


def _convert(parts: list[str]) -> Formula | None:
    *how, to, origin = parts
    if to == "tf32" or "rna" in how:
        if (to, origin) != ("tf32", "f32") or how not in (["rna"], ["rn"]):
            return None
        return Formula(lambda a: to_tf32(a, how[0]), (origin,), "b32")
    if to in ("f16x2", "bf16x2"):
        half = to.removesuffix("x2")
        if how != ["rn"] or origin != "f32":
            return None

        def packed(a: Array, b: Array) -> Array:
            """The first one goes to the upper half."""
            upper, lower = (half_bits(x, half).astype(np.uint32) for x in (a, b))
            return upper << np.uint32(16) | lower

        return Formula(packed, ("f32", "f32"), "b32")
    if is_float(to) or is_float(origin):
        return Float([*how, to]).convert(origin)
    if how:
        return None
    return Formula(lambda a: a.astype(NUMPY[to]), (origin,), to)


_MAKERS: dict[str, Callable[[list[str]], Formula | None]] = {
    "add": _sum("add", lambda a, b: a + b),
    "sub": _sum("sub", lambda a, b: a - b),
    "mul": lambda parts: _product(parts, added=False),
    "mad": lambda parts: _product(parts, added=True),
    "fma": lambda parts: Float(parts).make("fma"),
    "div": _division,
    "rem": _remainder,
    "neg": _one("neg", np.negative),
    "abs": _one("abs", np.abs),
    "min": _extreme("min", np.minimum),
    "max": _extreme("max", np.maximum),
    **{
        name: lambda parts, name=name: Float(parts).make(name)
        for name in ("rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh", "copysign")
    },
    "and": arithmetic_bits.logic(np.bitwise_and, 2),
    "or": arithmetic_bits.logic(np.bitwise_or, 2),
    "xor": arithmetic_bits.logic(np.bitwise_xor, 2),
    "not": arithmetic_bits.inverted,
    "shl": arithmetic_bits.shift(left=True),
    "shr": arithmetic_bits.shift(left=False),
    "bfi": arithmetic_bits.insert,
    "bfe": arithmetic_bits.extract,
    "brev": arithmetic_bits.turned_round,
    "popc": arithmetic_bits.count,
    "clz": lambda parts: Formula(arithmetic_bits.leading, (parts[0],), "u32"),
    "bfind": arithmetic_bits.find,
    "prmt": arithmetic_bits.permute,
    "shf": arithmetic_bits.funnel,
    "setp": _compare,
    "selp": _select,
    "slct": _by_sign,
    "cvt": _convert,
}
