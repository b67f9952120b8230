"""``gpulayers demo``."""

from __future__ import annotations

import contextlib
import sys
import webbrowser
from argparse import Namespace

from gpulayers import backend
from gpulayers.cli.output import note
from gpulayers.cli.saved import open_saved
from gpulayers.demo import Look, Server, make_app
from gpulayers.errors import DataError
from gpulayers.models import lenet
from gpulayers.training import Dataset, Trainer, load_data
from gpulayers.training.progress import NoProgress, make_progress
from gpulayers.training.settings import device_backend

__all__ = ["run"]

EPOCHS = 3


def run(options: Namespace) -> int:
    """Serve the page until Ctrl-C; return the exit code."""
    with backend.use_backend(device_backend(options.device or "auto")):
        digits = load_data("mnist-10k")
        look = _opened(options.checkpoint) if options.checkpoint else _trained(options, digits)
        with Server(make_app(look, digits.test), options.port) as server:
            if options.quiet:
                print(server.url, flush=True)
            else:
                print(f"draw on {server.url} (Ctrl-C ends it)", flush=True)
            if options.open and not webbrowser.open(server.url):
                note(options, "no browser could be started; open the address yourself")
            with contextlib.suppress(KeyboardInterrupt):  # the way to end it: no failure
                server.serve()
    note(options, "\nended")
    return 0


def _opened(path: str) -> Look:
    saved = open_saved(path)
    if saved.input_shape not in (None, (28, 28, 1)):
        raise DataError(
            f"{saved.path} takes images {saved.input_shape}; the demo draws digits (28, 28, 1)"
        )
    return Look(saved.network, saved.classes, f"{saved.network.name} from {saved.path}")


def _trained(options: Namespace, digits: Dataset) -> Look:
    """A LeNet-5, trained now."""
    note(options, f"training LeNet-5 on {len(digits.train):,} digits, {EPOCHS} epochs ...")
    network = lenet(optimizer="Adam(lr=0.003)")
    progress = NoProgress() if options.quiet else make_progress(sys.stderr)
    trainer = Trainer(network, digits, epochs=EPOCHS, schedule="exponential", progress=progress)
    history = trainer.fit()
    accuracy = f"{history.last.val_accuracy:.1%} of {len(digits.test):,} test digits right"
    return Look(network, digits.classes, f"LeNet-5, trained just now, {accuracy}")
