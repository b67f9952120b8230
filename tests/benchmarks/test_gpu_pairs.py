"""The pairs of ways of benchmarks/gpu.py, on the stand-in."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.conftest import Backend
from tests.support import fake_cupy


@pytest.fixture
def small(
    bench: SimpleNamespace, emulated: Backend, monkeypatch: pytest.MonkeyPatch
) -> SimpleNamespace:
    pytest.importorskip("ml_dtypes")
    for name, value in {"_IMAGES": 3, "_SIZE": 6, "_CHANNELS": 8}.items():
        monkeypatch.setattr(bench.pairs, name, value)
    conv = importlib.import_module("gpulayers.cuda.conv")
    monkeypatch.setattr(conv, "SPECIALISED", False)
    return bench


@pytest.mark.emulated
def test_pairs_of_ways_are_timed(
    small: SimpleNamespace, emulated: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways of each pair are taken, are right, and give the same."""
    taken: list[Any] = []

    def alone(_: Any, runs: list[Callable[[], Any]]) -> Any:
        taken.append(runs[0]())
        return small.clock.Times(*[float(len(taken))] * 3)

    monkeypatch.setattr(small.pairs, "alone", alone)
    for name, measure in small.pairs.items(emulated.xp):
        with fake_cupy.count() as events:
            found = measure()
        assert len(found["us"]) == 2
        assert found["rule"] == found["best"]
        assert all(0 <= wrong < 1e-2 for wrong in found["error"].values())
        for one, other in list(zip(*taken[-2:], strict=True))[: 2 if "forward" in name else 1]:
            a, b = (emulated.asnumpy(array).astype("f8") for array in (one, other))
            np.testing.assert_allclose(a, b, atol=2e-2 * max(1.0, abs(b).max()), err_msg=name)
        kernels = {event.partition("<")[0] for event in events if event.startswith("kernel:")}
        few = {"kernel:example_conv_forward", "kernel:example_conv_backward"}
        assert kernels & few if "few" in name else "kernel:unpool2d" in kernels


@pytest.mark.emulated
@pytest.mark.parametrize("module", ["example_conv", "conv"])
@pytest.mark.parametrize("fault", ["larger", "winner"])
def test_a_wrong_way_forward_is_not_timed(
    module: str,
    fault: str,
    small: SimpleNamespace,
    emulated: Backend,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of whose numbers is too large, or told to come from another pixel."""
    place = importlib.import_module(f"gpulayers.cuda.{module}")
    right = place.forward

    def wrong(*args: Any, **kwargs: Any) -> Any:
        Z, winners = right(*args, **kwargs)
        if fault == "larger":
            Z[0, 0, 0, 0] += 0.01
        else:
            winners[0, 0] = (winners[0, 0] + 1) % 4
        return Z, winners

    monkeypatch.setattr(place, "forward", wrong)
    measure = dict(small.pairs.items(emulated.xp))["few channels, forward fp32"]
    with pytest.raises(ArithmeticError, match="is off by"):
        measure()


@pytest.mark.emulated
@pytest.mark.parametrize("fault", ["input", "weight", "left out"])
def test_a_wrong_way_back_is_not_timed(
    fault: str, small: SimpleNamespace, emulated: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = importlib.import_module("gpulayers.cuda.conv_step")
    right = place.backward

    def wrong(X: Any, dZ: Any, W: Any, window: Any, winners: Any, grads: Any, *rest: Any) -> Any:
        dX = right(X, dZ, W, window, winners, grads, *rest)
        if fault == "input":
            dX[1, 2, 3, 4] += 1
        elif fault == "weight":
            grads[0, 0, 0] += 1
        else:
            grads[0, -1] = np.nan
        return dX

    monkeypatch.setattr(place, "backward", wrong)
    for name, measure in small.pairs.items(emulated.xp):
        if "back" in name:
            with pytest.raises(ArithmeticError, match="is off by"):
                measure()
