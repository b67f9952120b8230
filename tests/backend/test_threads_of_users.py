"""Threads beside those of a process: the user's own, forks, the end of the interpreter."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from gpulayers import threads
from gpulayers.ops import Window, conv, pool, use_engine
from gpulayers.threads import run_shares, shares, use_threads
from tests.support.compare import assert_same_bits

can_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
ENGINES = ["numpy", pytest.param("compiled", marks=pytest.mark.compiled)]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest):
    with use_engine(request.param):
        yield request.param


# --------------------------------------------------------------------------- users' own threads

WINDOW = Window((3, 3), pad=(1, 1, 1, 1))


def batch(seed: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((8, 12, 12, 32)).astype("float32"),
        rng.standard_normal((3, 3, 32, 32)).astype("float32"),
    )


def step(X: np.ndarray, W: np.ndarray) -> list[np.ndarray]:
    Z = conv.conv2d_forward(X, W, None, WINDOW)
    Y, argmax = pool.max_pool2d_forward(Z, Window((2, 2), (2, 2)))
    dZ = pool.max_pool2d_backward(Y, argmax, Z.shape, Window((2, 2), (2, 2)))
    return [
        Y,
        conv.conv2d_weight_grad(X, dZ, WINDOW),
        conv.conv2d_input_grad(dZ, W, X.shape, WINDOW),
    ]


def test_threads_of_the_user(engine: str) -> None:
    """Calls from several threads at once give what they give one by one, bit for bit."""
    batches = [batch(seed) for seed in range(4)]
    before = [library.get_num_threads() for library in threads.blas_libraries()]

    def run(k: int) -> list[list[np.ndarray]]:
        with use_threads(3), use_engine(engine):
            return [step(*batches[k]) for _ in range(5)]

    alone = [run(k)[0] for k in range(4)]
    with ThreadPoolExecutor(4) as executor:
        together = list(executor.map(run, range(4)))
    for k in range(4):
        for result in together[k]:
            for array, expected in zip(result, alone[k], strict=True):
                assert_same_bits(array, expected)
    assert [library.get_num_threads() for library in threads.blas_libraries()] == before


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_same_bits_for_a_number_of_threads(engine: str, count: int) -> None:
    X, W = batch(0)
    with use_threads(count):
        first = step(X, W)
        for _ in range(3):
            for array, expected in zip(step(X, W), first, strict=True):
                assert_same_bits(array, expected)
    with use_threads(1):
        for array, expected in zip(step(X, W), first, strict=True):
            largest = np.abs(expected).max()
            np.testing.assert_allclose(array, expected, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("count", [9, 64, 100])
def test_more_threads_than_cores_and_examples(engine: str, count: int) -> None:
    X, W = batch(0)
    with use_threads(1):
        expected = step(X, W)
    with use_threads(count):
        for array, want in zip(step(X, W), expected, strict=True):
            np.testing.assert_allclose(array, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_workers_that_went_to_sleep_wake_again(engine: str) -> None:
    """Pauses shorter and longer than the compiled kernels' workers look for work."""
    X, W = batch(0)
    with use_threads(3):
        expected = step(X, W)
        for k in range(60):
            time.sleep((0, 2e-5, 1e-4, 5e-3)[k % 4])
            for array, want in zip(step(X, W), expected, strict=True):
                assert_same_bits(array, want)


# ------------------------------------------------------------------------------------------ forks


def in_child(compute: Any) -> int:
    """The exit status of a forked child that runs `compute`; killed after 60 seconds."""
    child = os.fork()
    if not child:
        status = 1
        try:
            compute()
            status = 0
        finally:
            os._exit(status)
    for _ in range(600):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -1


@can_fork
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_computes(engine: str) -> None:
    X, W = batch(0)
    with use_threads(3):
        expected = step(X, W)  # the workers are there before the fork

        def compute() -> None:
            for _ in range(3):
                for array, want in zip(step(X, W), expected, strict=True):
                    assert_same_bits(array, want)
            seen = set()
            meeting = threading.Barrier(3, timeout=20)

            def meet(i: int, part: slice) -> None:
                meeting.wait()
                seen.add(threading.get_ident())

            run_shares(meet, [slice(0, 1)] * 3)
            assert len(seen) == 3  # with workers of its own

        assert in_child(compute) == 0
        for array, want in zip(step(X, W), expected, strict=True):
            assert_same_bits(array, want)


@can_fork
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_while_the_workers_are_busy(engine: str) -> None:
    X, W = batch(0)
    with use_threads(2):
        expected = step(X, W)
    stop = threading.Event()

    def keep_busy() -> None:
        with use_threads(2), use_engine(engine):
            while not stop.is_set():
                step(X, W)

    def compute() -> None:
        with use_threads(2):
            for array, want in zip(step(X, W), expected, strict=True):
                assert_same_bits(array, want)

    thread = threading.Thread(target=keep_busy)
    thread.start()
    try:
        for _ in range(5):
            assert in_child(compute) == 0
            time.sleep(0.003)
    finally:
        stop.set()
        thread.join()


@can_fork
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_within_a_share_leaves_blas_its_threads_in_the_child() -> None:
    libraries = threads.blas_libraries()
    before = [library.get_num_threads() for library in libraries]
    statuses = []

    def compute() -> None:
        assert [library.get_num_threads() for library in threads.blas_libraries()] == before
        with use_threads(3):
            assert len(shares(1000)) == 3  # it is in no share of its own

    def work(i: int, part: slice) -> None:
        if i == 0:
            statuses.append(in_child(compute))

    for library in libraries:
        library.set_num_threads(2)
    try:
        before = [library.get_num_threads() for library in libraries]
        run_shares(work, [slice(0, 1)] * 2)
    finally:
        for library in libraries:
            library.set_num_threads(1)
    assert statuses == [0]


# --------------------------------------------------------------------------- end of the interpreter


@pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(),
    reason="without the interpreter lock all modules are gone before an object in sys.modules is",
)
def test_computing_while_the_interpreter_ends() -> None:
    """Workers stand still then; whoever still computes must not wait for them."""
    code = """
import threading, numpy as np
from gpulayers.threads import run_shares
class Late:
    def __del__(self):
        seen = []
        run_shares(lambda i, part: seen.append(i), [slice(0, 1)] * 3)
        print(sorted(seen))
late = Late()
run_shares(lambda i, part: None, [slice(0, 1)] * 3)
import sys
sys.modules["kept"] = late
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "[0, 1, 2]\n", done.stderr


def test_threads_evaluate_one_network_and_train_others(engine: str) -> None:
    """As the page on speed says."""
    from gpulayers import models

    rng = np.random.default_rng(2)
    X = rng.standard_normal((9, 28, 28, 1)).astype(np.float32)
    labels = rng.integers(0, 10, 9)
    shared = models.lenet()
    expected = [shared.predict(np.roll(X, i, 0)) for i in range(6)]

    def evaluated(i: int) -> bool:
        with use_engine(engine):
            return all(
                np.allclose(shared.predict(np.roll(X, i, 0)), expected[i], rtol=1e-4, atol=1e-5)
                for _ in range(4)
            )

    def trained(i: int) -> list[float]:
        with use_engine(engine):
            network = copy.deepcopy(shared)
            plan = network.compile(X.shape, optimizer=f"SGD(lr=0.0{i + 1})")
            return [float(plan.step(X, labels)) for _ in range(4)]

    alone = [trained(i) for i in range(6)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool_of_threads:
            right = list(pool_of_threads.map(evaluated, range(6)))
            together = list(pool_of_threads.map(trained, range(6)))
    finally:
        sys.setswitchinterval(before)
    assert all(right)
    np.testing.assert_allclose(together, alone, rtol=1e-4)
