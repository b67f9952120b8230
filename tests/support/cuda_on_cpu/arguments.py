"""Checks kernel arguments against the parameter types and turns them into C pointers.

``cupy.RawKernel`` checks nothing: it passes a NumPy scalar with its own size, a Python int as 8
bytes and a Python float as a double. What CuPy would pass as the wrong bytes is refused here.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.support.cuda_on_cpu.errors import LaunchError

SCALAR_DTYPES = {
    "float": "f4",
    "double": "f8",
    "__half": "f2",
    "__nv_bfloat16": "bfloat16",
    "bool": "?",
    "char": "i1",
    "signed char": "i1",
    "unsigned char": "u1",
    "short int": "i2",
    "short unsigned int": "u2",
    "int": "i4",
    "unsigned int": "u4",
    "long int": "i8",
    "long unsigned int": "u8",
    "long long int": "i8",
    "long long unsigned int": "u8",
}
# Vector type: element type and alignment in bytes.
VECTOR_TYPES = {
    "float2": ("float", 8),
    "float3": ("float", 4),
    "float4": ("float", 16),
    "double2": ("double", 16),
    "int2": ("int", 8),
    "int4": ("int", 16),
    "uint2": ("unsigned int", 8),
    "uint4": ("unsigned int", 16),
    "uchar4": ("unsigned char", 4),
    "__half2": ("__half", 4),
    "__nv_bfloat162": ("__nv_bfloat16", 4),
}


class PointerArgument(ctypes.Structure):
    """``EmuArgument`` of runtime.h."""

    _fields_ = (
        ("base", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("element_shift", ctypes.c_int32),
        ("position", ctypes.c_int32),
        ("written", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Parameter:
    """A parameter of a kernel: its C++ type and size in bytes."""

    type: str
    size: int

    @property
    def is_pointer(self) -> bool:
        return self.type.rstrip().removesuffix("__restrict__").rstrip().endswith("*")

    @property
    def is_const(self) -> bool:
        return "const" in self.type

    @property
    def base(self) -> str:
        """The type without pointer and qualifiers."""
        return " ".join(re.sub(r"\b(const|volatile)\b|\*|__restrict__", " ", self.type).split())


def parse_signature(text: str, sizes: Sequence[int]) -> list[Parameter]:
    """Parameters from the text ``... [with Parameter = {const float*, int}]`` that g++ gives."""
    listed = re.search(r"Parameter = \{(.*)\}\]", text)
    types, depth, word = [], 0, ""
    for character in listed[1] if listed else "":
        depth += (character == "<") - (character == ">")
        if character == "," and depth == 0:
            types.append(word)
            word = ""
        else:
            word += character
    if word.strip():
        types.append(word)
    cleaned = [name.replace("{anonymous}::", "").strip() for name in types]
    return [Parameter(name, size) for name, size in zip(cleaned, sizes, strict=True)]


class PreparedArguments:
    """Arguments in the form the runtime takes; keeps alive what the pointers point to."""

    def __init__(self, count: int) -> None:
        self.values = (ctypes.c_void_p * max(count, 1))()
        self.pointers: list[PointerArgument] = []
        self._kept: list[object] = []

    def put(self, position: int, value: NDArray[np.generic] | ctypes.c_void_p) -> None:
        self._kept.append(value)
        is_array = isinstance(value, np.ndarray)
        self.values[position] = value.ctypes.data if is_array else ctypes.addressof(value)

    def put_array(self, position: int, array: NDArray[np.generic], uninitialised: bool) -> None:
        self.put(position, ctypes.c_void_p(array.ctypes.data))
        written = None
        if uninitialised:
            flags = np.zeros(max(array.size, 1), np.uint8)
            self._kept.append(flags)
            written = flags.ctypes.data
        shift = max(array.itemsize.bit_length() - 1, 0)
        self.pointers.append(
            PointerArgument(array.ctypes.data, array.nbytes, shift, position, written)
        )


def prepare(
    kernel: str,
    parameters: Sequence[Parameter],
    arguments: Sequence[object],
    *,
    allow_alias: bool,
    uninitialised: Collection[int],
) -> PreparedArguments:
    """Checks every argument and packs them.

    Raises:
        LaunchError: naming the kernel, the argument, and what it should have been.
    """
    if len(arguments) != len(parameters):
        listed = ", ".join(parameter.type for parameter in parameters)
        raise LaunchError(
            f"{kernel}: takes {len(parameters)} arguments ({listed}), {len(arguments)} given"
        )
    prepared = PreparedArguments(len(arguments))
    for position, (parameter, argument) in enumerate(zip(parameters, arguments, strict=True)):
        where = f"{kernel}: argument {position}"
        if not parameter.is_pointer:
            prepared.put(position, _scalar(where, parameter, argument))
        elif argument is None:
            prepared.put(position, ctypes.c_void_p(0))
        else:
            array = _array(where, parameter, argument)
            if position in uninitialised:
                array.view(np.uint8)[...] = (
                    0xCB  # garbage, so that a read of it also spoils the result
                )
            prepared.put_array(position, array, position in uninitialised)
    if not allow_alias:
        _refuse_overlap(kernel, parameters, prepared.pointers)
    return prepared


def _array(where: str, parameter: Parameter, argument: object) -> NDArray[np.generic]:
    if not isinstance(argument, np.ndarray):
        raise LaunchError(
            f"{where} is {type(argument).__name__}, the parameter is {parameter.type}"
        )
    element, alignment = VECTOR_TYPES.get(parameter.base, (parameter.base, 1))
    wanted = SCALAR_DTYPES.get(element)
    if wanted and not _same_dtype(argument.dtype, wanted):
        raise LaunchError(f"{where} has dtype {argument.dtype}, the parameter is {parameter.type}")
    if not argument.flags.c_contiguous:
        raise LaunchError(f"{where} is not C-contiguous; a kernel sees only the pointer")
    if argument.ctypes.data % alignment:
        raise LaunchError(
            f"{where} is not aligned to {alignment} bytes, the parameter is {parameter.type}"
        )
    if not argument.flags.writeable and not parameter.is_const:
        raise LaunchError(f"{where} is a read-only array, the parameter is {parameter.type}")
    return argument


def _same_dtype(dtype: np.dtype[np.generic], wanted: str) -> bool:
    if wanted == "bfloat16":  # NumPy has none of its own: ml_dtypes.bfloat16, or the bits
        return dtype.name in ("bfloat16", "uint16")
    return dtype == np.dtype(wanted)


def _scalar(where: str, parameter: Parameter, argument: object) -> NDArray[np.generic]:
    wrong = LaunchError(
        f"{where} is {type(argument).__name__}, the parameter is {parameter.type}: "
        "CuPy would pass the wrong bytes"
    )
    wanted = SCALAR_DTYPES.get(parameter.base)
    if wanted is None:  # a structure, passed by value
        if not isinstance(argument, np.void) or argument.nbytes != parameter.size:
            raise wrong
        return np.array(argument)
    if wanted == "bfloat16":
        if not isinstance(argument, np.generic) or not _same_dtype(argument.dtype, wanted):
            raise wrong
        return np.array(argument)
    dtype = np.dtype(wanted)
    if isinstance(argument, bool):
        fits = dtype.kind == "b"
    elif isinstance(argument, int):
        fits = dtype.kind in "iu"
    elif isinstance(argument, np.generic):
        wider_integer = (
            argument.dtype.kind in "iu"
            and dtype.kind in "iu"
            and argument.dtype.itemsize >= dtype.itemsize
        )
        fits = wider_integer or (
            argument.dtype.kind == dtype.kind and argument.dtype.itemsize == dtype.itemsize
        )
    else:
        fits = isinstance(argument, float) and dtype == np.float64
    if not fits:
        raise wrong
    if dtype.kind in "iu":
        limits, number = np.iinfo(dtype), int(argument)  # pyright: ignore[reportArgumentType]
        if not limits.min <= number <= limits.max:
            raise LaunchError(f"{where} = {number} does not fit {parameter.type}")
    return np.array(argument, dtype)


def _refuse_overlap(
    kernel: str, parameters: Sequence[Parameter], pointers: Sequence[PointerArgument]
) -> None:
    for number, one in enumerate(pointers):
        for other in pointers[:number]:
            apart = one.base >= other.base + other.bytes or other.base >= one.base + one.bytes
            both_read = parameters[one.position].is_const and parameters[other.position].is_const
            if not (apart or both_read):
                raise LaunchError(
                    f"{kernel}: arguments {other.position} and {one.position} overlap"
                )
