"""The command line in this process: what it prints, writes and returns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gpulayers import backend
from gpulayers.cli import main
from gpulayers.cli import train as train_module
from gpulayers.ops import compiled, current_engine
from gpulayers.threads import thread_count
from gpulayers.training import load, load_checkpoint
from tests.training.test_showing import hidden  # noqa: F401 - a fixture

FAST = ["--epochs", "2", "--model", "mlp", "--batch-size", "16"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Each test in its own empty folder, on the CPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPULAYERS_BACKEND", "numpy")
    monkeypatch.setenv("COLUMNS", "100")


def failing(capsys, *arguments: str) -> tuple[int, str]:
    """Exit code and error text of a command that must fail, without a traceback."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    output = capsys.readouterr()
    assert "Traceback" not in output.err + output.out
    assert output.err.strip(), "an error is explained"
    return code, output.err


# ------------------------------------------------------------------------------------------- train


def test_train_leaves_model_curves_tables_and_says_where(tiny, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["train", "--data", tiny, *FAST]) == 0
    text = capsys.readouterr().out
    folder = tmp_path / "runs" / "mlp-tiny"
    names = {
        "best.safetensors",
        "checkpoints",
        "config.toml",
        "curves.png",
        "log.csv",
        "model.safetensors",
        "results.json",
        "results.md",
    }
    assert {p.name for p in folder.iterdir()} == names
    assert "mlp on tiny.npz: 96 training and 32 test images, 2 classes" in text
    assert "epoch 1/2" in text and "epoch 2/2" in text and "test accuracy" in text
    assert "saved in runs/mlp-tiny" in text
    assert all(name in text for name in names)
    results = json.loads((folder / "results.json").read_text())
    assert results["test_accuracy"] >= 0.95
    assert results["test"]["classes"] == ["dark", "bright"]
    assert np.sum(results["test"]["confusion"]) == 32
    assert results["options"]["epochs"] == 2 and results["options"]["seed"] == 0
    assert len(results["history"]["step_losses"]) == 12
    markdown = (folder / "results.md").read_text()
    assert "| bright |       16 |" in markdown and "## Settings" in markdown
    net = load(folder / "model.safetensors")
    assert net.parameter_count == results["parameters"]


def test_a_second_run_gets_a_folder_of_its_own(tiny, tmp_path, capsys):
    for _ in range(3):
        assert main(["train", "--data", tiny, *FAST, "--quiet"]) == 0
    folders = sorted(p.name for p in (tmp_path / "runs").iterdir())
    assert folders == ["mlp-tiny", "mlp-tiny-2", "mlp-tiny-3"]
    files = [(tmp_path / "runs" / f / "results.json").read_text() for f in folders]
    histories = [json.loads(f)["history"]["step_losses"] for f in files]
    assert histories[0] == histories[1] == histories[2], "same seed, same result"


def test_every_option_arrives(tiny, tmp_path, capsys):
    arguments = ["--epochs", "1", "--model", "lenet", "--batch-size", "8", "--lr", "0.02"]
    arguments += ["--optimizer", "SGD(momentum=0.5)", "--schedule", "constant", "--seed", "11"]
    arguments += ["--dtype", "float64", "--device", "cpu", "--out", "mine", "--json"]
    assert main(["train", "--data", tiny, *arguments]) == 0
    output = capsys.readouterr()
    results = json.loads(output.out)  # nothing else is on standard output
    assert "epoch 1/1" in output.err
    assert results["model"] == "lenet" and results["dtype"] == "float64"
    assert len(results["history"]["step_losses"]) == 12
    assert results["history"]["epochs"][0]["lr"] == 0.02
    checkpoint = load_checkpoint("mine/model.safetensors")
    optimizer = checkpoint.network[0].optimizer
    assert (type(optimizer).__name__, optimizer.momentum, optimizer.lr) == ("SGD", 0.5, 0.02)
    assert checkpoint.network.dtype == np.float64
    assert checkpoint.trainer["config"]["seed"] == 11
    assert backend.default_dtype() == np.float32


def test_quiet_prints_only_the_results(tiny, capsys):
    assert main(["train", "--data", tiny, *FAST, "--quiet"]) == 0
    output = capsys.readouterr()
    assert "epoch 1/2" not in output.out and "test accuracy" in output.out and not output.err


def test_the_defaults_are_lenet_on_the_bundled_digits(monkeypatch, capsys):
    seen = {}

    class StopError(Exception):
        pass

    def stop(trainer):
        seen.update(trainer.config, model=trainer.network.name, epochs=trainer.epochs)
        raise StopError

    monkeypatch.setattr(train_module.Trainer, "fit", stop)
    assert main(["train"]) == 1
    assert "StopError" in capsys.readouterr().err
    assert (seen["model"], seen["data"], seen["dtype"], seen["seed"]) == (
        ("lenet", "mnist-10k", "float32", 0)
    )
    assert seen["train_examples"] == 10_000


def test_without_matplotlib_only_the_plot_is_missing(tiny, tmp_path, capsys, hidden):  # noqa: F811
    hidden("matplotlib")
    assert main(["train", "--data", tiny, *FAST]) == 0
    output = capsys.readouterr()
    assert output.err.count("matplotlib is not installed") == 1
    names = {p.name for p in (tmp_path / "runs" / "mlp-tiny").iterdir()}
    assert "curves.png" not in names and "results.json" in names
    assert "curves.png" not in output.out


def test_without_rich_the_results_are_printed_plainly(tiny, capsys, hidden):  # noqa: F811
    hidden("rich")
    assert main(["train", "--data", tiny, *FAST]) == 0
    assert "| test accuracy" in capsys.readouterr().out


def test_a_plot_that_fails_does_not_fail_the_training(tiny, capsys, monkeypatch):
    from gpulayers.cli import results

    def broken(*arguments):
        raise ValueError("no font")

    monkeypatch.setattr(results, "plot_curves", broken)
    assert main(["train", "--data", tiny, *FAST]) == 0
    assert "no plot: ValueError: no font" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ resume


def test_resume_equals_an_uninterrupted_run(tiny, tmp_path, capsys, monkeypatch):
    assert main(["train", "--data", tiny, *FAST, "--out", "whole"]) == 0
    plain = train_module.Trainer._finish_epoch

    def stop_after_the_first(self, *arguments):
        record = plain(self, *arguments)
        if record.epoch == 1:
            raise KeyboardInterrupt
        return record

    monkeypatch.setattr(train_module.Trainer, "_finish_epoch", stop_after_the_first)
    code, text = failing(capsys, "train", "--data", tiny, *FAST, "--out", "cut")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert code == 130 and "gpulayers train --resume cut" in text
    assert main(["train", "--resume", "cut"]) == 0
    whole, cut = (json.loads((tmp_path / n / "results.json").read_text()) for n in ("whole", "cut"))
    assert cut["history"]["step_losses"] == whole["history"]["step_losses"]
    assert cut["test"] == whole["test"]


def test_a_finished_run_goes_on_with_more_epochs(tiny, capsys):
    assert main(["train", "--data", tiny, *FAST, "--out", "a"]) == 0
    code, text = failing(capsys, "train", "--resume", "a")
    assert code == 2 and "is complete (2 of 2 epochs); to train longer: --epochs 3" in text
    Path("a/results.json").unlink()  # as if it had been stopped before the end
    code, text = failing(capsys, "train", "--resume", "a", "--epochs", "1")
    assert code == 2 and "has done 2 epochs, more than --epochs 1; to go on" in text
    assert main(["train", "--resume", "a/model.safetensors", "--epochs", "3", "--out", "b"]) == 0
    assert load_checkpoint("b/model.safetensors").trainer["epoch"] == 3
    assert load_checkpoint("a/model.safetensors").trainer["epoch"] == 2


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(tiny, capsys):
    assert main(["train", "--data", tiny, *FAST, "--out", "whole", "--quiet"]) == 0
    assert main(["train", "--data", tiny, *FAST, "--out", "a", "--quiet"]) == 0
    path = Path("a/model.safetensors")
    path.write_bytes(path.read_bytes()[:-9])
    capsys.readouterr()
    assert main(["train", "--resume", "a", "--quiet"]) == 0
    said = capsys.readouterr().err
    assert "gpulayers: warning: a/model.safetensors" in said and "epoch-00001" in said
    assert "truncated or corrupted" in said and "Use an older" not in said
    files = [json.loads(Path(f"{name}/results.json").read_text()) for name in ("whole", "a")]
    assert files[0]["history"]["step_losses"] == files[1]["history"]["step_losses"]


def test_a_run_killed_before_its_results_were_written_only_writes_them(tiny, capsys):
    assert main(["train", "--data", tiny, *FAST, "--out", "a", "--quiet"]) == 0
    before = json.loads(Path("a/results.json").read_text())
    Path("a/results.json").unlink()
    assert main(["train", "--resume", "a", "--quiet"]) == 0
    assert json.loads(Path("a/results.json").read_text())["history"] == before["history"]


def test_resume_refuses_other_settings_and_foreign_files(tiny, capsys):
    assert main(["train", "--data", tiny, *FAST, "--out", "a"]) == 0
    code, text = failing(capsys, "train", "--resume", "a", "--batch-size", "8")
    assert code == 2 and "--batch-size 8 differs from the run in a" in text and "(16)" in text
    assert main(["train", "--resume", "a", "--batch-size", "16", "--epochs", "3"]) == 0
    code, text = failing(capsys, "train", "--resume", "nowhere")
    assert code == 1 and "does not exist" in text
    code, text = failing(capsys, "train", "--resume", tiny)
    assert code == 1 and "no gpulayers checkpoint" in text


# ------------------------------------------------------------------------------ other commands


def test_evaluate_prints_what_the_training_found(tiny, tmp_path, capsys):
    assert main(["train", "--data", tiny, *FAST, "--out", "a", "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert main(["evaluate", "a", "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    for key, value in trained["test"].items():
        assert evaluated[key] == value, key
    assert main(["evaluate", "a/best.safetensors", "--data", tiny]) == 0
    text = capsys.readouterr().out
    assert "test accuracy" in text and "| bright |" in text
    code, text = failing(capsys, "evaluate", "gone")
    assert code == 1 and "does not exist" in text
    code, text = failing(capsys, "evaluate", "a", "--data", "mnist-10k")
    assert code == 1 and "images of shape (12, 12, 1)" in text and "are (28, 28, 1)" in text


def test_info(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(backend.describe())
    reason = compiled.unavailable_reason()
    if current_engine() == "numpy":
        reason = "the engine is numpy"
    assert f"c kernels:  {f'not used: {reason}' if reason else 'in use, built for'}" in text
    assert f"engine:     {current_engine()}" in text
    assert f"threads:    {thread_count()}" in text
    assert "tuning:     off (GPULAYERS_TUNE); 0 measured choices in " in text


def test_help_and_version(capsys):
    import gpulayers

    commands = ("train", "evaluate", "predict", "export", "bench", "tune", "demo", "info")
    commands = (*commands, "completion")
    for arguments in (["--help"], *([command, "--help"] for command in commands)):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert "usage: gpulayers" in text
        if arguments[0] == "--help":
            assert all(f"\n    {command}" in text for command in commands)
            assert "130  stopped with Ctrl-C" in text
        else:
            assert (
                "examples:\n" in text and f"gpulayers {arguments[0]}" in text.split("examples:")[1]
            )
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out.strip() == gpulayers.__version__
