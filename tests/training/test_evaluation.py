"""Evaluation: figures of each class, the mean over mirror images, the learning-rate range test."""

from __future__ import annotations

import numpy as np
import pytest

from gpulayers import random
from gpulayers.errors import DivergedError, GPULayersError, ParameterError
from gpulayers.layers import Flatten, FullyConnected
from gpulayers.models import Sequential
from gpulayers.training import Split, Trainer, evaluate, find_learning_rate
from tests.training.networks import conv, dense, run


@pytest.fixture(scope="module")
def trained(digits):
    return run(dense(), digits, epochs=3).network


def test_the_figures_of_each_class(digits, trained):
    result = evaluate(trained, digits)
    labels = digits.test.labels
    matrix = np.zeros((10, 10), int)
    for true, said in zip(labels, result.predicted, strict=True):
        matrix[true, said] += 1
    np.testing.assert_array_equal(result.confusion, matrix)
    np.testing.assert_array_equal(result.labels, labels)
    assert result.classes == digits.classes
    scores = []
    for i, score in enumerate(result.per_class):
        hits = sum(t == i == s for t, s in zip(labels, result.predicted, strict=True))
        said, true = sum(result.predicted == i), sum(labels == i)
        assert (score.name, score.examples) == (str(i), true)
        assert score.precision == pytest.approx(hits / said if said else 0.0)
        assert score.recall == pytest.approx(hits / true)
        scores.append(2 * hits / (said + true))
        assert score.f1 == pytest.approx(scores[-1])
    assert result.macro_f1 == pytest.approx(np.mean(scores))
    assert str(result).startswith(f"loss {result.loss:.4f}, accuracy {result.accuracy:.2%}\n")
    assert len(str(result).splitlines()) == 14


def test_names_of_classes(digits, trained):
    assert evaluate(trained, digits.test).classes == tuple("0123456789")
    named = evaluate(trained, digits.test, classes=list("abcdefghij"))
    assert named.per_class[2].name == "c"
    with pytest.raises(GPULayersError, match=r"0\.\.1"):
        evaluate(trained, digits.test, classes=("x", "y")).confusion  # noqa: B018


def test_flip_takes_the_mean_over_mirror_images(digits, backend):
    net = conv()
    run(net, digits, epochs=1, device="cpu")
    net.to(backend.library)
    split = digits.test.take(slice(0, 30))
    mirrored = Split(np.ascontiguousarray(split.images[:, :, ::-1]), split.labels)
    place = backend.asarray
    both = [net.predict(place(s.images)) for s in (split, mirrored)]
    logits = (backend.asnumpy(both[0]) + backend.asnumpy(both[1])) / 2
    result = evaluate(net, split, flip=True, batch_size=7)
    np.testing.assert_array_equal(result.predicted, logits.argmax(axis=1))
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(30), split.labels]
    assert result.loss == pytest.approx(losses.mean(), rel=1e-5)
    other = evaluate(net, mirrored, flip=True)
    np.testing.assert_array_equal(result.predicted, other.predicted)
    assert evaluate(net, split).loss != pytest.approx(result.loss, rel=1e-3)


@pytest.mark.parametrize(
    "options, words",
    [({"batch_size": 0}, "batch_size"), ({"batch_size": 2.5}, "batch_size"), ({"flip": 1}, "flip")],
)
def test_bad_arguments(digits, trained, options, words):
    with pytest.raises(ParameterError, match=words):
        evaluate(trained, digits.test, **options)


# --------------------------------------------------------------------------- the rate range test


def test_the_rates_grow_from_low_to_high_and_are_the_ones_used(digits):
    """With plain descent and one step more, the losses are those of a loop written out."""
    net = Sequential([Flatten(), FullyConnected(10)], "SGD(lr=7.0)")
    found = find_learning_rate(net, digits, batch_size=32, low=1e-4, high=1e-1, steps=15, seed=5)
    assert found.rates == pytest.approx(np.geomspace(1e-4, 1e-1, 15))
    twin = Sequential([Flatten(), FullyConnected(10)])
    trainer = Trainer(twin, digits, 32, 2, seed=5, progress=False, callbacks=[])
    rates = iter(found.rates)

    class Rates(type(twin[1].optimizer)):
        """The rates one after the other, for weight and bias alike."""

        def step(self):
            super().step()
            self.set_params({"lr": float(next(rates, 0.0))})

    twin[1].optimizer = Rates()
    trainer.fit()
    np.testing.assert_allclose(found.losses, trainer.history.step_losses[:15], rtol=1e-5)
    assert found.rates[0] <= found.suggestion <= found.lowest


def test_a_suggested_rate_trains(digits):
    found = find_learning_rate(dense(), digits, "Adam", batch_size=32, steps=60)
    assert 1e-4 < found.suggestion < 0.3 and found.losses.shape == found.rates.shape
    trainer = run(dense(), digits, epochs=4, optimizer=f"Adam(lr={found.suggestion})")
    assert trainer.history.last.val_accuracy > 0.7


def test_nothing_is_changed_by_the_test(digits):
    net = dense()
    random.seed(9)
    state = random.get_state()
    find_learning_rate(net, digits, batch_size=32, steps=12)
    assert random.get_state() == state and net.home is None
    run(net, digits, epochs=1)
    before = {k: v.copy() for k, v in net.parameters.items()}
    steps = net[1].optimizer.cur_step
    pixels = net.pixels
    find_learning_rate(net, digits, "SGD", batch_size=32, steps=12, high=100.0)
    for name, array in net.parameters.items():
        np.testing.assert_array_equal(array, before[name])
    assert net[1].optimizer.cur_step == steps and net.pixels is pixels


def test_a_range_that_is_too_high(digits):
    with pytest.raises(DivergedError, match="choose a smaller `low`"):
        find_learning_rate(dense("SGD"), digits, low=1e20, high=1e30)
    stopped = find_learning_rate(dense("SGD"), digits, batch_size=32, low=1e-5, high=1e6)
    assert len(stopped.rates) < 100


@pytest.mark.parametrize(
    "options, words",
    [
        ({"low": 0.0}, "low"),
        ({"low": 1.0, "high": 0.1}, "low < high"),
        ({"high": float("inf")}, "high"),
        ({"steps": 9}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"optimizer": "adamm"}, "did you mean 'Adam'"),
    ],
)
def test_bad_arguments_of_the_rate_test(digits, options, words):
    with pytest.raises(ParameterError, match=words):
        find_learning_rate(dense(), digits, **options)
