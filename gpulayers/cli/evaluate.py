"""``gpulayers evaluate``."""

from __future__ import annotations

import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpulayers import backend
from gpulayers._types import is_dict
from gpulayers.cli.output import note, print_json, verbose
from gpulayers.cli.results import class_table, confusions, print_table, split_results
from gpulayers.cli.saved import data_of
from gpulayers.errors import (
    DataError,
    GPULayersError,
    ImageScaleWarning,
    ParameterError,
    ShapeError,
)
from gpulayers.models import summarize
from gpulayers.training import Dataset, Sequential, load_checkpoint
from gpulayers.training.resume import checkpoint_path
from gpulayers.training.settings import device_backend

__all__ = ["run"]


def run(options: Namespace) -> int:
    """Print how good a saved network is on a test split; return the exit code."""
    path = checkpoint_path(Path(options.path))
    with backend.use_backend(device_backend(options.device or "auto")):
        checkpoint = load_checkpoint(path, kind=Sequential)
        settings = checkpoint.info.get("options", {})
        name = options.data or settings.get("data")
        if name is None:
            raise ParameterError(f"{path} does not say what it was trained on; give --data")
        where = options.data_dir or settings.get("data_dir")
        data = data_of({**settings, "data": name, "data_dir": where})
        _check_fit(checkpoint.info.get("purpose"), data)
        tested = split_results(checkpoint.network, data, None, options.batch_size, options.flip)
        pictures = _draw(options, checkpoint.network, data, tested) if options.plots else []
        if options.verbose:
            table = summarize(checkpoint.network, data.input_shape)
            verbose(options, f"{backend.describe()}\n\n{table}\n")
    if options.json:
        print_json({"model": str(path), "data": data.name, **tested, "plots": pictures})
        return 0
    if options.quiet:
        print(f"{tested['accuracy']:.4f}")
        return 0
    rows = [
        ("test accuracy", f"{tested['accuracy']:.2%}"),
        ("test loss", f"{tested['loss']:.4f}"),
        ("examples", f"{tested['examples']:,}"),
    ]
    print_table(f"{path} on {data.name}", rows)
    print(f"\n{class_table(tested)}\n")
    for true, said, times in confusions(tested):
        print(f"{true} taken for {said}: {times} times")
    if pictures:
        print(f"\npictures: {', '.join(pictures)}")
    return 0


def _check_fit(purpose: Any, data: Dataset) -> None:
    """Refuse images or labels that are not those the network was trained for (if that is known)."""
    if not is_dict(purpose):
        return
    shape, classes = tuple(purpose["input_shape"]), len(purpose["classes"])
    if shape != data.input_shape:
        raise DataError(
            f"the network was trained on images of shape {shape} (rows, cols, channels), those of "
            f"{data.name} are {data.input_shape}"
        )
    if int(data.test.labels.max()) >= classes:
        raise DataError(
            f"the network knows {classes} classes, labels 0 to {classes - 1}; {data.name} has "
            f"labels up to {data.test.labels.max()}"
        )


def _draw(
    options: Namespace, network: Sequential, data: Dataset, tested: dict[str, Any]
) -> list[str]:
    """Write the pictures that fit the network; return their paths."""
    from gpulayers import plot

    image, classes = data.test.images[0], data.classes
    pictures: dict[str, Callable[[], Any]] = {
        "confusion": lambda: plot.confusion_matrix(tested["confusion"], classes),
        "mistakes": lambda: plot.worst_mistakes(
            network, data.test.images, data.test.labels, classes
        ),
        "network": lambda: plot.network_diagram(network, data.input_shape),
        "filters": lambda: plot.filters(network),
        "feature_maps": lambda: plot.feature_maps(network, image),
        "saliency": lambda: plot.saliency(network, image, None, classes),
    }
    folder = Path(options.plots)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[str] = []
    for name, draw in pictures.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ImageScaleWarning)  # said by then
                draw().savefig(folder / f"{name}.png")
        except ImportError as error:
            raise GPULayersError(f"--plots: {error}") from error
        except (ParameterError, ShapeError) as error:  # a network without filters, say
            note(options, f"no picture of {name}: {error}")
        else:
            written.append(str(folder / f"{name}.png"))
    return written
