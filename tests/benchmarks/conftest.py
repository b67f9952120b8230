"""The modules of ``benchmarks/``, for the tests of this folder."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpulayers import backend as library

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
_PARTS = (
    *("child", "clock", "decide", "floors", "kernels", "micro", "nets", "ours", "record"),
    *("referee", "ways", "pairs", "run", "tables", "order", "correct", "machine", "startup"),
    "sizes",
)


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The benchmark's modules."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        parts = {name: importlib.import_module(f"_gpu.{name}") for name in _PARTS}
        yield SimpleNamespace(gpu=importlib.import_module("gpu"), **parts)
    finally:
        sys.path.remove(str(BENCHMARKS))


def a_run(
    bench: SimpleNamespace,
    folder: Path,
    *words: str,
    script: Path | None = None,
    facts: dict[str, Any] | None = None,
) -> Any:
    """A run of the command with these words, whose file is gpu.json in `folder`."""
    args = bench.gpu.parser().parse_args(list(words))
    kept = bench.record.Record(folder / "gpu.json")
    kept.begin({"settings": {}, **(facts or {})})
    script = bench.gpu.SCRIPT if script is None else script
    return bench.run.Run(args, script, kept, "cpu", bench.clock.Budget(args.budget - 5))


@pytest.fixture(autouse=True)
def same_dtype() -> Iterator[None]:
    before = library.default_dtype()
    yield
    library.set_default_dtype(before)
