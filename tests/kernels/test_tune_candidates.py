"""The tuner on the stand-in: the candidates of each launcher, and which of them are left out."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpulayers.cuda.table import KERNELS
from gpulayers.errors import BackendError, ParameterError
from gpulayers.ops.window import Window
from tests.conftest import Backend
from tests.kernels.test_tune import NARROW, WIDE, multiply
from tests.support import fake_cupy

pytestmark = pytest.mark.emulated

WINDOW = Window((3, 2), (1, 1), (1, 0, 1, 1), (1, 1))


def measured(cuda: SimpleNamespace, key: Any, *candidates: Any) -> dict[str, str]:
    """Why each candidate is left out; "" for none."""
    rows = cuda.tune_measure.measure(key, candidates).rows
    return {row.candidate.label: row.why_not for row in rows}


def ways(cuda: SimpleNamespace, key: Any) -> list[Any]:
    """The candidates of the launcher for this key."""
    found: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        for module in (cuda.product, cuda.conv, cuda.conv_step):

            def choose(asked: Any, candidates: Callable[[], list[Any]]) -> Any:
                known = candidates()
                if asked == key:
                    found.extend(known)
                return known[0]

            patch.setattr(module, "choose", choose)
        work = cuda.tune_work.WORKS[key.op](key)
        work.run(work.inputs())
    assert found, key
    return found


def conv_key(cuda: SimpleNamespace, op: str, dtype: str, *flags: int) -> Any:
    w = WINDOW
    detail = (*w.kernel, *w.stride, *w.pad, *w.dilation, *flags)
    return cuda.tune.Key(op, (2, 7, 6, 3, 5), dtype, detail)


OPERATIONS = {
    "product": ("gemm_nn", (70, 19, 301)),
    "product of half numbers": ("gemm_nt", (66, 3, 150), "float16"),
    "product, turned": ("gemm_tt", (9, 70, 40), "float64"),
    "dense": ("dense_backward", (300, 20, 7)),
    "forward": ("conv2d_forward", (0, 0)),
    "forward, pooled": ("conv2d_forward", (1, 0)),
    "input": ("conv2d_input_grad", (0, 0)),
    "weight": ("conv2d_weight_grad", (1, 0, 0)),
    "weight without bias": ("conv2d_weight_grad", (0, 0, 0)),
    "back": ("conv2d_backward", (1, 0, 0)),
    "back, pooled": ("conv2d_backward", (0, 1, 1)),
}


def key_of(cuda: SimpleNamespace, name: str) -> Any:
    op, values, *dtype = OPERATIONS[name]
    dtype = dtype[0] if dtype else "float32"
    if op.startswith("conv2d"):
        return conv_key(cuda, op, dtype, *values)
    return cuda.tune.Key(op, values, dtype)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_candidate_computes_right_and_a_wrong_one_is_seen(
    emulated: Backend, cuda: SimpleNamespace, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = key_of(cuda, name)
    monkeypatch.setattr(cuda.conv, "SPECIALISED", key.detail[-1:] == (1,))
    candidates = ways(cuda, key)
    found = measured(cuda, key, *candidates)
    assert set(found.values()) == {""}
    first = candidates[0]
    # a grid that leaves the last tiles out, as memory was: NaN
    sparse = first._replace(rows=10_000 * first.rows)
    if key.op in ("gemm_nn", "conv2d_forward") and first.rows < 100:
        assert "nan instead of" in measured(cuda, key, sparse)[first.label]
    if first.parts == 1 and key.op in ("gemm_nn", "conv2d_weight_grad"):
        # the last terms of each sum are forgotten (one, where pooling leaves none of them out)
        short = first._replace(span=first.span - (1 if key.op == "gemm_nn" else 20))
        assert "results are wrong" in measured(cuda, key, short)[first.label]


def test_tensor_cores_are_candidates_where_tf32_is_asked_for(
    emulated: Backend, cuda: SimpleNamespace
) -> None:
    key = cuda.tune.Key("gemm_nn", (20, 20, 72), "float32", (), "tf32")
    with importlib.import_module("gpulayers.cuda.precision").use_precision("tf32"):
        candidates = ways(cuda, key)
        found = measured(cuda, key, *candidates)
    assert any("tensor" in candidate.kernel for candidate in candidates)
    assert set(found.values()) == {""}
    assert "its work is not that of" in measured(cuda, key, candidates[0])[candidates[0].label]


HALVES = {
    "product": ("gemm_nn", (70, 72, 136), "float16"),
    "product, turned": ("gemm_tn", (72, 136, 40), "bfloat16"),
    "dense": ("dense_backward", (40, 64, 72), "bfloat16"),
    "forward, pooled": ("conv2d_forward", (1, 0), "float16"),
    "input": ("conv2d_input_grad", (0, 0), "bfloat16"),
    "weight": ("conv2d_weight_grad", (1, 0, 0), "float16"),
    "back": ("conv2d_backward", (0, 0, 1), "bfloat16"),
}


@pytest.mark.parametrize("name", HALVES)
def test_warpgroups_are_candidates_where_they_are_asked_for(
    emulated: Backend, cuda: SimpleNamespace, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ml_dtypes")
    op, values, dtype = HALVES[name]
    key = cuda.tune.Key(op, values, dtype)
    if op.startswith("conv2d"):
        key = conv_key(cuda, op, dtype, *values)._replace(shape=(2, 8, 6, 8, 16))
    monkeypatch.setenv("GPULAYERS_WARPGROUPS", "1")
    candidates = ways(cuda, key)
    groups = {c.kernel for c in candidates if "warpgroup" in c.kernel}
    assert {kernel.partition("_warpgroup")[2] for kernel in groups} == {"", "_large"}
    assert "warpgroup" not in candidates[0].kernel, "the rule's"
    found = measured(cuda, key, *candidates)
    assert set(found.values()) == {""}
    for variable, capability in (("0", "90"), ("1", "89"), ("1", "100")):
        monkeypatch.setenv("GPULAYERS_WARPGROUPS", variable)
        monkeypatch.setattr(emulated.xp.cuda.Device, "compute_capability", capability)
        assert not any("warpgroup" in c.kernel for c in ways(cuda, key))


def test_warpgroups_yes_or_no(
    emulated: Backend, cuda: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPULAYERS_WARPGROUPS", "yes")
    with pytest.raises(ParameterError, match=r"GPULAYERS_WARPGROUPS=yes: expected 0 .* or 1"):
        ways(cuda, cuda.tune.Key("gemm_nn", (70, 72, 136), "float16"))


def test_they_are_compiled_for_the_architecture_that_has_them(
    emulated: Backend, cuda: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiling = importlib.import_module("gpulayers.cuda.compile")
    monkeypatch.setattr(compiling, "_kernels", {})
    asked: list[tuple[str, ...]] = []
    inner = emulated.xp.RawModule

    class Module(inner):
        def __init__(self, **arguments: Any) -> None:
            asked.append(arguments["options"])
            super().__init__(**arguments)

    monkeypatch.setattr(emulated.xp, "RawModule", Module)
    for name, own in (("gemm_nn_tensor", False), ("gemm_nn_warpgroup", True)):
        assert compiling.job_of(name, "float16").architecture == ("sm_90a" if own else "sm_90")
        compiling.get_kernel(name, "float16")
        assert ("-arch=sm_90a" in asked[-1]) == own


@pytest.mark.parametrize("version", [(12, 8), (12, 9)])
def test_an_older_compiler_is_not_asked_by_way_of_cupy(
    emulated: Backend,
    cuda: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    version: tuple[int, int],
) -> None:
    """Before 12.9 it refuses a second ``-arch``, and CuPy names one."""
    compiling = importlib.import_module("gpulayers.cuda.compile")
    monkeypatch.setattr(compiling, "_kernels", {})
    monkeypatch.setattr(emulated.xp.cuda.nvrtc, "getVersion", lambda: version)
    ahead: list[Any] = []
    monkeypatch.setattr(compiling, "compile_all", lambda jobs, *_: ahead.extend(jobs))
    compiling.get_kernel("gemm_nn_tensor", "float16")
    assert not ahead
    compiling.get_kernel("gemm_nn_warpgroup", "float16")
    assert [job.architecture for job in ahead] == ["sm_90a"] * (version < (12, 9))


def test_a_wrong_candidate_is_not_taken_however_fast(
    emulated: Backend, cuda: SimpleNamespace
) -> None:
    key = cuda.tune.Key("gemm_nn", (40, 9, 300), "float32")
    right = cuda.product.candidates("gemm", np.dtype("float32"), 40, 9, 300)[0]
    wrong = cuda.tune.Candidate("gemm", 64, 64, 1, 299)
    cuda.clock = {"gemm": 0.001}
    assert cuda.tune.choose(key, lambda: [right, wrong]) == right
    with cuda.tune.tuning() as run:
        assert cuda.tune.choose(key, lambda: [right, wrong]) == right
    assert "360 of 360 results are wrong" in run.found[0][1].rows[0].why_not
    with cuda.tune.tuning():
        key = key._replace(shape=(41, 9, 300))
        assert cuda.tune.choose(key, lambda: [wrong, right]) == right, "though the rule says so"


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("local_size_bytes", 8, "keeps 8 bytes a thread outside registers"),
        ("num_regs", 257, "65792 registers, it may 65536"),
        ("shared_size_bytes", (48 << 10) + 1, "49153 bytes of shared memory, it may 49152"),
    ],
)
def test_kernels_that_do_not_fit_are_left_out(
    emulated: Backend, cuda: SimpleNamespace, attribute: str, value: int, message: str
) -> None:
    fake_cupy.state.kernel_attributes = {WIDE: {attribute: value}}
    cuda.clock = {"gemm": 0.001}
    with cuda.tune.tuning() as run:
        assert multiply(emulated, cuda) == NARROW
    out = [row.why_not for row in run.found[0][1].rows if row.candidate.kernel == "gemm"]
    assert out
    assert all(message in why_not for why_not in out)
    assert not any(label.startswith("gemm,") or label == "gemm" for label in cuda.timed)


def test_a_kernel_whose_stages_do_not_fit_is_left_out(
    emulated: Backend, cuda: SimpleNamespace
) -> None:
    from gpulayers.cuda.precision import use_precision

    name = "gemm<float, float, TensorLarge, Terms, Lines>"
    spec = KERNELS["gemm_nn_tensor_large"]
    fake_cupy.state.kernel_attributes = {name: {"shared_size_bytes": (227 << 10) - spec.shared + 1}}
    a, b = (emulated.asarray(np.ones(shape, np.float32)) for shape in ((40, 24), (24, 72)))
    with use_precision("tf32"), cuda.tune.tuning() as run:
        cuda.product.gemm(a, b)
    why = {row.candidate.kernel: row.why_not for row in run.found[0][1].rows}
    assert "65536 bytes of shared memory: CUDA_ERROR_INVALID_VALUE" in why["gemm_nn_tensor_large"]
    assert why["gemm_nn_tensor"] in ("", "slower by 30 %")


def test_a_kernel_that_does_not_compile_is_left_out(
    emulated: Backend, cuda: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_kernel = cuda.tune_measure.get_kernel

    def some(name: str, *args: str) -> Any:
        if name == "gemm":
            raise BackendError("kernel gemm did not compile")
        return get_kernel(name, *args)

    monkeypatch.setattr(cuda.tune_measure, "get_kernel", some)
    cuda.clock = {"gemm": 0.001}
    with cuda.tune.tuning():
        assert multiply(emulated, cuda) == NARROW


def test_without_memory_the_rule_stays(
    emulated: Backend, cuda: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def inputs(self: Any) -> None:
        raise fake_cupy.cupy.cuda.memory.OutOfMemoryError(1 << 30, 0)

    monkeypatch.setattr(cuda.tune_work.Gemm, "inputs", inputs)
    with cuda.tune.tuning():
        assert multiply(emulated, cuda) == NARROW
    assert not cuda.tune.own_table().entries
