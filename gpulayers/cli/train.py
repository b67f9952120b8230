"""``gpulayers train``."""

from __future__ import annotations

import copy
import json
import os
import shlex
import sys
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from gpulayers import backend
from gpulayers._types import is_dict
from gpulayers.cli.arguments import DEFAULTS, RUN_OPTIONS
from gpulayers.cli.config import CONFIG_FILE, config_text
from gpulayers.cli.output import note, print_json, verbose
from gpulayers.cli.results import collect, show, write
from gpulayers.cli.saved import data_of
from gpulayers.errors import CheckpointError, GPULayersError, ParameterError, ShapeError
from gpulayers.initializers import OptimizerInitializer
from gpulayers.models import Sequential, build, summarize
from gpulayers.optimizers._rate import rate_asked
from gpulayers.training import (
    DATASETS,
    Callback,
    EarlyStopping,
    TensorBoardLogger,
    Trainer,
    WeightAverage,
    load_checkpoint,
)
from gpulayers.training.checkpoint import write_atomically
from gpulayers.training.data import Dataset
from gpulayers.training.keeper import OLDER
from gpulayers.training.progress import NoProgress, Progress, make_progress
from gpulayers.training.resume import checkpoint_path
from gpulayers.training.schedule import fit_schedule, states_rate
from gpulayers.training.settings import device_backend
from gpulayers.training.trainer import MODEL_FILE
from gpulayers.training.transforms import make_transform

__all__ = ["run"]

EPOCHS = {"mnist-10k": 8, "mnist": 3, "fashion-mnist": 10, "cifar10": 20}
OTHER_EPOCHS = 10
LOGS = "tensorboard"
LEARNING_RATES = {"Adam": 0.003, "RMSProp": 0.001, "AdaGrad": 0.02, "SGD": 0.05}
MAY_CHANGE = (
    "epochs",
    "schedule",
    "patience",
    "data_dir",
    "device",
    "keep_last",
    "checkpoint_seconds",
    "tensorboard",
)  # on resume


def run(options: Namespace) -> int:
    """Train as `options` say, save and print the results; return the exit code."""
    chosen = {name: getattr(options, name) for name in RUN_OPTIONS}
    trainer, out = _resumed(options, chosen) if options.resume else _new(options, chosen)
    trainer.out = out
    for one in trainer.callbacks.hooked:
        if isinstance(one, TensorBoardLogger):
            one.folder = out / LOGS
    settings = trainer.info["options"]
    text = config_text(_reproducing(trainer, settings), trainer.info["changes"])
    write_atomically(out / CONFIG_FILE, text.encode())
    if not options.quiet:
        _announce(trainer, sys.stderr if options.json else sys.stdout)
    if options.verbose:
        with backend.use_backend(trainer.device):  # summarize leaves network and seed alone
            table = summarize(trainer.network, trainer.data.input_shape, trainer.batch_size)
        verbose(options, f"\n{backend.describe()}\n\n{text}\n{table}\n")
    try:
        trainer.fit()
    except KeyboardInterrupt as stop:
        text = str(stop).partition(", from where")[0] or "stopped at once; the last epoch is kept"
        if (out / MODEL_FILE).exists():
            text += f"\nTo go on: gpulayers train --resume {shlex.quote(str(out))}"
        raise KeyboardInterrupt(text) from None
    results = collect(trainer)
    files = write(trainer, out, results)
    if options.json:
        print_json(results)
    else:
        show(results, files)
    return 0


def _progress(options: Namespace) -> Progress:
    if options.quiet:
        return NoProgress()
    return make_progress(sys.stderr if options.json else sys.stdout)


def _new(options: Namespace, chosen: dict[str, Any]) -> tuple[Trainer, Path]:
    """A trainer for a run from the beginning; checks everything before it creates the folder."""
    settings = {k: DEFAULTS[k] if v is None else v for k, v in chosen.items()}
    optimizer = _optimizer(settings)
    with backend.use_backend(device_backend(settings["device"])):
        backend.current_backend()  # a missing GPU is told before the data is loaded
    build(settings["model"])  # so is an unknown model
    data = _data(settings)
    if settings["epochs"] is None:
        settings["epochs"] = EPOCHS.get(data.name, OTHER_EPOCHS)
    network = build(settings["model"], len(data.classes), data.input_shape)
    _check_size(settings, network, data)
    trainer = _trainer(
        options, settings, network, data, optimizer=optimizer, schedule=settings["schedule"]
    )
    return trainer, _folder(options.out, f"{network.name}-{_stem(data.name)}")


def _optimizer(settings: dict[str, Any]) -> Any:
    """The optimizer, with the one learning rate that the options give, or its default, which is
    put into the settings; ParameterError if they give several."""
    text, lr = settings["optimizer"], settings["lr"]
    optimizer: Any = OptimizerInitializer(text)()
    if lr is not None and optimizer.lr_asked and optimizer.lr != lr:
        raise ParameterError(f"--lr {lr} and --optimizer {text!r} differ; give the rate once")
    if lr is None and not optimizer.lr_asked and not states_rate(settings["schedule"]):
        settings["lr"] = LEARNING_RATES.get(type(optimizer).__name__)
    if settings["lr"] is not None:
        optimizer.set_params({"lr": settings["lr"]})
    owner = f"--schedule {settings['schedule']!r}"
    fit_schedule(settings["schedule"], optimizer.lr, 1, 1, optimizer.lr_asked, owner)
    return optimizer


def _resumed(options: Namespace, chosen: dict[str, Any]) -> tuple[Trainer, Path]:
    """A trainer that goes on with the run in ``--resume``."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        path = checkpoint_path(Path(options.resume))
    for warning in told:  # the last checkpoint is damaged, the one before it is taken
        print(f"gpulayers: warning: {warning.message}", file=sys.stderr)
    checkpoint = load_checkpoint(path, device="numpy", kind=Sequential)
    settings = checkpoint.info.get("options")
    if not is_dict(settings) or checkpoint.trainer is None:
        raise CheckpointError(
            f"{path} was not written by `gpulayers train`; from Python, Trainer(..., resume=path) "
            "goes on with it"
        )
    settings = {**DEFAULTS, **settings}  # an older run has not all of them
    former = dict(settings)
    for name, value in chosen.items():
        if value is None or value == settings[name]:
            continue
        if name not in MAY_CHANGE:
            raise ParameterError(
                f"--{name.replace('_', '-')} {value} differs from the run in {path} "
                f"({settings[name]}); a resumed run keeps its settings, except for "
                f"{', '.join('--' + n.replace('_', '-') for n in MAY_CHANGE)}"
            )
        settings[name] = value
    if settings["schedule"] != former["schedule"] and states_rate(settings["schedule"]):
        settings["lr"] = None  # the schedule's counts from here on
        _optimizer(dict(settings))  # says if the optimizer's description has another
    elif settings["lr"] is None and not states_rate(settings["schedule"]):
        _, layer = next(checkpoint.network.walk())
        settings["lr"] = rate_asked(layer.optimizer)[0]  # which an earlier schedule left
    data = _data(settings)
    # the schedule is given again where it is to be another, so that older checkpoints get it too
    again = any(settings[name] != former[name] for name in ("epochs", "schedule"))
    schedule = settings["schedule"] if again else None
    before = _rates(checkpoint.network)
    trainer = _trainer(options, settings, checkpoint.network, data, resume=path, schedule=schedule)
    rates = _rates(trainer.network)
    changes = _changes(former, settings, trainer, rates != before)
    trainer.info["changes"] = [*checkpoint.info.get("changes", []), *changes]
    done = len(trainer.history)
    folder = path.parent.parent if path.parent.name == OLDER else path.parent
    if done > trainer.epochs:
        raise ParameterError(
            f"the run in {path} has done {done} epochs, more than --epochs {trainer.epochs}; to go "
            f"on with it: --epochs {done + 1} or more"
        )
    if done >= trainer.epochs and _reported(folder, done):
        raise ParameterError(
            f"the run in {path} is complete ({done} of {done} epochs); to train longer: --epochs "
            f"{done + 1} or more"
        )
    if again:
        how = "fitted anew" if rates != before else "as it was"
        note(
            options,
            f"going on after {done} of {trainer.epochs} epochs; the schedule {schedule!r} is "
            f"{how}: {rates[0]}, now at {trainer.learning_rate:.3g}",
        )
    return trainer, _folder(options.out, "") if options.out else folder


def _rates(network: Sequential) -> list[str]:
    """The schedules of its layers."""
    return [str(layer.optimizer.lr_scheduler) for _, layer in network.walk()]


def _changes(
    former: dict[str, Any], settings: dict[str, Any], trainer: Trainer, rates: bool
) -> list[str]:
    """What of the settings may have made another run of one that is resumed; `rates` says whether
    the learning rates are others."""
    if not trainer.epoch and not trainer.step:
        return []
    names = ("epochs", "schedule", "patience", "device") if rates else ("patience", "device")
    return [
        f"{name} = {settings[name]} after {trainer.epoch} epochs, before that {former[name]}"
        for name in names
        if settings[name] != former[name]
    ]


def _reported(folder: Path, epochs: int) -> bool:
    """Whether the results of so many epochs are written; the run may have been killed before."""
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        return results["epochs"] == epochs and (folder / "results.md").exists()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _trainer(
    options: Namespace,
    settings: dict[str, Any],
    network: Sequential,
    data: Dataset,
    **more: Any,
) -> Trainer:
    return Trainer(
        network,
        data,
        batch_size=settings["batch_size"],
        epochs=settings["epochs"],
        seed=settings["seed"],
        device=settings["device"],
        dtype=settings["dtype"],
        precision=settings["precision"],
        clip_global_norm=settings["clip_norm"],
        label_smoothing=settings["label_smoothing"],
        transform=settings["augment"],
        accumulate=settings["accumulate"],
        callbacks=_callbacks(settings),
        keep_last=settings["keep_last"],
        checkpoint_seconds=settings["checkpoint_seconds"],
        progress=_progress(options),
        info={
            "options": settings,
            "purpose": {"classes": list(data.classes), "input_shape": list(data.input_shape)},
            "changes": [],
        },
        **more,
    )


def _data(settings: dict[str, Any]) -> Dataset:
    data = data_of(settings)
    _check_pictures(settings, data)
    share = settings["validation"]
    return data if share is None else data.hold_out(share, settings["seed"])


def _check_pictures(settings: dict[str, Any], data: Dataset) -> None:
    """Refuse options that change pictures alone where they have changed nothing, and variations
    that the images are too small for."""
    rows, cols, channels = data.input_shape
    size = settings["image_size"]
    if size is not None and (rows, cols) != (size, size):
        raise ParameterError(
            f"--image-size {size} is for folders of pictures; the images of {data.name} are "
            f"arrays of {rows} x {cols} pixels"
        )
    if settings["grayscale"] and channels != 1:
        raise ParameterError(
            f"--grayscale is for folders of pictures; the images of {data.name} are arrays of "
            f"{channels} channels"
        )
    transform = make_transform(settings["augment"])
    if transform is not None:
        try:
            transform.output_shape(data.input_shape)
        except ShapeError as error:
            raise ParameterError(f"--augment {settings['augment']!r}: {error}") from error


def _check_size(settings: dict[str, Any], network: Sequential, data: Dataset) -> None:
    """Refuse to train on images of a size that the network cannot take besides the data's own, in
    which it is evaluated."""
    transform = make_transform(settings["augment"])
    if transform is None or transform.output_shape(data.input_shape) == data.input_shape:
        return
    rows, cols, _ = shape = transform.output_shape(data.input_shape)
    try:
        with backend.use_backend("numpy"):
            tried = copy.deepcopy(network)
            for size in (data.input_shape, shape):
                tried.forward(np.zeros((1, *size), np.uint8), retain_derived=False)
    except ShapeError as error:
        high, wide, _ = data.input_shape
        raise ParameterError(
            f"--augment {settings['augment']!r} gives images of {rows} x {cols} pixels, "
            f"{network.name} takes {high} x {wide} ones of {data.name} alone: {error}"
        ) from error


def _callbacks(settings: dict[str, Any]) -> list[Callback]:
    """What the settings add to a run; a resumed run gets the same."""
    found: list[Callback] = []
    if settings["ema"] is not None:
        found.append(WeightAverage(settings["ema"]))
    if settings["patience"] is not None:
        found.append(EarlyStopping(patience=settings["patience"]))
    if settings["tensorboard"]:
        try:
            found.append(TensorBoardLogger(LOGS))
        except ImportError as error:
            raise GPULayersError(f"--tensorboard: {error}") from error
    return found


def _reproducing(trainer: Trainer, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with everything that was left open filled in, and paths that hold anywhere."""
    with backend.use_backend(trainer.device):
        place = backend.current_backend()
    found = {**settings, "device": "gpu" if place == "cupy" else "cpu", "dtype": trainer.dtype.name}
    if settings["data"].lower().replace("_", "-") not in DATASETS:
        found["data"] = str(Path(settings["data"]).expanduser().resolve())
    if settings["data_dir"] is not None:
        found["data_dir"] = str(Path(settings["data_dir"]).expanduser().resolve())
    return found


def _stem(name: str) -> str:
    """A data set's name without a file's ending."""
    for ending in (".npz", ".tar.gz", ".tgz"):
        name = name.removesuffix(ending)
    return name


def _folder(asked: str | None, name: str) -> Path:
    """Create the run's folder; one that holds a run already is never written over."""
    if asked is not None:
        out = Path(asked)
        if (out / MODEL_FILE).exists():
            raise ParameterError(
                f"--out {out} holds a run already; choose another folder, or --resume {out}"
            )
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _not_writable(f"--out {out}", error) from error
        if not os.access(out, os.W_OK):
            raise GPULayersError(f"--out {out}: no permission to write there")
        return out
    out, number = Path("runs") / name, 1
    while True:
        try:
            out.mkdir(parents=True)
        except FileExistsError:
            number += 1
            out = Path("runs") / f"{name}-{number}"
        except OSError as error:
            raise _not_writable(f"{out} (choose another folder with --out)", error) from error
        else:
            return out


def _not_writable(where: str, error: OSError) -> GPULayersError:
    why = "it is a file" if isinstance(error, FileExistsError) else error.strerror or str(error)
    return GPULayersError(f"{where}: the folder for the results cannot be made: {why}")


def _announce(trainer: Trainer, stream: Any) -> None:
    data, network = trainer.data, trainer.network
    with backend.use_backend(trainer.device):
        place = backend.current_backend()
    held = f", {len(data.validation):,} validation" if data.validation is not None else ""
    present = np.bincount(data.train.labels, minlength=len(data.classes)) > 0
    absent = [name for name, there in zip(data.classes, present, strict=True) if not there]
    print(
        f"{network.name} on {data.name}: {len(data.train):,} training{held} and "
        f"{len(data.test):,} test images, {len(data.classes)} classes\n"
        f"{place}, {trainer.dtype.name}, batches of {trainer.batch_size}, seed {trainer.seed}; "
        f"results go to {trainer.out}"
        + (f"\nno training images of class {', '.join(absent[:9])}" if absent else ""),
        file=stream,
        flush=True,
    )
