"""Checkpoints: all that was saved comes back."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from gpulayers import training
from gpulayers.backend import default_dtype, set_default_dtype
from gpulayers.errors import CheckpointError
from gpulayers.layers import (
    GRU,
    LSTM,
    RNN,
    BatchNorm2D,
    Conv1D,
    Conv2D,
    Deconv2D,
    Dropout,
    Flatten,
    FullyConnected,
    Pool2D,
    Softmax,
)
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models import Pixels, Sequential
from gpulayers.training import (
    Trainer,
    load,
    load_checkpoint,
    save,
)
from tests.training.networks import conv, dense

VERSION_1 = Path(__file__).with_name("version1.npz")
X = np.random.default_rng(0).integers(0, 256, (6, 10, 10, 1), dtype=np.uint8)
LABELS = np.arange(6) % 4


def step(net: Sequential) -> None:
    objective = SoftmaxCrossEntropy()
    objective(LABELS, net.forward(X))
    net.backward(objective.backward(), input_grad=False)
    net.update(1.0)


def trained(optimizer: str = "Adam(lr=0.01)") -> Sequential:
    net = conv(optimizer)
    net.layers[4].p = 0.0  # no dropout: two networks then take the same step
    for _ in range(3):
        step(net)
    return net


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    "optimizer",
    [
        "SGD(lr=0.01, momentum=0.9)",
        "AdaGrad(lr=0.01)",
        "RMSProp(lr=0.01, clip_norm=1.0)",
        "Adam(lr=0.01, lr_scheduler=ExponentialScheduler(initial_lr=0.01, stage_length=2))",
        "SGD(lr_scheduler=KingScheduler(initial_lr=0.1, patience=2))",
    ],
)
def test_a_loaded_network_computes_and_learns_on_bit_for_bit(path, optimizer):
    net = trained(optimizer)
    net.pixels = Pixels([30.0], [70.0])
    net[5].freeze()
    expected = net.predict(X)
    save(path, net)
    again = load(path)
    assert again is not net
    np.testing.assert_array_equal(again.predict(X), expected)
    assert [layer.trainable for layer in again] == [layer.trainable for layer in net]
    assert again.name == "conv" and repr(again) == repr(net)
    again[5].unfreeze()
    net[5].unfreeze()
    for _ in range(3):
        step(net)
        step(again)
    for name, array in net.parameters.items():
        np.testing.assert_array_equal(again.parameters[name], array, err_msg=name)


def test_a_network_that_has_seen_no_input_can_be_saved(path):
    save(path, dense())
    again = load(path)
    assert again.parameters["1.W"] is None
    assert again.predict(X).shape == (6, 10)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_the_dtype_is_kept(path, dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    former = default_dtype()
    set_default_dtype(dtype)
    try:
        net = dense()
        net.predict(X)
    finally:
        set_default_dtype(former)
    save(path, net)
    again = load(path)
    assert again.dtype == net.dtype and again.dtype.name == dtype
    np.testing.assert_array_equal(again.parameters["1.W"], net.parameters["1.W"])


def test_every_kind_of_layer_comes_back(path):
    layers = [
        (Conv1D(3, 2, pad="causal", dilation=1, act_fn="Tanh"), (2, 7, 4)),
        (
            Conv2D(3, (2, 3), pad=(1, 0, 2, 1), stride=2, act_fn="Leaky ReLU(alpha=0.2)"),
            (2, 6, 7, 2),
        ),
        (Deconv2D(3, (2, 2), stride=2), (2, 3, 4, 2)),
        (Pool2D((2, 3), stride=2, pad=1, mode="average"), (2, 6, 7, 2)),
        (BatchNorm2D(momentum=0.8, epsilon=1e-3), (2, 3, 4, 2)),
        (Flatten("last"), (2, 3, 4)),
        (Softmax(), (2, 5)),
        (Dropout(0.25), (2, 5)),
        (RNN(3), (2, 4, 5)),
        (LSTM(3, gate_fn="Hard Sigmoid", return_sequences=False, truncate=2), (2, 4, 5)),
        (GRU(3), (2, 4, 5)),
    ]
    rng = np.random.default_rng(0)
    for layer, shape in layers:
        net = Sequential([layer])
        data = rng.standard_normal(shape).astype(np.float32)
        net.forward(data)
        net.flush_gradients()
        expected = net.forward(data, False)
        net.flush_gradients()
        save(path, net)
        again = load(path)
        assert repr(again[0]) == repr(layer)
        np.testing.assert_array_equal(again.forward(data, False), expected, err_msg=repr(layer))
        if hasattr(layer, "flush_gradients"):
            again.flush_gradients()


def test_info_of_all_plain_kinds_comes_back(path):
    info = {
        "number": 0.1,
        "whole": 2**70,
        "none": None,
        "flag": True,
        "pair": (1, (2.5, "x")),
        "list": [1, [2]],
        "scalar": np.float32(0.5),
        "array": np.arange(6, dtype=np.int16).reshape(2, 3),
        "nested": {"a b/c": np.zeros((0, 2))},
        "complex": np.array([1 + 2j, complex("inf")]),
        "floats": [float("inf"), float("-inf"), float("nan")],
        "a.b": np.array(1),
        "a": {"b": np.array(2)},
    }
    save(path, dense(), info=info)
    again = load_checkpoint(path).info
    assert again["pair"] == (1, (2.5, "x")) and again["list"] == [1, [2]]
    assert again["scalar"] == 0.5 and again["whole"] == 2**70 and again["flag"] is True
    np.testing.assert_array_equal(again["array"], info["array"])
    assert again["array"].dtype == np.int16 and again["nested"]["a b/c"].shape == (0, 2)
    np.testing.assert_array_equal(again["complex"], info["complex"])
    assert again["floats"][:2] == info["floats"][:2] and np.isnan(again["floats"][2])
    assert (again["a.b"], again["a"]["b"]) == (1, 2), "names that run together stay apart"


@pytest.mark.parametrize(
    "bad, words",
    [
        ({"f": print}, "info.f.*neither a plain value nor an array"),
        ({"o": np.array([object()])}, "dtype object"),
        ({1: 2}, "the key 1"),
        ({"$array": 2}, r"the key '\$array' begins with"),
    ],
)
def test_what_cannot_be_saved_is_named_and_nothing_is_written(path, bad, words):
    with pytest.raises(CheckpointError, match=words):
        save(path, dense(), info=bad)
    assert not path.exists()


def test_an_ending_is_added(tmp_path):
    assert save(tmp_path / "model", dense()) == tmp_path / "model.safetensors"


def test_what_was_saved_without_an_ending_is_found(tmp_path):
    plain = tmp_path / "net"
    save(plain, dense(), info={"which": "with ending"})
    assert load_checkpoint(plain).info == {"which": "with ending"}
    assert load(str(plain)).layers
    shutil.copy(save(tmp_path / "other.safetensors", dense(), info={"which": "plain"}), plain)
    assert load_checkpoint(plain).info == {"which": "plain"}  # what has just that name goes first
    plain.unlink()
    plain.mkdir()
    with pytest.raises(CheckpointError, match=r"net is a directory.*net\.safetensors beside it"):
        load(plain)
    with pytest.raises(CheckpointError, match=r"checkpoint .*none does not exist"):
        load(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"net\.v2 does not exist"):  # it has an ending
        load(tmp_path / "net.v2")
    shutil.copy(VERSION_1, tmp_path / "old.npz")
    with pytest.raises(CheckpointError, match="old does not exist"):  # save never wrote it so
        load(tmp_path / "old")


def test_the_old_ending_is_refused_with_the_new_name(tmp_path):
    for nameless in ("", ".", None):
        with pytest.raises(CheckpointError, match=r"save: expected the name of a file, got"):
            save(nameless, dense())
    with pytest.raises(CheckpointError, match=r"name it .*model\.safetensors"):
        save(tmp_path / "model.npz", dense())
    assert not list(tmp_path.iterdir())


def test_other_programs_find_the_parameters(path):
    referee = pytest.importorskip("safetensors.numpy")
    net = trained()
    save(path, net)
    found = referee.load_file(path)
    for name, array in net.parameters.items():
        np.testing.assert_array_equal(found[f"network.{name}"], array)


def test_pickles_are_never_read(path):
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="no gpulayers checkpoint"):
        load(path)
    bomb = np.empty(1, object)
    bomb[0] = "x"
    with path.open("wb") as file:
        np.savez(file, **{"header.json": bomb})
    with pytest.raises(CheckpointError, match="truncated or corrupted"):
        load(path)


class Twice(FullyConnected):
    """A layer of the user's own."""


def test_a_layer_of_ones_own_is_named_and_can_be_given(path):
    net = Sequential([Flatten(), Twice(3)])
    expected = net.predict(X)
    save(path, net)
    with pytest.raises(CheckpointError, match=r"'Twice'.*custom=\[Twice\]"):
        load(path)
    again = load(path, custom=[Twice])
    assert type(again[1]) is Twice
    np.testing.assert_array_equal(again.predict(X), expected)


def test_loading_onto_each_backend(backend, path):
    net = conv()
    net.to("numpy")
    expected = net.predict(X)
    save(path, net)
    again = load(path, device=backend.library)
    assert again.home == backend.library
    np.testing.assert_allclose(
        backend.asnumpy(again.predict(backend.asarray(X))), expected, rtol=1e-4, atol=1e-5
    )
    assert load(path).home == backend.library  # the current backend
    moved = save(path, again)  # arrays on the device are saved from there
    np.testing.assert_allclose(
        load(moved, device="numpy").predict(X), expected, rtol=1e-4, atol=1e-5
    )


def test_the_public_names():
    assert training.save is save and training.load is load


# ------------------------------------------------------------------------- files of version 0.1


def test_a_file_of_version_0_1_is_read_and_its_run_goes_on(digits, tmp_path):
    """One epoch of two was trained and saved by gpulayers 0.1."""
    old = tmp_path / "model.npz"
    shutil.copy(VERSION_1, old)
    checkpoint = load_checkpoint(old)
    assert checkpoint.info == {"note": (1, "x")} and checkpoint.trainer["epoch"] == 1

    def tiny() -> Sequential:
        layers = [Flatten(), FullyConnected(4, act_fn="ReLU"), FullyConnected(10)]
        return Sequential(layers, "Adam(lr=0.01)", "tiny")

    options = {"batch_size": 32, "epochs": 2, "seed": 3, "progress": False}
    resumed = Trainer(tiny(), digits, **options, resume=tmp_path, out=tmp_path)
    whole = Trainer(tiny(), digits, **options)
    assert len(resumed.fit()) == len(whole.fit()) == 2
    np.testing.assert_allclose(
        resumed.history.step_losses, whole.history.step_losses, rtol=1e-4, atol=1e-5
    )
    assert load_checkpoint(tmp_path / "model.safetensors").trainer["epoch"] == 2


def test_a_damaged_file_of_version_0_1(tmp_path):
    path, whole = tmp_path / "model.npz", VERSION_1.read_bytes()
    for broken in (whole[:6000], whole[:-1], whole[:5000] + b"\0\0\0\0" + whole[5004:]):
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"truncated or corrupted.*older checkpoint"):
            load(path)
    np.savez(path, x_train=np.zeros(3))
    with pytest.raises(CheckpointError, match=r"without a gpulayers header.*x_train"):
        load(path)
