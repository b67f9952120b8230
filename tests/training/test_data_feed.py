"""Batches prepared ahead, and the feed that puts samplers and batches together."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

from gpulayers import random
from gpulayers.errors import ParameterError, ShapeError
from gpulayers.training import (
    BalancedSampler,
    Dataset,
    Feed,
    ShuffledSampler,
    Split,
    SubsetSampler,
    evaluate,
)
from gpulayers.training import feed as feed_module
from gpulayers.training.feed import batch_generator, order_generator
from gpulayers.training.prefetch import ahead
from tests.conftest import Backend
from tests.training.networks import assert_same_run, dense, in_step, run

VARY = "crop(2), flip, cutout(2), mixup(0.4)"


def split(n: int = 23) -> Split:
    rng = np.random.default_rng(5)
    return Split(rng.integers(0, 256, (n, 6, 5, 3), np.uint8), np.arange(n) % 4)


def helpers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("gpulayers-batches")]


# ------------------------------------------------------------------------------------- work ahead


@pytest.mark.parametrize("threads", [0, 1, 2, 4])
def test_in_order(threads: int) -> None:
    def make(i: int) -> int:
        time.sleep(0.002 * (i % 3 == 0))
        return i * i

    assert list(ahead(make, 3, 20, threads)) == [i * i for i in range(3, 20)]
    assert list(ahead(make, 3, 3, threads)) == [] and list(ahead(make, 4, 5, threads)) == [16]
    assert helpers() == []


def test_the_queue_is_bounded_and_a_break_ends_the_threads() -> None:
    begun: list[int] = []
    for i in ahead(lambda i: begun.append(i) or i, 0, 1000, 2):  # type: ignore[func-returns-value]
        time.sleep(0.01)  # the threads would run far ahead if they could
        assert max(begun) <= i + 4
        if i == 5:
            assert helpers()
            break
    assert helpers() == [] and max(begun) <= 9


@pytest.mark.parametrize("threads", [0, 3])
def test_an_exception_comes_where_its_result_would(threads: int) -> None:
    def make(i: int) -> int:
        if i == 4:
            raise ZeroDivisionError("number 4")
        return i

    got = []
    with pytest.raises(ZeroDivisionError, match="number 4"):
        for value in ahead(make, 0, 10, threads):
            got.append(value)
    assert got == [0, 1, 2, 3] and helpers() == []


def test_threads_see_the_callers_settings() -> None:
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        list(ahead(lambda i: np.float32(1e38) * np.float32(10 + i), 0, 4, 2))
    with pytest.raises(ParameterError, match="threads must be an integer >= 0"):
        ahead(str, 0, 3, -1)


# ----------------------------------------------------------------------------------------- the feed


def taken(feed: Feed, backend: Backend, start: int = 0, epoch: int = 2) -> list[tuple[Any, ...]]:
    """The epoch's batches as host arrays."""
    result = []
    for X, y in feed.batches(5, ShuffledSampler(feed.count), seed=9, epoch=epoch, start=start):
        parts = (y.first, y.second) if hasattr(y, "first") else (y,)
        weight = getattr(y, "weight", 1.0)
        result.append((backend.asnumpy(X), *(backend.asnumpy(p) for p in parts), weight))
    return result


def assert_same(a: list[tuple[Any, ...]], b: list[tuple[Any, ...]]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        for x, y in zip(one, other, strict=True):
            np.testing.assert_array_equal(x, y)
            assert getattr(x, "dtype", None) == getattr(y, "dtype", None)


@pytest.fixture(scope="module")
def want() -> list[tuple[Any, ...]]:
    """An epoch on NumPy without threads."""
    host = Backend("numpy", np, "numpy")
    return taken(Feed(split(), "numpy", VARY, threads=0), host)


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_a_seed_gives_the_same_batches_everywhere(
    threads: int, backend: Backend, want: list[tuple[Any, ...]]
) -> None:
    """On each backend, resident or not, with any number of threads, from any batch on."""
    for share in (0.5, 0.0):
        feed = Feed(split(), backend.library, VARY, threads=threads, share=share)
        assert feed.resident == (share > 0 or backend.library == "numpy")
        assert_same(taken(feed, backend), want)
        assert_same(taken(feed, backend, start=3), want[3:])
        assert taken(feed, backend, start=5) == []
    assert helpers() == []


@pytest.mark.parametrize("share", [0.5, 0.0])
def test_a_break_and_an_error_end_the_threads(share: float, backend: Backend) -> None:
    def fragile(X: Any, labels: Any, generator: random.Generator) -> tuple[Any, Any]:
        if generator.counter >> 64 == 3:
            raise ZeroDivisionError("in batch 3")
        return X, labels

    feed = Feed(split(), backend.library, fragile, threads=3, share=share)
    for _ in feed.batches(2):
        break
    assert helpers() == []
    seen = []
    with pytest.raises(ZeroDivisionError, match="in batch 3"):
        for _, labels in feed.batches(2):
            seen.append(len(labels))
    assert seen == [2, 2, 2] and helpers() == []


def test_one_example(backend: Backend) -> None:
    feed = Feed(split(1), backend.library, VARY, threads=2)
    ((X, y),) = feed.batches(5, ShuffledSampler(1))
    assert X.shape == (1, 6, 5, 3) and len(y) == 1


def test_epochs_and_seeds_differ(numpy_backend: Backend, want: list[tuple[Any, ...]]) -> None:
    feed = Feed(split(), "numpy", VARY)
    other = taken(feed, numpy_backend, epoch=3)
    assert any((a[1] != b[1]).any() for a, b in zip(other, want, strict=True))


def test_no_number_is_drawn_twice() -> None:
    """Batches, epochs, seeds and the shuffling have a stream, or a stretch of it, of their own."""
    generators = [batch_generator(9, 2, i) for i in range(3)]
    generators += [batch_generator(9, 3, 0), batch_generator(8, 2, 0), order_generator(9, 2)]
    generators += [order_generator(9, 3), random.Generator(9)]
    drawn = np.concatenate([g.uniform((500,), np.float64, np) for g in generators])
    assert len(np.unique(drawn)) == len(drawn)


def test_plain_batches(backend: Backend) -> None:
    data = split()
    feed = Feed(data, backend.library)
    got = list(feed.batches(10))
    assert [len(y) for _, y in got] == [10, 10, 3]
    for i, (X, y) in enumerate(got):
        np.testing.assert_array_equal(backend.asnumpy(X), data.images[10 * i : 10 * i + 10])
        np.testing.assert_array_equal(backend.asnumpy(y), data.labels[10 * i : 10 * i + 10])
    order = np.concatenate([backend.asnumpy(y) for _, y in feed.batches(7, SubsetSampler([5, 6]))])
    assert sorted(order) == [1, 2]


def test_a_feed_normalises_as_it_is_told(numpy_backend: Backend) -> None:
    feed = Feed(split(), "numpy", "cutout(100), mixup(1)", lambda X: X.astype("float64") + 5)
    X, _ = next(feed.batches(4))
    assert X.dtype == np.float64 and (X == 0).all()
    plain = Feed(split(), "numpy", "flip(0)", lambda X: X.astype("float64") + 5)
    assert next(plain.batches(4))[0].dtype == np.uint8  # nothing here wants floats


def test_the_share_of_free_memory(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    data = split()
    size = data.images.nbytes + data.labels.nbytes
    monkeypatch.setattr(emulated.xp.cuda.runtime, "memGetInfo", lambda: (2 * size, 4 * size))
    pool = emulated.xp.get_default_memory_pool()
    monkeypatch.setattr(pool, "free_bytes", lambda: 0)
    assert Feed(data, "cupy").resident and not Feed(data, "cupy", share=0.49).resident
    monkeypatch.setattr(pool, "free_bytes", lambda: size)  # cached blocks can be had as well
    assert Feed(data, "cupy", share=0.49).resident


def test_a_device_that_turns_out_to_be_full(
    emulated: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "_fits", lambda *_: True)
    pool = emulated.xp.get_default_memory_pool()
    before = pool.get_limit()
    try:
        pool.set_limit(size=pool.used_bytes() + 600)
        feed = Feed(split(), "cupy")
    finally:
        pool.set_limit(size=before)
    assert not feed.resident
    X, _ = next(feed.batches(4))
    np.testing.assert_array_equal(X.get(), split().images[:4])


def test_batches_of_a_resident_set_cross_nothing(emulated: Backend) -> None:
    feed = Feed(split(), "cupy", VARY)
    list(feed.batches(5, ShuffledSampler(23)))
    epoch = feed.batches(5, ShuffledSampler(23), seed=1)
    with emulated.forbid("sync", "h2d", "d2h", "iterate"):
        assert len(list(epoch)) == 5


def test_large_sets_go_over_in_parts(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_BLOCK", 4 * split().images[0].nbytes)
    with emulated.count() as events:
        feed = Feed(split(), "cupy")
    assert events["h2d"] == 6 + 1  # 23 images by 4, and the labels
    X, _ = feed.batch(0, 23)
    np.testing.assert_array_equal(X.get(), split().images)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda f: f.batches(0), "size must be an integer >= 1"),
        (lambda f: f.batches(5, start=-1), "start must be an integer >= 0"),
        (lambda f: f.batches(5, epoch=0.5), "epoch must be an integer"),
        (lambda f: f.batches(5, SubsetSampler([1, 23])), r"indices 1\.\.23, the split has 23"),
        (lambda f: Feed(split(), "numpy", threads=-1), "threads must be an integer >= 0"),
        (lambda f: Feed(split(), "numpy", share=1.5), r"share must be in \[0.0, 1.0\]"),
        (lambda f: Feed(split(), "numpy", "flop"), "unknown transform 'flop'.*'flip'"),
    ],
)
def test_bad_feeds(call: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        call(Feed(split(), "numpy"))


def test_the_images_of_the_split_stay(backend: Backend) -> None:
    data = split()
    before = data.images.copy()
    data.images.flags.writeable = False
    for X, _ in Feed(data, backend.library, VARY).batches(5):
        X[...] = 0
    for X, _ in Feed(data, backend.library, "flip").batches(5, ShuffledSampler(23)):
        X[...] = 0
    np.testing.assert_array_equal(data.images, before)


# -------------------------------------------------------------------------------------- the trainer


def test_training_does_not_depend_on_threads_or_place(digits: Dataset, backend: Backend) -> None:
    few = Dataset("few", digits.train.take(slice(0, 100)), digits.test, digits.classes)
    runs = [
        run(dense(), few, transform=VARY, threads=threads, device_share=share, epochs=1)
        for threads, share in ((0, 0.5), (3, 0.0))
    ]
    for trainer in runs:
        trainer.network.to("numpy")
    assert_same_run(*runs)
    plain = run(dense(), few, epochs=1)
    assert plain.history.step_losses != runs[0].history.step_losses
    assert helpers() == []


def test_a_varied_run_goes_on_exactly(digits: Dataset, tmp_path: Any, numpy_backend: Any) -> None:
    """Stopped in the middle of an epoch, with everything that is drawn at random."""
    options = {"transform": VARY, "sampler": BalancedSampler(digits.train, 130), "epochs": 2}
    whole = run(dense(), digits, **options)
    assert whole.steps == 5 and len(whole.history.step_losses) == 10
    stop = in_step(dense(), 8, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match="3 of 5 batches"):
        run(stop, digits, out=tmp_path, **options)
    resumed = run(dense(), digits, resume=tmp_path, threads=4, **options)
    assert_same_run(whole, resumed)
    for name, other, text in (("transform", "mixup(1)", "'Compose"), ("sampler", None, "None")):
        with pytest.raises(ParameterError, match=f"resume: {name} is {text}.*, but the run"):
            run(dense(), digits, resume=tmp_path, **{**options, name: other})


def test_varied_steps_on_a_gpu_neither_wait_nor_copy(digits: Dataset, emulated: Backend) -> None:
    """Three times the steps, the same number of waits and copies."""

    def events(n: int) -> Any:
        train = digits.train.take(slice(0, n))
        data = Dataset("few", train, digits.test.take(slice(0, 8)), digits.classes)
        with emulated.count() as counted:
            run(dense("SGD(lr=0.1)"), data, batch_size=8, epochs=1, transform=VARY)
        return counted

    events(16)  # compiles the kernels
    few, many = events(24), events(72)
    for event in ("sync", "d2h", "h2d", "iterate"):
        assert many[event] == few[event], event
    assert many["launch"] > few["launch"]


def test_validation_on_the_validation_split(digits: Dataset, numpy_backend: Any) -> None:
    """The test split plays no part in the training."""
    data = digits.hold_out(60)
    other = Dataset("digits", data.train, data.train, data.classes, data.validation)
    a, b = run(dense(), data, epochs=1), run(dense(), other, epochs=1)
    assert_same_run(a, b)
    result = evaluate(a.network, data.held_out)
    assert a.history.column("val_loss") == [pytest.approx(result.loss, rel=1e-6)]


def test_training_on_crops_of_another_size(digits: Dataset, numpy_backend: Any) -> None:
    """The plan is made for the batches, not for the images they were cut from."""
    smaller = digits.test.images[:, 1:-1, 1:-1]
    X, _ = next(Feed(digits.train, "numpy", "crop(0, 8)").batches(32))
    assert X.shape == (32, 8, 8, 1)
    assert Feed(digits.train, "numpy", "flip, crop(0, 8)").image_shape == (8, 8, 1)
    net = dense()
    data = Dataset("crops", digits.train, digits.train, digits.classes)
    with pytest.raises(ShapeError):  # validation has the whole images
        run(net, data, transform="crop(0, 8)", epochs=1)
    assert net.forward(smaller[:2], False).shape == (2, 10)
