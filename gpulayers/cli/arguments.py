"""The command line's options, and what is wrong with a bad one."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any

import gpulayers
from gpulayers.errors import suggest

__all__ = ["DEFAULTS", "RUN_OPTIONS", "make_parser"]

# What a run depends on; kept in its checkpoints. The options themselves default to None, so that
# --resume can tell what was asked for from what was not.
DEFAULTS: dict[str, Any] = {
    "data": "mnist-10k",
    "data_dir": None,
    "model": "lenet",
    "epochs": None,  # by data set, see train.py
    "batch_size": 64,
    "lr": None,  # by optimizer, see train.py
    "optimizer": "Adam",
    "schedule": "exponential",
    "clip_norm": None,
    "seed": 0,
    "dtype": None,  # float32, or GPULAYERS_DTYPE
    "device": "auto",
}
RUN_OPTIONS = tuple(DEFAULTS)
DEVICES = ("auto", "cpu", "gpu")
DTYPES = ("float16", "bfloat16", "float32", "float64")


def make_parser() -> tuple[argparse.ArgumentParser, tuple[str, ...]]:
    """Return the parser and the names of the commands."""
    parser = argparse.ArgumentParser(
        prog="gpulayers", description="Neural-network layers with gradients one can read."
    )
    parser.add_argument("--version", action="version", version=gpulayers.__version__)
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    train = commands.add_parser(
        "train",
        help="train a network (without options: LeNet-5 on 10,000 MNIST digits)",
        description="Train a network; without options LeNet-5 on 10,000 MNIST digits, which are "
        "inside the package. The results go to runs/<model>-<data>/.",
        allow_abbrev=False,
    )
    _train_options(train)
    evaluate = commands.add_parser(
        "evaluate",
        help="loss, accuracy and confusions of a trained network on a test set",
        description="Loss, accuracy and confusions of a trained network on a test set.",
        allow_abbrev=False,
    )
    evaluate.add_argument("path", metavar="MODEL", help="a run's folder, or a checkpoint (.npz)")
    _data_options(evaluate, "the set it was trained with")
    evaluate.add_argument("--batch-size", type=_positive_int, default=256, metavar="N")
    _device_option(evaluate)
    evaluate.add_argument("--json", action="store_true", help="print the results as JSON")
    info = commands.add_parser(
        "info",
        help="what computes here (NumPy or a GPU), and why",
        description="Print the array library, device and versions picked, and why.",
        allow_abbrev=False,
    )
    for command in (train, evaluate, info):
        command.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser, ("train", "evaluate", "info")


def _train_options(train: argparse.ArgumentParser) -> None:
    _data_options(train, DEFAULTS["data"])
    train.add_argument("--model", metavar="NAME", help="lenet (default), mlp, vgg-small, resnet9")
    train.add_argument("--epochs", type=_positive_int, metavar="N", help="passes over the data")
    train.add_argument("--batch-size", type=_positive_int, metavar="N", help="default 64")
    train.add_argument("--lr", type=_learning_rate, metavar="X", help="first learning rate")
    train.add_argument(
        "--optimizer",
        metavar="NAME",
        help='SGD, AdaGrad, RMSProp, Adam (default), also with arguments: "SGD(momentum=0.9)"',
    )
    train.add_argument(
        "--schedule",
        metavar="NAME",
        help="constant, exponential (default), cosine, onecycle, warmup, noam, king",
    )
    train.add_argument(
        "--clip-norm", type=_positive, metavar="X", help="scale longer gradients down to this norm"
    )
    train.add_argument("--seed", type=_seed, metavar="N", help="default 0")
    train.add_argument(
        "--dtype", type=_one_of(DTYPES), metavar="NAME", help="float32 (default), " + "float64, ..."
    )
    _device_option(train)
    train.add_argument("--out", metavar="DIR", help="folder for the results, not yet a run's")
    train.add_argument("--resume", metavar="PATH", help="go on with a run (folder or checkpoint)")
    train.add_argument("--quiet", action="store_true", help="no progress, only the results")
    train.add_argument("--json", action="store_true", help="print the results as JSON")


def _data_options(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--data",
        metavar="NAME|PATH",
        help="mnist-10k, mnist, fashion-mnist, cifar10, or a folder or .npz file of your own; "
        f"default {default}",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="where the full sets lie or are downloaded to (or set GPULAYERS_DATA)",
    )


def _device_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        type=_one_of(DEVICES),
        metavar="NAME",
        help="auto (default: a GPU if one answers), cpu, gpu",
    )


def _one_of(names: Sequence[str]) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text.lower() not in names:
            raise argparse.ArgumentTypeError(
                f"expected one of {', '.join(names)}, got {text!r}{suggest(text, names)}"
            )
        return text.lower()

    return check


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def _positive_int(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return value


def _seed(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 2**64:
        raise argparse.ArgumentTypeError(f"expected an integer in 0..2**64-1, got {text!r}")
    return value


def _learning_rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value
