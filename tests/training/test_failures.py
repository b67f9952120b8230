"""What goes wrong in training is said, and what was reached is kept."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers.backend import default_dtype
from gpulayers.errors import (
    BackendError,
    DivergedError,
    GPULayersError,
    ParameterError,
    ShapeError,
)
from gpulayers.layers import Flatten, FullyConnected
from gpulayers.models import Sequential, summarize
from gpulayers.training import (
    Dataset,
    Normalize,
    Normalizer,
    RandomFlip,
    ShuffledSampler,
    Trainer,
    WeightedSampler,
    batches,
    evaluate,
    find_learning_rate,
    index_batches,
    load,
    load_checkpoint,
    save_data,
    train_validation_split,
)
from tests.training.networks import dense, run

# ----------------------------------------------------------------------------------------- failing


def test_a_loss_that_is_not_finite_stops_with_the_layer_and_keeps_the_checkpoint(digits, tmp_path):
    net = dense("SGD(lr=0.01)")

    def poison(trainer, record):
        if record.epoch == 2:
            trainer.network.parameters["3.W"][3, 3] = np.nan

    with pytest.raises(DivergedError) as caught:
        run(net, digits, epochs=5, out=tmp_path, callbacks=[poison])
    message = str(caught.value)
    assert "the loss became nan in epoch 3, batch 1 of 10" in message
    assert "first layer whose output is not finite is dense, layer 3 (FullyConnected)" in message
    assert "learning rate (it is 0.01)" in message
    assert f"after epoch 2, is kept: {tmp_path / 'model.safetensors'}" in message
    kept = load_checkpoint(tmp_path / "model.safetensors")
    assert kept.trainer["epoch"] == 2
    assert np.isfinite(kept.network.predict(digits.test.images)).all()


def test_a_run_that_diverges_stops_on_each_backend(digits, backend):
    """A GPU is looked at every 50 steps only, and at the end of the epoch."""
    with pytest.raises(DivergedError, match=r"in epoch 1, batch \d+ of 10: the first layer whose"):
        run(dense("SGD(lr=1e30)"), digits)


def test_half_precision_is_named_as_a_possible_cause(digits):
    with pytest.raises(DivergedError, match="float16 parameters lose small gradients: float32"):
        run(dense("SGD(lr=1e4)"), digits, dtype="float16")


def test_a_huge_learning_rate_diverges_with_a_name(digits, tmp_path):
    with pytest.raises(DivergedError, match=r"whose output is not finite is dense, layer"):
        run(dense("SGD(lr=1e30)"), digits, out=tmp_path)
    assert load_checkpoint(tmp_path / "model.safetensors").trainer["epoch"] == 0


def test_too_few_outputs_for_the_classes(digits):
    net = Sequential([Flatten(), FullyConnected(7)], "SGD", "short")
    with pytest.raises(ShapeError, match=r"digits has 10 classes.*short.*\(n, 10\), got \(32, 7\)"):
        run(net, digits)
    flat = Sequential([Flatten("last"), FullyConnected(10)], "SGD", "wrong")
    with pytest.raises(ShapeError):
        run(flat, digits)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"batch_size": 2.0}, "batch_size"),
        ({"epochs": -1}, "epochs"),
        ({"epochs": True}, "epochs"),
        ({"seed": -1}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"device": "gpuu"}, "unknown device 'gpuu'.*did you mean 'gpu'"),
        ({"dtype": "int8"}, "Trainer: dtype: expected a floating dtype"),
        ({"optimizer": "adamm"}, "did you mean 'Adam'"),
        ({"schedule": "kong"}, "did you mean 'king'"),
        ({"resume": 3}, "resume must be the path of a checkpoint or its folder or None, got 3"),
        ({"sampler": "x"}, "Trainer: sampler must be a Sampler or None, .* got 'x'"),
        ({"sampler": ShuffledSampler}, "Trainer: sampler must be a Sampler or None"),
        ({"info": 3}, "Trainer: info must be a dict or None, got 3"),
        ({"info": []}, r"Trainer: info must be a dict or None, got \[\]"),
        ({"transform": lambda x: x}, r"got <function.* called with \(images, labels, generator\)"),
        ({"transform": RandomFlip}, r"got <class.* called with \(images, labels, generator\)"),
        ({"normalize": "x"}, "Trainer: normalize must be True or False, got 'x'"),
        ({"threads": "x"}, "Trainer: threads must be an integer >= 0, got 'x'"),
        ({"device_share": 2}, r"Trainer: device_share must be in \[0.0, 1.0\], got 2"),
        ({"progress": 3}, "Trainer: progress must be True, False, 'curve' or a display, got 3"),
        ({"progress": "curv"}, "Trainer: progress must be .* got 'curv'.*mean 'curve'"),
        ({"out": ""}, "out must be a folder's path or None, got ''"),
        ({"out": 3}, "out must be a folder's path or None, got 3"),
        ({"network": Flatten()}, r"network must be a Sequential, got Flatten.*\[layer, ...\]\)"),
        ({"network": [Flatten()]}, "network must be a Sequential, got \\["),
        ({"data": (np.zeros(3), np.zeros(3))}, r"data must be a Dataset, got a tuple; .*Split\("),
    ],
)
def test_bad_settings(digits, options, words):
    with pytest.raises(ParameterError, match=words):
        Trainer(**{"network": dense(), "data": digits, **options})


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda data: evaluate(None, data), "evaluate: network must be a Sequential, got None"),
        (lambda data: evaluate(dense(), None), "evaluate: split must be a Split or a Dataset"),
        (lambda data: evaluate(dense(), data, loss="x"), "evaluate: the loss needs a method"),
        (lambda data: evaluate(dense(), data, classes=3), "evaluate: classes must be a sequence"),
        (lambda data: find_learning_rate(None, data), "find_learning_rate: network must be a"),
        (lambda data: find_learning_rate(dense(), None), "find_learning_rate: data must be a"),
        (
            lambda data: find_learning_rate(dense(), data, batch_size=0),
            "find_learning_rate: batch_size must be an integer >= 1, got 0",
        ),
        (train_validation_split, "split: split must be a Split, got Dataset; dataset.train is one"),
        (lambda data: Dataset("d", None, None, ("a",)), "Dataset 'd': train must be a Split, got"),
        (lambda data: Dataset("d", data.train, data.test, None), "Dataset 'd': classes must be a"),
        (lambda data: batches(None, 3), "batches: split must be a Split, got NoneType"),
        (lambda data: batches(data.train, 3, shuffle="x"), "batches: shuffle must be True or"),
        (lambda data: index_batches("a", 3), "index_batches: n must be an integer >= 0, got 'a'"),
        (lambda data: Normalizer.fit(None), "Normalizer.fit: split must be a Split"),
        (lambda data: Normalizer(0, 1)([1]), "Normalizer: images: expected a numpy or cupy array"),
        (lambda data: save_data(None, "x"), "save_data: data must be a Dataset, got NoneType"),
        (lambda data: save_data(data, None), "save_data: expected a folder's path, got None"),
        (lambda data: WeightedSampler("a"), "WeightedSampler: weights must be a sequence of"),
        (lambda data: load(None), "load: expected the path of a file, got None"),
        (lambda data: load("x", custom=3), "load: custom must be a list of classes, got 3"),
        (lambda data: summarize(None, (3,)), "summarize: expected a network or a layer, got None"),
        (lambda data: summarize(dense(), None), "summarize: expected the shape of one input"),
        (lambda data: data.hold_out(2.0), "^Dataset.hold_out: validation must be"),
        (lambda data: Normalize([0, 0], 1.0), "^Normalize: expected as many finite means"),
    ],
)
def test_what_is_none_of_the_arguments_is_told_at_once(digits, call, words):
    with pytest.raises(GPULayersError, match=words):
        call(digits)


def test_a_sampler_of_ones_own_needs_no_base_class(digits):
    class First:
        def __len__(self):
            return 40

        def order(self, generator):
            return np.arange(40)

    assert run(dense(), digits, epochs=1, sampler=First()).steps == 2


def test_a_missing_gpu_is_an_error_and_no_silent_fallback(digits, monkeypatch):
    from gpulayers import backend

    status = backend._CupyStatus(None, "there is none here", "buy one")
    monkeypatch.setattr(backend, "_cupy_status", status)
    with pytest.raises(BackendError, match="there is none here"):
        Trainer(dense(), digits, device="gpu", progress=False).fit()


def test_dtype_is_that_of_the_parameters_and_the_default_is_restored(digits):
    former = default_dtype()
    trainer = run(dense(), digits, dtype="float64", epochs=1)
    assert trainer.network.dtype == np.float64 and default_dtype() == former
    with pytest.raises(ParameterError, match="float64 already"):
        Trainer(trainer.network, digits, dtype="float32")
    assert Trainer(trainer.network, digits).dtype == np.float64
