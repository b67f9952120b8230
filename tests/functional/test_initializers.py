"""What strings and dicts describe, and the first weights."""

import math

import numpy as np
import pytest

from gpulayers import activations as act
from gpulayers import backend as selection
from gpulayers import initializers as init
from gpulayers import optimizers, random, schedulers
from gpulayers.errors import GPULayersError, ParameterError, ShapeError

ACTIVATIONS = (
    act.Sigmoid(),
    act.ReLU(),
    act.LeakyReLU(0.2),
    act.GELU(),
    act.GELU(approximate=False),
    act.Tanh(),
    act.Affine(2, -1.5),
    act.Identity(),
    act.ELU(0.5),
    act.Exponential(),
    act.SELU(),
    act.HardSigmoid(),
    act.SoftPlus(),
)


def same(a, b):
    return type(a) is type(b) and vars(a) == vars(b)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activation_is_read_back_from_its_string(activation):
    text = str(activation)
    for form in (text, text.lower(), text.upper(), text.replace(" ", ""), f"  {text} "):
        assert same(init.ActivationInitializer(form)(), activation)
    _, bracket, arguments = text.partition("(")
    own = type(activation).__name__
    assert same(init.ActivationInitializer(own + bracket + arguments)(), activation)
    assert init.ActivationInitializer(activation)() is activation


def test_every_public_activation_is_read():
    public = {n for n in act.__all__ if n != "ActivationBase"}
    assert {type(a).__name__ for a in ACTIVATIONS} == public


@pytest.mark.parametrize(
    "text, expected",
    [
        ("leaky relu(alpha=0.3)", act.LeakyReLU(0.3)),
        ("leaky_relu( alpha = .3 )", act.LeakyReLU(0.3)),
        ("Leaky-ReLU(0.3)", act.LeakyReLU(0.3)),
        ("leaky relu", act.LeakyReLU()),
        ("leaky relu()", act.LeakyReLU()),
        ("affine(slope=2, intercept=1)", act.Affine(2, 1)),
        ("affine(intercept=1,slope=2)", act.Affine(2, 1)),
        ("Affine(-2, intercept=+1e-3)", act.Affine(-2, 1e-3)),
        ("gelu(approximate=false)", act.GELU(False)),
        ("GELU(TRUE)", act.GELU(True)),
        ("hard sigmoid", act.HardSigmoid()),
        ("soft plus", act.SoftPlus()),
        ("elu(ALPHA=1)", act.ELU(1)),
        (None, act.Identity()),
    ],
)
def test_forms_of_activation_strings(text, expected):
    assert same(init.ActivationInitializer(text)(), expected)


@pytest.mark.parametrize(
    "param, message",
    [
        (
            "rleu",
            r"unknown activation 'rleu', expected one of Identity, .* \(did you mean 'ReLU'\?\)",
        ),
        ("", "expected a name in ''"),
        ("(alpha=1)", "expected a name"),
        ("relu(alpha=1)", "unknown argument 'alpha', expected one of: none"),
        ("elu(alhpa=1)", "unknown argument 'alhpa', expected one of: alpha .*did you mean 'alpha'"),
        ("elu(alpha=1, alpha=2)", "'alpha' is given twice"),
        ("elu(alpha=1, ALPHA=2)", "'alpha' is given twice"),
        ("elu(1, alpha=2)", "'alpha' is given twice"),
        ("elu(1, 2)", "ELU takes at most 1 arguments, got 2"),
        ("elu(alpha=)", "cannot read 'elu"),
        ("elu(alpha=1", "cannot read 'elu"),
        ("elu(alpha=1))", "cannot read 'elu"),
        ("elu(alpha=1) + 1", "expected 'Name"),
        ("elu(alpha=x)", "alpha must be a finite number, got 'x'"),
        ("elu(alpha=2*3)", "cannot read the value"),
        ("elu(**{'alpha': 1})", "got '\\*\\*'"),
        ("elu(alpha='1')", "alpha must be a finite number, got '1'"),
        ("elu(alpha=None)", "alpha must be a finite number, got None"),
        ("elu(alpha=exit())", "alpha must be a finite number, got 'exit"),
        ("elu(alpha=\x00)", "cannot read"),
        (act.ReLU, "expected None, an activation object or a string"),
        (3, "expected None, an activation object or a string such as 'relu', got 3"),
    ],
)
def test_bad_activation_descriptions(param, message):
    with pytest.raises(ParameterError, match=message):
        init.ActivationInitializer(param)()


# --------------------------------------------------------------------------------------- optimizers


@pytest.mark.parametrize(
    "text",
    [
        "SGD(lr=0.1, momentum=0.9, clip_norm=1.5, lr_scheduler=ConstantScheduler(lr=0.1))",
        "Adam(lr=0.01, decay1=0.5, decay2=0.99, eps=1e-08, clip_norm=None,"
        " lr_scheduler=NoamScheduler(model_dim=64, scale_factor=1, warmup_steps=10))",
        "RMSProp(lr=0.1, eps=1e-07, decay=0.5, clip_norm=2,"
        " lr_scheduler=KingScheduler(initial_lr=0.1, patience=3, decay=0.5))",
        "AdaGrad(lr=0.1, eps=1e-06, clip_norm=None, lr_scheduler="
        "ExponentialScheduler(initial_lr=0.1, stage_length=5, staircase=True, decay=0.5))",
    ],
)
def test_optimizer_is_read_back_from_its_string_and_dict(text):
    optimizer = init.OptimizerInitializer(text)()
    assert str(optimizer) == text
    assert str(init.OptimizerInitializer(text.lower())()) == text
    assert str(init.OptimizerInitializer({"hyperparameters": optimizer.hyperparameters})()) == text
    assert init.OptimizerInitializer(optimizer)() is optimizer


def test_short_forms_of_optimizer_strings():
    assert str(init.OptimizerInitializer()()) == str(optimizers.SGD())
    for text, cls in (
        ("sgd", optimizers.SGD),
        ("Ada Grad", optimizers.AdaGrad),
        ("RMSprop", optimizers.RMSProp),
        ("ADAM()", optimizers.Adam),
    ):
        assert str(init.OptimizerInitializer(text)()) == str(cls())
    bare = init.OptimizerInitializer("sgd(lr_scheduler=exponential, clip_norm=none)")()
    assert str(bare.lr_scheduler) == str(schedulers.ExponentialScheduler()), "without quotes"
    adam = init.OptimizerInitializer("Adam(decay1=0.5, lr_scheduler='noam')")()
    assert (
        str(adam.lr_scheduler) == "NoamScheduler(model_dim=512, scale_factor=1, warmup_steps=4000)"
    )
    assert adam.decay1 == 0.5 and init.OptimizerInitializer("Adam(0.5)")().lr == 0.5


def test_optimizer_dict_restores_the_cache():
    adam = optimizers.Adam(lr=0.1)
    param, grad = np.ones(3), np.array([1.0, -2.0, 3.0])
    adam.update_(param, grad, "W")
    described = {"hyperparameters": adam.hyperparameters, "cache": adam.cache}
    again = init.OptimizerInitializer(described)()
    assert again.cache["W"]["t"] == 1
    np.testing.assert_array_equal(again.cache["W"]["mean"], adam.cache["W"]["mean"])
    assert not np.shares_memory(again.cache["W"]["mean"], adam.cache["W"]["mean"])
    np.testing.assert_array_equal(again(param, grad, "W"), adam(param, grad, "W"))


@pytest.mark.parametrize(
    "param, message",
    [
        (
            "adamm",
            "unknown optimizer 'adamm', expected one of SGD, AdaGrad, RMSProp, Adam, .*'Adam'",
        ),
        ("sgd(momentun=0.9)", "unknown argument 'momentun'.*did you mean 'momentum'"),
        ("adam(lr_scheduler=Nom())", "unknown scheduler 'Nom'"),
        ("adam(lr_scheduler=Nom)", "unknown scheduler 'Nom'"),
        ({"cache": {}}, "a dict needs the entry 'hyperparameters'"),
        ({"hyperparameters": {"id": "Adma"}}, "unknown optimizer 'Adma'"),
        ({"hyperparameters": {"id": "SGD", "speed": 1}}, "unknown argument 'speed'"),
        ({"hyperparameters": {"id": "SGD"}, "cache": {"W": 3}}, "the state of 'W' does not fit"),
        ({"hyperparameters": {"id": "Adam"}, "cache": {"W": {}}}, "the state of 'W' does not fit"),
        (0.1, "expected None, an optimizer object, a string .* got 0.1"),
    ],
)
def test_bad_optimizer_descriptions(param, message):
    with pytest.raises(ParameterError, match=message):
        init.OptimizerInitializer(param)()


# ------------------------------------------------------------------------------------ first weights

SHAPES = ((300, 200), (5, 40, 60), (3, 5, 30, 20))


@pytest.fixture(autouse=True)
def seeded():
    state = random.get_state()
    random.seed(7)
    yield
    random.set_state(state)


def test_calc_fan():
    assert init.calc_fan((3, 5)) == (3, 5)
    assert init.calc_fan((7, 3, 5)) == (21, 35)
    assert init.calc_fan((2, 7, 3, 5)) == (42, 70)
    for bad in ((), (3,), (1, 2, 3, 4, 5), None, "ab", 3, (-3, 4), (3.0, 4), (True, 2)):
        with pytest.raises(ShapeError, match="calc_fan: expected"):
            init.calc_fan(bad)


# standard deviation and bound of a normal distribution cut at +-2
CUT_STD = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "activation, gain",
    [
        ("relu", math.sqrt(2)),
        ("Tanh", 5 / 3),
        ("Leaky ReLU(alpha=0.5)", math.sqrt(2 / 1.25)),
        (act.LeakyReLU(2.0), math.sqrt(2 / 5)),
        ("sigmoid", 1.0),
        ("MyOwn(beta=2)", 1.0),
    ],
)
@pytest.mark.parametrize("mode", init.WeightInitializer.MODES)
def test_spread_of_weights(shape, activation, gain, mode, numpy_backend):
    fan_in, fan_out = init.calc_fan(shape)
    weights = init.WeightInitializer(activation, mode)(shape, dtype=np.float64)
    assert weights.shape == shape
    std, bound = {
        "he_uniform": (math.sqrt(2 / fan_in), math.sqrt(6 / fan_in)),
        "he_normal": (math.sqrt(2 / fan_in) * CUT_STD, 2 * math.sqrt(2 / fan_in)),
        "glorot_uniform": (
            gain * math.sqrt(2 / (fan_in + fan_out)),
            gain * math.sqrt(6 / (fan_in + fan_out)),
        ),
        "glorot_normal": (
            gain * math.sqrt(2 / (fan_in + fan_out)) * CUT_STD,
            2 * gain * math.sqrt(2 / (fan_in + fan_out)),
        ),
        "std_normal": (1.0, math.inf),
        "trunc_normal": (CUT_STD, 2.0),
    }[mode]
    room = 4 / math.sqrt(weights.size)  # about four standard errors
    assert abs(weights.mean()) < room * std
    assert weights.std() == pytest.approx(std, rel=room)
    assert np.abs(weights).max() <= bound
    if mode != "std_normal":
        assert np.abs(weights).max() > 0.98 * bound
    else:
        assert np.abs(weights).max() > 3.0


@pytest.mark.parametrize("mode", init.WeightInitializer.MODES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_same_seed_same_weights_on_every_backend(mode, dtype, backend):
    make = init.WeightInitializer("relu", mode)
    random.seed(3)
    here = make((4, 5), dtype=dtype)
    after = random.get_state()
    random.seed(3)
    host = make((4, 5), dtype=np.float64, xp=np)
    assert random.get_state() == after
    assert isinstance(here, backend.xp.ndarray)
    np.testing.assert_array_equal(backend.asnumpy(here), host.astype(dtype))
    assert not np.array_equal(make((4, 5), dtype=np.float64, xp=np), host)


def test_weights_come_in_the_default_dtype(backend):
    before = selection.default_dtype()
    try:
        for dtype in ("float32", "float64"):
            selection.set_default_dtype(dtype)
            for draw in (init.he_uniform, init.he_normal, init.glorot_uniform, init.glorot_normal):
                assert draw((2, 3)).dtype == np.dtype(dtype)
    finally:
        selection.set_default_dtype(before)


def test_truncated_normal_is_shifted_and_cut(numpy_backend):
    x = init.truncated_normal(3.0, 0.5, (20000,), np.float64)
    assert 2.0 <= x.min() < 2.05 and 3.95 < x.max() <= 4.0
    assert x.mean() == pytest.approx(3.0, abs=0.02)


@pytest.mark.parametrize("mode", init.WeightInitializer.MODES)
def test_empty_weights(mode, numpy_backend):
    assert init.WeightInitializer("relu", mode)((0, 3)).shape == (0, 3)


def test_bad_mode():
    with pytest.raises(ParameterError, match=r"unknown mode 'he_uniforn', .*mean 'he_uniform'"):
        init.WeightInitializer("relu", "he_uniforn")
    with pytest.raises(ParameterError, match="unknown mode None"):
        init.WeightInitializer("relu", None)


@pytest.mark.parametrize(
    "message, draw",
    [
        ("he_uniform: expected .* got 3", lambda: init.he_uniform(3)),
        (r"he_uniform: expected .* got \(3.0, 4\)", lambda: init.he_uniform((3.0, 4))),
        (r"he_normal: expected .* got \(-4, 4\)", lambda: init.he_normal((-4, 4))),
        ("he_uniform: dtype: expected a floating", lambda: init.he_uniform((3, 4), "int32")),
        ("he_normal: dtype: expected a floating", lambda: init.he_normal((3, 4), "int32")),
        ("he_uniform: xp must be the module", lambda: init.he_uniform((3, 4), None, "numpy")),
        ("glorot_uniform: gain", lambda: init.glorot_uniform((3, 4), gain="a")),
        ("glorot_normal: gain", lambda: init.glorot_normal((3, 4), gain=math.nan)),
        ("glorot_normal: gain", lambda: init.glorot_normal((3, 4), gain=-1.0)),
        ("truncated_normal: mean", lambda: init.truncated_normal("a", 1, (3,))),
        ("truncated_normal: mean", lambda: init.truncated_normal(math.nan, 1, (3,))),
        ("truncated_normal: std", lambda: init.truncated_normal(0, -1, (3,))),
        ("truncated_normal: out_shape", lambda: init.truncated_normal(0, 1, (2.0,))),
        (
            "WeightInitializer: dtype",
            lambda: init.WeightInitializer("relu", "std_normal")((3,), int),
        ),
        ("WeightInitializer: act_fn_str", lambda: init.WeightInitializer(3)),
        ("WeightInitializer: act_fn_str", lambda: init.WeightInitializer(None)),
    ],
)
def test_a_draw_that_is_refused_names_itself_and_draws_nothing(message, draw):
    before = random.get_state()
    with pytest.raises(GPULayersError, match=message):
        draw()
    assert random.get_state() == before
