"""Configuration files, and the options that change a training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpulayers.cli import main
from gpulayers.training import load_checkpoint
from tests.cli.conftest import two_kinds
from tests.cli.test_cli import failing
from tests.training.test_showing import hidden  # noqa: F401 - a fixture


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPULAYERS_BACKEND", "numpy")
    monkeypatch.setenv("COLUMNS", "100")


# ------------------------------------------------------------------------------- configuration


def test_every_run_repeats_from_its_own_config(trained, tmp_path, capsys, monkeypatch) -> None:
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "deeper")  # the paths in it hold from anywhere
    config = str(trained / "config.toml")
    assert main(["train", "--config", config, "--out", "again", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    first = json.loads((trained / "results.json").read_text())
    assert again["history"]["step_losses"] == first["history"]["step_losses"]
    assert again["test"] == first["test"]
    assert Path("again/config.toml").read_text() == Path(config).read_text()
    assert main(["train", "--config", config, "--seed", "1", "--out", "other", "--quiet"]) == 0
    assert "seed = 1\n" in Path("other/config.toml").read_text()  # the command line goes first
    assert load_checkpoint("other/model.safetensors").trainer["config"]["seed"] == 1


def test_verbose_says_more_and_changes_nothing(trained, capsys) -> None:
    arguments = ["train", "--config", str(trained / "config.toml"), "--out", "a", "--json"]
    assert main([*arguments, "--verbose"]) == 0
    output = capsys.readouterr()
    first = json.loads((trained / "results.json").read_text())
    assert json.loads(output.out)["history"]["step_losses"] == first["history"]["step_losses"]
    assert "batch-size = 16" in output.err and "FLOPs" in output.err and "backend:" in output.err


def test_the_paths_in_a_config_hold_from_anywhere(tiny_set, tmp_path, monkeypatch) -> None:
    Path("mine.npz").write_bytes(tiny_set.read_bytes())
    arguments = ["--data", "./mine.npz", "--data-dir", "sets", "--model", "mlp", "--epochs", "1"]
    assert main(["train", *arguments, "--out", "a", "--quiet"]) == 0
    text = Path("a/config.toml").read_text()
    assert f"data = {json.dumps(str(tmp_path / 'mine.npz'))}\n" in text
    assert f"data-dir = {json.dumps(str(tmp_path / 'sets'))}\n" in text
    Path("deeper").mkdir()
    monkeypatch.chdir("deeper")
    assert main(["train", "--config", "../a/config.toml", "--out", "b", "--quiet"]) == 0
    assert Path("b/config.toml").read_text() == text


def test_precision(tiny_set, capsys) -> None:
    pytest.importorskip("ml_dtypes")
    arguments = ["--data", str(tiny_set), "--model", "mlp", "--epochs", "1", "--precision", "bf16"]
    assert main(["train", *arguments, "--out", "a", "--quiet"]) == 0
    config = load_checkpoint("a/model.safetensors").trainer["config"]
    assert (config["precision"], config["dtype"]) == ("bf16", "bfloat16")
    assert main(["train", "--config", "a/config.toml", "--out", "b", "--quiet"]) == 0
    assert main(["train", "--resume", "a", "--epochs", "2", "--quiet"]) == 0
    assert main(["train", "--resume", "a", "--epochs", "3", "--precision", "fp16"]) == 2
    assert "--precision fp16 differs from the run" in capsys.readouterr().err


def test_config_keys_take_dashes_or_underscores(tiny_set, capsys) -> None:
    text = f"data = {json.dumps(str(tiny_set))}\nmodel = 'mlp'\nbatch_size = 16\n"
    text += "clip-norm = 3\nepochs = 1\nout = 'there'\n"
    Path("run.toml").write_text(text)
    assert main(["train", "--config", "run.toml", "--quiet"]) == 0
    options = load_checkpoint("there/model.safetensors").info["options"]
    assert (options["batch_size"], options["clip_norm"], options["epochs"]) == (16, 3.0, 1)


@pytest.mark.parametrize(
    "text, words",
    [
        ("batch-sise = 3", "unknown key 'batch-sise' (did you mean 'batch-size'?)"),
        ("resume = 'a'", "unknown key 'resume'"),
        ("epochs = 0", "epochs: expected a positive integer, got '0'"),
        ("epochs = '3'", "epochs must be a number, without quotes, got '3'"),
        ("epochs = 2.5", "epochs: expected a positive integer, got '2.5'"),
        ("lr = true", "lr must be a string or a number, got True"),
        ("model = 3", "model must be a string, got 3"),
        ("model = 'lennet'", "did you mean 'lenet'"),
        ("dtype = 'float33'", "did you mean 'float32'"),
        ("[train]\nlr = 1", "unknown key 'train'"),
        ("batch-size = 1\nbatch_size = 2", "batch_size is there twice"),
        ("lr = ", "is not valid TOML"),
        ("lr = \xff", "is not valid TOML"),
        (None, "cannot read --config run.toml: No such file"),
    ],
)
def test_bad_configurations(text, words, capsys, tmp_path) -> None:
    if text is not None:
        Path("run.toml").write_bytes(text.encode("latin-1"))
    code, message = failing(capsys, "train", "--config", "run.toml")
    assert code == 2 and words in message, message
    assert not Path("runs").exists()


# ------------------------------------------------------------------- options of the training


def test_a_folder_of_pictures_from_training_to_prediction(capsys) -> None:
    image = pytest.importorskip("PIL.Image")
    images, labels = two_kinds(60, 5)
    for i, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        folder = Path("shots", ("dark", "bright")[label])
        folder.mkdir(parents=True, exist_ok=True)
        picture = image.fromarray(pixels[..., 0]).resize((30, 20)).convert("RGB")
        picture.save(folder / f"{i}.png")
    arguments = ["--data", "./shots", "--model", "mlp", "--epochs", "4", "--batch-size", "8"]
    code, text = failing(capsys, "train", *arguments, "--image-size", "0")
    assert code == 2 and "positive integer" in text
    assert main(["train", *arguments, "--image-size", "10", "--grayscale", "--out", "a"]) == 0
    assert main(["evaluate", "a", "-q"]) == 0
    assert float(capsys.readouterr().out.splitlines()[-1]) >= 0.9
    shape = load_checkpoint("a/model.safetensors").info["purpose"]["input_shape"]
    assert shape == [10, 10, 1]
    assert "image-size = 10\ngrayscale = true\n" in Path("a/config.toml").read_text()
    bright = sorted(map(str, Path("shots/bright").iterdir()))[:5]
    assert main(["predict", "a", *bright, "-q"]) == 0
    assert capsys.readouterr().out.split().count("bright") >= 4


def test_what_changes_the_training_arrives_and_is_resumed(tiny_set, capsys) -> None:
    arguments = ["train", "--data", str(tiny_set), "--model", "mlp", "--batch-size", "32"]
    arguments += [
        "--epochs",
        "2",
        "--schedule",
        "constant",
        "--label-smoothing",
        "0.1",
        "--augment",
        "crop(1), flip",
    ]
    arguments += ["--accumulate", "2", "--ema", "0.9", "--patience", "9", "--keep-last", "1"]
    assert main([*arguments, "--out", "whole", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    state = load_checkpoint("whole/model.safetensors").trainer
    config = state["config"]
    assert (config["label_smoothing"], config["accumulate"]) == (0.1, 2)
    assert "RandomCrop" in config["transform"] and "RandomFlip" in config["transform"]
    assert [one["name"] for one in state["callbacks"]] == ["WeightAverage", "EarlyStopping"]
    assert not list(Path("whole/checkpoints").glob("*"))
    text = Path("whole/config.toml").read_text()
    assert 'augment = "crop(1), flip"\n' in text and "ema = 0.9\n" in text
    assert main([*arguments[:-6], "--ema", "0.9", "--epochs", "1", "--out", "cut", "-q"]) == 0
    capsys.readouterr()
    assert main(["train", "--resume", "cut", "--epochs", "2", "--json"]) == 0
    cut = json.loads(capsys.readouterr().out)
    assert cut["history"]["step_losses"] == whole["history"]["step_losses"]
    assert cut["test"] == whole["test"]
    code, text = failing(capsys, "train", "--resume", "cut", "--ema", "0.5")
    assert code == 2 and "--ema 0.5 differs" in text


def test_validation_images_come_from_the_training_images(tiny_set, capsys) -> None:
    arguments = ["train", "--data", str(tiny_set), "--model", "mlp", "--epochs", "2"]
    assert main([*arguments, "--validation", "0.25", "--out", "a", "--json"]) == 0
    output = capsys.readouterr()
    results = json.loads(output.out)
    assert "72 training, 24 validation and 32 test images" in output.err
    assert results["validation_examples"] == 24 and results["test"]["examples"] == 32
    last = results["history"]["epochs"][-1]
    assert last["val_loss"] != results["test_loss"]
    assert "| validation loss |" in Path("a/results.md").read_text()
    assert main(["train", "--resume", "a", "--epochs", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["validation_examples"] == 24


def test_a_run_that_gets_no_better_stops_early(tiny_set, capsys) -> None:
    arguments = ["train", "--data", str(tiny_set), "--model", "mlp", "--epochs", "30"]
    # steps so small that no epoch changes a loss in float32
    arguments += ["--optimizer", "SGD", "--lr", "1e-30", "--patience", "2", "--out", "a", "--json"]
    assert main(arguments) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["epochs"] == 3
    assert results["stopped"].startswith("val_loss has not become better for 2 epochs")


def test_logs_for_tensorboard(tiny_set, capsys, hidden) -> None:  # noqa: F811
    arguments = ["train", "--data", str(tiny_set), "--model", "mlp", "--epochs", "1", "--quiet"]
    arguments += ["--tensorboard", "--out"]
    hidden("tensorboardX")
    code, text = failing(capsys, *arguments, "without")
    assert code == 1 and "pip install tensorboardX" in text
    assert not Path("without").exists()


def test_logs_for_tensorboard_are_written(tiny_set, capsys) -> None:
    pytest.importorskip("tensorboardX")
    arguments = ["train", "--data", str(tiny_set), "--model", "mlp", "--epochs", "1", "--quiet"]
    assert main([*arguments, "--tensorboard", "--out", "a"]) == 0
    assert list(Path("a/tensorboard").glob("events.*"))
