"""JAX's ways of taking the same step: a jitted step, and many of them in one `lax.scan`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from _gpu import nets
from _gpu.nets import CLASSES, MOMENTUM, STEPS_CHECKED, Item, Layer

#: way -> steps in a call
WAYS = {"jax jit": 1, "jax scan": nets.BATCHES}
_PRECISION = {"fp32": "highest", "tf32": "tensorfloat32", "bf16": "bfloat16"}
#: images channels last, kernels (rows, cols, in, out)
_IMAGES, _SEQUENCES = ("NHWC", "HWIO", "NHWC"), ("NWC", "WIO", "NWC")


def _normalised(x: Any, scale: Any, shift: Any) -> Any:
    wide = x.astype(jnp.float32)
    mean = wide.mean((0, 1, 2))
    var = ((wide - mean) ** 2).mean((0, 1, 2))
    return ((wide - mean) * lax.rsqrt(var + 1e-5) * scale + shift).astype(x.dtype)


def _recurrent(kind: str, x: Any, w: dict[str, Any]) -> Any:
    """The last state of a layer on x (time, n, n_in)."""
    n = x.shape[1]
    if kind == "rnn":

        def simple(h: Any, xt: Any) -> tuple[Any, None]:
            z = xt @ w["Wax"] + h @ w["Waa"] + w["ba"].reshape(-1) + w["bx"].reshape(-1)
            return jnp.tanh(z), None

        return lax.scan(simple, jnp.zeros((n, w["Waa"].shape[0]), x.dtype), x)[0]
    gates = "fuco"  # forget, update, candidate, output
    weights = jnp.concatenate([w[f"W{g}"] for g in gates], axis=1)
    bias = jnp.concatenate([w[f"b{g}"].reshape(-1) for g in gates])
    states = weights.shape[1] // 4

    def gated(state: tuple[Any, Any], xt: Any) -> tuple[tuple[Any, Any], None]:
        h, c = state
        f, u, new, o = jnp.split(jnp.concatenate([h, xt], axis=1) @ weights + bias, 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(u) * jnp.tanh(new)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    zeros = jnp.zeros((n, states), x.dtype)
    return lax.scan(gated, (zeros, zeros), x)[0][0]


def _apply(layer: Layer, x: Any, w: dict[str, Any]) -> Any:
    kind, *n = layer
    if kind == "conv":
        pad = [(n[2], n[2])] * 2
        z = lax.conv_general_dilated(x, w["W"], (1, 1), pad, dimension_numbers=_IMAGES)
        return z + w["b"].reshape(-1)
    if kind == "conv1d":
        pad = [((n[1] - 1) * n[2], 0)]
        z = lax.conv_general_dilated(
            x, w["W"], (1,), pad, rhs_dilation=(n[2],), dimension_numbers=_SEQUENCES
        )
        return z + w["b"].reshape(-1)
    if kind == "pool":
        size = (1, n[0], n[0], 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, size, size, "VALID")
    if kind == "dense":
        return x @ w["W"] + w["b"].reshape(-1)
    if kind == "bn":
        return _normalised(x, w["scaler"], w["intercept"])
    if kind == "flatten":
        return x.reshape(x.shape[0], -1)
    if kind in ("rnn", "lstm"):
        return _recurrent(kind, x, w)
    if kind == "gate":
        shape, gate = jnp.split(x, 2, axis=-1)
        return jnp.tanh(shape) * jax.nn.sigmoid(gate)
    return jax.nn.relu(x)


def _forward(
    chain: tuple[Layer, ...], x: Any, weights: dict[str, Any], dtype: Any, prefix: str = ""
) -> Any:
    for i, layer in enumerate(chain):
        if layer[0] == "skip":
            x = x + _forward(layer[1], x, weights, dtype, f"{prefix}{i}.body.")
            continue
        start = f"{prefix}{i}."
        own = {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}
        kept = jnp.float32 if layer[0] == "bn" else dtype
        x = _apply(layer, x, {k: v.astype(kept) for k, v in own.items()})
    return x


class Jax:
    """An item on JAX; the weights stay in float32, "bf16" computes in bfloat16.

    Parameters
    ----------
    item : Item
    way : "jax jit" or "jax scan"
    weights : path, optional
        An npz with those to begin with; without it they are worked out.
    """

    def __init__(self, item: Item, way: str, weights: str | None = None) -> None:
        jax.config.update("jax_default_matmul_precision", _PRECISION[item.precision])
        self._net = net = nets.NETS[item.net]
        self._dtype = jnp.bfloat16 if item.precision == "bf16" else jnp.float32
        X, labels = nets.batches(net, item.batch)
        if len(net.shape) == 2 and net.layers[0][0] != "conv1d":
            X = np.ascontiguousarray(X.transpose(0, 3, 1, 2))
        self._X = jnp.asarray(X, dtype=self._dtype)
        self._labels = jnp.asarray(labels)
        self._pairs = [(self._X[i], self._labels[i]) for i in range(len(X))]
        begin = dict(np.load(weights)) if weights else nets.start(net)
        first = {k: jnp.asarray(v, dtype=jnp.float32) for k, v in begin.items()}
        self._state = first, {k: jnp.zeros_like(v) for k, v in first.items()}
        self._one = jax.jit(self._step, donate_argnums=0)
        self._many = jax.jit(
            lambda state, X, labels: lax.scan(self._step, state, (X, labels)), donate_argnums=0
        )
        self._way, self._place, self._losses = way, 0, []
        self.multiple = WAYS[way]

    def _loss(self, weights: dict[str, Any], X: Any, labels: Any) -> Any:
        logits = _forward(self._net.layers, X, weights, self._dtype).astype(jnp.float32)
        picked = jax.nn.one_hot(labels, CLASSES) * jax.nn.log_softmax(logits)
        return -picked.sum(axis=1).mean()

    def _step(self, state: Any, batch: Any) -> tuple[Any, Any]:
        weights, velocity = state
        loss, grads = jax.value_and_grad(self._loss)(weights, *batch)
        rate = self._net.rate
        velocity = {k: MOMENTUM * velocity[k] + rate * grads[k] for k in weights}
        return ({k: weights[k] - velocity[k] for k in weights}, velocity), loss

    def run(self, steps: int) -> None:
        """Launch so many steps; a scan goes through all batches, so there may be a few more."""
        self._losses = []
        if self._way == "jax scan":
            for _ in range(-(-steps // nets.BATCHES)):
                self._state, losses = self._many(self._state, self._X, self._labels)
                self._losses.append(losses)
            return
        for _ in range(steps):
            self._state, loss = self._one(self._state, self._pairs[self._place % nets.BATCHES])
            self._place += 1
            self._losses.append(loss)

    def wait(self) -> None:
        jax.block_until_ready((self._state, self._losses))

    def checked(self) -> tuple[list[float], dict[str, np.ndarray]]:
        """Losses of the first steps, and the weights after them, float64 by name."""
        if self._way == "jax scan":  # of as many batches as are checked
            first = self._X[:STEPS_CHECKED], self._labels[:STEPS_CHECKED]
            self._state, losses = self._many(self._state, *first)
            found = np.asarray(losses, np.float64).tolist()
        else:
            self.run(STEPS_CHECKED)
            found = [float(loss) for loss in self._losses]
        return found, {k: np.asarray(v, np.float64) for k, v in self._state[0].items()}

    def losses(self, steps: int) -> list[float]:
        """Take so many more steps; return their losses. A scan has none to be held against the
        others': it begins with the first batch again."""
        if self._way == "jax scan":
            return []
        self.run(steps)
        return np.asarray(jnp.stack(self._losses), np.float64).tolist()

    def peak_bytes(self) -> int:
        """Bytes that JAX's allocator took from the device, at most since the process began; where
        that is not told, those that were in use."""
        stats = jax.local_devices()[0].memory_stats() or {}
        return int(stats.get("peak_pool_bytes") or stats.get("peak_bytes_in_use") or 0)

    def facts(self) -> dict[str, Any]:
        return {}
