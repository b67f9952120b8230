"""How many threads the BLAS library uses; decided before NumPy loads it."""

from __future__ import annotations

import os
import sys
from argparse import Namespace

from gpulayers.cli.arguments import DEFAULTS

__all__ = ["limit_threads"]

SMALL_MODELS = ("lenet", "mlp")
VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


def limit_threads(options: Namespace) -> None:
    """Let a small network compute on one BLAS thread, unless the environment says otherwise.

    The matrix products of LeNet-5 take microseconds each. Sharing them out gains little on an idle
    machine, and on a busy one the threads wait for each other: training was measured to be eight
    times slower. It also makes the result independent of the number of cores. Larger networks keep
    BLAS's own choice.

    Parameters
    ----------
    options : Namespace
        Of the command line. Without effect once NumPy is imported.
    """
    if "numpy" in sys.modules or any(name in os.environ for name in VARIABLES):
        return
    saved = getattr(options, "resume", None) or getattr(options, "path", None)
    saved = saved or getattr(options, "checkpoint", None)
    model = _saved_model(saved) if saved else getattr(options, "model", None)
    if (model or DEFAULTS["model"]).lower() in SMALL_MODELS:
        for name in VARIABLES[:2]:
            os.environ[name] = "1"


def _saved_model(saved: str) -> str:
    """The name of the network in a checkpoint, read without NumPy; "" if that is not to be had.

    What is wrong with the file is said later, where it is loaded.
    """
    import json
    import zipfile
    from pathlib import Path

    path = Path(saved)
    try:
        if path.is_dir():
            path = next(p for p in (path / "model.safetensors", path / "model.npz") if p.exists())
        elif not path.suffix and not path.exists():  # as `load` finds it
            path = path.with_suffix(".safetensors")
        if zipfile.is_zipfile(path):  # of gpulayers 0.1
            with zipfile.ZipFile(path) as archive:
                content = archive.read("header.json.npy")
            header = json.loads(content[content.index(b"\n") + 1 :])  # behind the .npy's header
        else:
            with path.open("rb") as file:
                length = min(int.from_bytes(file.read(8), "little"), path.stat().st_size)
                table = json.loads(file.read(length))
            header = json.loads(table["__metadata__"]["gpulayers"])
        return str(header["network"]["name"])
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        StopIteration,
        zipfile.BadZipFile,
        RuntimeError,
    ):
        return ""
