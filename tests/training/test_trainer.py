"""The training loop: it learns, and repeats itself bit for bit, on each backend."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from gpulayers import random
from gpulayers.errors import ParameterError
from gpulayers.layers import Conv2D, Flatten, FullyConnected
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models import Sequential, lenet
from gpulayers.optimizers import SGD, OptimizerBase
from gpulayers.training import Trainer, evaluate, feed, load
from gpulayers.training.data import Dataset
from tests.training.networks import assert_same_run, conv, dense, run

# ---------------------------------------------------------------------------------------- learning


def test_lenet_learns_digits(mnist):
    train, test = mnist.train.take(slice(0, 1200)), mnist.test.take(slice(0, 300))
    small = Dataset("small", train, test, mnist.classes)
    trainer = run(lenet(optimizer="Adam(lr=0.003)"), small, epochs=2, batch_size=32)
    assert trainer.history.last.val_accuracy >= 0.85
    assert trainer.history.last.train_loss < trainer.history[0].train_loss


def test_the_records_are_what_the_network_does(digits):
    trainer = run(dense(), digits, epochs=3, batch_size=64)
    history = trainer.history
    logits = trainer.network.predict(digits.test.images)
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    labels = digits.test.labels
    assert history.last.val_loss == pytest.approx(-log_p[np.arange(100), labels].mean(), rel=1e-5)
    assert history.last.val_accuracy == (logits.argmax(axis=1) == labels).mean()
    result = evaluate(trainer.network, digits.test, batch_size=7)
    assert result.loss == pytest.approx(history.last.val_loss, rel=1e-5)
    assert result.accuracy == history.last.val_accuracy
    np.testing.assert_array_equal(result.predicted, logits.argmax(axis=1))
    # 300 examples are four batches of 64 and one of 44
    assert len(history.step_losses) == 15
    last = np.array(history.step_losses[-5:])
    assert history.last.train_loss == pytest.approx((last @ [64, 64, 64, 64, 44]) / 300, rel=1e-6)
    assert [e.epoch for e in history.epochs] == [1, 2, 3]
    assert all(e.seconds > 0 and e.examples_per_second > 0 for e in history.epochs)


@pytest.mark.parametrize("compile", [False, True])
def test_what_was_computed_before_is_no_part_of_the_run(digits, compile):
    runs = []
    for looked_at in (False, True):
        random.seed(1)
        net, X = dense(), digits.train.images[:4]
        net.forward(X, retain_derived=False)
        if looked_at:
            net.backward(net.forward(X))
            net.forward(X)
        runs.append(run(net, digits, epochs=1, compile=compile))
    assert_same_run(*runs)


def test_every_example_is_seen_once_an_epoch_in_another_order(digits):
    seen: list[np.ndarray] = []

    class Spy(Sequential):
        def forward(self, X, retain_derived=True):
            if retain_derived:
                seen.append(X.copy())
            return super().forward(X, retain_derived)

    run(Spy([Flatten(), FullyConnected(10)]), digits, epochs=2)
    flat = np.concatenate(seen).reshape(2, 300, -1)
    for epoch in flat:
        assert sorted(map(bytes, epoch)) == sorted(map(bytes, digits.train.images.reshape(300, -1)))
    assert not np.array_equal(flat[0], flat[1])


@pytest.mark.parametrize(
    "compile, optimizer",
    # Adam would blow up the rounding in the bias before batch normalisation, whose gradient is zero
    [(False, "Adam(lr=0.01)"), (None, "SGD(lr=0.05)")],
)
def test_the_loop_is_the_one_a_person_would_write(digits, compile, optimizer):
    """Bit for bit by the layers; up to rounding by the plan, which adds in another order."""
    trainer = run(conv(optimizer), digits, epochs=2, seed=6, compile=compile)
    net, objective = conv(optimizer), SoftmaxCrossEntropy()
    net.pixels = trainer.network.pixels
    random.seed(6)
    for epoch in range(2):
        order = random.Generator(6, 2**63 + epoch).permutation(300)
        for start in range(0, 300, 32):
            chosen = order[start : start + 32]
            objective(digits.train.labels[chosen], net.forward(digits.train.images[chosen]))
            net.backward(objective.backward())
            net.update()
    tolerance = 0.0 if compile is False else 1e-3
    for name, array in net.parameters.items():
        ours = trainer.network.parameters[name]
        np.testing.assert_allclose(ours, array, rtol=tolerance, atol=tolerance, err_msg=name)


def test_pixels_are_standardised_with_the_training_images_statistics(digits):
    trainer = run(dense(), digits, epochs=1)
    pixels = trainer.network.pixels
    assert pixels.mean == pytest.approx([digits.train.images.mean()])
    assert pixels.std == pytest.approx([digits.train.images.std()])
    plain = run(dense(), digits, epochs=1, normalize=False)
    assert (plain.network.pixels.mean, plain.network.pixels.std) == ([0.0], [255.0])


@pytest.mark.parametrize("compile", [False, True])
def test_gradients_are_clipped_together(digits, compile):
    """With plain descent a step is lr times the clipped gradient, so its length tells the norm."""
    net, steps = conv(), []
    net.forward(digits.train.images[:1], False)

    class Watching(SoftmaxCrossEntropy):
        def forward(self, labels, outputs):
            steps.append({k: v.copy() for k, v in net.parameters.items() if "running" not in k})
            return super().forward(labels, outputs)

    options = {"optimizer": "SGD(lr=1.0)", "epochs": 1, "loss": Watching(), "compile": compile}
    run(net, digits, clip_global_norm=0.05, **options)
    moved = [
        np.sqrt(sum(float(((b[k] - a[k]) ** 2).sum()) for k in a))
        for a, b in itertools.pairwise(steps)
    ]
    assert moved == pytest.approx([0.05] * 9, rel=1e-3)  # each gradient was longer than that


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(
    "loss",
    [
        SoftmaxCrossEntropy(),
        SoftmaxCrossEntropy("sum", label_smoothing=0.1),
        SoftmaxCrossEntropy("mean", 0.1, class_weights=np.arange(1.0, 11.0).tolist()),
        SoftmaxCrossEntropy("mean", 0.0, list(range(1, 11)), ignore_index=3),
        SoftmaxCrossEntropy(ignore_index=3),
    ],
    ids=str,
)
def test_a_batch_in_parts_gives_the_step_of_the_whole(digits, loss, compile):
    """In float64: what is left is rounding. 300 = 9 batches of 32 and one of 12."""

    def steps(parts):
        layers = [Conv2D(3, (3, 3), act_fn="ReLU"), Flatten(), FullyConnected(10)]
        net = Sequential(layers, "SGD(lr=0.01, momentum=0.9)")
        options = {"dtype": "float64", "seed": 4, "clip_global_norm": 2.0}
        return run(net, digits, loss=loss, accumulate=parts, compile=compile, **options)

    whole = steps(1)
    for parts in (2, 32):
        cut = steps(parts)
        np.testing.assert_allclose(cut.history.step_losses, whole.history.step_losses, rtol=1e-9)
        assert cut.history.column("train_accuracy") == whole.history.column("train_accuracy")
        for name, array in whole.network.parameters.items():
            ours = cut.network.parameters[name]
            np.testing.assert_allclose(ours, array, rtol=1e-8, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("compile", [False, True])
def test_parts_see_batch_statistics_of_their_own_and_blended_labels(digits, compile):
    """With everything a layer can keep, and a wrapped layer, which a plan leaves to itself."""
    net = conv()
    net.layers[4] = Wrapped(net.layers[4])
    net = Sequential(net.layers, "Adam(lr=0.01)")
    options = {"accumulate": 3, "transform": "flip, mixup(0.4)", "compile": compile}
    trainer = run(net, digits, epochs=3, **options)
    assert trainer.history.last.train_loss < trainer.history[0].train_loss
    weighted = SoftmaxCrossEntropy(class_weights=[1.0] * 10)
    with pytest.raises(ParameterError, match="accumulate with blended labels"):
        run(conv(), digits, loss=weighted, **options)


class Wrapped(FullyConnected):
    """A layer with its own forward and backward, around another one."""

    def __new__(cls, layer):
        layer.forward = lambda X, keep=True, _f=layer.forward: _f(X, keep)
        return layer


def test_label_smoothing_is_of_the_training_alone(digits):
    smooth = run(dense(), digits, label_smoothing=0.2, seed=3)
    given = run(dense(), digits, loss=SoftmaxCrossEntropy(label_smoothing=0.2), seed=3)
    assert smooth.history.step_losses == given.history.step_losses
    assert smooth.history.column("val_accuracy") == given.history.column("val_accuracy")
    plain = evaluate(smooth.network, digits.test)
    assert smooth.history.last.val_loss == pytest.approx(plain.loss, rel=1e-6)
    with pytest.raises(ParameterError, match="label_smoothing is for the default loss"):
        Trainer(dense(), digits, loss=SoftmaxCrossEntropy(), label_smoothing=0.2)
    with pytest.raises(ParameterError, match="the loss needs the methods"):
        Trainer(dense(), digits, loss="cross_entropy")


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), "1"])
def test_a_limit_of_the_norm_that_is_none(digits, limit):
    with pytest.raises(ParameterError, match="Trainer: clip_global_norm"):
        Trainer(dense(), digits, clip_global_norm=limit)


def test_optimizer_and_schedule_reach_every_layer(digits):
    net = dense()
    trainer = run(net, digits, optimizer="SGD(lr=0.5)", schedule="exponential", epochs=2)
    for layer in net:
        assert isinstance(layer.optimizer, SGD)
    history = trainer.history
    assert history.last.lr == pytest.approx(0.5 * 0.05)  # a bare "exponential" ends at 5 %
    assert history[0].lr == pytest.approx(0.5 * 0.05**0.5)
    warm = run(dense(), digits, optimizer="SGD(lr=0.5)", schedule="noam", epochs=2)
    assert warm.history[0].lr == pytest.approx(0.5)  # the top of the warm-up
    cosine = run(dense(), digits, optimizer="SGD(lr=0.5)", schedule="cosine", epochs=2)
    assert cosine.history.column("lr") == pytest.approx([0.25, 0.0])
    cycle = run(dense(), digits, optimizer="SGD(lr=0.5)", schedule="onecycle", epochs=10)
    assert max(cycle.history.column("lr")) == pytest.approx(0.5, rel=0.05)
    assert cycle.history.last.lr < 1e-4 < cycle.history[0].lr
    slow = run(dense(), digits, optimizer="SGD(lr=0.5)", schedule="warmup", epochs=2)
    assert slow.history.column("lr") == pytest.approx([0.5, 0.5])
    assert (
        slow.history.step_losses
        != run(
            dense(), digits, optimizer="SGD(lr=0.5)", schedule="constant", epochs=2
        ).history.step_losses
    )
    king = run(dense(), digits, optimizer="SGD(lr=0.1)", schedule="king", epochs=3)
    assert 0 < king.history.last.lr <= 0.1
    given = "ExponentialScheduler(initial_lr=0.2, stage_length=10, decay=0.5)"
    taken = run(dense(), digits, optimizer="SGD", schedule=given, epochs=1)
    assert taken.history.last.lr == pytest.approx(0.1)  # 10 steps


def test_a_frozen_layer_stays_and_the_rest_learns(digits):
    net = dense()
    net.predict(digits.test.images)
    net[1].freeze()
    before = net.parameters["1.W"].copy()
    run(net, digits)
    np.testing.assert_array_equal(net.parameters["1.W"], before)


def test_callbacks_see_each_epoch(digits):
    seen = []
    run(dense(), digits, callbacks=[lambda t, e: seen.append((e.epoch, len(t.history)))])
    assert seen == [(1, 1), (2, 2)]


def test_another_loss_and_another_optimizer_object(digits):
    class Plain(OptimizerBase):
        """A user's optimizer: no state, no hyperparameters."""

        def update(self, param, param_grad, param_name, cur_loss=None):
            return param - self.lr_scheduler(self.cur_step, cur_loss) * param_grad

    summed = SoftmaxCrossEntropy("sum")
    a = run(dense(None), digits, loss=summed, optimizer=Plain(0.001), seed=5)
    assert a.history.last.train_loss < a.history[0].train_loss < 3
    mean = run(dense(None), digits, optimizer=Plain(0.001), seed=5)
    assert a.history.step_losses[0] == pytest.approx(32 * mean.history.step_losses[0])
    assert a.history[0].train_loss < mean.history[0].train_loss


# ------------------------------------------------------------------------------------- determinism


@pytest.mark.parametrize("make", [dense, conv])
def test_the_same_seed_gives_the_same_result_bit_for_bit(digits, make):
    first = run(make(), digits, seed=7)
    random.default_generator().uniform(1000)  # what was drawn before does not matter
    second = run(make(), digits, seed=7)
    assert_same_run(first, second)
    other = run(make(), digits, seed=8)
    assert other.history.step_losses != first.history.step_losses


def test_the_result_does_not_depend_on_what_is_watched(digits, tmp_path):
    quiet = run(dense(), digits, seed=1)
    shown = run(dense(), digits, seed=1, progress=_Recorder(), out=tmp_path)
    assert_same_run(quiet, shown)


class _Recorder:
    """A progress display that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple] = []

    def __getattr__(self, name):
        return lambda *values: self.events.append((name, *values))


def test_progress_is_told_everything(digits):
    recorder = _Recorder()
    trainer = run(dense(), digits, progress=recorder)
    names = [e[0] for e in recorder.events]
    assert names[0] == "start" and recorder.events[0][1:] == (2, 10, 0)
    assert names.count("validating") == names.count("epoch_done") == 2
    assert [e[1] for e in recorder.events if e[0] == "epoch_done"] == trainer.history.epochs
    assert names[-1] == "stop"


# ------------------------------------------------------------------------------------ each backend


def test_a_run_on_each_backend(digits, backend, tmp_path):
    train, test = digits.train.take(slice(0, 70)), digits.test.take(slice(0, 20))
    small = Dataset("small", train, test, digits.classes)
    trainer = run(conv(), small, epochs=2, seed=2, out=tmp_path)
    assert trainer.network.home == backend.library
    expected = run(conv(), small, epochs=2, seed=2, device="cpu")
    np.testing.assert_allclose(trainer.history.step_losses, expected.history.step_losses, rtol=1e-3)
    again = run(conv(), small, epochs=2, seed=2)
    assert trainer.history.step_losses == again.history.step_losses
    assert load(tmp_path / "model.safetensors").home == backend.library


def test_steps_on_a_gpu_neither_copy_nor_wait(digits, backend):
    """Between two looks at the losses (every 50 steps) nothing crosses to the host or back."""
    net = dense()

    class Watched(Sequential):
        steps = 0

        def forward(self, X, retain_derived=True):
            self.steps += retain_derived
            if retain_derived and self.steps == 2:
                self.guard = backend.forbid("sync", "h2d", "d2h")
                self.guard.__enter__()
            if retain_derived and self.steps == 9:
                self.guard.__exit__(None, None, None)
            return super().forward(X, retain_derived)

    watched = Watched(net.layers)
    run(watched, digits, epochs=1)
    assert watched.steps == 10


def test_the_images_are_on_the_device_as_bytes_if_they_fit(digits, backend, monkeypatch):
    resident = feed.Feed(digits.train, backend.library)
    assert resident.resident
    X, y = resident.batch(0, 4)
    assert X.dtype == np.uint8 and isinstance(X, backend.xp.ndarray)
    monkeypatch.setattr(feed, "_fits", lambda *_: False)
    streamed = feed.Feed(digits.train, backend.library)
    assert streamed.resident == (backend.library == "numpy")
    order = np.random.default_rng(0).permutation(300)
    for source in (resident, streamed):
        source.set_order(order)
        X, y = source.batch(295, 310)
        np.testing.assert_array_equal(backend.asnumpy(X), digits.train.images[order[295:]])
        np.testing.assert_array_equal(backend.asnumpy(y), digits.train.labels[order[295:]])


def test_streamed_batches_give_the_same_run(digits, backend, monkeypatch):
    whole = run(dense(), digits, epochs=1, seed=1, compile=False)
    monkeypatch.setattr(feed, "_fits", lambda *_: False)
    streamed = run(dense(), digits, epochs=1, seed=1, compile=False)
    assert whole.history.step_losses == streamed.history.step_losses
