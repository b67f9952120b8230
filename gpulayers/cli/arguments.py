"""The command line's options, and what is wrong with a bad one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn, cast

import gpulayers
from gpulayers.cli import values
from gpulayers.cli.commands import COMMANDS, EXIT_CODES
from gpulayers.errors import suggest

__all__ = ["DEFAULTS", "RUN_OPTIONS", "make_parser", "parse", "subparsers"]

# What a run depends on; kept in its checkpoints. The options themselves default to None, so that
# --resume and --config can tell what was asked for from what was not.
DEFAULTS: dict[str, Any] = {
    "data": "mnist-10k",
    "data_dir": None,
    "image_size": None,
    "grayscale": False,
    "validation": None,
    "model": "lenet",
    "epochs": None,  # by data set, see train.py
    "batch_size": 64,
    "lr": None,  # by optimizer, see train.py
    "optimizer": "Adam",
    "schedule": "exponential",
    "clip_norm": None,
    "label_smoothing": 0.0,
    "augment": None,
    "accumulate": 1,
    "ema": None,
    "patience": None,
    "seed": 0,
    "dtype": None,  # float32, or GPULAYERS_DTYPE
    "precision": None,  # as the dtype says
    "device": "auto",
    "keep_last": 2,
    "checkpoint_seconds": None,
    "tensorboard": False,
}
RUN_OPTIONS = tuple(DEFAULTS)
DEVICES = ("auto", "cpu", "gpu")
PRECISIONS = ("fp32", "bf16", "fp16")
DTYPES = ("float16", "bfloat16", "float32", "float64")
SHELLS = ("bash", "zsh", "tcsh")


class _Formatter(argparse.HelpFormatter):
    """Wraps paragraphs, keeps the lines of examples and tables as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):  # whose own lines stand further in
            self._action_max_length += 2


class _Parser(argparse.ArgumentParser):
    """Says what is wrong without a screen of options before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n{self.prog} --help lists what there is\n")


def make_parser() -> tuple[argparse.ArgumentParser, tuple[str, ...]]:
    """Return the parser and the names of the commands."""
    parser = _Parser(
        prog="gpulayers",
        description="Neural-network layers with gradients one can read.",
        epilog="gpulayers COMMAND --help shows its options, with examples.\n\n" + EXIT_CODES,
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="version", version=gpulayers.__version__)
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    adders = {
        "train": _train_options,
        "evaluate": _evaluate_options,
        "predict": _predict_options,
        "export": _export_options,
        "bench": _bench_options,
        "tune": _tune_options,
        "demo": _demo_options,
        "completion": _completion_options,
    }
    for name, (line, description, examples) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=line,
            description=description,
            epilog=_example_text(examples),
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        if name in adders:
            adders[name](command)
        _common_options(command, json=name not in ("demo", "completion"))
    return parser, tuple(COMMANDS)


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found = cast("argparse._SubParsersAction[argparse.ArgumentParser]", action)
            return dict(found.choices)
    return {}


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse; an unknown option ends the process with code 2 and the nearest known option."""
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        command = subparsers(parser)[options.command]
        names = [text.partition("=")[0] for text in unknown if text.startswith("-")]
        known = [name for name in command._option_string_actions if name.startswith("--")]
        hint = suggest(names[0], known) if names else ""
        command.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return options


def _example_text(examples: tuple[tuple[str, str], ...]) -> str:
    width = max((len(line) for line, note in examples if note), default=0)
    lines = [f"  {line:<{width}}  # {note}" if note else f"  {line}" for line, note in examples]
    return "examples:\n" + "\n".join(lines)


def _common_options(parser: argparse.ArgumentParser, json: bool) -> None:
    if json:
        parser.add_argument(
            "--json",
            action="store_true",
            help="print one JSON document; everything else goes to standard error",
        )
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="print the result only")
    loudness.add_argument(
        "-v", "--verbose", action="store_true", help="say more, on standard error"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def _train_options(train: argparse.ArgumentParser) -> None:
    train.add_argument(
        "--config",
        metavar="FILE",
        help="TOML file with options as keys (batch-size = 64); the command line overrides it",
    )
    _data_options(train, DEFAULTS["data"])
    train.add_argument(
        "--image-size",
        type=values.positive_int,
        metavar="N",
        help="folders of pictures: scale and cut each to N x N pixels",
    )
    train.add_argument(
        "--grayscale",
        action="store_const",
        const=True,
        help="folders of pictures: one channel instead of three",
    )
    train.add_argument(
        "--validation",
        type=values.share,
        metavar="X",
        help="hold out this share of the training images for validation, e.g. 0.1; without, the "
        "test images are looked at after each epoch",
    )
    train.add_argument("--model", metavar="NAME", help="lenet (default), mlp, vgg-small, resnet9")
    train.add_argument(
        "--epochs", type=values.positive_int, metavar="N", help="passes over the data"
    )
    train.add_argument("--batch-size", type=values.positive_int, metavar="N", help="default 64")
    train.add_argument("--seed", type=values.seed, metavar="N", help="default 0")
    _dtype_option(train)
    train.add_argument(
        "--precision",
        type=values.one_of(PRECISIONS),
        metavar="NAME",
        help="instead of --dtype: fp32, tf32 (on a GPU), or bf16, fp16 with float32 master weights",
    )
    _device_option(train)
    _learning_options(train.add_argument_group("learning"))
    _run_options(train.add_argument_group("the run"))


def _learning_options(train: argparse._ArgumentGroup) -> None:
    train.add_argument("--lr", type=values.positive, metavar="X", help="first learning rate")
    train.add_argument(
        "--optimizer",
        type=values.optimizer,
        metavar="NAME",
        help="SGD, AdaGrad, RMSProp, Adam (default), AdamW, also with arguments: "
        '"SGD(momentum=0.9)"',
    )
    train.add_argument(
        "--schedule",
        type=values.schedule,
        metavar="NAME",
        help="constant, exponential (default), cosine, onecycle, warmup, noam, king, also with "
        'arguments, "cosine(final_lr=0.0001)": the others are fitted to --lr and --epochs',
    )
    train.add_argument(
        "--clip-norm",
        type=values.positive,
        metavar="X",
        help="scale longer gradients down to this norm",
    )
    train.add_argument(
        "--label-smoothing", type=values.fraction, metavar="X", help="of the training loss, 0..1"
    )
    train.add_argument(
        "--augment",
        type=values.transforms,
        metavar="LIST",
        help='variations of the images: "crop(4), flip, cutout(8)"',
    )
    train.add_argument(
        "--accumulate",
        type=values.positive_int,
        metavar="N",
        help="compute each batch in N parts, in less memory",
    )
    train.add_argument(
        "--ema",
        type=values.fraction,
        metavar="DECAY",
        help="end with a moving average of the weights, e.g. 0.999",
    )
    train.add_argument(
        "--patience",
        type=values.positive_int,
        metavar="N",
        help="stop after N epochs without a smaller validation loss",
    )


def _run_options(train: argparse._ArgumentGroup) -> None:
    train.add_argument(
        "--out", metavar="DIR", help="folder for the results, one without a run in it"
    )
    train.add_argument("--resume", metavar="PATH", help="go on with a run (folder or checkpoint)")
    train.add_argument(
        "--keep-last",
        type=values.positive_int,
        metavar="N",
        help="checkpoints that stay (default 2)",
    )
    train.add_argument(
        "--checkpoint-seconds",
        type=values.positive,
        metavar="X",
        help="checkpoints inside an epoch too, this far apart",
    )
    train.add_argument(
        "--tensorboard",
        action="store_const",
        const=True,
        help="write logs for TensorBoard into the results' folder",
    )


def _evaluate_options(evaluate: argparse.ArgumentParser) -> None:
    _model_argument(evaluate)
    _data_options(evaluate, "the set it was trained with")
    _batch_option(evaluate, 256)
    evaluate.add_argument(
        "--flip", action="store_true", help="mean over each image and its mirror image"
    )
    evaluate.add_argument(
        "--plots", metavar="DIR", help="draw confusions, mistakes, filters and more into DIR"
    )
    _device_option(evaluate)


def _predict_options(predict: argparse.ArgumentParser) -> None:
    _model_argument(predict)
    predict.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or .npy arrays")
    predict.add_argument(
        "--top",
        type=values.positive_int,
        default=3,
        metavar="N",
        help="classes to name for each image (default 3)",
    )
    predict.add_argument("--invert", action="store_true", help="for dark things on a bright ground")
    predict.add_argument(
        "--digit",
        action="store_true",
        help="cut out and centre the ink as was done for MNIST (implies gray)",
    )
    _batch_option(predict, 256)
    _device_option(predict)


def _export_options(export: argparse.ArgumentParser) -> None:
    _model_argument(export)
    export.add_argument("out", metavar="OUT", help="file to write: .onnx, .safetensors or .npz")
    export.add_argument(
        "--uint8",
        action="store_true",
        help="ONNX: take pixels 0..255 and standardise them inside, as the training did",
    )
    of_onnx = values.one_of(tuple(name for name in DTYPES if name != "bfloat16"))
    text = "ONNX: compute in float32 (every runtime can), float64, float16; default the network's"
    export.add_argument("--dtype", type=of_onnx, metavar="NAME", help=text)
    export.add_argument("--force", action="store_true", help="write over an existing file")


def _bench_options(bench: argparse.ArgumentParser) -> None:
    bench.add_argument(
        "--model", default="lenet", metavar="NAME", help="lenet (default), mlp, vgg-small, resnet9"
    )
    _batch_option(bench, 64)
    bench.add_argument(
        "--seconds",
        type=values.positive,
        default=2.0,
        metavar="X",
        help="time for each measurement (default 2)",
    )
    bench.add_argument("--profile", action="store_true", help="the time of each layer")
    _dtype_option(bench)
    _device_option(bench)


def _tune_options(tune: argparse.ArgumentParser) -> None:
    tune.add_argument(
        "--model", default="lenet", metavar="NAME", help="lenet (default), mlp, vgg-small, resnet9"
    )
    _batch_option(tune, 64)
    _dtype_option(tune)
    tune.add_argument("--clear", action="store_true", help="forget everything that was measured")


def _demo_options(demo: argparse.ArgumentParser) -> None:
    demo.add_argument(
        "--checkpoint", metavar="MODEL", help="a trained network: a run's folder, or a checkpoint"
    )
    demo.add_argument(
        "--port",
        type=values.port,
        default=8321,
        metavar="N",
        help="default 8321; 0 for any free port",
    )
    demo.add_argument("--open", action="store_true", help="open the page in the browser")
    _device_option(demo)


def _completion_options(completion: argparse.ArgumentParser) -> None:
    completion.add_argument(
        "shell", metavar="SHELL", type=values.one_of(SHELLS), help=", ".join(SHELLS)
    )


def _model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="MODEL", help="a run's folder, or a checkpoint")


def _data_options(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--data",
        metavar="NAME|PATH",
        help="mnist-10k, mnist, fashion-mnist, cifar10, cifar100, or a folder of pictures (a "
        "subfolder for each class), of .npy files, or an .npz file of your own; "
        f"default {default}",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="where the full sets lie or are downloaded to (or set GPULAYERS_DATA)",
    )


def _batch_option(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument(
        "--batch-size",
        type=values.positive_int,
        default=default,
        metavar="N",
        help=f"images computed at once (default {default})",
    )


def _dtype_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        type=values.one_of(DTYPES),
        metavar="NAME",
        help=", ".join(("float32 (default)", *DTYPES[:2], DTYPES[3])),
    )


def _device_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        type=values.one_of(DEVICES),
        metavar="NAME",
        help="auto (default: a GPU if one answers), cpu, gpu",
    )
