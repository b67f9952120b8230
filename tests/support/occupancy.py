"""How many blocks and warps of each kernel a multiprocessor holds at once, by architecture.

From the registers and the shared memory in tests/static/budget.json, by the rules of NVIDIA's own
calculator (cuda_occupancy.h of the CUDA toolkit) and the limits of the CUDA C++ Programming Guide,
section "Compute Capabilities". No kernel spills: the budget's test refuses that::

    python -m tests.support.occupancy           # whether the written tables are those of the budget
    python -m tests.support.occupancy --write   # tests/static/occupancy.txt, docs/howto/gpu.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gpulayers.cuda import table
from gpulayers.cuda.table_group import Group, Task, group_of
from gpulayers.cuda.table_sequence import way_of
from tests.support.nvrtc import BUDGET_FILE

ROOT = Path(__file__).parents[2]
FULL = BUDGET_FILE.with_name("occupancy.txt")
PAGE = ROOT / "docs" / "howto" / "gpu.md"
BEGIN, END = "<!-- occupancy: python -m tests.support.occupancy --write -->", "<!-- end -->"

WARP, REGISTERS = 32, 65536  # threads of a warp; of a multiprocessor, in four partitions
PARTITIONS, WARP_REGISTERS = 4, 256  # a warp's registers are handed out in so many
SHARED_UNIT, RESERVED = 128, 1 << 10  # bytes; the system's own of each block


class Limits(NamedTuple):
    """What a multiprocessor has room for, and the largest device that it is of: blocks, warps,
    bytes of shared memory, those that a block can have; multiprocessors."""

    blocks: int
    warps: int
    shared: int
    block_shared: int
    multiprocessors: int


LIMITS = {
    "sm_80": Limits(32, 64, 164 << 10, 163 << 10, 108),
    "sm_86": Limits(16, 48, 100 << 10, 99 << 10, 84),
    "sm_89": Limits(24, 48, 100 << 10, 99 << 10, 142),
    "sm_90": Limits(32, 64, 228 << 10, 227 << 10, 132),
    "sm_100": Limits(32, 64, 228 << 10, 227 << 10, 148),
    "sm_120": Limits(24, 48, 100 << 10, 99 << 10, 188),
}
#: whose machine code an architecture runs, where the budget has none for itself
RUNS = {"sm_89": "sm_86"}


def blocks_at_once(limits: Limits, threads: int, registers: int, shared: int) -> int:
    """Blocks of so many threads, registers of a thread and bytes that a multiprocessor holds."""
    warps = -(-threads // WARP)
    of_warp = -(-registers * WARP // WARP_REGISTERS) * WARP_REGISTERS
    if of_warp * -(-warps // PARTITIONS) * PARTITIONS > REGISTERS or shared > limits.block_shared:
        return 0
    by_registers = REGISTERS // PARTITIONS // of_warp * PARTITIONS // warps
    taken = -(-(shared + RESERVED) // SHARED_UNIT) * SHARED_UNIT
    return min(limits.blocks, limits.warps // warps, by_registers, limits.shared // taken)


def _figures(budget: dict[str, Any], instance: str, architecture: str) -> tuple[int, int] | None:
    """Registers of a thread and static shared bytes; None if it does not run there."""
    entry = budget["kernels"][instance]
    code = RUNS.get(architecture, architecture)
    code = code if code in entry["registers"] else f"{code}a"
    registers = entry["registers"].get(code)
    return None if registers is None else (registers, entry["shared_bytes"][code])


def full_table(budget: dict[str, Any]) -> str:
    """A line for each instance: blocks, and warps of all of them."""
    lines = [
        "Blocks x warps of a block that a multiprocessor holds at once, of all kernels' instances.",
        f"By python -m tests.support.occupancy, from the budget of NVRTC {budget['nvrtc']}.",
        "+: less where a launch asks for shared memory by its sizes. sm_89 runs sm_86's code.",
        "",
        f"{'':72}" + "".join(f"{architecture:>9}" for architecture in LIMITS),
    ]
    seen = set()
    for spec in table.KERNELS.values():
        by_size = "+" if spec.cooperative or "_sequence_" in spec.name else ""
        for instance in spec.instances:
            if instance in seen:
                continue
            seen.add(instance)
            cells = (_cell(budget, spec, instance, a) for a in LIMITS)
            lines.append(f"{instance + by_size:72}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines) + "\n"


def _cell(budget: dict[str, Any], spec: table.KernelSpec, instance: str, architecture: str) -> str:
    found = _figures(budget, instance, architecture)
    if found is None:
        return "-"
    registers, shared = found
    limits = LIMITS[architecture]
    blocks = blocks_at_once(limits, spec.block, registers, shared + spec.shared)
    return f"{blocks} x {-(-spec.block // WARP)}"


# -------------------------------------------------------------------------------- the page's table

#: what it does, kernel, dtype; hidden units and examples of recurrent layers
HEADLINES: tuple[tuple[str, str, str, tuple[int, int] | None], ...] = (
    ("product, 64 x 64 tiles", "gemm", "float32", None),
    ("product, 128 x 128 tiles", "gemm_large", "float32", None),
    ("product, TF32", "gemm_nn_tensor_large", "float32", None),
    ("product, bfloat16", "gemm_nn_tensor", "bfloat16", None),
    ("product, bfloat16, by warpgroups", "gemm_nn_warpgroup_large", "bfloat16", None),
    ("convolution", "conv2d_forward", "float32", None),
    ("its weights' gradient", "conv2d_weight_grad", "float32", None),
    ("convolution, TF32", "conv2d_forward_tensor", "float32", None),
    ("dense layer, back", "dense_backward", "float32", None),
    ("cross-entropy, both ways", "softmax_cross_entropy_both", "float32", None),
    ("update of all parameters", "flat_update", "float32", None),
    ("LSTM of 128 units, 32 examples", "lstm_sequence_forward_one", "float32", (128, 32)),
    ("the same, bfloat16", "lstm_sequence_forward_two_tensor", "bfloat16", (128, 32)),
    ("LSTM of 512 units, 32 examples", "lstm_group_forward", "float32", (512, 32)),
    ("the same, back", "lstm_group_backward", "float32", (512, 32)),
    ("LSTM of 512 units, TF32", "lstm_group_forward_tensor", "float32", (512, 32)),
    ("the same, back", "lstm_group_backward_tensor", "float32", (512, 32)),
    ("LSTM of 512 units, bfloat16", "lstm_group_forward_tensor", "bfloat16", (512, 32)),
)


def _launch(
    spec: table.KernelSpec, dtype: str, sizes: tuple[int, int] | None, limits: Limits
) -> tuple[int, int] | None:
    """Threads of a block and dynamic shared bytes; None where the device goes another way."""
    if sizes is None:
        return spec.block, spec.shared
    (hidden, batch), back = sizes, "backward" in spec.name
    if spec.cooperative:
        task = Task("lstm", back, batch, hidden, dtype, spec.name.endswith("_tensor"))
        group = group_of(task, limits.block_shared, limits.multiprocessors)
        return (group.threads, group.shared) if isinstance(group, Group) else None
    way = way_of("lstm", back, batch, hidden, dtype, limits.block_shared, tensor=True)
    return None if way is None or way.kernel != spec.name else (way.threads, way.shared)


def headlines(budget: dict[str, Any]) -> str:
    """The table of the documentation."""
    titles = " | ".join(f"{a[3:-1]}.{a[-1]}" for a in LIMITS)
    lines = [f"| | {titles} |", "|---" * (len(LIMITS) + 1) + "|"]
    for title, name, dtype, sizes in HEADLINES:
        spec = table.KERNELS[name]
        cells = []
        for architecture, limits in LIMITS.items():
            found = _figures(budget, spec.expression(dtype, "int32"), architecture)
            launch = _launch(spec, dtype, sizes, limits)
            if found is None or launch is None:
                cells.append("-")
                continue
            (registers, shared), (threads, dynamic) = found, launch
            blocks = blocks_at_once(limits, threads, registers, shared + dynamic)
            warps = blocks * -(-threads // WARP)
            cells.append(f"{registers}: {blocks}, {round(100 * warps / limits.warps)}%")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def written() -> Iterator[tuple[Path, str]]:
    """Each file with its table, and the text that it should have."""
    budget = json.loads(BUDGET_FILE.read_text(encoding="utf-8"))
    yield FULL, full_table(budget)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    yield PAGE, f"{before}{BEGIN}\n\n{headlines(budget)}\n\n{END}{after}"


def main() -> int:
    """Compare the tables with the budget, or write them."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.occupancy", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the tables")
    write, stale = parser.parse_args().write, 0
    for path, text in written():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale += not write
        print(f"{path.relative_to(ROOT)}: {'written' if write else 'not that of the budget'}")
        if write:
            path.write_text(text, encoding="utf-8")
    return min(stale, 1)


if __name__ == "__main__":
    sys.exit(main())
