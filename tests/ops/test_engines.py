"""Which implementation runs: by the arrays, unless the reference is asked for."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pytest

from gpulayers import ops
from gpulayers.errors import BackendError, DTypeError, ParameterError
from gpulayers.ops import _kernels, _protocol, current_engine, kernels_for, use_engine
from gpulayers.ops.compiled import Compiled
from gpulayers.ops.cpu import Cpu
from gpulayers.ops.reference import Reference


def test_arrays_decide(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPULAYERS_ENGINE", raising=False)
    x = backend.asarray(np.ones(3))
    expected = {"numpy": "Cpu", "compiled": "Compiled", "auto": "Cuda"}[backend.engine]
    assert type(kernels_for(x, None, x)).__name__ == expected
    with use_engine("reference"):
        assert type(kernels_for(x)) is Reference
    assert type(kernels_for(x)).__name__ == expected


def test_host_arrays_run_on_the_host_whatever_the_current_backend(emulated: Any) -> None:
    assert type(kernels_for(np.ones(3))).__name__ in ("Cpu", "Compiled")


def test_use_engine_at_once_and_as_context() -> None:
    with use_engine("auto"):
        use_engine("reference")
        assert current_engine() == "reference"
        with use_engine("AUTO "):
            assert current_engine() == "auto"
        assert current_engine() == "reference"
        with pytest.raises(ZeroDivisionError), use_engine("auto"):
            _ = 1 / 0
        assert current_engine() == "reference"


def test_the_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    token = _kernels._engine.set(None)

    def start_with(value: str) -> None:
        monkeypatch.setenv("GPULAYERS_ENGINE", value)
        _kernels._from_environment.cache_clear()

    try:
        start_with(" Reference")
        assert current_engine() == "reference"
        assert type(kernels_for(np.ones(1))) is Reference
        monkeypatch.setenv("GPULAYERS_ENGINE", "numpy")  # read once
        assert current_engine() == "reference"
        start_with("")
        assert current_engine() == "auto"
        start_with("referense")
        with pytest.raises(
            ParameterError, match=r"GPULAYERS_ENGINE: unknown engine 'referense'.*mean 'reference'"
        ):
            current_engine()
    finally:
        _kernels._engine.reset(token)
        _kernels._from_environment.cache_clear()


def test_unknown_names() -> None:
    with pytest.raises(
        ParameterError,
        match="use_engine: unknown engine 'fast', expected one of auto, numpy, compiled, raw",
    ):
        use_engine("fast")
    assert current_engine() in _kernels.ENGINES


def test_no_arrays_and_no_array() -> None:
    with pytest.raises(DTypeError, match="expected at least one array, got none"):
        kernels_for(None)
    with pytest.raises(DTypeError, match="expected a numpy or cupy array, got list"):
        kernels_for([1.0])


def test_mixed_arrays(emulated: Any) -> None:
    with pytest.raises(BackendError, match="numpy and cupy arrays were mixed"):
        kernels_for(np.ones(1), emulated.asarray(np.ones(1)))


def test_implementations_have_every_operation_of_the_protocol(emulated: Any) -> None:
    from gpulayers.cuda import Cuda

    assert issubclass(_protocol.Kernels, Protocol)  # type: ignore[arg-type]
    wanted = {n for n in vars(_protocol.Kernels) if not n.startswith("_")}
    assert len(wanted) > 20
    for implementation in (Reference, Cpu, Compiled, Cuda):
        public = {n for n in dir(implementation) if not n.startswith("_")}
        assert wanted - public == set()


def test_public_names() -> None:
    assert all(hasattr(ops, name) for name in ops.__all__)
