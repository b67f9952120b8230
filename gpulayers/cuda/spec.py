"""What a launcher needs to know of a kernel, and the C++ types of its instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpulayers.errors import BackendError

#: dtype name -> (storage type, arithmetic type) in CUDA C++
C_TYPES = {
    "float32": ("float", "float"),
    "float64": ("double", "double"),
    "float16": ("__half", "float"),
    "bfloat16": ("__nv_bfloat16", "float"),
}
ITEM_SIZE = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
#: index name -> C++ type
INDEX_TYPES = {"int32": "int", "int64": "long long"}
#: bytes of one vector load
VECTOR_BYTES = 16
#: largest count of elements that 32-bit indices reach; the last block may overhang by its size
INT32_LIMIT = 2**31 - 1 - 1024
#: blocks of a grid along x, y and z at most
MOST_BLOCKS = (2**31 - 1, 65535, 65535)
#: kinds of kernel parameters: an array, a number of type Index, int, Acc or unsigned 64-bit
ARRAY, INDEX, INT, REAL, WORD = "array", "index", "int", "real", "word"

#: WINDOW_PARAMETERS of window.cuh, in their order
WINDOW_NAMES = (
    *("rows", "cols", "channels", "out_rows", "out_cols", "kernel_rows", "kernel_cols"),
    *("stride_rows", "stride_cols", "pad_top", "pad_left", "dilation_rows", "dilation_cols"),
)
WINDOW = (INT,) * len(WINDOW_NAMES)


@dataclass(frozen=True)
class KernelSpec:
    """One kernel as a launcher sees it.

    Attributes
    ----------
    name : str
        The launchers' and tests' name for it.
    file : str
        Source file in this folder.
    template : str
        Name expression with the fields {T}, {Acc}, {Index} and {Vec}.
    parameters : tuple of str
        Kinds of the parameters, in order.
    block : int
        Threads a block (blocks are one-dimensional).
    dtypes : tuple of str
        Storage types it is instantiated for.
    shared : int
        Bytes of dynamic shared memory.
    barriers, atomics : bool
        Whether the kernel waits at barriers, and whether it adds by atomics (then its sums differ
        in the last bits from run to run).
    counts : bool
        Whether it counts blocks by atomics, to know the last one; its sums are always the same.
    cooperative : bool
        Whether blocks wait for one another, so that all of them have to run at the same time; they
        count on atomics, but sum nothing up with them.
    oldest : int
        The compute capability that it needs, 80 for 8.0; 0: any.
    only : int
        The one compute capability that it runs on, whose own instructions it has (90: it is
        compiled for sm_90a); 0: any.
    runs : bool
        Whether its factors have to come in whole runs of 16 bytes, at addresses that are multiples
        of that.
    """

    name: str
    file: str
    template: str
    parameters: tuple[str, ...]
    block: int = 256
    dtypes: tuple[str, ...] = tuple(C_TYPES)
    shared: int = 0
    barriers: bool = False
    atomics: bool = False
    counts: bool = False
    cooperative: bool = False
    oldest: int = 0
    only: int = 0
    runs: bool = False

    def expression(self, dtype: str, index: str) -> str:
        """Return the C++ name expression of one instance, say ``im2col<float, int, 4>``.

        Raises
        ------
        BackendError
            If the kernel has no instance for `dtype`.
        """
        if dtype not in self.dtypes:
            raise BackendError(
                f"kernel {self.name}: no instance for {dtype}, expected one of {self.dtypes}"
            )
        storage, arithmetic = C_TYPES[dtype]
        return self.template.format(
            T=storage,
            Acc=arithmetic,
            Index=INDEX_TYPES[index],
            Vec=VECTOR_BYTES // ITEM_SIZE[dtype],
        )

    def runs_on(self, capability: int) -> bool:
        """Whether a device of this compute capability, 90 for 9.0, can run it."""
        return capability >= self.oldest and self.only in (0, capability)

    @property
    def instances(self) -> tuple[str, ...]:
        """All name expressions."""
        return tuple(dict.fromkeys(self.expression(d, i) for d in self.dtypes for i in INDEX_TYPES))

    def pack(self, dtype: str, index: str, args: Sequence[Any]) -> tuple[Any, ...]:
        """Convert the numbers among `args` to the exact types of the kernel's parameters.

        (CuPy hands a Python float to a kernel as a double and an int as 64 bits: the wrong bytes
        for a ``float`` or ``int`` parameter.)

        Raises
        ------
        BackendError
            If the count is wrong, or a number does not fit its parameter or is more than 32 bits
            count.
        """
        if len(args) != len(self.parameters):
            raise BackendError(
                f"kernel {self.name}: expected {len(self.parameters)} arguments, got {len(args)}"
            )
        types = {
            INDEX: np.int32 if index == "int32" else np.int64,
            INT: np.int32,
            REAL: np.float64 if dtype == "float64" else np.float32,
            WORD: np.uint64,
        }
        # a kernel counts past the end of what it counts in 32 bits, by a block at most
        short = (INT,) if index == "int64" else (INT, INDEX)
        packed: list[Any] = []
        for kind, arg in zip(self.parameters, args, strict=True):
            try:
                packed.append(arg if kind == ARRAY else types[kind](arg))
                fits = kind not in short or arg <= INT32_LIMIT
            except (OverflowError, TypeError, ValueError) as error:
                raise self._unfit(len(packed), arg, args, str(error)) from error
            if not fits:
                raise self._unfit(len(packed) - 1, arg, args, f"more than {INT32_LIMIT}")
        return tuple(packed)

    def _unfit(self, number: int, arg: Any, args: Sequence[Any], why: str) -> BackendError:
        pairs = zip(self.parameters, args, strict=True)
        shapes = [getattr(value, "shape", value) for kind, value in pairs if kind == ARRAY]
        return BackendError(
            f"kernel {self.name}: bad argument {number}, {arg!r}: {why}; arrays of shapes {shapes}"
        )

    def check_grid(self, grid: Sequence[int]) -> None:
        """Raise a BackendError for more blocks than CUDA takes."""
        if any(n > most for n, most in zip(grid, MOST_BLOCKS, strict=False)):
            raise BackendError(
                f"kernel {self.name}: a grid may have {MOST_BLOCKS} blocks, got {tuple(grid)}"
            )
