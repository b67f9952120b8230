"""Floating point of arithmetic.py: roundings, subnormal numbers flushed to zero, conversions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.support.ptx.formula import Formula
from tests.support.ptx.types import NUMPY, is_float

__all__ = ["Float", "flushed", "half_bits", "to_tf32"]

Array = np.ndarray[Any, Any]
_ROUNDINGS = {"rn", "rz", "rm", "rp"}
_WHOLE = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
_SPLIT = 134217729.0  # 2^27 + 1, which halves the 53 bits of a float64


def flushed(a: Array) -> Array:
    """float32 with zeros, of the same sign, for subnormal numbers."""
    small = np.abs(a) < np.finfo(np.float32).tiny
    return np.where(small, np.copysign(np.float32(0), a), a)


def to_tf32(a: Array, rounding: str) -> Array:
    """To the nearest of 10 bits of mantissa, ties away from zero (rna) or to even (rn); the bits.
    Subnormal numbers stay."""
    bits = a.view(np.uint32)
    below_half, odd = np.uint32(0xFFF), (bits >> np.uint32(13)) & np.uint32(1)
    up = below_half + (np.uint32(1) if rounding == "rna" else odd)
    nearest = (bits + up) & np.uint32(0xFFFFE000)
    return np.where(np.isnan(a), np.uint32(0x7FFFFFFF), nearest)


def half_bits(a: Array, kind: str) -> Array:
    """float32 to the nearest float16 or bfloat16, ties to even; the bits."""
    if kind == "f16":
        return a.astype(np.float16).view(np.uint16)
    bits = a.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    upper = (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
    return np.where(np.isnan(a), np.uint16(0x7FFF), upper.astype(np.uint16))


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b rounded, and what is missing (Knuth, TAOCP 2, 4.2.2, theorem B)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """a b rounded, and what is missing (Dekker 1971)."""
    product = a * b
    x, y = a * _SPLIT, b * _SPLIT
    ah, bh = x - (x - a), y - (y - b)
    al, bl = a - ah, b - bh
    return product, ((ah * bh - product) + ah * bl + al * bh) + al * bl


def _fma64(a: Array, b: Array, c: Array) -> Array:
    product, low = _two_product(a, b)
    total, missing = _two_sum(product, c)
    exact = total + (missing + low)
    return np.where(np.isfinite(exact), exact, a * b + c)


def _to_single(value: Array, missing: Array | float, rounding: str) -> Array:
    """value + missing, the latter below the last place of the former, as float32."""
    near = value.astype(np.float32)
    if rounding == "rn":
        return near
    beyond = value - near
    beyond = np.where(beyond == 0, missing, beyond)
    down, up = np.float32(-np.inf), np.float32(np.inf)
    if rounding == "rm" or rounding == "rz":
        wrong = (beyond < 0) & ((rounding == "rm") | (near > 0))
        near = np.where(wrong, np.nextafter(near, down), near)
    if rounding == "rp" or rounding == "rz":
        wrong = (beyond > 0) & ((rounding == "rp") | (near < 0))
        near = np.where(wrong, np.nextafter(near, up), near)
    return near


def _exact(name: str, *numbers: Array) -> tuple[Array, Array | float]:
    """A result of float32 numbers in float64, and what is missing."""
    a, *others = (number.astype(np.float64) for number in numbers)
    match name:
        case "add":
            return _two_sum(a, others[0])
        case "sub":
            return _two_sum(a, -others[0])
        case "mul":
            return a * others[0], 0.0
    return _two_sum(a * others[0], others[1])


_NEAREST: dict[str, tuple[int, Callable[..., Array]]] = {
    "add": (2, lambda a, b: a + b),
    "sub": (2, lambda a, b: a - b),
    "mul": (2, lambda a, b: a * b),
    "div": (2, lambda a, b: a / b),
    "rcp": (1, lambda a: a.dtype.type(1) / a),
    "sqrt": (1, np.sqrt),
}
#: these have no rounding; `approx` ones are worked out in float64
_APPROXIMATE: dict[str, Callable[[Array], Array]] = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}
#: of the sign and of the choice alone; copysign takes the first one's sign
_PLAIN: dict[str, tuple[int, Callable[..., Array]]] = {
    "neg": (1, np.negative),
    "abs": (1, np.abs),
    "min": (2, np.fmin),
    "max": (2, np.fmax),
    "copysign": (2, lambda a, b: np.copysign(b, a)),
}


class Float:
    """An instruction's modifiers and type."""

    def __init__(self, parts: list[str]) -> None:
        self.kind = parts[-1]
        self.words = set(parts[:-1])
        rounding = self.words & _ROUNDINGS
        self.rounding = rounding.pop() if len(rounding) == 1 else "rn"
        self.ftz, self.sat = "ftz" in self.words, "sat" in self.words
        self.approximate = bool(self.words & {"approx", "full"})
        self.other = self.words - _ROUNDINGS - {"ftz", "sat", "approx", "full"}

    def make(self, name: str) -> Formula | None:
        """An arithmetic instruction of float32 or float64."""
        if self.other or self.kind not in ("f32", "f64"):
            return None
        found = self._single(name) if self.kind == "f32" else self._double(name)
        if found is None:
            return None
        count, function = found
        return Formula(self._wrapped(function), (self.kind,) * count, self.kind)

    def _wrapped(self, function: Callable[..., Array]) -> Callable[..., Array]:
        """With subnormal numbers flushed and the result clamped, as far as it says so."""
        if self.kind == "f64" or not (self.ftz or self.sat):
            return function

        def wrapped(*numbers: Array) -> Array:
            result = function(*map(flushed, numbers)) if self.ftz else function(*numbers)
            if self.sat:
                result = np.fmin(np.fmax(result, np.float32(0)), np.float32(1))  # NaN: 0
            return flushed(result) if self.ftz else result

        return wrapped

    def _single(self, name: str) -> tuple[int, Callable[..., Array]] | None:
        if name in _PLAIN:
            return None if self.approximate else _PLAIN[name]
        if name in _APPROXIMATE and self.approximate:
            exact = _APPROXIMATE[name]
            return 1, lambda a: exact(a.astype(np.float64)).astype(np.float32)
        if name == "fma":
            return 3, lambda *n: _to_single(*_exact("fma", *n), self.rounding)
        if name not in _NEAREST:
            return None
        if self.rounding == "rn":
            return _NEAREST[name]
        if name in ("add", "sub", "mul"):
            return 2, lambda *n: _to_single(*_exact(name, *n), self.rounding)
        return None

    def _double(self, name: str) -> tuple[int, Callable[..., Array]] | None:
        if name in _PLAIN:
            return _PLAIN[name]
        if self.rounding != "rn":
            return None
        if self.approximate:  # rcp.approx.ftz.f64: only the upper half of the result is there
            function = {"rcp": lambda a: 1 / a, "rsqrt": lambda a: 1 / np.sqrt(a)}.get(name)
            return function and (1, lambda a: _upper_half(function(_upper_half(a))))
        return (3, _fma64) if name == "fma" else _NEAREST.get(name)

    def convert(self, origin: str) -> Formula | None:
        """cvt to the type of this, or from a floating one."""
        whole = self.other & set(_WHOLE)
        if self.other - whole or self.approximate:
            return None
        function = self._converted(origin, _WHOLE[whole.pop()] if whole else None)
        return Formula(function, (origin,), self.kind) if function else None

    def _converted(self, origin: str, whole: Any) -> Callable[[Array], Array] | None:
        to = self.kind
        if not is_float(to):
            return self._to_integer(whole) if whole and not origin.startswith("b") else None
        if not is_float(origin):
            return self._from_integer(origin) if self.words & _ROUNDINGS and not whole else None
        if to == origin == "f32":
            function = whole or (lambda a: a)
            return self._wrapped(function) if whole or self.sat else None
        if whole or self.sat:
            return None
        if (to, origin) in (("f32", "f64"), ("f16", "f64")):
            if to == "f32":
                narrow = lambda a: _to_single(a, 0.0, self.rounding)  # noqa: E731
                return (lambda a: flushed(narrow(a))) if self.ftz else narrow
            return lambda a: a.astype(np.float16)
        if (to, origin) == ("f64", "f32"):
            return lambda a: (flushed(a) if self.ftz else a).astype(np.float64)
        if (to, origin) == ("f32", "bf16"):
            return lambda a: (a.astype(np.uint32) << np.uint32(16)).view(np.float32)
        if origin == "f16" and to in ("f32", "f64"):
            return lambda a: a.astype(NUMPY[to])
        if origin == "f32" and to in ("f16", "bf16") and self.rounding == "rn":
            return lambda a: half_bits(a, to).view(NUMPY[to])
        return None

    def _from_integer(self, origin: str) -> Callable[[Array], Array] | None:
        if self.kind == "bf16":
            return _to_bfloat16 if self.rounding == "rn" and "64" not in origin else None
        if self.kind == "f16":
            return lambda a: a.astype(np.float64).astype(np.float16)
        if self.rounding == "rn":
            return lambda a: a.astype(NUMPY[self.kind])
        if self.kind == "f32" and "64" not in origin:
            return lambda a: _to_single(a.astype(np.float64), 0.0, self.rounding)
        return None

    def _to_integer(self, whole: Callable[[Array], Array]) -> Callable[[Array], Array]:
        """The nearest number that there is; NaN becomes zero."""
        kind = NUMPY[self.kind]
        limits = np.iinfo(kind)

        def integer(a: Array) -> Array:
            number = whole((flushed(a) if self.ftz else a).astype(np.float64))
            inside = (number >= limits.min) & (number < float(limits.max) + 1)
            result = np.where(inside, number, 0).astype(kind)
            result = np.where(number >= float(limits.max) + 1, kind(limits.max), result)
            return np.where(number < limits.min, kind(limits.min), result)

        return integer


def _to_bfloat16(a: Array) -> Array:
    """Of integers: cut to float32, of which the last bit says whether something was cut off."""
    exact = a.astype(np.float64)
    cut = _to_single(exact, 0.0, "rz")
    bits = cut.view(np.uint32) | (cut != exact).astype(np.uint32)
    return half_bits(bits.view(np.float32), "bf16")


def _upper_half(a: Array) -> Array:
    return (a.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)
