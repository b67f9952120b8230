"""The command line in this process: what it refuses, and how it says so."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from gpulayers import backend
from gpulayers.cli import main
from gpulayers.cli import train as train_module
from gpulayers.errors import ParameterError
from gpulayers.models import build
from gpulayers.training import load, load_checkpoint
from tests.cli.test_cli import FAST, failing
from tests.training.test_showing import hidden  # noqa: F401 - a fixture


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Each test in its own empty folder, on the CPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPULAYERS_BACKEND", "numpy")
    monkeypatch.setenv("COLUMNS", "100")


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "usage"),
        (["trian"], "did you mean 'train'"),
        (["train", "--model", "lennet"], "did you mean 'lenet'"),
        (["train", "--data", "mnits"], "did you mean 'mnist'"),
        (["train", "--optimizer", "adamm"], "did you mean 'Adam'"),
        (["train", "--optimizer", "Adam(lr=-1)"], "argument --optimizer: Adam: lr must be in"),
        (["train", "--optimizer", "Adam(decay=1)"], "argument --optimizer: 'Adam(decay=1)': unkn"),
        (["train", "--schedule", "noam(lr=1)"], "argument --schedule: 'noam(lr=1)': unknown arg"),
        (["train", "--schedule", "exponental"], "did you mean 'exponential'"),
        (["train", "--schedule", "expp"], "did you mean 'exponential'"),
        (["train", "--schedule", "stepp"], "did you mean 'step'"),
        (["train", "--schedule", "cos"], "did you mean 'cosine'"),
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
        (["train", "--augment", "flap"], "argument --augment: unknown transform 'flap'"),
        (["train", "--augment", "crop(40)"], "--augment 'crop(40)': RandomCrop: with 40 pixels"),
        (
            ["train", "--augment", "crop(4, 24)"],
            "--augment 'crop(4, 24)' gives images of 24 x 24 pixels, lenet takes 28 x 28 ones",
        ),
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


def test_a_crop_that_the_network_takes_besides_whole_images_is_allowed():
    data = SimpleNamespace(input_shape=(28, 28, 1), name="digits")
    network = build("vgg-small", 10, data.input_shape)  # 24 and 28 pixels, halved thrice, are 3
    train_module._check_size({"augment": "crop(4, 24)"}, network, data)
    with pytest.raises(ParameterError, match="gives images of 23 x 23 pixels, vgg-small takes 28"):
        train_module._check_size({"augment": "crop(4, 23)"}, network, data)


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
