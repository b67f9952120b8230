"""ONNX export: every layer equals what onnxruntime makes of its model."""

from __future__ import annotations

import builtins
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpulayers import activations, layers, models, modules, wrappers
from gpulayers.backend import default_dtype, set_default_dtype
from gpulayers.errors import DTypeError, InterchangeError, ParameterError, ShapeError
from gpulayers.interchange import OPSET, export_onnx, onnx_model
from gpulayers.interchange._onnx_groups import CONVERTERS
from gpulayers.layers import Conv2D, FullyConnected
from gpulayers.models import Sequential
from tests.interchange.onnx_cases import BATCHES, Case, cases, difference, prepared, tried

needed = pytest.mark.skipif(
    importlib.util.find_spec("onnx") is None or importlib.util.find_spec("onnxruntime") is None,
    reason="onnx or onnxruntime is not installed",
)
CASES = cases()
PAGE = Path(__file__).parents[2] / "docs" / "onnx.md"


def session(model: Any) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def exported(layer: Any, case: Case) -> Any:
    return onnx_model(layer, case.shapes if len(case.shapes) > 1 else case.shapes[0])


def operators(model: Any) -> list[str]:
    return [node.op_type for node in model.graph.node]


# ----------------------------------------------------------------------------------- every layer


@needed
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_onnxruntime(case: Case, numpy_backend: Any) -> None:
    """Checked by onnx.checker inside `onnx_model`; compared for several batch sizes."""
    layer = prepared(case)
    model = exported(layer, case)
    used = {name for node in model.graph.node for name in node.input}
    assert {array.name for array in model.graph.initializer} <= used
    run = session(model)
    assert max(difference(layer, case, run, n) for n in BATCHES) < 1e-5


@needed
@pytest.mark.parametrize("seed", range(8))
def test_random_shapes(seed: int, numpy_backend: Any) -> None:
    """Kernels, strides, pads, dilations and sizes drawn at random, one network a seed."""
    rng = np.random.default_rng(seed)

    def pair(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(v) for v in rng.integers(low, high, 2))

    shape = (*pair(6, 14), int(rng.integers(1, 4)))
    kernel = pair(1, 4)
    act = ["ReLU", "Tanh", "GELU", None][seed % 4]
    more: dict[str, Any] = {"pad": (*pair(0, 4), *pair(0, 4)), "stride": pair(1, 3)}
    chain = [
        Conv2D(int(rng.integers(1, 6)), kernel, dilation=pair(0, 2), act_fn=act, **more),
        layers.Deconv2D(3, pair(2, 5), stride=pair(1, 4), pad=(0, 1, 1, 0)),
        layers.Pool2D(pair(1, 4), pair(1, 4), "same", "average"),
        layers.Pool2D((2, 3), 1, (1, 0, 2, 1)),
        layers.Flatten(),
        FullyConnected(4, act_fn="SELU"),
    ]
    case = Case(f"seed {seed}", lambda: Sequential(chain), [shape])
    network = prepared(case)
    run = session(exported(network, case))
    assert max(difference(network, case, run, n) for n in rng.integers(1, 20, 3)) < 1e-5


def test_every_public_layer_is_exported_or_refused() -> None:
    """`Model`s are several networks at once, each of which is exported for itself."""
    public = {
        kind
        for package in (layers, models, modules)
        for kind in vars(package).values()
        if isinstance(kind, type) and issubclass(kind, (layers.LayerBase, modules.base.LayerGroup))
    }
    without = {layers.RBM}
    several = {models.BernoulliVAE, models.WGAN_GP, models.Word2Vec}
    abstract = {layers.LayerBase, models.Composite, models.Model, modules.base.ModuleBase}
    assert public - without - several - abstract <= set(CONVERTERS)
    assert {case.subject for case in CASES} >= {kind.__name__ for kind in CONVERTERS} - {
        "Activation",
        "_Direction",
    }


def test_every_activation_has_a_case() -> None:
    public = {n for n in activations.__all__ if n != "ActivationBase"}
    assert public <= {case.subject for case in CASES}


def test_the_page_lists_every_case() -> None:
    """docs/onnx.md is written by ``python -m benchmarks.onnx_table``."""
    rows = dict(re.findall(r"^\| `(\w+)` \| \d+ \| ([\d.e+-]+) \|", PAGE.read_text(), re.M))
    assert set(rows) == {case.subject for case in CASES}
    assert all(float(worst) < 1e-5 for worst in rows.values())


# ------------------------------------------------------------------------------- layout and names


@needed
def test_transposes_that_meet_cancel() -> None:
    """One at the beginning, one where the image is flattened; none between."""
    network = models.lenet(10, (16, 16, 3))
    assert operators(onnx_model(network, (16, 16, 3))).count("Transpose") == 2
    back = Sequential([layers.RNN(3), layers.LSTM(4), layers.Softmax(1)])
    assert operators(onnx_model(back, (5, 6))).count("Transpose") == 2
    twice = models.Residual([Conv2D(3, 1)], [Conv2D(3, 1)])  # both sides ask for the same
    assert operators(onnx_model(twice, (4, 4, 3))).count("Transpose") == 2


@needed
def test_borders_are_ours_and_the_batch_is_free(tmp_path: Path) -> None:
    import onnx

    path = export_onnx(models.lenet(), tmp_path / "new" / "lenet.onnx", (28, 28, 1))
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == OPSET == 17
    assert model.producer_name == "gpulayers"
    ((name_in, in_dims), (name_out, out_dims)) = (
        (v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in (model.graph.input[0], model.graph.output[0])
    )
    assert (name_in, in_dims) == ("input", ["batch", 28, 28, 1])
    assert (name_out, out_dims) == ("output", ["batch", 10])
    assert any(node.name.startswith("2/Conv") for node in model.graph.node)


@needed
def test_evaluation_does_not_change_the_network() -> None:
    """Exporting runs nothing in a network that has its parameters."""
    network = Sequential(
        [layers.LSTM(4), layers.Flatten(), layers.BatchNorm1D(), FullyConnected(2)]
    )
    X = np.random.default_rng(0).standard_normal((3, 2, 5)).astype(np.float32)
    network.forward(X)
    before = {k: v.copy() for k, v in network.parameters.items()}
    state = network[0].final_state[0].copy()
    onnx_model(network, (2, 5))
    assert (network[0].final_state[0] == state).all()
    assert len(network[1].derived_variables["in_dims"]) == 1
    assert all((v == before[k]).all() for k, v in network.parameters.items())


@needed
@pytest.mark.parametrize("mean", [0.0, 120.5])
def test_bytes_go_through_the_pixels(mean: float) -> None:
    network = models.mlp(3, (4, 5, 2))
    network.pixels = models.Pixels([mean, mean / 2], [51.0, 60.0])
    run = session(onnx_model(network, (4, 5, 2), uint8_input=True))
    X = np.random.default_rng(1).integers(0, 256, (6, 4, 5, 2)).astype(np.uint8)
    (theirs,) = run.run(None, {"input": X})
    np.testing.assert_allclose(theirs, network.forward(X, False), rtol=1e-5, atol=1e-5)
    with pytest.raises(ParameterError, match="has no pixels"):
        onnx_model(FullyConnected(2), (3,), uint8_input=True)


@needed
def test_double_precision_and_the_stand_in(backend: Any) -> None:
    """Parameters come from wherever they live, in their dtype."""
    layer = FullyConnected(3, act_fn="Tanh")
    X = np.random.default_rng(2).standard_normal((4, 5))
    layer.set_params({"parameters": {"W": backend.asarray(X[:3].T.copy())}})
    Y = backend.asnumpy(layer.forward(backend.asarray(X[:, :5].copy()), False))
    (theirs,) = session(onnx_model(layer, (5,))).run(None, {"input": X})
    assert theirs.dtype == Y.dtype == np.float64
    np.testing.assert_allclose(theirs, Y, atol=1e-12)


# ------------------------------------------------------------------------------------ other dtypes


def lacking() -> dict[str, set[str]]:
    """The page's table of operators that onnxruntime lacks in float64, and who has them."""
    part = PAGE.read_text().partition("## float64 and float16")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\w+) \| (.*) \|$", part, re.M)[1:]
    return {name: set(re.findall(r"`(\w+)`", classes)) for name, classes in rows}


@needed
def test_the_page_says_what_float64_lacks(numpy_backend: Any) -> None:
    """Every case is computed in float64 and right, or has an operator of the page's table."""
    import onnxruntime

    page = lacking()
    found: list[str] = []
    for case in CASES:
        layer = prepared(case)
        shapes = case.shapes if len(case.shapes) > 1 else case.shapes[0]
        model = onnx_model(layer, shapes, dtype="float64")
        without = set(operators(model)) & set(page)
        assert all(case.subject in page[name] for name in without), case.name
        error, named = tried(layer, case, model, "float64")
        assert error < 1e-5 and named in {None, *without}, case.name
        found += [named] if named else []
    text = " ".join(PAGE.read_text().split())
    if (
        f"onnxruntime {onnxruntime.__version__} refuses" in text
    ):  # a later one may have more kernels
        assert set(found) == set(page)
        assert f"refuses {len(found)} of these {len(CASES)} networks" in text


@needed
def test_a_float64_network_as_float32_runs_everywhere(numpy_backend: Any, tmp_path: Path) -> None:
    before = default_dtype()
    set_default_dtype("float64")
    try:
        network = Sequential([Conv2D(3, (3, 3), act_fn="ELU"), layers.Flatten(), FullyConnected(2)])
        X = np.random.default_rng(3).standard_normal((4, 6, 6, 1))
        Y = network.forward(X, False)
        path = export_onnx(network, tmp_path / "net.onnx", (6, 6, 1), dtype="float32")
        own = onnx_model(network, (6, 6, 1))
    finally:
        set_default_dtype(before)
    import onnx

    (theirs,) = session(onnx.load(path)).run(None, {"input": X.astype(np.float32)})
    assert theirs.dtype == np.float32
    np.testing.assert_allclose(theirs, Y, atol=1e-5)
    assert own.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.DOUBLE
    assert network.dtype == np.float64  # what was exported is left alone


@needed
def test_float16_models_run(numpy_backend: Any) -> None:
    for case in CASES[::4]:
        layer = prepared(case)
        shapes = case.shapes if len(case.shapes) > 1 else case.shapes[0]
        model = onnx_model(layer, shapes, dtype="float16")
        error, named = tried(layer, case, model, "float16")
        assert error < 0.02 and named is None, case.name


def test_other_dtypes_are_refused() -> None:
    pytest.importorskip("onnx")
    for wrong in ("int8", "flaot32", 3):
        with pytest.raises(ParameterError, match="ONNX export: dtype: expected a floating dtype"):
            onnx_model(FullyConnected(2), (3,), dtype=wrong)
    pytest.importorskip("ml_dtypes")
    with pytest.raises(ParameterError, match="dtype must be float32, float64 or float16, got 'bf"):
        onnx_model(FullyConnected(2), (3,), dtype="bfloat16")


# ---------------------------------------------------------------------------------------- refusals


class MyLayer(FullyConnected):
    """A user's subclass, whose formula may be any."""


class MyActivation(activations.ActivationBase):
    def fn(self, z: Any) -> Any:
        return z**3

    def grad(self, x: Any) -> Any:
        return 3 * x**2


def test_what_onnx_cannot_express_is_named() -> None:
    pytest.importorskip("onnx")
    inner = models.Residual([FullyConnected(4), MyLayer(4)], name="block")
    with pytest.raises(
        InterchangeError, match=r"net, layer 1 \(Residual\), body \(Sequential\), layer 1 \(MyL"
    ):
        onnx_model(Sequential([FullyConnected(4), inner], name="net"), (4,))
    with pytest.raises(InterchangeError, match="RBM draws random numbers"):
        onnx_model(layers.RBM(3), (4,))
    for cell in (layers.RNNCell(2), layers.LSTMCell(2), layers.GRUCell(2)):
        with pytest.raises(InterchangeError, match="remembers its state"):
            onnx_model(Sequential([cell]), (4,))
        with pytest.raises(ShapeError, match="n_out = 2"):
            onnx_model(cell, [(4,), (3,)][: len(cell._states) + 1] + [(3,)] * len(cell._states[1:]))
    with pytest.raises(InterchangeError, match="BernoulliVAE is not one of gpulayers' own layers"):
        onnx_model(models.BernoulliVAE(), (8, 8, 1))
    for layer in (FullyConnected(3, act_fn=MyActivation()), layers.GRU(3, act_fn=MyActivation())):
        with pytest.raises(InterchangeError, match="the activation MyActivation is not one of"):
            onnx_model(layer, (4, 5)[: 1 + isinstance(layer, layers.GRU)])
    with pytest.raises(InterchangeError, match="wrapper MyWrapper is unknown"):
        onnx_model(MyWrapper(FullyConnected(3), 0.5), (4,))


class MyWrapper(wrappers.Dropout):
    pass


def test_inputs_that_do_not_fit() -> None:
    pytest.importorskip("onnx")
    network = models.mlp(3, (4,), hidden=(5,))
    onnx_model(network, (4,))
    with pytest.raises(ShapeError, match=r"mlp, layer 1 \(FullyConnected\): .* n_in = 4"):
        onnx_model(network, (6,))
    with pytest.raises(ShapeError, match=r"expected an input \(n_ex, rows, cols, in_ch\)"):
        onnx_model(_seen(Conv2D(2, 3)), (6,))
    with pytest.raises(ShapeError, match="the kernel spans 3 x 3"):
        onnx_model(_seen(Conv2D(2, 3)), (2, 2, 1))
    with pytest.raises(InterchangeError, match="do not depend on the batch"):
        chain = Sequential([layers.Flatten(-1), layers.Flatten("first")])
        onnx_model(chain, (4, 4))
    for shape in ((0, 3), (2.5,), "ab", [(3,), (True,)]):
        expected = "a tuple such as" if shape == "ab" else "positive integers"
        with pytest.raises(ParameterError, match=expected):
            onnx_model(network, shape)


def _seen(layer: Any) -> Any:
    layer.forward(np.zeros((1, 5, 5, 1), np.float32), False)
    return layer


def test_half_types() -> None:
    pytest.importorskip("onnx")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    X = np.ones((2, 3), np.float32)
    narrow = FullyConnected(2)
    narrow.set_params({"parameters": {"W": np.ones((3, 2), np.float16)}})
    narrow.forward(X.astype(np.float16), False)
    assert onnx_model(narrow, (3,)).graph.input[0].type.tensor_type.elem_type == 10
    brain = FullyConnected(2)
    brain.set_params({"parameters": {"W": np.ones((3, 2), ml_dtypes.bfloat16)}})
    brain.forward(X.astype(ml_dtypes.bfloat16), False)
    with pytest.raises(DTypeError, match=r"parameters are bfloat16.*dtype=\"float32\" converts"):
        onnx_model(brain, (3,))
    assert onnx_model(brain, (3,), dtype="float32").graph.input[0].type.tensor_type.elem_type == 1


def test_without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def fake(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "onnx":
            raise ModuleNotFoundError("No module named 'onnx'", name="onnx")
        return real(name, *args, **kwargs)

    for module in [m for m in sys.modules if m.partition(".")[0] == "onnx"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", fake)
    with pytest.raises(ImportError, match="pip install onnx"):
        onnx_model(FullyConnected(2), (3,))


# ------------------------------------------------------------------------- the test of these tests


@needed
@pytest.mark.parametrize("name", ["Conv2D, pad, stride", "GRU", "LSTM", "Pool2D, max, pad"])
def test_a_wrong_model_shows(name: str, numpy_backend: Any) -> None:
    """Another weight, or another pad, is a difference far above the bound."""
    case = next(c for c in CASES if c.name == name)
    layer = prepared(case)
    other = prepared(case)
    for array in getattr(other, "parameters", {}).values():
        array[...] = array[::-1].copy() if array.shape[0] > 1 else array + 0.01
    if name.startswith("Pool"):
        other.pad = (2, 1, 1, 0)
    run = session(exported(other, case))
    assert difference(layer, case, run, 3) > 1e-3
