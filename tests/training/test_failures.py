"""What goes wrong in training is said, and what was reached is kept."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers.backend import default_dtype
from gpulayers.errors import (
    BackendError,
    DivergedError,
    ParameterError,
    ShapeError,
)
from gpulayers.layers import Flatten, FullyConnected
from gpulayers.models import Sequential
from gpulayers.training import Trainer, load_checkpoint
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
        ({"dtype": "int8"}, "floating dtype"),
        ({"optimizer": "adamm"}, "did you mean 'Adam'"),
        ({"schedule": "kong"}, "did you mean 'king'"),
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
