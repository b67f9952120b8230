"""Learning rates on the command line: --lr, --schedule, --optimizer; a run that is resumed."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from gpulayers.cli import main
from gpulayers.schedulers import ConstantScheduler, CosineScheduler, ExponentialScheduler
from gpulayers.training import load_checkpoint
from tests.cli.test_cli import failing

# 96 images: 6 steps an epoch
RUN = ["--model", "mlp", "--batch-size", "16", "--quiet"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPULAYERS_BACKEND", "numpy")
    monkeypatch.setenv("COLUMNS", "100")


def rates(folder: str) -> list[float]:
    with (Path(folder) / "log.csv").open() as file:
        return [float(row["lr"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    "options, expected",
    [
        (
            ["--lr", "0.002", "--schedule", "cosine(final_lr=0.0001)"],
            CosineScheduler(0.002, 12, 1e-4),
        ),
        (
            ["--lr", "0.5", "--schedule", "exponential(decay=0.5)"],
            ExponentialScheduler(0.5, 12, False, 0.5),
        ),
        (["--schedule", "cosine(final_lr=0.0001)"], CosineScheduler(0.003, 12, 1e-4)),
        (["--schedule", "constant(lr=0.02)"], ConstantScheduler(0.02)),
        (["--lr", "0.02", "--schedule", "constant(lr=0.02)"], ConstantScheduler(0.02)),
        (["--optimizer", "Adam(0.02)", "--schedule", "constant"], ConstantScheduler(0.02)),
    ],
)
def test_what_is_left_open_comes_from_the_run(tiny, options, expected, capsys) -> None:
    arguments = ["train", "--data", tiny, *RUN, "--epochs", "2"]
    assert main([*arguments, *options, "--out", "a"]) == 0
    assert rates("a") == [expected(6), expected(12)]
    assert main(["train", "--config", "a/config.toml", "--out", "b", "--quiet"]) == 0
    assert rates("b") == rates("a")


@pytest.mark.parametrize(
    "options, words",
    [
        (
            ["--lr", "0.5", "--schedule", "cosine(initial_lr=0.2)"],
            "--schedule 'cosine(initial_lr=0.2)': lr=0.5 was asked for, but CosineScheduler has",
        ),
        (
            ["--optimizer", "Adam(lr=0.1)", "--schedule", "cosine(initial_lr=0.2)"],
            "lr=0.1 was asked for",
        ),
        (["--lr", "0.5", "--schedule", "noam(model_dim=64)"], "lr=0.5 has no effect beside Noam"),
        (
            ["--lr", "0.5", "--optimizer", "Adam(lr=0.1)"],
            "--lr 0.5 and --optimizer 'Adam(lr=0.1)' differ; give the rate once",
        ),
        (
            ["--optimizer", "Adam(lr_scheduler=cosine)"],
            "'Adam(lr_scheduler=cosine)' has a schedule, which is an option of its own: --schedule",
        ),
        (["--optimizer", "Adam(lr=0.1, lr_scheduler=constant)"], "an option of its own"),
        (["--optimizer", "SGD(0.1, 0.9, None, cosine)"], "an option of its own"),
    ],
)
def test_rates_that_contradict_each_other_are_refused(tiny, options, words, capsys) -> None:
    code, text = failing(capsys, "train", "--data", tiny, *RUN, *options)
    assert code == 2 and words in text
    assert not Path("runs").exists()


@pytest.mark.parametrize("options", [["--schedule", "cosine"], []])
def test_training_longer_fits_the_schedule_anew_and_says_so(tiny, options, capsys) -> None:
    begin = ["train", "--data", tiny, *RUN, *options]
    assert main([*begin, "--epochs", "1", "--out", "a"]) == 0
    assert main([*begin, "--epochs", "3", "--out", "whole"]) == 0
    first = rates("a")
    capsys.readouterr()
    assert main(["train", "--resume", "a", "--epochs", "3"]) == 0
    assert rates("a") == [*first, *rates("whole")[1:]]
    said = capsys.readouterr().err
    name = "CosineScheduler(initial_lr=0.003, total_steps=18" if options else "stage_length=18"
    assert "going on after 1 of 3 epochs; the schedule " in said and "fitted anew: " in said
    assert name in said and f"now at {rates('whole')[0]:.3g}" in said


def test_config_says_that_a_resumed_run_was_another(tiny, capsys) -> None:
    begin = ["train", "--data", tiny, *RUN, "--schedule", "cosine", "--patience", "9"]
    assert main([*begin, "--epochs", "1", "--out", "a"]) == 0
    repeats = "# Repeats this run: gpulayers train --config config.toml"
    assert Path("a/config.toml").read_text().startswith(repeats)
    assert main(["train", "--resume", "a", "--epochs", "2"]) == 0
    assert "config.toml        the last settings, and what" in capsys.readouterr().out
    schedule = "constant(lr=0.001)"
    more = ["--schedule", schedule, "--patience", "7"]
    assert main(["train", "--resume", "a", "--epochs", "3", "--quiet", *more]) == 0
    assert rates("a")[2] == 0.001
    assert load_checkpoint("a/model.safetensors").info["options"]["schedule"] == schedule
    text = Path("a/config.toml").read_text()
    assert "Repeats" not in text and "resumed with others" in text.splitlines()[0]
    for line in (
        "# - epochs = 2 after 1 epochs, before that 1",
        "# - epochs = 3 after 2 epochs, before that 2",
        "# - schedule = constant(lr=0.001) after 2 epochs, before that cosine",
        "# - patience = 7 after 2 epochs, before that 9",
    ):
        assert line + "\n" in text
    assert main(["train", "--config", "a/config.toml", "--out", "b", "--quiet"]) == 0
    assert rates("b") == [0.001] * 3, "by the last settings from the beginning, as it says"


def test_a_resumed_run_takes_no_second_rate(tiny, capsys) -> None:
    begin = ["train", "--data", tiny, *RUN, "--optimizer", "Adam(lr=0.1)"]
    assert main([*begin, "--epochs", "1", "--out", "a"]) == 0
    arguments = ["--resume", "a", "--epochs", "2", "--schedule"]
    code, text = failing(capsys, "train", *arguments, "constant(lr=0.01)")
    assert code == 2 and "--schedule 'constant(lr=0.01)': lr=0.1 was asked for" in text
    assert main(["train", *arguments, "constant", "--quiet"]) == 0
    assert rates("a")[1] == 0.1
    assert main(["train", "--config", "a/config.toml", "--out", "b", "--quiet"]) == 0


def test_config_still_repeats_a_run_whose_rates_did_not_change(tiny, capsys) -> None:
    begin = ["train", "--data", tiny, *RUN, "--schedule", "constant"]
    assert main([*begin, "--epochs", "1", "--out", "a"]) == 0
    capsys.readouterr()
    assert main(["train", "--resume", "a", "--epochs", "2"]) == 0
    assert "the schedule 'constant' is as it was: ConstantScheduler" in capsys.readouterr().err
    assert Path("a/config.toml").read_text().startswith("# Repeats this run")
    assert main(["train", "--config", "a/config.toml", "--out", "b", "--quiet"]) == 0
    losses = [load_checkpoint(f"{n}/model.safetensors").trainer["history"] for n in ("a", "b")]
    assert losses[0]["step_losses"].tolist() == losses[1]["step_losses"].tolist()


def test_the_rate_of_an_earlier_schedule_is_kept_in_the_settings(tiny) -> None:
    """A schedule that leaves the rate open goes on at the one before it, and the file says so."""
    run = ["--resume", "r", "--quiet"]
    first = ["--epochs", "1", "--schedule", "cosine(final_lr=0.0001)", "--out", "r"]
    assert main(["train", "--data", tiny, *RUN, *first]) == 0
    assert main(["train", *run, "--epochs", "2", "--schedule", "onecycle(max_lr=0.01)"]) == 0
    assert main(["train", *run, "--epochs", "3", "--schedule", "cosine"]) == 0
    assert rates("r")[2] == CosineScheduler(0.01, 18)(18)
    assert "\nlr = 0.01\n" in (Path("r") / "config.toml").read_text()
