"""Activations: values and both derivatives, kinks, extremes, dtypes, bad input."""

import math
import re
import sys

import numpy as np
import pytest

from gpulayers import activations as act
from gpulayers._erf import erf, erfc
from gpulayers.errors import DTypeError, ParameterError
from gpulayers.ops import activation as activation_ops

SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805
GELU_K = math.sqrt(2 / math.pi)


def _logistic(z):
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


# (activation, the formula one number at a time, kinks)
CASES = {
    "sigmoid": (act.Sigmoid(), _logistic, ()),
    "tanh": (act.Tanh(), math.tanh, ()),
    "hard_sigmoid": (act.HardSigmoid(), lambda z: min(max(0.2 * z + 0.5, 0), 1), (-2.5, 2.5)),
    "relu": (act.ReLU(), lambda z: max(z, 0.0), (0.0,)),
    "leaky_relu": (act.LeakyReLU(0.2), lambda z: z if z > 0 else 0.2 * z, (0.0,)),
    "elu": (act.ELU(0.7), lambda z: z if z > 0 else 0.7 * math.expm1(z), (0.0,)),
    "selu": (
        act.SELU(),
        lambda z: SELU_SCALE * (z if z > 0 else SELU_ALPHA * math.expm1(z)),
        (0.0,),
    ),
    "softplus": (act.SoftPlus(), lambda z: math.log(1 + math.exp(z)) if z < 30 else z, ()),
    "gelu_tanh": (
        act.GELU(),
        lambda z: 0.5 * z * (1 + math.tanh(GELU_K * (z + 0.044715 * z**3))),
        (),
    ),
    "gelu_erf": (
        act.GELU(approximate=False),
        lambda z: 0.5 * z * math.erfc(-z / math.sqrt(2)),
        (),
    ),
    "affine": (act.Affine(-1.5, 0.25), lambda z: -1.5 * z + 0.25, ()),
    "identity": (act.Identity(), lambda z: z, ()),
    "exponential": (act.Exponential(), math.exp, ()),
}
case = pytest.mark.parametrize("name", CASES)
FLOATS = ("float16", "float32", "float64")


def points(kinks: tuple[float, ...], margin: float = 0.05) -> np.ndarray:
    x = np.random.default_rng(0).uniform(-6, 6, size=(7, 9))
    for kink in kinks:
        x[np.abs(x - kink) < margin] += 2 * margin
    return x


def test_every_public_activation_has_a_case():
    public = {getattr(act, name) for name in act.__all__} - {act.ActivationBase}
    assert public == {type(c[0]) for c in CASES.values()}


@case
def test_value_is_the_formula(name, backend):
    activation, formula, _ = CASES[name]
    x = points(())
    gold = np.vectorize(formula, otypes=[float])(x)
    y = backend.asnumpy(activation.fn(backend.asarray(x)))
    np.testing.assert_allclose(y, gold, rtol=1e-14, atol=1e-15)


@case
@pytest.mark.parametrize("order", [1, 2])
def test_derivatives_are_the_slopes(name, order, backend):
    activation, _, kinks = CASES[name]
    x = points(kinks)
    f, g = (activation.fn, activation.grad) if order == 1 else (activation.grad, activation.grad2)
    h = 1e-5
    slope = (
        backend.asnumpy(f(backend.asarray(x + h))) - backend.asnumpy(f(backend.asarray(x - h)))
    ) / (2 * h)
    got = backend.asnumpy(g(backend.asarray(x)))
    np.testing.assert_allclose(got, slope, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    "activation, at, slope",
    [
        (act.ReLU(), 0.0, 0.0),
        (act.LeakyReLU(0.2), 0.0, 1.0),
        (act.ELU(0.7), 0.0, 0.7),
        (act.SELU(), 0.0, SELU_ALPHA * SELU_SCALE),
        (act.HardSigmoid(), -2.5, 0.2),
        (act.HardSigmoid(), 2.5, 0.2),
    ],
)
def test_slope_at_a_kink_is_the_stated_one(activation, at, slope, backend):
    for dtype in FLOATS:
        got = backend.asnumpy(activation.grad(backend.asarray(np.array([at], dtype))))
        np.testing.assert_allclose(got, [slope], rtol=1e-3 if dtype == "float16" else 1e-7)


@case
def test_matches_torch(name, numpy_backend):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    theirs = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "hard_sigmoid": lambda z: torch.clamp(0.2 * z + 0.5, 0, 1),
        "relu": torch.relu,
        "leaky_relu": lambda z: functional.leaky_relu(z, 0.2),
        "elu": lambda z: functional.elu(z, 0.7),
        "selu": functional.selu,
        "softplus": lambda z: functional.softplus(z, threshold=1000),
        "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
        "gelu_erf": functional.gelu,
        "affine": lambda z: -1.5 * z + 0.25,
        "identity": lambda z: 1 * z,
        "exponential": torch.exp,
    }[name]
    x = points(())
    z = torch.tensor(x, requires_grad=True)
    y = theirs(z)
    y.sum().backward()
    activation = CASES[name][0]
    np.testing.assert_allclose(activation.fn(x), y.detach().numpy(), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(activation.grad(x), z.grad.numpy(), rtol=1e-11, atol=1e-13)


@case
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("method", ["fn", "grad", "grad2"])
def test_dtype_shape_and_input_are_kept(name, dtype, method, backend):
    activation, _, kinks = CASES[name]
    f = getattr(activation, method)
    base = points(kinks, 0.1).astype(dtype)
    gold = backend.asnumpy(f(backend.asarray(base.astype(np.float64))))
    tolerance = {"float16": 2e-3, "float32": 2e-6, "float64": 0}[dtype]
    for layout in (base, np.asfortranarray(base), base[::2, ::-1], base[0, 0], base[:0], base[3:4]):
        x = backend.asarray(layout)
        before = backend.asnumpy(x).copy()
        with backend.forbid("sync", "h2d", "d2h"):
            y = f(x)
        assert isinstance(y, backend.xp.ndarray)
        assert y.dtype == np.dtype(dtype)
        assert y.shape == x.shape
        assert y is not x and not np.shares_memory(backend.asnumpy(y), backend.asnumpy(x))
        np.testing.assert_array_equal(backend.asnumpy(x), before)
        if layout is base:
            np.testing.assert_allclose(
                backend.asnumpy(y).astype(float), gold, rtol=tolerance, atol=tolerance
            )


@case
def test_bfloat16_is_computed_in_float32(name, numpy_backend):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    activation = CASES[name][0]
    x = points(()).astype(ml_dtypes.bfloat16)
    y = activation.fn(x)
    assert y.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(y, activation.fn(x.astype("f4")).astype(ml_dtypes.bfloat16))


def line(z):
    return z


# what fn, grad and grad2 come to far to the left and to the right
LIMITS = {
    "sigmoid": ((0, 1), (0, 0), (0, 0)),
    "tanh": ((-1, 1), (0, 0), (0, 0)),
    "hard_sigmoid": ((0, 1), (0, 0), (0, 0)),
    "relu": ((0, line), (0, 1), (0, 0)),
    "leaky_relu": ((lambda z: 0.2 * z, line), (0.2, 1), (0, 0)),
    "elu": ((-0.7, line), (0, 1), (0, 0)),
    "selu": (
        (-SELU_SCALE * SELU_ALPHA, lambda z: SELU_SCALE * z),
        (0, SELU_SCALE),
        (0, 0),
    ),
    "softplus": ((0, line), (0, 1), (0, 0)),
    "gelu_tanh": ((0, line), (0, 1), (0, 0)),
    "gelu_erf": ((0, line), (0, 1), (0, 0)),
    "affine": ((lambda z: -1.5 * z + 0.25, lambda z: -1.5 * z + 0.25), (-1.5, -1.5), (0, 0)),
    "identity": ((line, line), (1, 1), (0, 0)),
    "exponential": ((0, math.inf), (0, math.inf), (0, math.inf)),
}


@case
@pytest.mark.parametrize("dtype", FLOATS)
def test_extremes_reach_their_limits_without_a_warning(name, dtype, backend):
    activation = CASES[name][0]
    far = {"float16": 3e4, "float32": 1e30, "float64": 1e300}[dtype]
    for big in (800.0, far, math.inf):
        x = np.array([-big, big], dtype)
        for method, limits in zip(("fn", "grad", "grad2"), LIMITS[name], strict=True):
            got = backend.asnumpy(getattr(activation, method)(backend.asarray(x)))
            gold = [
                limit(float(z)) if callable(limit) else limit
                for z, limit in zip(x, limits, strict=True)
            ]
            np.testing.assert_allclose(
                got.astype(float), gold, rtol=2e-3, atol=1e-30, err_msg=f"{method} at {big}"
            )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exponential_is_finite_up_to_the_dtypes_largest_number(dtype, backend):
    limit = np.asarray(math.log(float(np.finfo(dtype).max)), dtype)
    while float(limit) > math.log(float(np.finfo(dtype).max)):
        limit = np.nextafter(limit, np.asarray(0, dtype))
    above = np.nextafter(limit, np.asarray(np.inf, dtype))
    got = backend.asnumpy(act.Exponential().fn(backend.asarray(np.array([limit, above], dtype))))
    assert np.isfinite(got[0]) and got[0] > 0.9999 * np.finfo(dtype).max
    assert np.isposinf(got[1])


def test_what_float16_cannot_hold_is_infinite_without_a_warning(backend):
    x = backend.asarray(np.array([-6e4, 12.0, 3e4, 6e4], np.float16))
    inf = math.inf
    assert backend.asnumpy(act.Affine(-2).fn(x)).tolist() == [inf, -24, -6e4, -inf]
    assert backend.asnumpy(act.Exponential().fn(x)).tolist() == [0, inf, inf, inf]


@pytest.mark.parametrize("alpha", [3.0, 0.0, -2.0])
def test_the_other_side_of_a_leaky_relu_neither_overflows_nor_warns(alpha, backend):
    x = np.array([3e38, np.inf, -1.0, np.nan], np.float32)
    y = backend.asnumpy(act.LeakyReLU(alpha).fn(backend.asarray(x)))
    np.testing.assert_array_equal(y, [x[0], np.inf, -alpha, np.nan])


@pytest.mark.parametrize("dtype", [">f2", ">f8"])
def test_the_other_byte_order_gives_the_machines(dtype, numpy_backend):
    for activation in (act.ReLU(), act.LeakyReLU(), act.Affine(2, 1), act.Identity(), act.Tanh()):
        for f in (activation.fn, activation.grad, activation.grad2):
            x = np.array([-1.5, 0.5], dtype)
            y, gold = f(x), f(x.astype(x.dtype.newbyteorder("=")))
            assert y.dtype.isnative and y.tobytes() == gold.tobytes()


@case
def test_nan_goes_through(name, backend):
    y = CASES[name][0].fn(backend.asarray(np.array([np.nan, 1.0], np.float32)))
    assert np.isnan(backend.asnumpy(y)).tolist() == [True, False]


def test_small_tails_keep_their_relative_accuracy(backend):
    x = backend.asarray(np.array([-30.0, -20.0]))
    gold = [math.exp(-30.0), math.exp(-20.0)]
    for f in (act.Sigmoid().fn, act.SoftPlus().fn, act.SoftPlus().grad):
        np.testing.assert_allclose(backend.asnumpy(f(x)), gold, rtol=1e-8)


@case
@pytest.mark.parametrize("dtype", ["int64", "bool", "complex128"])
def test_other_dtypes_are_refused(name, dtype, backend):
    activation = CASES[name][0]
    x = backend.asarray(np.ones((2, 2), dtype))
    for f in (activation.fn, activation.grad, activation.grad2):
        with pytest.raises(DTypeError, match=f"expected a floating array, got {dtype}"):
            f(x)
    said = re.escape(str(activation))
    with pytest.raises(DTypeError, match=f"{said}: expected a numpy or cupy array, got list"):
        activation.fn([1.0])
    with pytest.raises(DTypeError, match=f"{said}: expected a numpy or cupy array, got float"):
        activation(3.0)


def test_call_makes_one_row_of_a_vector(backend):
    x = backend.asarray(np.array([-1.0, 2.0, 3.0]))
    assert act.ReLU()(x).shape == (1, 3)
    assert act.ReLU().fn(x).shape == (3,)
    assert act.ReLU()(x.reshape(3, 1)).shape == (3, 1)


@case
def test_kernel_entry_names_the_function(name):
    activation = CASES[name][0]
    kernel = activation.kernel
    assert kernel is not None and kernel[0] == name
    assert all(type(c) is float for c in kernel[1:])
    constants = {"leaky_relu": (0.2, 0.0), "elu": (0.7, 0.0), "affine": (-1.5, 0.25)}
    if name in constants:
        assert kernel[1:] == constants[name]


HOSTILE = (0, -0.7, 0.3, -2.5, 2.5, -5.5, -12, -30, 50, -50, 800, -800, 1e20, -1e20)


@case
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cuda_code_agrees_with_the_formula(name, dtype, emulated):
    activation = CASES[name][0]
    x = np.array([[*HOSTILE, math.inf, -math.inf, math.nan]], dtype)
    z, ones = emulated.asarray(x), emulated.asarray(np.ones_like(x))
    y = activation_ops.bias_activation(z.copy(), None, activation)
    slope = activation_ops.activation_backward(ones, z, activation)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    for kernel, formula in ((y, activation.fn(z)), (slope, activation.grad(z))):
        np.testing.assert_allclose(
            emulated.asnumpy(kernel), emulated.asnumpy(formula), rtol=tolerance, atol=1e-30
        )


def test_own_formula_never_runs_the_built_in_kernel():
    class Shifted(act.ReLU):
        def fn(self, z):
            return z + 1.0

    class Same(act.ReLU):
        pass

    class Own(act.ActivationBase):
        def fn(self, z):
            return z * z

        def grad(self, x):
            return 2.0 * x

    assert Shifted().kernel is None
    assert Same().kernel == act.ReLU().kernel
    assert Own().kernel is None
    assert str(Own()) == "Own"
    assert Own()(np.array([3.0])).tolist() == [[9.0]]
    with pytest.raises(NotImplementedError, match="Own defines no second derivative"):
        Own().grad2(np.ones(2))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: act.LeakyReLU("0.3"), "LeakyReLU: alpha must be a finite number, got '0.3'"),
        (lambda: act.LeakyReLU(True), "alpha must be a finite number"),
        (lambda: act.ELU(math.nan), "ELU: alpha must be a finite number"),
        (lambda: act.Affine(1, math.inf), "Affine: intercept must be a finite number"),
        (lambda: act.GELU(approximate=1), "GELU: approximate must be True or False, got 1"),
    ],
)
def test_bad_constants_are_refused(make, message):
    with pytest.raises(ParameterError, match=message):
        make()


def test_numpy_constants_print_as_plain_numbers():
    assert str(act.LeakyReLU(np.float64(0.25))) == "Leaky ReLU(alpha=0.25)"
    assert str(act.Affine(np.int64(2), 1)) == "Affine(slope=2, intercept=1)"


# ----------------------------------------------------------------------------------- error function

X = np.concatenate([np.linspace(-7, 7, 20001), np.linspace(-26, 26, 2001), [0.46875, 4.0, -0.0]])


def test_erf_against_math(backend):
    gold = np.array([math.erf(v) for v in X])
    got = backend.asnumpy(erf(backend.asarray(X)))
    assert np.abs(got - gold).max() < 3e-16
    x32 = X.astype(np.float32)
    gold32 = np.array([math.erf(v) for v in x32])
    got32 = backend.asnumpy(erf(backend.asarray(x32)))
    assert got32.dtype == np.float32
    assert np.abs(got32 - gold32).max() < 3e-7
    near = np.abs(X) < 0.4  # here erf is small and must keep its relative accuracy
    some = near & (X != 0)
    assert (np.abs(got - gold)[some] / np.abs(gold[some])).max() < 1e-15


def test_erfc_against_math(backend):
    gold = np.array([math.erfc(v) for v in X])
    got = backend.asnumpy(erfc(backend.asarray(X)))
    assert (np.abs(got - gold) / gold).max() < 2e-15


def test_erf_limits_and_bad_input(backend):
    x = backend.asarray(np.array([-np.inf, np.inf, np.nan, 1e300]))
    np.testing.assert_array_equal(backend.asnumpy(erf(x)), [-1, 1, np.nan, 1])
    np.testing.assert_array_equal(backend.asnumpy(erfc(x)), [2, 0, np.nan, 0])
    assert erf(x[:0]).shape == (0,)
    assert erf(x[:1].reshape(())).shape == ()
    with pytest.raises(DTypeError, match="erf: expected a floating array, got int64"):
        erf(backend.asarray(np.arange(3)))


def test_scipy_is_not_imported():
    # the point of having an error function of our own
    import subprocess

    code = (
        "import sys, numpy as np; from gpulayers.activations import GELU;"
        "GELU(False).fn(np.ones(2)); sys.exit('scipy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
