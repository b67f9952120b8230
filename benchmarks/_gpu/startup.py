"""From the start of a process: to the first step, to a trained network; imports; sizes on disk."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from _gpu import nets, sizes
from _gpu.record import LEFT_OUT

_REPEATS = 3
_MOST = 240.0  # seconds of one process
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
#: each side begins with weights of its own or, JAX, which has no layers, with some from a file
_SUBJECTS = {
    "gpulayers": ("from gpulayers import backend\nbackend.use_backend('{place}')\n"
                  "from _gpu.ours import Ours",
                  "Ours(Item('lenet', 64, 'fp32'), 'fused', alike=False)"),
    "torch": ("from _gpu.torch_side import Torch",
              "Torch(Item('lenet', 64, 'fp32'), 'torch eager', '{device}', alike=False)"),
    "jax": ("from _gpu.jax_side import Jax",
            "Jax(Item('lenet', 64, 'fp32'), 'jax jit', weights={weights!r})"),
}  # fmt: skip
_TRAINED = """
import sys, time
sys.path[:0] = {paths!r}
import numpy as np
from gpulayers import backend, models
from gpulayers.training import Trainer, load_data
from gpulayers.training.data import Dataset, Split
data = load_data({data!r})
def tiled(part, count):
    places = np.arange(count) % len(part)
    return Split(part.images[places], part.labels[places])
if {examples} != len(data.train):
    data = Dataset("digits", tiled(data.train, {examples}), data.test, data.classes)
trainer = Trainer(models.lenet(), data, 128, {epochs}, optimizer="Adam(lr=0.001)",
                  device="{kind}", progress=False)
last = trainer.fit().last
print("ACCURACY", last.val_accuracy)
print("SECONDS", time.time() - {begin})
"""
_EXAMPLES = 60000  # of MNIST
_BUNDLED = "mnist-10k"

Value = dict[str, Any]
#: a measurement, given the seconds that it may take
Measure = Callable[[float], Value]


def items(device: str, script: Path, mnist: Path | None = None) -> Iterator[tuple[str, Measure]]:
    """Yield the name of each measurement and what makes it.

    Parameters
    ----------
    mnist : Path, optional
        A folder with MNIST's four files, to train on; without it the bundled tenth.
    """
    folder = tempfile.mkdtemp(prefix="gpulayers-bench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for side in _SUBJECTS:
        for state in ("cold", "warm"):
            run = lambda left, s=side: first_step(s, device, script, folder, left)  # noqa: E731
            yield f"first step, {side}, {state} cache", run
    for name in ("gpulayers", "cupy", "torch", "jax"):
        yield f"import {name}", lambda left, n=name: import_seconds(n, script, left)
    what = "full MNIST" if mnist else "10,000 digits six times over, not full MNIST"
    data, trained = str(mnist or _BUNDLED), f"{folder}/trained"
    for state in ("cold", "warm"):
        yield (
            f"training on {what}, {state} cache",
            lambda left: training(device, script, trained, data, seconds=left),
        )
    yield "installed", lambda left: sizes.installed()


def find_mnist(given: Path | None, near: Path) -> Path | None:
    """Return the folder of the full MNIST: the one given, or one that is beside the checkout.

    Raises
    ------
    FileNotFoundError
        If the one that is given has it not.
    """
    places = [given] if given else [near.parent / "shared/data/mnist", near / "shared/data/mnist"]
    for place in places:
        if list(place.glob("train-images*")):
            return place.resolve()
    if given:
        raise FileNotFoundError(f"{given} has no file train-images-idx3-ubyte")
    return None


def _paths(script: Path) -> list[str]:
    return [str(script.parent), str(script.parent.parent)]


def caches(folder: str) -> dict[str, str]:
    """The variables that put every cache of compiled code into a folder: it is cold where that is
    empty."""
    return {
        "CUPY_CACHE_DIR": f"{folder}/cupy",
        "XDG_CACHE_HOME": f"{folder}/cache",
        "GPULAYERS_TUNE_DIR": f"{folder}/tune",
        "CUDA_CACHE_PATH": f"{folder}/driver",
        "JAX_COMPILATION_CACHE_DIR": f"{folder}/jax",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def _seconds(code: str, folder: str | None = None, seconds: float = _MOST) -> Value:
    """Run code that prints the seconds since its process was asked for."""
    limit = min(seconds, _MOST)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            **(caches(folder) if folder is not None else {}),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        told, wrong = process.communicate(timeout=max(limit, 1.0))
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        late = f"took longer than {limit:.0f} s"
        return {"error": late} if limit == _MOST else {LEFT_OUT: late}
    if process.returncode:
        return {"error": wrong.strip()[-600:]}
    words = [line.split() for line in told.splitlines()]
    return {w[0].lower(): float(w[1]) for w in words if w and w[0] in ("SECONDS", "ACCURACY")}


def first_step(
    side: str, device: str, script: Path, folder: str, seconds: float = _MOST
) -> dict[str, Any]:
    """Seconds from the start of a process to the end of LeNet's first step of 64 examples."""
    choose, subject = _SUBJECTS[side]
    place = "cupy" if device == "cuda" else "numpy"
    names = {"device": device, "place": place, "weights": f"{folder}/weights.npz"}
    if side == "jax":  # else its time would have our layers in it
        np.savez(names["weights"], **nets.start(nets.NETS["lenet"]))
    choose, subject = choose.format(**names), subject.format(**names)
    paths = _paths(script)
    code = _FIRST.format(paths=paths, choose=choose, subject=subject, begin=time.time())
    return _seconds(code, folder, seconds)


def import_seconds(name: str, script: Path, seconds: float = _MOST) -> Value:
    """Seconds from the start of a process to the end of an import, the median of three."""
    found = []
    end = time.monotonic() + seconds
    for _ in range(_REPEATS):
        paths = _paths(script)
        code = f"import sys, time\nsys.path[:0] = {paths!r}\nimport {name}\n"
        code += f'print("SECONDS", time.time() - {time.time()})'
        one = _seconds(code, seconds=end - time.monotonic())
        if "seconds" not in one:
            return one
        found.append(one["seconds"])
    return {"seconds": sorted(found)[len(found) // 2], "min": min(found), "max": max(found)}


def training(
    device: str,
    script: Path,
    folder: str,
    data: str = _BUNDLED,
    examples: int = _EXAMPLES,
    epochs: int = 3,
    seconds: float = _MOST,
) -> Value:
    """Seconds from the start of a process to LeNet's accuracy after three epochs of 60,000 digits
    (fewer than that over and over: as many steps as full MNIST, not its accuracy)."""
    code = _TRAINED.format(
        paths=_paths(script),
        kind="gpu" if device == "cuda" else "cpu",
        data=data,
        examples=examples,
        epochs=epochs,
        begin=time.time(),
    )
    return _seconds(code, folder, seconds)
