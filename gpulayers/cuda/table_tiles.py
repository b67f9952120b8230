"""The products of gemm.cu, conv.cu, conv_step.cu and sequence_plan.cu, by tile.

A tile is the part of a product that a block of 256 threads works out (tile.cuh, large.cuh,
pipeline.cuh, group.cuh). A product goes by the tile that `gpulayers.cuda.product.tile_of`
chooses, or by the one that was measured fastest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from gpulayers.cuda.spec import C_TYPES, MOST_BLOCKS, KernelSpec

__all__ = [
    "BATCHES_WITHOUT",
    "CORES",
    "FORMS",
    "REACH",
    "TENSOR_CORES",
    "TILES",
    "WARPGROUPS",
    "Tile",
    "stage_bytes",
    "tiled",
]

#: the compute capability from which the tensor cores take TF32, bfloat16 and float16 as they are
#: given here
TENSOR_CORES = 80
#: the one whose warpgroups multiply from shared memory
WARPGROUPS = 90


class Tile(NamedTuple):
    """One tile.

    Attributes
    ----------
    name : str
        Of its structure in the sources.
    rows, cols : int
        What it has of the product.
    dtypes : tuple of str
        Of the factors.
    tensor : bool
        Whether it is worked out by tensor cores, which round float32 to TF32.
    runs : bool
        Whether the factors have to come in whole runs of 16 bytes.
    stages : int
        Of a pipeline, that shared memory holds at once (pipeline.cuh, group.cuh).
    row : int
        Bytes of a factor's line that a stage has.
    only : int
        As `KernelSpec` has it: by warpgroups.
    """

    name: str
    rows: int
    cols: int
    dtypes: tuple[str, ...]
    tensor: bool = False
    runs: bool = False
    stages: int = 0
    row: int = 64
    only: int = 0


_ALL = tuple(C_TYPES)
#: the dtypes that tensor cores take
CORES = ("float32", "float16", "bfloat16")


def _by_groups(name: str, cols: int, stages: int) -> Tile:
    """Of half types, on the one capability that has such instructions."""
    return Tile(
        name,
        rows=256,
        cols=cols,
        dtypes=("float16", "bfloat16"),
        tensor=True,
        runs=True,
        stages=stages,
        row=128,
        only=WARPGROUPS,
    )


#: suffix of a kernel's name -> its tile; the last two are tried only where `product` is told to
TILES = {
    "": Tile("Wide", 64, 64, _ALL),
    "_narrow": Tile("Narrow", 256, 16, ("float32",)),
    "_tall": Tile("Tall", 256, 64, ("float32",), runs=True),
    "_large": Tile("Large", 128, 128, ("float32",), runs=True),
    "_tensor": Tile("Tensor", 128, 64, CORES, tensor=True, runs=True, stages=3),
    "_tensor_large": Tile("TensorLarge", 128, 128, CORES, tensor=True, runs=True, stages=4),
    "_tensor_tall": Tile("TensorTall", 256, 32, CORES, tensor=True, runs=True, stages=3),
    "_warpgroup": _by_groups("Warpgroup", cols=64, stages=4),
    "_warpgroup_large": _by_groups("WarpgroupLarge", cols=128, stages=3),
}
#: columns of a product that the blocks of a grid reach along y, by any tile
REACH = MOST_BLOCKS[1] * min(tile.cols for tile in TILES.values())


#: bytes of a run, those of the codes that may come with one (which of a pooling window's four has
#: won), and those at multiples of which a warpgroup's stages begin
_RUN, _CODES, _PATTERN = 16, 8, 1024
#: how the factors of `gemm` lie, by the layouts of its matrices (t: transposed): kernels of their
#: own for tensor cores, as both lie otherwise, both are laid out anew
FORMS = {"_nn": "Terms, Lines", "_nt": "Terms, Terms", "_tn": "Lines, Lines"}
#: the tiles that products of many small pairs of matrices have no kernels for
BATCHES_WITHOUT = tuple(suffix for suffix in TILES if suffix not in ("", "_tensor"))


def stage_bytes(tile: Tile, codes: bool) -> int:
    """The shared memory of all stages of a tile; `codes`: a factor may be a pooled gradient."""
    runs = max(tile.rows, tile.cols) * tile.row // _RUN
    stage = (tile.rows + tile.cols) * tile.row + codes * runs * _CODES
    return tile.stages * stage + (_PATTERN if tile.only else 0)


def tiled(
    name: str,
    file: str,
    parameters: tuple[str, ...],
    without: tuple[str, ...] = (),
    counts: bool = False,
    codes: bool = False,
    forms: Mapping[str, str] | None = None,
) -> Iterator[KernelSpec]:
    """The specs of a kernel for all tiles but those `without`.

    `counts` as `KernelSpec` has it, `codes` as `stage_bytes`; by `forms` there are several for
    tensor cores, whose names go on so.
    """
    for suffix, tile in TILES.items():
        if suffix in without:
            continue
        for form, lying in (forms if tile.tensor and forms else {"": ""}).items():
            yield KernelSpec(
                name + form + suffix,
                file,
                f"{name}<{', '.join(filter(None, ('{T}', '{Acc}', tile.name, lying)))}>",
                parameters,
                dtypes=tile.dtypes,
                shared=stage_bytes(tile, codes),
                barriers=True,
                counts=counts,
                oldest=TENSOR_CORES if tile.tensor else 0,
                only=tile.only,
                runs=tile.runs,
            )
