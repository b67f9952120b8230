"""Measure how right every gradient is, class by class, and write docs/correctness.md.

    python -m benchmarks.correctness                  # all classes: the page, and its text here
    python -m benchmarks.correctness --only Conv2D    # one class, printed only

From the root of a clone with the extra `dev`; PyTorch is used if it is installed, the CuPy stand-in
if g++ and the CUDA headers are. The page explains what is measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from benchmarks.correctness.measure import Row, measure
from benchmarks.correctness.page import all_subjects, page, table
from tests.conftest import FLAVOUR_VARIABLE
from tests.support.cuda_on_cpu.toolchain import unavailable_reason

PAGE = Path(__file__).parents[2] / "docs" / "correctness.md"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", action="append", help="a class; no page is written")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    os.environ.setdefault(FLAVOUR_VARIABLE, "check")

    torch = importlib.util.find_spec("torch") is not None
    stand_in = unavailable_reason() is None
    rows: dict[tuple[str, str], Row] = {}
    for subject in all_subjects():
        if options.only and subject.name not in options.only:
            continue
        key = (subject.family, subject.name)
        measure(subject, rows.setdefault(key, Row(*key)), torch, stand_in)
    if not rows:
        parser.error(f"no such class: {', '.join(options.only)}")
    if options.only:
        print(table(list(rows.values())))
        return 0
    text = page(list(rows.values()), torch, stand_in)
    options.out.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
