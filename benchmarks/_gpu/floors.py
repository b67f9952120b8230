"""What a step needs at least, worked out without a device: operations, bytes, launches."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from _gpu import nets
from _gpu.nets import Item
from _gpu.tables import table

#: counted on the CPU stand-in by tests/rules/test_graph.py
_COUNTED = Path(__file__).parents[2] / "tests" / "rules" / "budget.json"
#: H200 SXM data sheet: bytes a second; products a second without sparsity
MEMORY, RATES = 4.8e12, {"fp32": 67e12, "tf32": 494e12, "bf16": 989e12, "fp16": 989e12}


def launches(item: Item) -> int | None:
    """Kernels in the graph of a step, where they were counted in that precision."""
    try:
        counted: dict[str, Any] = json.loads(_COUNTED.read_text(encoding="utf-8"))["graph"]
    except (OSError, ValueError, KeyError):
        return None
    net = re.sub(r"^(rnn|lstm)(\d+)$", r"\1 \2", item.net)
    name = f"{net} b{item.batch}"
    entry = counted.get(name if item.precision == "fp32" else f"{name} {item.precision}")
    return None if entry is None else int(entry["nodes"])


def floor(item: Item) -> dict[str, Any]:
    """Operations, bytes and launches of a step; how long it takes at the speeds of a data sheet."""
    flops, moved, parameters = nets.work(nets.NETS[item.net], item.batch)
    if item.precision in ("bf16", "fp16"):
        moved /= 2
    return {
        "MFLOP": flops / 1e6,
        "MB": moved / 1e6,
        "parameters": parameters,
        "launches": launches(item),
        "floor us": 1e6 * max(flops / RATES[item.precision], moved / MEMORY),
    }


def printed(items: list[Item]) -> str:
    """A table of the floors."""
    rows = []
    for item in items:
        f = floor(item)
        count = "not counted" if f["launches"] is None else str(f["launches"])
        rows.append(
            [item.name, f"{f['MFLOP']:.1f}", f"{f['MB']:.1f}", count, f"{f['floor us']:.1f}"]
        )
    return table(["step", "MFLOP", "MB", "launches", "floor on an H200, us"], rows)
