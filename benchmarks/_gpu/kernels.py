"""The kernels one by one: right or wrong, how long they take, how near that is to a plain copy's
speed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from _gpu.clock import Times, alone
from _gpu.correct import Poison, Wrong, hold
from gpulayers import activations
from gpulayers.ops import use_engine
from gpulayers.ops._kernels import kernels_for
from gpulayers.ops._sequence import Weights
from gpulayers.ops.reference import Reference
from gpulayers.ops.window import Window

#: precision -> the dtype of its arrays
DTYPES = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16"}
#: how many times the tolerance is that of a sequence, whose steps round what the next ones take up
_SEQUENCE = 4.0
_MOST_SETS = 4  # of arrays that a kernel takes in turn
_CHANNELS, _SIZE = 32, 32  # a small VGG's second convolution
WINDOW, _POOL = Window((3, 3), pad=(1, 1, 1, 1)), Window((2, 2), (2, 2))
_SIDE = 2048  # of a matrix
_STEPS, _INPUTS = 20, 64  # of a sequence
ADAM = 1e-3, 0.9, 0.999, 1e-7, 10  # learning rate, decays, epsilon, step
SCALE = 0.01  # of a loss

#: random numbers of a shape, as an array that an engine works on
Numbers = Callable[..., Any]


@dataclass(frozen=True)
class Work:
    """A launch: `moved` is the bytes that it cannot avoid, `flops` its operations if they count,
    `inputs` what it works on, perhaps in place."""

    shape: tuple[int, ...]
    moved: int
    run: Callable[[], Any]
    flops: float = 0.0
    inputs: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Case:
    """One operation in one precision: `make` has the work of an engine on random numbers."""

    name: str
    precision: str
    make: Callable[[Any, Numbers], Work]


def _pooling(way: str, e: Any, numbers: Numbers, n: int) -> Work:
    x, dy = (numbers(n, s, s, _CHANNELS) for s in (_SIZE, _SIZE // 2))
    if way.startswith("avg"):
        moved = x.nbytes + dy.nbytes
        runs = {
            "avg_pool2d_forward": lambda: e.avg_pool2d_forward(x, _POOL),
            "avg_pool2d_backward": lambda: e.avg_pool2d_backward(dy, x.shape, _POOL),
        }
        return Work(x.shape, moved, runs[way], inputs=(x, dy))
    # which of four: no kernel is needed for that
    argmax = (abs(numbers(n, _SIZE // 2, _SIZE // 2, _CHANNELS)) * 8).astype("uint8") % 4
    runs = {
        "max_pool2d_forward": lambda: e.max_pool2d_forward(x, _POOL),
        "max_pool2d_backward": lambda: e.max_pool2d_backward(dy, argmax, x.shape, _POOL),
    }
    moved = x.nbytes + dy.nbytes + argmax.nbytes
    return Work(x.shape, moved, runs[way], inputs=(x, dy, argmax))


def _columns(way: str, e: Any, numbers: Numbers, n: int) -> Work:
    shape = n, _SIZE, _SIZE, _CHANNELS
    if way == "im2col":
        x = numbers(*shape)
        return Work(shape, 10 * x.nbytes, lambda: e.im2col(x, WINDOW), inputs=(x,))
    columns = numbers(n * _SIZE * _SIZE, 9 * _CHANNELS)
    mode = "scatter" if "scatter" in way else "gather"
    moved = columns.nbytes * 10 // 9
    run = lambda: e.col2im(columns, shape, WINDOW, mode)  # noqa: E731
    return Work(shape, moved, run, inputs=(columns,))


def _elementwise(way: str, e: Any, numbers: Numbers, n: int) -> Work:
    x, act = numbers(n, _SIZE, _SIZE, _CHANNELS), activations.ReLU()
    if way == "bias_grad":
        return Work(x.shape, x.nbytes, lambda: e.bias_grad(x), inputs=(x,))
    if way == "bias_activation":
        bias = numbers(_CHANNELS)
        run = lambda: e.bias_activation(x, bias, act)  # noqa: E731
        return Work(x.shape, 3 * x.nbytes, run, inputs=(x, bias))
    dy = numbers(*x.shape)
    run = lambda: e.activation_backward(dy, x, act)  # noqa: E731
    return Work(x.shape, 3 * x.nbytes, run, inputs=(dy, x))


def _loss(way: str, e: Any, numbers: Numbers, n: int) -> Work:
    logits = numbers(64 * n, 10)
    labels = (abs(logits[:, 0]) * 8).astype("int64") % 10
    if way.endswith("forward"):
        run = lambda: e.softmax_cross_entropy_forward(logits, labels)  # noqa: E731
    else:
        run = lambda: e.softmax_cross_entropy_backward(logits, labels, SCALE)  # noqa: E731
    return Work(logits.shape, 2 * logits.nbytes, run, inputs=(logits, labels))


def _adam(e: Any, numbers: Numbers, n: int) -> Work:
    param, grad, mean = (numbers(n * 32768) for _ in range(3))
    var = abs(numbers(n * 32768))

    def run() -> Any:
        e.adam_update(param, grad, mean, var, *ADAM)
        return param, mean, var

    return Work(param.shape, 7 * param.nbytes, run, inputs=(param, grad, mean, var))


def _words(xp: Any, e: Any, n: int) -> Work:
    size = n * 32768
    return Work((size,), 8 * size, lambda: e.philox_words(xp, (1, 2), 3, size))


def product(form: str, e: Any, numbers: Numbers) -> Work:
    a, b = numbers(_SIDE, _SIDE), numbers(_SIDE, _SIDE)
    turned = [letter == "t" for letter in form]
    run = lambda: e.matmul(a, b, *turned)  # noqa: E731
    return Work((_SIDE,) * 3, 3 * a.nbytes, run, 2.0 * _SIDE**3, (a, b))


def convolution(way: str, e: Any, numbers: Numbers, n: int) -> Work:
    x, w = numbers(n, _SIZE, _SIZE, _CHANNELS), numbers(3, 3, _CHANNELS, _CHANNELS)
    other = numbers(_CHANNELS) if way == "conv2d_forward" else numbers(*x.shape)
    runs = {
        "conv2d_forward": lambda: e.conv2d_forward(x, w, other, WINDOW),
        "conv2d_input_grad": lambda: e.conv2d_input_grad(other, w, x.shape, WINDOW),
        "conv2d_weight_grad": lambda: e.conv2d_weight_grad(x, other, WINDOW),
    }
    flops, moved = 2.0 * x.size * 9 * _CHANNELS, 2 * x.nbytes + w.nbytes
    return Work(x.shape, moved, runs[way], flops, (x, w, other))


def _sequence(way: str, hidden: int, batch: int, e: Any, numbers: Numbers) -> Work:
    scale = (hidden + _INPUTS) ** -0.5
    weights = Weights(
        numbers(hidden, 4 * hidden, scale=scale),
        numbers(_INPUTS, 4 * hidden, scale=scale),
        (numbers(4 * hidden),),
    )
    x, dy = numbers(_STEPS, batch, _INPUTS), numbers(_STEPS, batch, hidden)
    acts = activations.Tanh(), activations.Sigmoid()
    shape, flops = (_STEPS, batch, hidden), 8.0 * _STEPS * batch * hidden * (hidden + _INPUTS)
    moved = x.nbytes + dy.nbytes + weights.recurrent.nbytes + weights.input.nbytes
    if way == "forward":
        run = lambda: e.lstm_forward(x, None, None, weights, *acts).states  # noqa: E731
        return Work(shape, moved, run, flops, (x, weights))
    trace = e.lstm_forward(x, None, None, weights, *acts)

    def back() -> Any:
        found = e.lstm_backward(dy, None, trace, weights, *acts, None, True, True)
        return found.X, found.weights.recurrent, found.weights.input

    return Work(shape, 2 * moved, back, 2 * flops, (x, weights, dy))


def cases(xp: Any, batch: int, precision: str) -> Iterator[Case]:
    """What moves much, in float32 and float16; what computes much, in every precision."""
    n = batch
    moving: dict[str, Callable[[Any, Numbers], Work]] = {
        **{
            name: lambda e, r, w=name: _columns(w, e, r, n)
            for name in ("im2col", "col2im", "col2im scatter")
        },
        **{
            f"{kind}_pool2d_{way}": lambda e, r, w=f"{kind}_pool2d_{way}": _pooling(w, e, r, n)
            for kind in ("max", "avg")
            for way in ("forward", "backward")
        },
        **{
            name: lambda e, r, w=name: _elementwise(w, e, r, n)
            for name in ("bias_activation", "activation_backward", "bias_grad")
        },
        **{
            f"softmax_cross_entropy_{way}": lambda e, r, w=way: _loss(w, e, r, n)
            for way in ("forward", "backward")
        },
        "adam_update": lambda e, r: _adam(e, r, n),
        "philox_words": lambda e, _: _words(xp, e, n),
    }
    computing: dict[str, Callable[[Any, Numbers], Work]] = {
        **{
            f"product {_SIDE} {form}": lambda e, r, f=form: product(f, e, r)
            for form in ("nn", "nt", "tn")
        },
        **{
            f"conv2d_{way}": lambda e, r, w=f"conv2d_{way}": convolution(w, e, r, n)
            for way in ("forward", "input_grad", "weight_grad")
        },
        **{
            f"lstm_{way} {hidden}x{rows}": lambda e, r, w=way, h=hidden, b=rows: _sequence(
                w, h, b, e, r
            )
            for hidden, rows in ((128, 32), (512, 32))
            for way in ("forward", "backward")
        },
    }
    chosen = {**moving, **computing} if precision in ("fp32", "fp16") else computing
    for name, make in chosen.items():
        yield Case(f"{name} {precision}", precision, make)


def numbers_on(xp: Any, precision: str, wide: bool = False) -> Numbers:
    """Draws the same numbers each time, as a precision holds them; `wide`: in float64 nonetheless.
    From NumPy: CuPy's own generator needs cuRAND."""
    rng = np.random.default_rng(0)
    dtype = dtype_of(precision)

    def draw(*shape: int, scale: float = 1.0) -> Any:
        values = rng.standard_normal(shape, np.float32) * np.float32(scale)
        values = values.astype(dtype)
        return xp.asarray(values.astype(np.float64) if wide else values)

    return draw


def dtype_of(precision: str) -> Any:
    if precision == "bf16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(DTYPES[precision])


def in_precision(name: str) -> contextlib.AbstractContextManager[object]:
    """In which float32 is multiplied."""
    from gpulayers.cuda.precision import use_precision

    return use_precision("tf32" if name == "tf32" else "fp32")


def measure_case(xp: Any, case: Case, peak: float) -> dict[str, Any]:
    """Check a case against the array formulas in float64, with its results in memory that was full
    of NaN, then time it.

    A kernel's floor is its bytes, each read or written once, over `peak`, a copy's speed.

    Raises
    ------
    ArithmeticError
        If the two give different results.
    """
    engine = kernels_for(xp.empty(0, dtype="float32"))
    wanted = case.make(Reference(), numbers_on(xp, case.precision, wide=True)).run()
    with in_precision(case.precision):
        own = case.make(engine, _draws(xp, case))
        wrong = _held(xp, case, own, wanted)
        others = _by_libraries(xp, case, wanted) if case.name.startswith("product") else {}
        del wanted
        took = _timed(xp, case, engine, own)
    speed = 1e3 * own.moved / took.median
    told: dict[str, Any] = {"shape": list(own.shape), **took.told("ms"), "GB/s": speed / 1e9}
    told["share of copy"] = speed / peak
    if own.flops:
        told["TFLOP/s"] = own.flops / took.median / 1e9
    return {**told, **others, "error": wrong.norm, "largest error": wrong.largest}


def _held(xp: Any, case: Case, own: Work, wanted: Any) -> Wrong:
    """The first run's errors."""
    poison = Poison(xp)
    times = _SEQUENCE if case.name.startswith("lstm") else 1.0
    try:
        return hold(xp, case.name, poison(own.run), wanted, case.precision, times)
    finally:
        poison.free()


def _timed(xp: Any, case: Case, engine: Any, own: Work) -> Times:
    """Milliseconds of a launch, with so many sets of arrays in turn that they are not found in the
    second-level cache."""
    properties = xp.cuda.runtime.getDeviceProperties(xp.cuda.Device().id)
    sets = min(_MOST_SETS, -(-2 * properties["l2CacheSize"] // max(1, own.moved)))
    others = [case.make(engine, _draws(xp, case)) for _ in range(sets - 1)]
    return alone(xp, [work.run for work in (own, *others)])


def _by_libraries(xp: Any, case: Case, wanted: Any) -> dict[str, Any]:
    """Milliseconds that NVIDIA's libraries take, by our engines of their names, where they are
    right."""
    found: dict[str, Any] = {}
    for name in ("cublas", "cublaslt"):
        try:
            with use_engine(name):
                engine = kernels_for(xp.empty(0, dtype="float32"))
                own = case.make(engine, _draws(xp, case))
                _held(xp, case, own, wanted)
                found.update(_timed(xp, case, engine, own).told(f"{name} ms"))
        except Exception as error:  # not installed, or not for this dtype: each has its own
            found[f"{name} ms"] = f"{type(error).__name__}: {error}"[:200]
    return found


def _draws(xp: Any, case: Case) -> Numbers:
    return numbers_on(xp, case.precision)


def items(xp: Any, batch: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the name of each measurement and what makes it."""
    from _gpu.micro import copy_speed

    peak = copy_speed(xp, 256)
    yield "copy", lambda: {"GB/s": peak / 1e9}
    for precision in DTYPES:
        for case in cases(xp, batch, precision):
            yield case.name, lambda c=case: measure_case(xp, c, peak)
