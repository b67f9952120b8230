"""`Trainer(precision=...)`: half types with master weights, a float32 loss and a loss scale."""

import importlib
import re

import numpy as np
import pytest

from gpulayers.errors import BackendError, DivergedError, ParameterError
from gpulayers.layers import Conv2D, Flatten, FullyConnected, Pool2D
from gpulayers.losses import SoftmaxCrossEntropy
from gpulayers.models import Sequential
from gpulayers.optimizers import OptimizerBase
from gpulayers.training import Callback, Trainer
from gpulayers.training.data import Dataset, Split
from gpulayers.training.precision import LossScaler
from tests.conftest import Backend
from tests.training.networks import assert_same_run, dense, run


@pytest.fixture(scope="module")
def few(digits):
    return Dataset(
        "few",
        Split(digits.train.images[:96], digits.train.labels[:96]),
        Split(digits.test.images[:32], digits.test.labels[:32]),
        digits.classes,
    )


def lenet(optimizer="Adam(lr=0.01)"):
    layers = [
        Conv2D(4, (3, 3), act_fn="ReLU"),
        Pool2D((2, 2), stride=2),
        Flatten(),
        FullyConnected(24, act_fn="ReLU"),
        FullyConnected(10),
    ]
    return Sequential(layers, optimizer, "small lenet")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_training_reaches_the_loss_of_float32(precision, few):
    if precision == "bf16":
        pytest.importorskip("ml_dtypes")
    options = {"epochs": 6, "clip_global_norm": 0.5}
    want = run(lenet(), few, **options).history.column("train_loss")
    trainer = run(lenet(), few, precision=precision, **options)
    got = trainer.history.column("train_loss")
    assert want[-1] < 0.6 * want[0]
    np.testing.assert_allclose(got, want, rtol=0.02 if precision == "fp16" else 0.1)
    assert trainer.network.dtype.itemsize == 2 and trainer.scaler.skipped_steps == 0
    assert trainer.network[0].optimizer.grad_scale == 1.0


@pytest.mark.parametrize("compile", [True, False])
def test_overflow_skips_the_step_and_halves_the_scale(compile, few):
    seen = []

    class Look(Callback):
        """What is left after each step: the scale, the optimizer's steps, one weight."""

        def on_step_end(self, trainer):
            layer = trainer.network[1]
            scale, t = trainer.scaler.scale, layer.optimizer.cur_step
            seen.append((scale, t, layer.parameters["W"].copy(), layer.gradients["W"].any()))

    options = {"precision": "fp16", "compile": compile, "progress": False}
    trainer = Trainer(dense(), few, 16, 1, callbacks=[Look()], **options)
    trainer.scaler.scale = 2.0**19
    trainer.fit()
    skipped = trainer.scaler.skipped_steps
    assert 2 <= skipped <= 4
    for i, (scale, t, _, gradient) in enumerate(seen):
        assert scale == 2.0 ** (19 - min(i + 1, skipped)) and t == max(0, i + 1 - skipped)
        assert not gradient
    weights = [w for _, _, w, _ in seen]
    assert all(np.array_equal(weights[0], w) for w in weights[:skipped])
    assert not np.array_equal(weights[skipped - 1], weights[skipped])
    assert np.isfinite(weights[-1]).all()


def test_the_scale_doubles_and_has_limits(numpy_backend):
    scaler, good, bad = LossScaler("fp16"), [np.ones(3, np.float16)], [np.full(2, np.nan)]
    assert [scaler.judge(good) for _ in range(2001)] == [2.0**15] * 2000 + [2.0**16]
    with np.errstate(invalid="ignore"):
        assert scaler.judge([*good, np.array([np.inf, -np.inf], np.float16)]) is None
    assert (scaler.scale, scaler.skipped_steps) == (2.0**15, 1)
    assert scaler.judge([np.full(5, 65504, np.float16)]) == 2.0**15  # whose sum is above float16
    for _ in range(29):
        assert scaler.judge(bad) is None
    with pytest.raises(DivergedError, match="not finite even with a loss scale"):
        scaler.judge(bad)


def test_small_gradients_survive(few):
    """A loss whose gradients are all below float16's smallest number: only the scale saves them."""

    class Tiny(SoftmaxCrossEntropy):
        def backward(self):
            return super().backward() * np.float32(1e-6)

    plain = run(dense("SGD(lr=0.1)"), few)
    scaled = run(dense("SGD(lr=1e5)"), few, loss=Tiny(), precision="fp16")
    got, want = (t.history.column("train_loss") for t in (scaled, plain))
    np.testing.assert_allclose(got, want, rtol=0.02)


def test_accumulated_parts_are_the_same_step(few):
    options = {"precision": "fp16", "epochs": 1, "batch_size": 24}
    whole = run(lenet("SGD(lr=0.1)"), few, **options)
    parts = run(lenet("SGD(lr=0.1)"), few, accumulate=2, **options)
    np.testing.assert_allclose(parts.history.step_losses, whole.history.step_losses, rtol=0.01)


def test_going_on_is_bit_for_bit(few, tmp_path, monkeypatch):
    monkeypatch.setattr(LossScaler, "growth_interval", 2)
    options = {"batch_size": 32, "precision": "fp16", "out": tmp_path}
    first = run(dense(), few, epochs=1, **options)
    assert first.scaler.scale == 2.0**16
    going = run(dense(), few, epochs=3, resume=tmp_path, **options)
    whole = run(dense(), few, epochs=3, **{**options, "out": None})
    assert_same_run(going, whole)
    assert going.scaler.state() == whole.scaler.state() and whole.scaler.scale > 2.0**16
    ours, theirs = (t.network[1].optimizer.cache["W"]["master"] for t in (going, whole))
    np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ParameterError, match="resume: precision is None, but the run"):
        Trainer(dense(), few, 32, 3, dtype="float16", resume=tmp_path)


def test_bad_precisions(few):
    with pytest.raises(ParameterError, match="unknown precision 'fp8', expected one of fp32"):
        Trainer(dense(), few, precision="fp8")
    with pytest.raises(ParameterError, match="'fp16' is float16, but dtype=float32"):
        Trainer(dense(), few, precision="fp16", dtype=np.float32)
    assert Trainer(dense(), few, precision="fp16", dtype=np.float16).dtype == np.float16
    assert Trainer(dense(), few, precision="fp32").scaler is None

    class Own(OptimizerBase):
        hyperparameters = {"id": "Own"}  # noqa: RUF012

        def update(self, param, param_grad, param_name, cur_loss=None):
            return param - param_grad

    with pytest.raises(ParameterError, match=r"needs an optimizer of gpulayers.*Own does not"):
        run(dense(Own(0.1)), few, precision="fp16")


@pytest.mark.parametrize(
    "precision, compile, waits", [("bf16", None, 0), ("fp16", None, 0), ("fp16", False, 1)]
)
def test_waits_on_a_gpu(precision, compile, waits, emulated: Backend):
    """Layer by layer each step in float16 reads one flag; no other step waits."""
    pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(0)

    def events(batches):
        def split(n):
            return Split(rng.integers(0, 256, (n, 4, 4, 1), np.uint8), rng.integers(0, 3, n))

        data = Dataset("noise", split(4 * batches), split(4), ("a", "b", "c"))
        net = Sequential([Flatten(), FullyConnected(3)], "Adam(lr=0.01)")
        with emulated.count() as counted:
            run(net, data, batch_size=4, epochs=1, precision=precision, compile=compile)
        return counted

    events(2)
    few, many = events(3), events(7)
    assert many["sync"] - few["sync"] == 4 * waits
    assert many["h2d"] == few["h2d"]


@pytest.mark.parametrize("compile", [None, False])
@pytest.mark.parametrize("asked, around", [("tf32", "fp32"), (None, "tf32"), ("fp32", "tf32")])
def test_tensor_cores_for_float32(compile, asked, around, emulated: Backend):
    """In every product of the run, the steps' and those of the looks at the test split."""
    from gpulayers.cuda.precision import use_precision

    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (8, 4, 4, 1), np.uint8), rng.integers(0, 4, 8))
    net = Sequential([Flatten(), FullyConnected(8, act_fn="ReLU"), FullyConnected(4)], "SGD(lr=0)")
    data = Dataset("noise", split, split, tuple("abcd"))
    with emulated.count() as events, use_precision(around):
        run(net, data, batch_size=4, precision=asked, compile=compile)
    products = [name for name in events if re.search("gemm<|dense_backward<", name)]
    assert products
    for name in products:
        assert ("Tensor" in name) == ((asked or around) == "tf32"), name


def test_tensor_cores_need_a_gpu(few):
    with pytest.raises(ParameterError, match="'tf32' is for tensor cores, this trains on the CPU"):
        Trainer(dense(), few, precision="tf32")


def test_tensor_cores_of_an_old_gpu(few, emulated: Backend, monkeypatch: pytest.MonkeyPatch):
    precisions = importlib.import_module("gpulayers.cuda.precision")
    monkeypatch.setattr(precisions, "capability", lambda: 75)
    with pytest.raises(BackendError, match=r"Trainer: .*tf32.* 8\.0"):
        Trainer(dense(), few, precision="tf32")


def test_a_run_in_tf32_goes_on_in_it(emulated: Backend, tmp_path):
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (8, 4, 4, 1), np.uint8), rng.integers(0, 3, 8))
    data = Dataset("noise", split, split, tuple("abc"))
    run(dense(), data, precision="tf32", out=tmp_path, epochs=1)
    with pytest.raises(ParameterError, match="resume: precision is None, but the run"):
        Trainer(dense(), data, 32, 2, resume=tmp_path)
    assert Trainer(dense(), data, 32, 2, precision="tf32", resume=tmp_path).fit().epochs
