"""The three models in checkpoints: they come back whole, and go on as if never interrupted."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from gpulayers import random
from gpulayers.backend import use_backend
from gpulayers.cli import main
from gpulayers.errors import CheckpointError, NotInitializedError, ParameterError
from gpulayers.layers import FullyConnected
from gpulayers.models import WGAN_GP, BernoulliVAE, Model, Sequential, Word2Vec
from gpulayers.training import (
    Trainer,
    load,
    load_checkpoint,
    load_data,
    read_safetensors,
    save,
)
from tests.support.checkpoints import rewrite

TEXT = "one two three four five six seven two three one four seven six one five two " * 4
OPTIMIZERS = (
    "Adam(lr=0.01)",
    "SGD(lr=0.05, momentum=0.9, lr_scheduler=KingScheduler(initial_lr=0.05, patience=2))",
)


class Case(NamedTuple):
    """A model, how to make it, and how to let it learn for some epochs (or steps)."""

    make: Callable[[str], Any]
    fit: Callable[..., Any]
    probe: Callable[[Any], np.ndarray]


def _vae(optimizer: str) -> BernoulliVAE:
    return BernoulliVAE(
        T=2,
        latent_dim=5,
        enc_conv1_pad=(1, 0, 1, 0),
        enc_conv2_pad="same",
        enc_conv1_out_ch=2,
        enc_conv2_out_ch=3,
        enc_conv1_kernel_shape=(2, 2),
        enc_conv2_kernel_shape=(2, 2),
        optimizer=optimizer,
    )


IMAGES = np.random.default_rng(0).uniform(size=(7, 8, 7, 1)).astype(np.float32)
POINTS = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)


def _word2vec(negatives: int, skip_gram: bool) -> Callable[[str], Word2Vec]:
    return lambda optimizer: Word2Vec(
        context_len=2,
        embedding_dim=3,
        num_negative_samples=negatives,
        skip_gram=skip_gram,
        optimizer=optimizer,
    )


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(params=["vae", "wgan", "nce", "softmax", "skip-gram"])
def case(request: pytest.FixtureRequest, text: Path) -> Case:
    quiet: dict[str, Any] = {"verbose": False}
    if request.param == "vae":
        return Case(
            _vae,
            lambda m, n, **more: m.fit(IMAGES, n, batchsize=3, **quiet, **more),
            lambda m: np.concatenate(m.encode(IMAGES)),
        )
    if request.param == "wgan":
        return Case(
            lambda optimizer: WGAN_GP(g_hidden=4, optimizer=optimizer),
            lambda m, n, **more: m.fit(POINTS, 3.0, n, 4, 2, **quiet, **more),
            lambda m: m.forward(POINTS, "C", retain_derived=False)[0],
        )
    return Case(
        _word2vec(0 if request.param == "softmax" else 3, request.param == "skip-gram"),
        lambda m, n, **more: m.fit(text, n_epochs=n, batchsize=16, **quiet, **more),
        lambda m: m.get_embedding(np.arange(7)),
    )


def state(model: Any) -> dict[str, Any]:
    """All that learning goes on from, by name."""
    found = {}
    for i, part in enumerate(model._learners()):
        found.update((f"{i}.{name}", array) for name, array in part.parameters.items())
        described = part.optimizer.state_dict()
        for name, entry in described.pop("cache").items():
            values = entry if isinstance(entry, dict) else {"": entry}
            found.update((f"{i}.{name}.{key}", value) for key, value in values.items())
        found[f"{i}.optimizer"] = described
    return found


def assert_same(a: Any, b: Any) -> None:
    mine, other = state(a), state(b)
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        if hasattr(value, "dtype"):
            assert value.dtype == other[name].dtype, name
            np.testing.assert_array_equal(value, other[name], err_msg=name)
        else:
            assert value == other[name], name


def test_all_comes_back(case, tmp_path, numpy_backend):
    random.seed(3)
    model = case.make(OPTIMIZERS[0])
    case.fit(model, 2)
    model._learners()[-1].freeze()
    before = random.get_state()
    path = save(tmp_path / "model", model, info={"note": "x"})
    random.seed(8)
    elsewhere = random.get_state()
    kept = load_checkpoint(path, kind=type(model))
    assert random.get_state() == elsewhere, "loading draws no numbers"
    assert kept.random == before and kept.info == {"note": "x"} and kept.trainer is None
    again = kept.network
    assert type(again) is type(model) and again is not model
    hyper, wanted = again.hyperparameters, model.hyperparameters
    assert {k: v for k, v in hyper.items() if k != "components"} == {
        k: v for k, v in wanted.items() if k != "components"
    }
    assert_same(again, model)
    trainable = [part.trainable for part in again._learners()]
    assert trainable == [part.trainable for part in model._learners()] and not trainable[-1]
    np.testing.assert_array_equal(case.probe(again), case.probe(model))
    if isinstance(model, WGAN_GP):
        assert again.loss.lambda_ == model.loss.lambda_ == 3.0
    if isinstance(model, Word2Vec):
        assert again.vocab.words == model.vocab.words and again.nearest("one") == model.nearest(
            "one"
        )
        np.testing.assert_array_equal(again.vocab.counts, model.vocab.counts)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_interrupted_fit_goes_on_bit_for_bit(case, optimizer, tmp_path, numpy_backend):
    random.seed(3)
    whole = case.make(optimizer)
    told = case.fit(whole, 5)

    path = tmp_path / "model.safetensors"

    def interrupt(model: Any, done: int) -> None:
        if done == 2:
            save(path, model)
            raise KeyboardInterrupt

    random.seed(3)
    broken = case.make(optimizer)
    with pytest.raises(KeyboardInterrupt):
        case.fit(broken, 5, callbacks=interrupt)
    random.seed(11)  # another process has other random numbers
    kept = load_checkpoint(path)
    random.set_state(kept.random)
    assert case.fit(kept.network, 3) == told[2:]
    assert_same(kept.network, whole)
    with pytest.raises(AssertionError):
        assert_same(broken, whole)


def test_one_that_has_seen_nothing(tmp_path, text, numpy_backend):
    for model in (_vae("Adam"), WGAN_GP(g_hidden=3), Word2Vec(context_len=1)):
        again = load(save(tmp_path / "model.safetensors", model))
        assert type(again) is type(model) and again.optimizer == model.optimizer
    with pytest.raises(NotInitializedError):
        again.get_embedding([0])
    again.fit(text, n_epochs=1, verbose=False)


def test_on_each_backend(case, tmp_path, backend):
    path = tmp_path / "model.safetensors"
    with use_backend("numpy"):
        model = case.make(OPTIMIZERS[0])
        case.fit(model, 1)
        wanted = case.probe(model)
        save(path, model)
    again = load(path, device=backend.library)
    for part in again._learners():
        for array in part.parameters.values():
            assert isinstance(array, backend.xp.ndarray)
    assert_same(load(save(path, again), device="numpy"), model)  # saved from the device
    again.to("numpy")
    with use_backend("numpy"):
        np.testing.assert_array_equal(case.probe(again), wanted)


class Named(WGAN_GP):
    """A model of the user's own."""


def test_a_model_of_ones_own(tmp_path, numpy_backend):
    path = save(tmp_path / "model.safetensors", Named(g_hidden=3))
    with pytest.raises(CheckpointError, match=r"'Named' that gpulayers does not know.*custom="):
        load(path)
    assert type(load(path, custom=[Named])) is Named


# -------------------------------------------------------------------------------------- bad files


@pytest.fixture
def saved(case: Case, tmp_path: Path) -> Path:
    random.seed(3)
    with use_backend("numpy"):
        model = case.make(OPTIMIZERS[0])
        case.fit(model, 1)
        return save(tmp_path / "model.safetensors", model)


def test_nothing_is_pickled(saved):
    arrays, _ = read_safetensors(saved)
    assert all(array.dtype.kind in "biuf" for array in arrays.values()), "plain numbers only"


def test_a_damaged_file_is_noticed(saved):
    whole = saved.read_bytes()
    for share in (0.0, 0.3, 0.99):
        saved.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(
            CheckpointError, match=r"truncated or corrupted|no gpulayers checkpoint"
        ):
            load(saved)
    with zipfile.ZipFile(saved.with_name("text.txt"), "w") as file:
        file.writestr("x", "y")
    with pytest.raises(CheckpointError, match="no gpulayers checkpoint"):
        load(saved.with_name("text.txt"))
    for spot in range(20, len(whole), len(whole) // 9):
        broken = bytearray(whole)
        broken[spot] ^= 0x10
        saved.write_bytes(broken)
        with pytest.raises(CheckpointError):
            load(saved)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda h: h["network"].pop("arguments"), "do not fit together"),
        (lambda h: h["network"]["arguments"].update(optimizer="Adma"), "do not fit together"),
        (lambda h: h["network"].update(kept={}), "do not fit together"),
        (lambda h: h["network"]["components"].popitem(), "is made of .* expected"),
        (
            lambda h: next(iter(h["network"]["components"].values())).update({"class": "Pool2D"}),
            "is a Pool2D, expected",
        ),
        (lambda h: h["network"].update({"class": "WGAN"}), r"'WGAN' that .* does not know"),
        (lambda h: h["random"].update(algorithm="mt19937"), "mt19937"),
    ],
    ids=["arguments", "optimizer", "kept", "missing", "other layer", "class", "random"],
)
def test_an_edited_header_is_refused(saved, change, words):
    load(saved)
    rewrite(saved, change)
    with pytest.raises(CheckpointError, match=words):
        load(saved)


def test_another_kind_than_expected(saved, digits_network, capsys):
    kind = type(load(saved))
    other = BernoulliVAE if kind is not BernoulliVAE else WGAN_GP
    with pytest.raises(
        CheckpointError, match=f"holds a {kind.__name__}, expected a {other.__name__}"
    ):
        load(saved, kind=other)
    with pytest.raises(CheckpointError, match=f"a {kind.__name__}, expected a Sequential"):
        Trainer(*digits_network, resume=saved, progress=False)
    assert main(["evaluate", str(saved)]) == 1
    assert f"holds a {kind.__name__}, expected a Sequential" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="holds a Sequential, expected a Model"):
        load(save(saved, digits_network[0]), kind=Model)


@pytest.fixture
def digits_network() -> tuple[Sequential, Any]:
    return Sequential([FullyConnected(10)]), load_data("mnist-10k")


def test_what_is_no_network_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match=r"save\(path, network\): .* got FullyConnected"):
        save(path, FullyConnected(3))
    with pytest.raises(
        CheckpointError, match=r"save\(path, network\): .* got PosixPath|WindowsPath"
    ):
        save(WGAN_GP(), path)  # the other way round
    assert not path.exists()


def test_files_of_the_first_version_of_the_format_load(tmp_path):
    """They hold no random state."""
    path = save(tmp_path / "model.safetensors", Sequential([FullyConnected(3)]))
    rewrite(path, lambda header: header.pop("random"))
    assert load_checkpoint(path).random is None


def test_callbacks_are_checked(case, numpy_backend):
    model = case.make("Adam")
    with pytest.raises(ParameterError, match="callbacks must be callables, got 3"):
        case.fit(model, 1, callbacks=3)
    with pytest.raises(ParameterError, match="callbacks must be callables, got 'x'"):
        case.fit(model, 1, callbacks=[print, "x"])
    seen: list[tuple[Any, int]] = []
    case.fit(model, 3, callbacks=[lambda m, done: seen.append((m, done))])
    assert seen == [(model, 1), (model, 2), (model, 3)]
