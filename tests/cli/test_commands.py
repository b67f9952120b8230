"""predict, export, bench, demo, completion, info: what they print, write and refuse."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpulayers.cli import demo as demo_module
from gpulayers.cli import main
from gpulayers.training import load, read_safetensors, save
from tests.cli.conftest import two_kinds
from tests.cli.test_cli import failing
from tests.training.test_showing import hidden  # noqa: F401 - a fixture


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPULAYERS_BACKEND", "numpy")
    monkeypatch.setenv("COLUMNS", "100")


# ----------------------------------------------------------------------------------------- predict


def test_predict_reads_arrays_and_pictures(trained, capsys) -> None:
    image = pytest.importorskip("PIL.Image")
    images, labels = two_kinds(6, 7)
    np.save("many.npy", images)
    np.save("one.npy", images[1, ..., 0])
    np.save("stack.npy", images[..., 0])
    image.fromarray(images[0, ..., 0]).resize((48, 24)).convert("RGB").save("dark.png")
    image.fromarray(images[1, ..., 0]).save("bright.png")
    assert main(["predict", str(trained), "many.npy", "dark.png", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    names = ["dark", "bright"]
    found = answer["predictions"]
    assert [p["class"] for p in found] == [*(names[i] for i in labels), "dark"]
    assert [p.get("index") for p in found] == [0, 1, 2, 3, 4, 5, None]
    network = load(trained / "model.safetensors")
    logits = network.predict(images).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for row, one in zip(expected, found, strict=False):
        assert [t["probability"] for t in one["top"]] == pytest.approx(sorted(row, reverse=True))
        assert one["probability"] == one["top"][0]["probability"]
    for file, kind in [("one.npy", "bright"), ("bright.png", "bright")]:
        assert main(["predict", str(trained), file, "-q"]) == 0
        assert capsys.readouterr().out == f"{kind}\n"
    assert main(["predict", str(trained), "bright.png", "--invert", "--top", "1"]) == 0
    assert capsys.readouterr().out.startswith("dark ")
    assert main(["predict", str(trained), "stack.npy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[1].startswith("stack.npy[1]: bright ")


def test_predict_reads_a_scanned_digit(tmp_path, capsys) -> None:
    image = pytest.importorskip("PIL.Image")
    from gpulayers.models import lenet
    from gpulayers.training import Dataset, Split, Trainer, load_data

    digits = load_data("mnist-10k")
    few = Split(digits.train.images[:3000], digits.train.labels[:3000])
    network = lenet(optimizer="Adam(lr=0.003)")
    some = Dataset("some", few, digits.test, digits.classes)
    Trainer(network, some, epochs=2, progress=False).fit()
    save("digits.safetensors", network)  # without a word on classes and shapes
    i = int(np.flatnonzero(digits.test.labels == 3)[0])
    page = 255 - np.pad(np.kron(digits.test.images[i, ..., 0], np.ones((4, 4), np.uint8)), 50)
    image.fromarray(page).save("scan.png")
    assert main(["predict", "digits.safetensors", "scan.png", "--digit", "--invert", "-q"]) == 0
    assert capsys.readouterr().out == "3\n"


def test_predict_explains_bad_files(trained, tmp_path, capsys) -> None:
    np.save("floats.npy", np.zeros((2, 5, 5, 1)))
    np.save("words.npy", np.array(["a"]))
    np.save("flat.npy", np.zeros(4, np.uint8))
    np.save("empty.npy", np.zeros((0, 12, 12, 1), np.uint8))
    np.savez("several.npz", a=np.zeros(3))
    Path("several.npz").rename("several.npy")
    Path("text.npy").write_text("hello")
    Path("text.png").write_text("hello")
    whole = Path("whole.png")
    pytest.importorskip("PIL.Image").fromarray(two_kinds(1, 0)[0][0, ..., 0]).save(whole)
    Path("cut.png").write_bytes(whole.read_bytes()[:100])
    cases = {
        "gone.png": "gone.png: the picture cannot be read: No such file",
        ".": ".: the picture cannot be read: it is a folder",
        "gone.npy": "gone.npy does not exist",
        "text.png": "text.png: the picture cannot be read: it is in no format that Pillow knows",
        "cut.png": "cut.png: the picture cannot be read",
        "text.npy": "text.npy is no .npy file",
        "several.npy": "several.npy: expected uint8 or floats, got npz",
        "words.npy": "words.npy: expected uint8 or floats",
        "flat.npy": "shape (4,)",
        "empty.npy": "shape (0, 12, 12, 1)",
        "floats.npy": "floats.npy: the network was trained on images of shape (12, 12, 1)",
    }
    for file, words in cases.items():
        code, text = failing(capsys, "predict", str(trained), "whole.png", file)
        assert code == 1 and words in text, text


def test_predict_without_pillow(trained, capsys, hidden) -> None:  # noqa: F811
    hidden("PIL")
    code, text = failing(capsys, "predict", str(trained), "a.png")
    assert code == 1 and "pip install pillow" in text


@pytest.mark.filterwarnings("default::gpulayers.errors.ImageScaleWarning")
def test_floats_for_a_network_of_bytes_are_told(trained, tiny, capsys) -> None:
    images, labels = two_kinds(6, 7)
    for name, X in (("one", images / 255), ("bytes", images), ("wide", images.astype("f4"))):
        np.save(f"{name}.npy", X)
    assert main(["predict", str(trained), "one.npy", "bytes.npy", "wide.npy", "-q"]) == 0
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert [line.split(":")[2].strip() for line in lines] == ["one.npy", "wide.npy"]
    assert all(line.startswith("gpulayers: warning: ") for line in lines)
    assert "float64 from 0 to 1" in lines[0] and "float32 from 0 to 255" in lines[1]
    assert len(told.out.split()) == 18
    arrays = {f"x_{part}": images / 255 for part in ("train", "test")}
    np.savez("floats.npz", **arrays, y_train=labels, y_test=labels)
    command = ["evaluate", str(trained), "--plots", "drawn", "-q", "--data"]
    assert main([*command, "./floats.npz"]) == 0
    (line,) = capsys.readouterr().err.splitlines()  # once, though pictures are drawn, too
    assert line.startswith("gpulayers: warning: evaluate: the images are float64 from 0 to 1, ")
    assert main([*command, tiny]) == 0 and not capsys.readouterr().err
    wide = {f"x_{part}": images.astype("f4") for part in ("train", "test")}
    np.savez("wide.npz", **wide, y_train=labels, y_test=labels)
    command = ["train", "--model", "mlp", "--epochs", "1", "--device", "cpu", "-q", "--out"]
    assert main([*command, "out", "--data", "./wide.npz"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gpulayers: warning: Trainer: the training images are float32 from ")


# ------------------------------------------------------------------------------------------ export


def test_export_writes_what_others_read(trained, capsys) -> None:
    network = load(trained / "model.safetensors")
    assert main(["export", str(trained), "net.npz"]) == 0
    assert main(["export", str(trained), "net.safetensors", "-q"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "net.safetensors"
    with np.load("net.npz") as file:
        for arrays in (dict(file), read_safetensors("net.safetensors")[0]):
            assert arrays.keys() == network.parameters.keys()
            for name, array in network.parameters.items():
                np.testing.assert_array_equal(arrays[name], array)
    code, text = failing(capsys, "export", str(trained), "net.npz")
    assert code == 2 and "net.npz exists" in text and "--force" in text
    assert main(["export", str(trained), "net.npz", "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == Path("net.npz").stat().st_size


def test_export_onnx_in_another_dtype(trained, capsys) -> None:
    onnx = pytest.importorskip("onnx")

    def kind(path: str) -> int:
        return onnx.load(path).graph.input[0].type.tensor_type.elem_type

    assert main(["export", str(trained), "own.onnx"]) == 0
    assert kind("own.onnx") == onnx.TensorProto.FLOAT and "float64" not in capsys.readouterr().err
    assert main(["export", str(trained), "wide.onnx", "--dtype", "float64"]) == 0
    assert kind("wide.onnx") == onnx.TensorProto.DOUBLE
    assert "--dtype float32 writes one that runs everywhere" in capsys.readouterr().err
    code, text = failing(capsys, "export", str(trained), "net.npz", "--dtype", "float32")
    assert code == 2 and "OUT must end in .onnx" in text
    with pytest.raises(SystemExit):
        main(["export", str(trained), "no.onnx", "--dtype", "bfloat16"])


def test_export_onnx_predicts_the_same(trained, capsys) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    assert main(["export", str(trained), "net.onnx", "--uint8"]) == 0
    images = two_kinds(5, 11)[0]
    session = runtime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": images})
    np.testing.assert_allclose(
        logits, load(trained / "model.safetensors").predict(images), rtol=1e-5, atol=1e-5
    )
    save("bare.safetensors", load(trained / "model.safetensors"))
    code, text = failing(capsys, "export", "bare.safetensors", "bare.onnx")
    assert code == 1 and "does not say what images" in text and not Path("bare.onnx").exists()


# ------------------------------------------------------------------------------------------- bench


def test_bench(capsys) -> None:
    arguments = ["bench", "--model", "mlp", "--batch-size", "8", "--seconds", "0.01"]
    assert main([*arguments, "--profile", "--dtype", "float64", "--json"]) == 0
    output = capsys.readouterr()
    assert "training" in output.err
    measured = json.loads(output.out)
    assert (measured["model"], measured["dtype"], measured["batch_size"]) == ("mlp", "float64", 8)
    for what in ("train", "predict"):
        figures = measured[what]
        assert 0 < figures["quartile_1"] <= figures["seconds"] <= figures["quartile_3"]
        assert figures["examples_per_second"] == pytest.approx(8 / figures["seconds"])
    rows = measured["profile"]["rows"]
    assert [row["layer"] for row in rows] == ["Flatten", *["FullyConnected"] * 3]
    assert all(row["forward_seconds"] > 0 for row in rows)
    assert measured["profile"]["batch_size"] == 8 and measured["profile"]["repeats"] >= 10
    assert main([*arguments, "--profile"]) == 0
    text = capsys.readouterr().out
    assert "images/s" in text and "1 FullyConnected" in text and "step  " in text
    assert main([*arguments, "-q"]) == 0
    output = capsys.readouterr()
    assert float(output.out) > 0 and not output.err
    code, text = failing(capsys, "bench", "--model", "lennet")
    assert code == 2 and "did you mean 'lenet'" in text


# -------------------------------------------------------------------------------------------- demo


@pytest.fixture
def visited(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The status of the page, asked for while the command serves it; then Ctrl-C."""
    import urllib.request

    pytest.importorskip("flask")
    status: list[int] = []

    def serve(server: demo_module.Server) -> None:
        server.start()
        with urllib.request.urlopen(server.url, timeout=30) as answer:
            status.append(answer.status)
        raise KeyboardInterrupt

    plain = demo_module.Server.serve
    calls: list[int] = []

    def first_visits(server: demo_module.Server) -> None:
        calls.append(1)
        (serve if len(calls) == 1 else plain)(server)

    monkeypatch.setattr(demo_module.Server, "serve", first_visits)
    return status


def test_demo_trains_first(visited, capsys, monkeypatch) -> None:
    monkeypatch.setattr(demo_module, "EPOCHS", 1)
    assert main(["demo", "--port", "0"]) == 0
    output = capsys.readouterr()
    assert visited == [200]
    assert "http://127.0.0.1:" in output.out
    assert "training LeNet-5 on 10,000 digits" in output.err and "epoch 1/1" in output.err


def test_demo_of_a_checkpoint(trained, visited, capsys) -> None:
    from gpulayers.models import mlp

    network = mlp()
    network.predict(np.zeros((1, 28, 28, 1), np.uint8))
    save("ten.safetensors", network)
    assert main(["demo", "--checkpoint", "ten.safetensors", "--port", "0", "--quiet"]) == 0
    output = capsys.readouterr()
    assert visited == [200] and not output.err
    assert output.out.startswith("http://127.0.0.1:") and output.out.count("\n") == 1
    code, text = failing(capsys, "demo", "--checkpoint", str(trained))
    assert code == 1 and "takes images (12, 12, 1); the demo draws digits (28, 28, 1)" in text


def test_demo_without_flask(trained, capsys, hidden) -> None:  # noqa: F811
    from gpulayers.models import mlp

    network = mlp()
    network.predict(np.zeros((1, 28, 28, 1), np.uint8))
    save("ten.safetensors", network)
    hidden("flask")
    code, text = failing(capsys, "demo", "--checkpoint", "ten.safetensors", "--port", "0")
    assert code == 1 and "pip install flask" in text


# ---------------------------------------------------------------------------- completion and info


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(shell, capsys) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("batch-size", "mnist-10k", "resnet9", "evaluate", "onecycle"):
        assert word in script, word
    if shell != "tcsh" and shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=script, text=True, capture_output=True)
        assert checked.returncode == 0 and not checked.stderr


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_completion_completes_in_bash(capsys, tmp_path) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    Path("script").write_text(capsys.readouterr().out)

    def completed(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in words)
        code = f"source ./script; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; "
        code += "_shtab_gpulayers; printf '%s\\n' \"${COMPREPLY[@]}\""
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=30)
        return done.stdout.split()

    assert completed("gpulayers", "pre") == ["predict"]
    assert completed("gpulayers", "train", "--model", "res") == ["resnet9"]
    assert completed("gpulayers", "train", "--bat") == ["--batch-size"]


def test_completion_without_shtab(capsys, hidden) -> None:  # noqa: F811
    hidden("shtab")
    code, text = failing(capsys, "completion", "bash")
    assert code == 1 and "pip install shtab" in text


def test_info_for_scripts(capsys) -> None:
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["backend"] == "numpy" and "numpy" in facts["available"]
    assert facts["numpy"] == np.__version__ and isinstance(facts["c_kernels"], bool)
    assert main(["info", "-q"]) == 0
    assert capsys.readouterr().out == "numpy\n"


def test_names_with_dollar_signs_are_drawn(tiny_set, capsys) -> None:
    pytest.importorskip("matplotlib")
    shutil.copy(tiny_set, "$5_$.npz")
    arguments = ["--data", "./$5_$.npz", "--model", "mlp", "--epochs", "1", "--device", "cpu"]
    assert main(["train", *arguments, "--quiet", "--out", "out"]) == 0
    assert Path("out/curves.png").exists() and "no plot" not in capsys.readouterr().err


def test_evaluate_quiet_and_verbose(trained, capsys) -> None:
    assert main(["evaluate", str(trained), "--quiet"]) == 0
    assert float(capsys.readouterr().out) >= 0.95
    assert main(["evaluate", str(trained), "--verbose", "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["examples"] == 32
    assert "backend:    numpy" in output.err and "FullyConnected" in output.err


def test_evaluate_refuses_what_the_network_was_not_trained_for(trained, capsys) -> None:
    images, labels = two_kinds(4, 0)
    for name, X, y, words in (
        ("small", images[:, :6], labels, "shape (12, 12, 1) (rows, cols, channels), those of"),
        ("more", images, labels + 1, "knows 2 classes, labels 0 to 1; more.npz has labels up to 2"),
    ):
        np.savez(f"{name}.npz", x_train=X, y_train=y, x_test=X, y_test=y)
        code, text = failing(capsys, "evaluate", str(trained), "--data", f"{name}.npz")
        assert code == 1 and words in text, text


def test_evaluate_draws(trained, capsys, hidden) -> None:  # noqa: F811
    pytest.importorskip("matplotlib")
    assert main(["evaluate", str(trained), "--plots", "p", "--flip", "--json"]) == 0
    output = capsys.readouterr()
    answer = json.loads(output.out)
    assert answer["plots"] and all(Path(file).stat().st_size > 1000 for file in answer["plots"])
    assert {"p/confusion.png", "p/network.png", "p/saliency.png"} <= set(answer["plots"])
    assert "no picture of filters" in output.err  # the network has no convolution
    hidden("matplotlib")
    code, text = failing(capsys, "evaluate", str(trained), "--plots", "p")
    assert code == 1 and "pip install matplotlib" in text


def test_evaluate_takes_the_mean_over_mirror_images(tiny_set, trained, capsys) -> None:
    losses = []
    for more in ([], ["--flip"]):
        assert main(["evaluate", str(trained), "--json", *more]) == 0
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    network = load(trained / "model.safetensors")
    with np.load(tiny_set) as file:
        images, labels = file["x_test"], file["y_test"]
    for loss, views in zip(losses, ([images], [images, images[:, :, ::-1]]), strict=True):
        outputs = [network.predict(np.ascontiguousarray(v)).astype(np.float64) for v in views]
        Z = np.mean(outputs, axis=0)
        log = Z - np.log(np.exp(Z).sum(axis=1, keepdims=True))
        assert loss == pytest.approx(-log[np.arange(len(labels)), labels].mean(), rel=1e-4)


def test_help_is_fast(tmp_path) -> None:
    """No module that takes time is loaded for a help text."""
    slow = ["flask", "json", "logging", "numpy", "rich", "tomllib", "zipfile"]
    code = (
        "import sys; from gpulayers.cli import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        f"print([name for name in {slow} if name in sys.modules], file=sys.stderr)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=60
    )
    assert done.stderr.strip() == "[]", done.stderr
