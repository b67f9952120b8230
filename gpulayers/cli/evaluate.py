"""``gpulayers evaluate``."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from gpulayers import backend
from gpulayers.cli.output import print_json, verbose
from gpulayers.cli.results import class_table, confusions, print_table, split_results
from gpulayers.cli.saved import data_of
from gpulayers.errors import ParameterError
from gpulayers.models import summarize
from gpulayers.training import Sequential, load_checkpoint
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
        tested = split_results(checkpoint.network, data, batch_size=options.batch_size)
        if options.verbose:
            table = summarize(checkpoint.network, data.input_shape)
            verbose(options, f"{backend.describe()}\n\n{table}\n")
    if options.json:
        print_json({"model": str(path), "data": data.name, **tested})
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
    return 0
