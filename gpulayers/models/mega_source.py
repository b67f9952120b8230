"""The kernel that trains a small network for many steps in one launch, written from its stages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpulayers.cuda.compile import load_source
from gpulayers.cuda.mega_constants import PART, TILE
from gpulayers.models.mega_stages import Constants, Conv, Dense, Layout, Stage, lay_out

__all__ = ["Program", "write"]


@dataclass(frozen=True)
class Program:
    """A kernel's source, and what a launch of it needs."""

    source: str
    layout: Layout

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return 4 * self.layout.shared


def write(image: tuple[int, int, int], stages: Sequence[Stage], pixel: str, mean: bool) -> Program:
    """Return the kernel for a network.

    Parameters
    ----------
    image : (rows, cols, channels) of an example; one of another rank as (1, 1, numbers)
    stages : Conv and Dense, the last one dense
    pixel : "float" or "unsigned char"
        What the images hold.
    mean : bool
        Whether the loss is the examples' mean, not their sum.
    """
    layout = lay_out(image, stages)
    updates, count = _updates(stages)
    parts = {
        "constants": [
            f"using Pixel = {pixel};",
            f"constexpr int SHARED = {layout.shared}, SCRATCH = {layout.scratch};",
            f"constexpr int SAVED = {layout.saved}, PARTIAL = {layout.partial};",
            f"constexpr int UPDATES = {count};",
            f"constexpr bool MEAN = {str(mean).lower()};",
            *_structure("Image", {**layout.image, "size": image[0] * image[1] * image[2]}),
            *(line for i, own in enumerate(layout.stages) for line in _structure(f"Stage{i}", own)),
            f"using Last = Stage{len(stages) - 1};",
        ],
        "load": [f"conv_load<Stage{i}>(shared, param);" for i in _convolutions(stages)],
        "forward": list(_forward(stages)),
        "backward": list(_backward(stages)),
        "give": [
            f"conv_give_sums<Stage{i}>(shared, partials + blockIdx.x * PARTIAL);"
            for i in _convolutions(stages)
        ],
        "drawn": [f"drawn += {_masks(stages)};"] if any(s.drop for s in stages) else [],
        "update": updates,
    }

    def put(match: re.Match[str]) -> str:
        return "\n".join(match[1] + line for line in parts[match[2]])

    text = re.sub(r"^( *)//: (\w+)$", put, load_source("mega_kernel.cuh"), flags=re.M)
    return Program(text, layout)


def _structure(name: str, constants: Constants) -> list[str]:
    lines = [f"    static constexpr {_literal(key, value)};" for key, value in constants.items()]
    return [f"struct {name} {{", *lines, "};"]


def _literal(key: str, value: float | str) -> str:
    return f"float {key} = {value.hex()}f" if isinstance(value, float) else f"int {key} = {value}"


def _convolutions(stages: Sequence[Stage]) -> list[int]:
    return [i for i, stage in enumerate(stages) if isinstance(stage, Conv)]


_BARRIER = "__syncthreads();"


def _forward(stages: Sequence[Stage]) -> Iterator[str]:
    for i, stage in enumerate(stages):
        if stage.drop:
            begin = " + ".join(("drawn", *_masks_of(stages[:i])))
            yield f"drop<Stage{i}>(shared, draws, {begin}, example);"
            yield _BARRIER
        if isinstance(stage, Conv):
            yield f"conv_forward<Stage{i}>(shared);"
        else:
            yield f"dense_forward<Stage{i}>(shared, param);"
        yield _BARRIER


def _masks(stages: Sequence[Stage]) -> str:
    """The blocks of random numbers that a step takes for dropout."""
    return " + ".join(_masks_of(stages))


def _masks_of(stages: Sequence[Stage]) -> list[str]:
    return [f"masks<Stage{i}>(examples)" for i, stage in enumerate(stages) if stage.drop]


def _backward(stages: Sequence[Stage]) -> Iterator[str]:
    for i in reversed(range(len(stages))):
        if isinstance(stages[i], Dense):
            yield f"dense_save<Stage{i}>(shared, own);"
            if i > 0:
                yield f"dense_input_grad<Stage{i}>(shared, param);"
        else:
            yield f"conv_weight_sums<Stage{i}>(shared);"
            if i > 0:
                yield f"conv_spread<Stage{i}>(shared);"
                yield _BARRIER
                yield f"conv_input_grad<Stage{i}>(shared);"
        yield _BARRIER


def _updates(stages: Sequence[Stage]) -> tuple[list[str], int]:
    """What is updated, each piece by the next block, and how many pieces there are."""
    lines: list[str] = []
    begin = 0
    for i, stage in enumerate(stages):
        if isinstance(stage, Dense):
            count = -(-stage.inputs // TILE[0]) * -(-stage.outputs // TILE[1])
            call = f"dense_update<Stage{i}>(shared, saved, SAVED, examples"
        else:
            count = -(-(stage.weights + stage.filters) // PART)
            call = f"conv_update<Stage{i}>(shared, partials, PARTIAL, blocks"
        lines.append(f"if (unit >= {begin} && unit < {begin + count}) {call}, unit - {begin}, u);")
        begin += count
    return lines, begin
