"""The command line in this process: what it prints, writes, returns and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gpulayers import backend
from gpulayers.cli import main
from gpulayers.cli import train as train_module
from gpulayers.ops import compiled
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


@pytest.fixture
def tiny(tmp_path):
    """A data set of one's own: 96 + 32 bright or dark images of 12 x 12 pixels, two classes."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 96), ("test", 32)):
        labels = np.arange(n) % 2
        images = rng.integers(0, 120, (n, 12, 12, 1)) + 100 * labels[:, None, None, None]
        arrays |= {f"x_{part}": images.astype(np.uint8), f"y_{part}": labels}
    path = tmp_path / "tiny.npz"
    np.savez(path, **arrays, classes=np.array(["dark", "bright"]))
    return str(path)


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


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "usage"),
        (["trian"], "did you mean 'train'"),
        (["train", "--model", "lennet"], "did you mean 'lenet'"),
        (["train", "--data", "mnits"], "did you mean 'mnist'"),
        (["train", "--optimizer", "adamm"], "did you mean 'Adam'"),
        (["train", "--optimizer", "Adam(lr=-1)"], "lr"),
        (["train", "--optimizer", "Adam(decay=1)"], "decay"),
        (["train", "--schedule", "exponental"], "did you mean 'exponential'"),
        (["train", "--dtype", "float33"], "did you mean 'float32'"),
        (["train", "--precision", "fp61"], "did you mean 'fp16'"),
        (["train", "--device", "gpuu"], "did you mean 'gpu'"),
        (["train", "--device", "cuda"], "one of auto, cpu, gpu, got 'cuda'\n"),  # not 'cpu'?
        (["train", "--image-size", "16"], "the images of mnist-10k are arrays of 28 x 28 pixels"),
        (["train", "--epochs", "0"], "positive integer, got '0'"),
        (["train", "--batch-size", "ten"], "positive integer, got 'ten'"),
        (["train", "--lr", "nan"], "positive number, got 'nan'"),
        (["train", "--lr", "-0.1"], "positive number"),
        (["train", "--seed", "-1"], "0..2**64-1"),
        (["train", "--augment", "crop(4), flipp"], "did you mean 'flip'"),
        (["train", "--label-smoothing", "1"], "from 0 to below 1"),
        (["train", "--epoch", "3"], "unrecognized arguments: --epoch 3 (did you mean '--epochs'?)"),
        (["evaluate", "--bach-size=3", "a"], "did you mean '--batch-size'"),
        (["bench", "more"], "unrecognized arguments: more"),
        (["train", "-q", "-v"], "not allowed with"),
        (["predict", "a"], "IMAGE"),
        (["export", "a", "a.onxx"], "did you mean '.onnx'"),
        (["export", "a", "a.npz", "--uint8"], "must end in .onnx"),
        (["export", "a", "a.pt"], "must end in .onnx, .safetensors, .npz; got a.pt\n"),
        (["completion", "bsh"], "did you mean 'bash'"),
        (["demo", "--port", "70000"], "0..65535, got '70000'"),
        (["evaluate"], "MODEL"),
    ],
)
def test_usage_errors_exit_with_2_and_leave_nothing(arguments, words, capsys, tmp_path):
    if not arguments:
        assert main([]) == 2
        assert words in capsys.readouterr().out
        return
    code, text = failing(capsys, *arguments)
    assert code == 2
    assert words in text
    assert len(text.splitlines()) <= 2, "no list of all options before what matters"
    assert not list(tmp_path.iterdir())


def test_failures_exit_with_1_and_leave_no_empty_run(tiny, tmp_path, capsys):
    cases = []
    np.savez("empty.npz", x_train=np.zeros((0, 4, 4, 1), np.uint8), y_train=np.zeros(0, int),
             x_test=np.zeros((1, 4, 4, 1), np.uint8), y_test=np.zeros(1, int))  # fmt: skip
    cases.append(("./empty.npz", "example"))
    np.savez("labels.npz", x_train=np.zeros((2, 4, 4, 1), np.uint8), y_train=np.array([0, 1]),
             x_test=np.zeros((1, 4, 4, 1), np.uint8), y_test=np.array([7]))  # fmt: skip
    cases.append(("./labels.npz", "7"))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "tiny.npz").read_bytes()[:3000])
    cases.append(("./cut.npz", "cut.npz"))
    cases.append(("./missing-folder", "missing-folder"))
    (tmp_path / "bare").mkdir()
    cases.append(("./bare", "bare"))
    for path, words in cases:
        code, text = failing(capsys, "train", "--data", path)
        assert code == 1, (path, text)
        assert words in text
    assert not (tmp_path / "runs").exists()


def test_images_too_small_for_the_model(capsys, tmp_path):
    np.savez("small.npz", x_train=np.zeros((2, 4, 4, 1), np.uint8), y_train=np.array([0, 1]),
             x_test=np.zeros((1, 4, 4, 1), np.uint8), y_test=np.array([1]))  # fmt: skip
    code, text = failing(capsys, "train", "--data", "./small.npz")
    assert code == 2 and "at least 12 x 12 pixels, got (4, 4, 1)" in text and "mlp" in text
    code, text = failing(
        capsys, "train", "--data", "./small.npz", "--image-size", "4", "--epochs=1"
    )
    assert "--image-size" not in text  # they have that size


def test_channels_first_and_labels_from_one(capsys, tmp_path):
    def write(name, shape):
        images = np.zeros((4, *shape), np.uint8)
        labels = np.array([1, 2, 1, 2])
        np.savez(name, x_train=images, y_train=labels, x_test=images, y_test=labels)

    write("first.npz", (3, 16, 16))
    code, text = failing(capsys, "train", "--data", "first.npz")
    assert code == 2 and "channels go last: images.transpose(0, 2, 3, 1)" in text
    write("colour.npz", (4, 4, 3))
    code, text = failing(capsys, "train", "--data", "colour.npz", "--grayscale")
    assert code == 2 and "--grayscale is for folders of pictures" in text and "3 channels" in text
    assert main(["train", "--data", "colour.npz", "--model", "mlp", "--epochs", "1"]) == 0
    assert "\nno training images of class 0\n" in capsys.readouterr().out


def test_a_diverging_run_names_the_layer_and_keeps_the_checkpoint(tiny, capsys):
    arguments = ["--data", tiny, *FAST, "--optimizer", "SGD", "--lr", "1e30", "--out", "wild"]
    code, text = failing(capsys, "train", *arguments)
    assert code == 1
    assert "first layer whose output is not finite is mlp, layer" in text
    assert "wild/model.safetensors" in text
    assert load_checkpoint("wild/model.safetensors").trainer["epoch"] == 0


def test_an_existing_run_is_never_written_over(tiny, capsys):
    assert main(["train", "--data", tiny, *FAST, "--out", "a", "--quiet"]) == 0
    before = load("a/model.safetensors").parameters
    code, text = failing(capsys, "train", "--data", tiny, *FAST, "--seed", "1", "--out", "a")
    assert code == 2 and "--resume a" in text
    for name, array in load("a/model.safetensors").parameters.items():
        np.testing.assert_array_equal(array, before[name])


def test_a_folder_that_cannot_be_made(tiny, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    for out, why in (("file/run", "Not a directory"), ("file", "it is a file")):
        code, text = failing(capsys, "train", "--data", tiny, *FAST, "--out", out)
        assert code == 1 and f"--out {out}: the folder" in text and text.endswith(f": {why}\n")
    (tmp_path / "runs").write_text("")
    code, text = failing(capsys, "train", "--data", tiny, *FAST)
    assert code == 1 and "(choose another folder with --out)" in text


def test_a_missing_gpu_is_told_before_anything_else(capsys, monkeypatch, tmp_path):
    status = backend._CupyStatus(None, "there is none here", "plug one in")
    monkeypatch.setattr(backend, "_cupy_status", status)
    code, text = failing(capsys, "train", "--device", "gpu")
    assert code == 1 and "there is none here" in text and "plug one in" in text


def test_errors_of_the_gpu_say_what_can_be_done(tiny, capsys, monkeypatch):
    kind = type("CUDARuntimeError", (RuntimeError,), {})

    def broken(*arguments, **options):
        raise kind("cudaErrorIllegalAddress: an illegal memory access was encountered")

    monkeypatch.setattr(train_module, "data_of", broken)
    code, text = failing(capsys, "train", "--data", tiny)
    assert code == 1 and "cudaErrorIllegalAddress" in text and "--resume" in text


def test_unexpected_errors_are_short_and_debug_lets_them_through(tiny, capsys, monkeypatch):
    def broken(*arguments, **options):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(train_module, "data_of", broken)
    code, text = failing(capsys, "train", "--data", tiny)
    assert code == 1 and "ZeroDivisionError: a bug" in text and "--debug" in text
    with pytest.raises(ZeroDivisionError):
        main(["train", "--data", tiny, "--debug"])


def test_out_of_memory(tiny, capsys, monkeypatch):
    def full(*arguments, **options):
        raise MemoryError("Unable to allocate 9 TiB")

    monkeypatch.setattr(train_module.Trainer, "fit", full)
    code, text = failing(capsys, "train", "--data", tiny)
    assert code == 1 and "--batch-size" in text and "9 TiB" in text


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
    assert f"c kernels:  {f'not used: {reason}' if reason else 'in use, built for'}" in text
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
