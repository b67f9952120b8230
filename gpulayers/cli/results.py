"""What a finished run leaves: results.json, results.md, curves.png, and a table on the screen."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

import gpulayers
from gpulayers import backend
from gpulayers.cli.config import CONFIG_FILE
from gpulayers.plot._style import literal
from gpulayers.training import Dataset, Trainer, evaluate, plot_curves
from gpulayers.training.checkpoint import write_atomically
from gpulayers.training.metrics import markdown_table
from gpulayers.training.plots import MISSING
from gpulayers.training.trainer import BEST_FILE, LOG_FILE, MODEL_FILE

__all__ = ["collect", "confusions", "print_table", "show", "split_results", "write"]


def collect(trainer: Trainer) -> dict[str, Any]:
    """Everything worth keeping of a finished run, plain values only."""
    history, network, held = trainer.history, trainer.network, trainer.data.validation
    with backend.use_backend(trainer.device):
        tested = split_results(network, trainer.data, trainer.loss)
        report = backend.describe()
    return {
        "model": network.name,
        "data": trainer.data.name,
        "parameters": network.parameter_count,
        "options": trainer.info.get("options", {}),
        "epochs": len(history),
        "test_accuracy": tested["accuracy"],
        "test_loss": tested["loss"],
        "validation_examples": 0 if held is None else len(held),
        "best_accuracy": history.best.val_accuracy,
        "best_epoch": history.best.epoch,
        "train_accuracy": history.last.train_accuracy,
        "train_loss": history.last.train_loss,
        "examples_per_second": float(np.median(history.column("examples_per_second"))),
        "seconds": history.seconds,
        "backend": network.home,
        "dtype": trainer.dtype.name,
        "gpulayers": gpulayers.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "environment": report.splitlines(),
        "stopped": trainer.stopped,
        "history": history.to_dict(),
        "test": tested,
    }


def split_results(
    network: Any, data: Dataset, loss: Any = None, batch_size: int = 256, flip: bool = False
) -> dict[str, Any]:
    """Loss, accuracy, confusion matrix and scores of each class on the test split."""
    result = evaluate(network, data, loss, batch_size, flip)
    return {
        "loss": result.loss,
        "accuracy": result.accuracy,
        "macro_f1": result.macro_f1,
        "examples": len(data.test),
        "classes": list(data.classes),
        "confusion": result.confusion.tolist(),
        "per_class": [vars(score) for score in result.per_class],
    }


def confusions(tested: dict[str, Any], most: int = 5) -> list[tuple[str, str, int]]:
    """The most frequent mistakes: (true class, predicted class, how often)."""
    matrix = np.array(tested["confusion"])
    np.fill_diagonal(matrix, 0)
    order = np.argsort(-matrix, axis=None, kind="stable")[:most]
    pairs: list[tuple[Any, ...]] = [np.unravel_index(i, matrix.shape) for i in order]
    names = tested["classes"]
    return [(names[t], names[p], int(matrix[t, p])) for t, p in pairs if matrix[t, p]]


def write(trainer: Trainer, out: Path, results: dict[str, Any]) -> dict[str, str]:
    """Write the run's files; return {path: what it is}. Without matplotlib there is no plot."""
    files = {
        str(out / MODEL_FILE): "the trained network, and all that --resume needs",
        str(out / BEST_FILE): f"the network of the best epoch ({results['best_epoch']})",
        str(out / LOG_FILE): "the figures of each epoch",
        str(out / CONFIG_FILE): "the last settings, and what was changed on resume"
        if trainer.info.get("changes")
        else "the settings; --config repeats the run",
    }
    more = {"checkpoints": "the checkpoints before the last one", "tensorboard": "logs"}
    files |= {str(out / name): what for name, what in more.items() if (out / name).is_dir()}
    write_atomically(out / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    files[str(out / "results.json")] = "all results"
    write_atomically(out / "results.md", _markdown(results).encode())
    files[str(out / "results.md")] = "tables of results"
    title = f"{results['model']} on {results['data']}: {results['test_accuracy']:.2%} on test"
    split = _validated_on(results)
    try:
        drawn = plot_curves(trainer.history, out / "curves.png", literal(title), split)
        files[str(drawn)] = "curves"
    except ImportError:
        print(MISSING, file=sys.stderr)
    except Exception as error:  # a finished training never fails for its picture
        print(f"no plot: {type(error).__name__}: {error}", file=sys.stderr)
    return files


def _validated_on(results: dict[str, Any]) -> str:
    """What the figures after each epoch are of."""
    return "validation" if results["validation_examples"] else "test"


def _rows(results: dict[str, Any]) -> list[tuple[str, str]]:
    best = f"{results['best_accuracy']:.2%} (epoch {results['best_epoch']})"
    split = _validated_on(results)
    return [
        ("test accuracy", f"{results['test_accuracy']:.2%}"),
        ("test loss", f"{results['test_loss']:.4f}"),
        (f"best {split} accuracy", best),
        ("training accuracy", f"{results['train_accuracy']:.2%}"),
        ("parameters", f"{results['parameters']:,}"),
        ("epochs", str(results["epochs"])),
        ("time", f"{results['seconds']:.1f} s"),
        ("training speed", f"{results['examples_per_second']:,.0f} examples/s"),
        ("computed with", f"{results['backend']}, {results['dtype']}"),
    ]


def _markdown(results: dict[str, Any]) -> str:
    title = f"# {results['model']} on {results['data']}"
    split = _validated_on(results)
    head = (
        "epoch",
        "loss",
        "accuracy",
        f"{split} loss",
        f"{split} accuracy",
        "lr",
        "examples/s",
        "s",
    )
    epochs = [
        (
            e["epoch"],
            f"{e['train_loss']:.4f}",
            f"{e['train_accuracy']:.2%}",
            f"{e['val_loss']:.4f}",
            f"{e['val_accuracy']:.2%}",
            f"{e['lr']:.2g}",
            f"{e['examples_per_second']:,.0f}",
            f"{e['seconds']:.1f}",
        )
        for e in results["history"]["epochs"]
    ]
    options = [(k, v) for k, v in results["options"].items() if v is not None]
    parts = [
        title,
        markdown_table(("result", "value"), _rows(results)),
        "## Epochs",
        markdown_table(head, epochs),
        "## Classes (test)",
        class_table(results["test"]),
    ]
    mistakes = confusions(results["test"])
    if mistakes:
        parts += [
            "## Most frequent mistakes",
            markdown_table(("true", "predicted", "times"), mistakes),
        ]
    parts += ["## Settings", markdown_table(("option", "value"), options)]
    return "\n\n".join(parts) + "\n"


def class_table(tested: dict[str, Any]) -> str:
    """A Markdown table of the scores of each class."""
    rows = [
        (s["name"], s["examples"], f"{s['precision']:.2%}", f"{s['recall']:.2%}", f"{s['f1']:.2%}")
        for s in tested["per_class"]
    ]
    return markdown_table(("class", "examples", "precision", "recall", "F1"), rows)


def show(results: dict[str, Any], files: dict[str, str]) -> None:
    """Print the results and where they are."""
    print_table(f"{results['model']} on {results['data']}", _rows(results))
    if results["stopped"]:
        print(f"stopped early: {results['stopped']}")
    folder = Path(next(iter(files))).parent
    print(f"saved in {folder}:")
    width = max(len(Path(f).name) for f in files)
    for file, what in files.items():
        print(f"  {Path(file).name:<{width}}  {what}")


def print_table(title: str, rows: list[tuple[str, str]]) -> None:
    """Print two columns: with rich if it is there, else as Markdown."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(f"\n{title}\n\n{markdown_table(('', ''), rows)}\n")
        return
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    console.print(title, markup=False, soft_wrap=True)  # may be wider than the table
    console.print(table)
