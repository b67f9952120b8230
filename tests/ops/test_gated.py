"""One step of an LSTM and of a GRU against loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpulayers.errors import DTypeError, ShapeError
from gpulayers.ops import recurrent
from tests.ops.conftest import Engine, eighths
from tests.ops.test_activation import BUILT_IN, Cubic
from tests.support.compare import LAYOUTS, assert_close, assert_same_bits, scrambled
from tests.support.naive import gated as naive

shapes = pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 130), (0, 2)], ids=str)
PAIRS = [("tanh", "sigmoid"), ("sigmoid", "tanh"), ("softplus", "hard_sigmoid"), ("tanh", "relu")]
pairs = pytest.mark.parametrize("act, gate", PAIRS)


def split(row: Any, h: int) -> list[list[float]]:
    return [row[k * h : (k + 1) * h].tolist() for k in range(len(row) // h)]


def joined(rows: list[Any], *shape: int) -> np.ndarray:
    return np.array(rows, dtype=float).reshape(shape)


class LSTM:
    """One step each way, by the operation and by loops; inputs off the kinks of the slopes."""

    def __init__(self, shape: tuple[int, int], act: str, gate: str) -> None:
        n, h = shape
        self.n, self.h, self.act, self.gate = n, h, act, gate
        self.projected, self.recurrent = eighths((n, 4 * h), 1), eighths((n, 4 * h), 2)
        self.bias, self.C_prev = eighths((4 * h,), 3) + 1 / 16, eighths(shape, 4)
        self.dA, self.dA_next, self.dC = (eighths(shape, k) for k in (5, 6, 7))

    def loops(self) -> dict[str, np.ndarray]:
        Z = self.projected + self.recurrent + self.bias
        G, C, A, dZ, dC = [], [], [], [], []
        for m in range(self.n):
            z, c_prev = split(Z[m], self.h), self.C_prev[m].tolist()
            g, c, a = naive.lstm_step(z, c_prev, self.act, self.gate)
            total = (self.dA[m] + self.dA_next[m]).tolist()
            dz, dc = naive.lstm_step_grad(
                total, self.dC[m].tolist(), z, c_prev, c, self.act, self.gate
            )
            for rows, value in ((G, g), (C, c), (A, a), (dZ, dz), (dC, dc)):
                rows.append(value)
        n, h = self.n, self.h
        return {
            "gates": joined(G, n, 4 * h),
            "C": joined(C, n, h),
            "A": joined(A, n, h),
            "dZ": joined(dZ, n, 4 * h),
            "back": joined(dC, n, h),
        }

    def run(self, engine: Engine, dtype: str = "float64", how: Any = None) -> dict[str, Any]:
        def given(values):
            array = engine.array(values, dtype)
            return array if how is None else scrambled(array, how)

        acts = BUILT_IN[self.act](), BUILT_IN[self.gate]()
        C_prev, gates = given(self.C_prev), engine.array(self.projected, dtype)
        C, A = (engine.xp.full((self.n, self.h), 7, dtype=dtype) for _ in range(2))
        Z = recurrent.lstm_step_forward(
            gates, given(self.recurrent), engine.array(self.bias, dtype), C_prev, *acts, C, A
        )
        assert (Z is None) == ((self.act, self.gate) == ("tanh", "sigmoid"))
        dZ = engine.xp.full((self.n, 4 * self.h), 7, dtype=dtype)
        deltas = [given(d) for d in (self.dA, self.dA_next, self.dC)]
        before = [a.copy() for a in (*deltas, gates, C_prev, C)]
        back = recurrent.lstm_step_backward(*deltas, Z, gates, C_prev, C, *acts, dZ)
        for array, copy in zip((*deltas, gates, C_prev, C), before, strict=True):
            assert_same_bits(array, copy)
        return {"gates": gates, "C": C, "A": A, "dZ": dZ, "back": back}


class GRU(LSTM):
    def __init__(self, shape: tuple[int, int], act: str, gate: str) -> None:
        super().__init__(shape, act, gate)
        n, h = shape
        self.projected, self.recurrent = eighths((n, 3 * h), 8), eighths((n, 3 * h), 9)

    def loops(self) -> dict[str, np.ndarray]:
        n, h = self.n, self.h
        G, A, dZ, dA, Ms = [], [], [], [], []
        for m in range(n):
            z = split(self.projected[m] + self.bias[: 3 * h], h)
            state = split(self.recurrent[m], h)
            for k in (1, 2):
                z[k] = [a + b for a, b in zip(z[k], state[k - 1], strict=True)]
            M = [a + b for a, b in zip(state[2], self.bias[3 * h :].tolist(), strict=True)]
            a_prev = self.C_prev[m].tolist()
            g, a = naive.gru_step(z, M, a_prev, self.act, self.gate)
            total = (self.dA[m] + self.dA_next[m]).tolist()
            dz, da = naive.gru_step_grad(total, z, M, a_prev, self.act, self.gate)
            for rows, value in ((G, g), (A, a), (dZ, dz), (dA, da), (Ms, M)):
                rows.append(value)
        return {
            "gates": joined(G, n, 3 * h),
            "C": joined(Ms, n, h),
            "A": joined(A, n, h),
            "dZ": joined(dZ, n, 4 * h),
            "back": joined(dA, n, h),
        }

    def run(self, engine: Engine, dtype: str = "float64", how: Any = None) -> dict[str, Any]:
        def given(values):
            array = engine.array(values, dtype)
            return array if how is None else scrambled(array, how)

        acts = BUILT_IN[self.act](), BUILT_IN[self.gate]()
        A_prev, gates = given(self.C_prev), engine.array(self.projected, dtype)
        M, A = (engine.xp.full((self.n, self.h), 7, dtype=dtype) for _ in range(2))
        Z = recurrent.gru_step_forward(
            gates, given(self.recurrent), engine.array(self.bias, dtype), A_prev, *acts, M, A
        )
        assert (Z is None) == ((self.act, self.gate) == ("tanh", "sigmoid"))
        dZ = engine.xp.full((self.n, 4 * self.h), 7, dtype=dtype)
        deltas = [given(d) for d in (self.dA, self.dA_next)]
        before = [a.copy() for a in (*deltas, gates, M, A_prev)]
        back = recurrent.gru_step_backward(*deltas, Z, gates, M, A_prev, *acts, dZ)
        for array, copy in zip((*deltas, gates, M, A_prev), before, strict=True):
            assert_same_bits(array, copy)
        return {"gates": gates, "C": M, "A": A, "dZ": dZ, "back": back}


kinds = pytest.mark.parametrize("kind", [LSTM, GRU])


@kinds
@shapes
@pairs
def test_against_loops(
    engine: Engine, kind: type[LSTM], shape: tuple[int, int], act: str, gate: str
) -> None:
    step = kind(shape, act, gate)
    got = step.run(engine)
    for name, gold in step.loops().items():
        assert_close(got[name], gold, factor=10)


@kinds
@pytest.mark.parametrize("act, gate", PAIRS[:3])
def test_dtype(engine: Engine, dtype: str, kind: type[LSTM], act: str, gate: str) -> None:
    step = kind((3, 4), act, gate)
    got = step.run(engine, dtype)
    for name, gold in step.loops().items():
        assert got[name].dtype == dtype
        assert_close(got[name], gold, factor=3)


@kinds
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_does_not_matter(engine: Engine, kind: type[LSTM], layout: str) -> None:
    step = kind((3, 4), "tanh", "sigmoid")
    expected, got = step.run(engine), step.run(engine, how=layout)
    for name, array in expected.items():
        assert_same_bits(got[name], array)


@kinds
def test_saturated_gates(engine: Engine, kind: type[LSTM]) -> None:
    """Neither warnings nor NaN where the gates are all open or all shut."""
    step = kind((2, 3), "tanh", "sigmoid")
    step.projected = np.where(step.projected > 0, 300.0, -300.0)
    got = step.run(engine)
    for name, gold in step.loops().items():
        assert_close(got[name], gold)


def test_one_kernel_each_way(emulated: Any) -> None:
    engine = Engine("auto", emulated)
    for step in (LSTM((2, 3), "tanh", "sigmoid"), GRU((2, 3), "tanh", "sigmoid")):
        with emulated.count() as events:
            step.run(engine, "float32")
        name = type(step).__name__.lower()
        for direction in ("forward", "backward"):
            assert events[f"kernel:{name}_step_{direction}<float, float, int>"] == 1


def test_64_bit_indices_once_the_gates_need_them(
    emulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gates have four times the elements of a state: 120 here, beyond a limit of 100."""
    from gpulayers.cuda import table

    engine = Engine("auto", emulated)
    steps = LSTM((5, 6), "tanh", "sigmoid"), GRU((5, 6), "tanh", "sigmoid")
    expected = [step.run(engine) for step in steps]
    monkeypatch.setattr(table, "INT32_LIMIT", 100)
    for step, wanted in zip(steps, expected, strict=True):
        with emulated.count() as events:
            got = step.run(engine)
        kind = type(step).__name__.lower()
        for direction in ("forward", "backward"):
            assert events[f"kernel:{kind}_step_{direction}<double, double, long long>"] == 1
        for name, array in wanted.items():
            assert_same_bits(got[name], array)


def test_wrong_lstm_calls(engine: Engine) -> None:
    tanh, sigmoid = BUILT_IN["tanh"](), BUILT_IN["sigmoid"]()

    def call(**wrong: Any) -> None:
        arrays = {
            "gates": engine.array(np.ones((2, 12))),
            "recurrent": engine.array(np.ones((2, 12))),
            "bias": engine.array(np.ones(12)),
            "C_prev": engine.array(np.ones((2, 3))),
            "C": engine.array(np.ones((2, 3))),
            "A": engine.array(np.ones((2, 3))),
            **wrong,
        }
        recurrent.lstm_step_forward(**arrays, act=tanh, gate=sigmoid)

    call()
    one = engine.array(np.ones((2, 3)))
    with pytest.raises(ShapeError, match=r"lstm_step_forward: gates must have shape \(2, 12\)"):
        call(gates=one)
    with pytest.raises(ShapeError, match=r"recurrent must have shape \(2, 12\), got \(2, 3\)"):
        call(recurrent=one)
    with pytest.raises(ShapeError, match=r"bias must have shape \(12,\), got \(6,\)"):
        call(bias=one)
    with pytest.raises(ShapeError, match=r"C_prev must have shape \(n, n_out\), got \(3,\)"):
        call(C_prev=one[0])
    with pytest.raises(ShapeError, match=r"A must have shape \(2, 3\), got \(1, 3\)"):
        call(A=one[:1])
    with pytest.raises(ShapeError, match="C must be C-contiguous, it is changed in place"):
        call(C=engine.array(np.ones((3, 2))).T)
    with pytest.raises(ShapeError, match="gates must be C-contiguous, it is changed in place"):
        call(gates=engine.array(np.ones((2, 24)))[:, ::2])
    with pytest.raises(DTypeError, match="A is float32, but gates is float64"):
        call(A=one.astype("float32"))
    step = LSTM((2, 3), "tanh", "sigmoid").run(engine)
    arguments = [one, one, one, None, step["gates"], one, step["C"], tanh, sigmoid, step["dZ"]]
    recurrent.lstm_step_backward(*arguments)
    for k, name in enumerate(("dA", "dA_next", "dC_next", "", "gates", "C_prev")):
        wrong = list(arguments)
        wrong[k] = engine.array(np.ones((3, 3)))
        if name:
            with pytest.raises(ShapeError, match=rf"{name} must have shape \(2, .*got \(3, 3\)"):
                recurrent.lstm_step_backward(*wrong)
    with pytest.raises(ShapeError, match="dZ must be C-contiguous"):
        recurrent.lstm_step_backward(*arguments[:-1], engine.array(np.ones((12, 2))).T)


def test_wrong_gru_calls(engine: Engine) -> None:
    tanh, sigmoid = BUILT_IN["tanh"](), BUILT_IN["sigmoid"]()
    one, three, four = (engine.array(np.ones((2, 3 * k))) for k in (1, 3, 4))
    bias = engine.array(np.ones(12))
    forward, backward = recurrent.gru_step_forward, recurrent.gru_step_backward
    forward(three.copy(), three, bias, one, tanh, sigmoid, one.copy(), one.copy())
    with pytest.raises(ShapeError, match=r"gru_step_forward: gates must have shape \(2, 9\)"):
        forward(four, three, bias, one, tanh, sigmoid, one, one)
    with pytest.raises(ShapeError, match=r"bias must have shape \(12,\), got \(6,\)"):
        forward(three, three, one, one, tanh, sigmoid, one, one)
    with pytest.raises(ShapeError, match="M must be C-contiguous"):
        forward(three, three, bias, one, tanh, sigmoid, engine.array(np.ones((3, 2))).T, one)
    with pytest.raises(ShapeError, match=r"dZ must have shape \(2, 12\), got \(2, 9\)"):
        backward(one, one, None, three, one, one, tanh, sigmoid, three)
    with pytest.raises(ShapeError, match=r"Z must have shape \(2, 9\), got \(2, 12\)"):
        backward(one, one, four, three, one, one, tanh, sigmoid, four)
    with pytest.raises(DTypeError, match="M is float16, but dA is float64"):
        backward(one, one, None, three, one.astype("float16"), one, tanh, sigmoid, four)


def test_an_activation_of_a_users_own(engine: Engine) -> None:
    """Its own formulas are used, on a GPU too."""
    sigmoid = BUILT_IN["sigmoid"]()
    one, C, A = (engine.array(np.full((1, 2), v)) for v in (0.5, 0.0, 0.0))
    gates = engine.array(np.zeros((1, 8)))
    bias = engine.array(np.repeat([50.0, 50.0, 2.0, 50.0], 2))
    zeros = engine.array(np.zeros((1, 8)))
    recurrent.lstm_step_forward(gates, zeros, bias, one, Cubic(), sigmoid, C, A)
    assert_close(C, np.full((1, 2), 8.5))
    assert_close(A, np.full((1, 2), 8.5**3))


@pytest.mark.parametrize("loops, n_bias", [(naive.lstm, 4), (naive.gru, 4)])
@pytest.mark.parametrize("act, gate", PAIRS[:2])
def test_the_loops_over_time_against_differences(
    loops: Any, n_bias: int, act: str, gate: str
) -> None:
    """The gold of the layer tests: every gradient of a short sequence, number by number."""
    X, dA = eighths((2, 2, 3), 1), eighths((2, 2, 3), 2)
    gates = 4 if loops is naive.lstm else 3
    W = [eighths((4, 2), 3 + k, 8) for k in range(gates)]
    b = [eighths((2,), 10 + k, 8) for k in range(n_bias)]
    _, dX, dW, db = loops(X, W, b, act, gate, dA)
    for place, gradient in ((X, dX), *zip(W, dW, strict=True), *zip(b, db, strict=True)):
        for index in np.ndindex(place.shape):
            kept, sides = place[index], []
            for h in (1e-5, -1e-5):
                place[index] = kept + h
                sides.append(np.sum(loops(X, W, b, act, gate) * dA))
            place[index] = kept
            assert gradient[index] == pytest.approx((sides[0] - sides[1]) / 2e-5, abs=1e-7)
