"""``gpulayers export``."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gpulayers import backend
from gpulayers.cli.output import note, print_json
from gpulayers.cli.saved import Saved, open_saved
from gpulayers.errors import CheckpointError, GPULayersError, ParameterError, suggest
from gpulayers.training import write_safetensors
from gpulayers.training.checkpoint import write_atomically

__all__ = ["run"]

_FLOAT64 = (
    "the model computes in float64, in which onnxruntime has no convolutions; --dtype float32 "
    "writes one that runs everywhere"
)


def run(options: Namespace) -> int:
    """Write a trained network in another format; return the exit code."""
    out = Path(options.out)
    write = FORMATS.get(out.suffix.lower())
    if write is None:
        hint = suggest(out.suffix, FORMATS, 0.6)
        raise ParameterError(
            f"the name OUT says the format and must end in {', '.join(FORMATS)}; got "
            f"{options.out}{hint}"
        )
    if options.uint8 and out.suffix.lower() != ".onnx":
        raise ParameterError("--uint8 is about the input of an ONNX model; OUT must end in .onnx")
    if options.dtype and out.suffix.lower() != ".onnx":
        raise ParameterError("--dtype is what an ONNX model computes in; OUT must end in .onnx")
    if out.exists() and not options.force:
        raise ParameterError(f"{out} exists; choose another name, or --force to write over it")
    with backend.use_backend("numpy"):
        saved = open_saved(options.path)
        write(saved, out, options)
        if out.suffix.lower() == ".onnx" and (options.dtype or saved.network.dtype) == "float64":
            note(options, _FLOAT64)
    size = out.stat().st_size
    if options.json:
        print_json({"model": str(saved.path), "out": str(out), "bytes": size})
    elif options.quiet:
        print(out)
    else:
        note(options, f"{saved.network.name} of {saved.path}")
        print(f"{out}: {size:,} bytes")
    return 0


def _arrays(saved: Saved) -> dict[str, Any]:
    """The parameters, running statistics included, by their names in the network."""
    named = saved.network.parameters
    return {name: np.ascontiguousarray(a) for name, a in named.items() if a is not None}


def _write_npz(saved: Saved, out: Path, options: Namespace) -> None:
    arrays = _arrays(saved)
    write_atomically(out, lambda file: np.savez(file, **arrays))


def _write_safetensors(saved: Saved, out: Path, options: Namespace) -> None:
    pixels = saved.network.pixels
    facts = {
        "network": saved.network.name,
        "classes": json.dumps(saved.classes),
        "pixels": json.dumps({"mean": pixels.mean, "std": pixels.std}),
    }
    write_safetensors(out, _arrays(saved), facts)


def _write_onnx(saved: Saved, out: Path, options: Namespace) -> None:
    if saved.input_shape is None:
        raise CheckpointError(
            f"{saved.path} does not say what images the network takes; from Python, "
            "gpulayers.interchange.export_onnx(network, path, input_shape) does it"
        )
    from gpulayers.interchange import onnx_model

    try:
        model = onnx_model(
            saved.network, saved.input_shape, uint8_input=options.uint8, dtype=options.dtype
        )
    except ImportError as error:
        raise GPULayersError(str(error)) from error
    write_atomically(out, model.SerializeToString())


FORMATS: dict[str, Callable[[Saved, Path, Namespace], None]] = {
    ".onnx": _write_onnx,
    ".safetensors": _write_safetensors,
    ".npz": _write_npz,
}
