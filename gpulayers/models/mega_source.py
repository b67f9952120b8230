"""The kernel that trains a small network for many steps in one launch, written from its stages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from gpulayers.cuda.compile import load_source
from gpulayers.cuda.mega_constants import PART, TILE
from gpulayers.models.mega_layout import Constants, Layout, lay_out, splits
from gpulayers.models.mega_stages import Conv, Dense, Norm, Stage

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
    stages : Conv, Dense and Norm, the last one dense
    pixel : "float" or "unsigned char"
        What the images hold.
    mean : bool
        Whether the loss is the examples' mean, not their sum.
    """
    layout = lay_out(image, stages)
    lines = _Lines(stages)
    updates, count = lines.updates()
    parts = {
        "constants": [
            f"using Pixel = {pixel};",
            f"constexpr int SHARED = {layout.shared}, SCRATCH = {layout.scratch};",
            f"constexpr int SAVED = {layout.saved}, STATE = {layout.state};",
            f"constexpr int PARTIAL = {layout.partial}, UPDATES = {count};",
            f"constexpr bool MEAN = {str(mean).lower()}, PARTS = {str(lines.has_parts).lower()};",
            *_structure("Image", {**layout.image, "size": image[0] * image[1] * image[2]}),
            *(line for i, own in enumerate(layout.stages) for line in _structure(f"Stage{i}", own)),
            f"using Last = Stage{len(stages) - 1};",
        ],
        "load": list(lines.load()),
        "before": list(lines.before()),
        "forward": list(lines.last_forward()),
        "backward": list(lines.last_backward()),
        "after": list(lines.after()),
        "give": list(lines.give()),
        "drawn": [f"drawn += {' + '.join(_masks(stages))};"] if any(_masks(stages)) else [],
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


def _masks(stages: Sequence[Stage]) -> list[str]:
    """The blocks of random numbers that a step takes for dropout."""
    return [f"masks<Stage{i}>(examples)" for i, stage in enumerate(stages) if stage.drop]


_BARRIER = "__syncthreads();"
_LOOP = (
    "for (int example = blockIdx.x, turn = 0; example < examples; example += gridDim.x, ++turn) {"
)
_OWN = "    float* own = saved + static_cast<long long>(example) * SAVED;"


class _Lines:
    """The lines of the kernel that depend on the stages.

    Batch normalisation cuts the network into parts: all examples go through one, then the blocks
    meet. The last part is gone through forward and backward at once.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = stages
        #: nothing before it needs a gradient
        self._first = next(i for i, stage in enumerate(stages) if not stage.frozen)
        starts = [0, *(i for i, stage in enumerate(stages) if splits(stage))]
        self._parts = [range(*ends) for ends in pairwise([*starts, len(stages)])]

    @property
    def has_parts(self) -> bool:
        return len(self._parts) > 1

    def load(self) -> Iterator[str]:
        """What the step needs of the parameters in shared memory."""
        for i, stage in enumerate(self._stages):
            if isinstance(stage, Conv):
                yield f"conv_load<Stage{i}>(shared, {_home(stage)});"
            elif isinstance(stage, Norm):
                yield f"norm_load<Stage{i}>(shared, {_home(stage)}, still);"

    def before(self) -> Iterator[str]:
        """Forward through all parts but the last one."""
        for part in self._parts[:-1]:
            norm, begin = f"Stage{part.stop}", f"Stage{part.start}::input"
            yield from (_LOOP, _OWN)
            lines = [
                *self._begin(part),
                *self._forward(part),
                f"norm_moments<{norm}>(shared, turn);",
                f"if (several) put_away<{begin}, {norm}::input_end>(shared, own + STATE);",
                _BARRIER,
            ]
            if part.start == 0:
                next_one = "example + gridDim.x"
                lines += [f"if ({next_one} < examples) fetch(from + {next_one});", _BARRIER]
            yield from _indented(lines)
            yield from (
                "}",
                f"norm_give_moments<{norm}>(shared, partials + blockIdx.x * PARTIAL);",
                "meet();",
                f"norm_statistics<{norm}>(shared, partials, PARTIAL, blocks, examples, still);",
                _BARRIER,
            )

    def last_forward(self) -> Iterator[str]:
        yield from self._begin(self._parts[-1])
        yield from self._forward(self._parts[-1])

    def last_backward(self) -> Iterator[str]:
        last = self._parts[-1]
        yield from self._backward(last)
        if last.start:
            own = f"Stage{last.start}"
            yield f"if (several) put_away<{own}::input_end, {own}::held_end>(shared, own + STATE);"

    def after(self) -> Iterator[str]:
        """Backward through the other parts."""
        for part in reversed(self._parts[:-1]):
            norm, begin = f"Stage{part.stop}", f"Stage{part.start}::input"
            yield f"norm_give_sums<{norm}>(shared, partials + blockIdx.x * PARTIAL);"
            if part.stop == self._first:
                return
            yield from (
                "meet();",
                f"norm_means<{norm}>(shared, partials, PARTIAL, blocks, examples);",
                _BARRIER,
            )
            yield from (_LOOP, _OWN, "    if (several) {")
            yield from _indented(
                [
                    f"    take_back<{begin}, {norm}::held_end>(shared, own + STATE);",
                    f"    take_back<0, {norm}::outputs>"
                    f"(shared + {norm}::gradient, own + {norm}::saved_gradient);",
                    "}",
                    _BARRIER,
                    f"norm_input_grad<{norm}>(shared);",
                    _BARRIER,
                    *self._backward(part),
                ]
            )
            yield "}"

    def give(self) -> Iterator[str]:
        for i, stage in enumerate(self._stages):
            if isinstance(stage, Conv) and not stage.frozen:
                yield f"conv_give_sums<Stage{i}>(shared, partials + blockIdx.x * PARTIAL);"

    def updates(self) -> tuple[list[str], int]:
        """What is updated, each piece by the next block, and how many pieces there are."""
        lines: list[str] = []
        begin = 0
        for i, stage in enumerate(self._stages):
            if stage.frozen:
                continue
            if isinstance(stage, Dense):
                count = -(-stage.inputs // TILE[0]) * -(-stage.outputs // TILE[1])
                call = f"dense_update<Stage{i}>(shared, saved, SAVED, examples"
            else:
                count = -(-(stage.weights + stage.filters) // PART)
                call = f"conv_update<Stage{i}>(shared, partials, PARTIAL, blocks"
            piece = f"{call}, unit - {begin}, u);"
            lines.append(f"if (unit >= {begin} && unit < {begin + count}) {piece}")
            begin += count
        return lines, begin

    def _begin(self, part: range) -> Iterator[str]:
        """What the part before has left of this example."""
        if part.start:
            own = f"Stage{part.start}"
            yield f"if (several) take_back<{own}::input, {own}::input_end>(shared, own + STATE);"
            yield _BARRIER

    def _forward(self, part: range) -> Iterator[str]:
        for i in part:
            stage = self._stages[i]
            if stage.drop:
                begin = " + ".join(("drawn", *_masks(self._stages[:i])))
                yield f"drop<Stage{i}>(shared, draws, {begin}, example);"
                yield _BARRIER
            if isinstance(stage, Dense):
                yield f"dense_forward<Stage{i}>(shared, {_home(stage)});"
            else:
                yield f"{'conv' if isinstance(stage, Conv) else 'norm'}_forward<Stage{i}>(shared);"
            yield _BARRIER

    def _backward(self, part: range) -> Iterator[str]:
        for i in reversed(part):
            stage = self._stages[i]
            if i < self._first:
                return
            if splits(stage):
                yield f"norm_sums<Stage{i}>(shared);"
                yield (
                    f"if (several) put_away<0, Stage{i}::outputs>"
                    f"(shared + Stage{i}::gradient, own + Stage{i}::saved_gradient);"
                )
            else:
                yield from self._stage_backward(i, stage)
            yield _BARRIER

    def _stage_backward(self, i: int, stage: Stage) -> Iterator[str]:
        needed = i > self._first
        if isinstance(stage, Norm):
            yield f"norm_input_grad<Stage{i}>(shared);"
        elif isinstance(stage, Dense):
            if not stage.frozen:
                yield f"dense_save<Stage{i}>(shared, own);"
            if needed:
                yield f"dense_input_grad<Stage{i}>(shared, {_home(stage)});"
        else:
            if not stage.frozen:
                yield f"conv_weight_sums<Stage{i}>(shared);"
            if needed:
                yield f"conv_spread<Stage{i}>(shared);"
                yield _BARRIER
                yield f"conv_input_grad<Stage{i}>(shared);"


def _home(stage: Stage) -> str:
    """Where its parameters are."""
    return "still" if stage.frozen else "param"


def _indented(lines: Sequence[str]) -> list[str]:
    return ["    " + line for line in lines]
