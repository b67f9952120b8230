"""Checkpoints that say something else than was saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpulayers.training.safetensors import read_safetensors, write_safetensors


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Save the checkpoint at `path` again with another description, and a checksum that fits."""
    arrays, metadata = read_safetensors(path)
    header = json.loads(metadata["gpulayers"])
    change(header)
    write_safetensors(path, arrays, {"gpulayers": json.dumps(header)})
