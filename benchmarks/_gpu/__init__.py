"""The parts of ``benchmarks/gpu.py``: networks, both sides, the referee, clocks, the record."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("gpulayers") is None:  # a clone that is not installed
    sys.path.insert(0, str(Path(__file__).parents[2]))
