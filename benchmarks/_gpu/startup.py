"""From the start of a process: to the first step, to a trained network; imports; sizes on disk."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from _gpu import machine

_REPEATS = 3
_FIRST = """
import sys, time
sys.path[:0] = {paths!r}
from _gpu.nets import Item
{choose}
subject = {subject}
subject.run(1)
subject.wait()
print("SECONDS", time.time() - {begin})
"""
_SUBJECTS = {
    "gpulayers": ("from gpulayers import backend\nbackend.use_backend('{place}')\n"
                  "from _gpu.ours import Ours", "Ours(Item('lenet', 64, 'fp32'), 'fused')"),
    "torch": ("from _gpu.torch_side import Torch",
              "Torch(Item('lenet', 64, 'fp32'), 'torch eager', '{device}')"),
    "jax": ("from _gpu.jax_side import Jax", "Jax(Item('lenet', 64, 'fp32'), 'jax jit')"),
}  # fmt: skip
_TRAINED = """
import sys, time
sys.path[:0] = {paths!r}
import numpy as np
from gpulayers import backend, models
from gpulayers.training import Trainer, load_data
from gpulayers.training.data import Dataset, Split
data = load_data("mnist-10k")
def tiled(part, count):
    places = np.arange(count) % len(part)
    return Split(part.images[places], part.labels[places])
data = Dataset("digits", tiled(data.train, {examples}), data.test, data.classes)
trainer = Trainer(models.lenet(), data, 128, {epochs}, optimizer="Adam(lr=0.001)",
                  device="{kind}", progress=False)
last = trainer.fit().last
print("ACCURACY", last.val_accuracy)
print("SECONDS", time.time() - {begin})
"""


def items(device: str, script: Path) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the name of each measurement and what makes it."""
    folder = tempfile.mkdtemp(prefix="gpulayers-bench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for side in _SUBJECTS:
        for state in ("cold", "warm"):
            run = lambda s=side: first_step(s, device, script, folder)  # noqa: E731
            yield f"first step, {side}, {state} cache", run
    for name in ("gpulayers", "cupy", "torch", "jax"):
        yield f"import {name}", lambda n=name: import_seconds(n, script)
    yield "training, first time", lambda: training(device, script, folder)
    yield "training, warm cache", lambda: training(device, script, folder)
    yield "installed", lambda: {k: v / 2**20 for k, v in machine.installed_bytes().items()}


def _paths(script: Path) -> list[str]:
    return [str(script.parent), str(script.parent.parent)]


def _seconds(code: str, folder: str | None = None) -> dict[str, Any]:
    """Run code that prints the seconds since its process was asked for."""
    caches = {}
    if folder is not None:
        caches = {
            "CUPY_CACHE_DIR": f"{folder}/cupy",
            "XDG_CACHE_HOME": f"{folder}/cache",
            "GPULAYERS_TUNE_DIR": f"{folder}/tune",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **caches},
        capture_output=True,
        text=True,
        timeout=240,
    )
    if done.returncode:
        return {"error": done.stderr.strip()[-600:]}
    words = [line.split() for line in done.stdout.splitlines()]
    return {w[0].lower(): float(w[1]) for w in words if w and w[0] in ("SECONDS", "ACCURACY")}


def first_step(side: str, device: str, script: Path, folder: str) -> dict[str, Any]:
    """Seconds from the start of a process to the end of LeNet's first step of 64 examples."""
    choose, subject = _SUBJECTS[side]
    names = {"device": device, "place": "cupy" if device == "cuda" else "numpy"}
    choose, subject = choose.format(**names), subject.format(**names)
    paths = _paths(script)
    code = _FIRST.format(paths=paths, choose=choose, subject=subject, begin=time.time())
    return _seconds(code, folder)


def import_seconds(name: str, script: Path) -> dict[str, Any]:
    """Seconds from the start of a process to the end of an import, the median of three."""
    found = []
    for _ in range(_REPEATS):
        paths = _paths(script)
        code = f"import sys, time\nsys.path[:0] = {paths!r}\nimport {name}\n"
        one = _seconds(code + f'print("SECONDS", time.time() - {time.time()})')
        if "error" in one:
            return one
        found.append(one["seconds"])
    return {"seconds": sorted(found)[len(found) // 2]}


def training(
    device: str, script: Path, folder: str, examples: int = 60000, epochs: int = 3
) -> dict[str, Any]:
    """Seconds from the start of a process to LeNet's accuracy after three epochs of 60,000 digits
    (the bundled 10,000 over and over: as many steps as full MNIST, not its accuracy)."""
    kind = "gpu" if device == "cuda" else "cpu"
    code = _TRAINED.format(
        paths=_paths(script), kind=kind, examples=examples, epochs=epochs, begin=time.time()
    )
    return _seconds(code, folder)
