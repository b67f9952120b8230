"""gpulayers' ways of taking a training step: by the layers, as a graph, from resident data."""

from __future__ import annotations

from typing import Any

import numpy as np

from _gpu import nets
from _gpu.nets import STEPS_CHECKED, Item

#: way -> whether batches lie in a `Resident`
WAYS = {"layers": False, "fused": False, "resident": True, "mega": True}
_DTYPES = {"fp64": "float64", "bf16": "bfloat16", "fp16": "float16"}


class Ours:
    """An item on gpulayers, on the current backend.

    Parameters
    ----------
    item : Item
    way : "layers", "fused", "resident" or "mega"
    alike : bool
        Whether it begins with the weights that all sides have.
    """

    multiple = 1  # of steps that a call does

    def __init__(self, item: Item, way: str, alike: bool = True) -> None:
        from gpulayers import backend
        from gpulayers.losses import SoftmaxCrossEntropy

        net = nets.NETS[item.net]
        self.xp: Any = backend.module(backend.current_backend())
        backend.set_default_dtype(_DTYPES.get(item.precision, "float32"))
        self.network = nets.ours(net)
        X, labels = nets.batches(net, item.batch)
        dtype = backend.default_dtype()
        first = self.xp.asarray(X[0, :1]).astype(dtype)
        self.network.forward(first, retain_derived=False)  # makes the parameters
        begin = nets.start(net) if alike else {}
        for name, layer in self.network.walk():
            for key in layer.gradients if alike else ():
                value = self.xp.asarray(begin[f"{name}.{key}"])
                layer.parameters[key][...] = value.astype(dtype)
        self._item, self._way = item, way
        self._loss: Any = SoftmaxCrossEntropy()
        self._plan: Any = None
        self._place = 0
        self._losses: list[Any] = []
        if way != "layers":
            more = {"engine": "mega"} if way == "mega" else {}
            shape = item.batch, *net.shape
            self._plan = self.network.compile(shape, precision=item.precision, **more)
        if WAYS[way]:
            from gpulayers.models.resident import Resident

            flat = X.reshape(-1, *net.shape)
            self._resident = Resident(flat, labels.reshape(-1), dtype=dtype, slots=4096)
            self._resident.begin()
        else:
            self._X = [self.xp.asarray(x).astype(dtype) for x in X]
            self._labels = [self.xp.asarray(y) for y in labels]

    def run(self, steps: int) -> None:
        """Launch so many steps, on the batches in turn; keep their losses on the device."""
        self._losses = []
        if WAYS[self._way]:
            while steps:
                if not self._resident.left:
                    self._resident.begin()
                steps -= self._plan.run(self._resident, steps, self._item.batch)
            return
        for _ in range(steps):
            i = self._place % len(self._X)
            self._place += 1
            X, labels = self._X[i], self._labels[i]
            if self._plan is not None:
                self._losses.append(self._plan.step(X, labels))
                continue
            self._losses.append(self._loss.forward(labels, self.network.forward(X)))
            self.network.backward(self._loss.backward(), input_grad=False)
            self.network.update()

    def wait(self) -> None:
        if self.xp is not np:
            self.xp.cuda.Device().synchronize()

    def losses(self, steps: int) -> list[float]:
        """Take so many more steps; return their losses."""
        self.run(steps)
        if WAYS[self._way]:
            return self._resident.read()[0].tolist()
        return [float(loss) for loss in self._losses]

    def checked(self) -> tuple[list[float], dict[str, np.ndarray]]:
        """Losses of the first steps, and the weights after them, float64 by name; as if they had
        begun with the weights of the other sides, which half precision rounds."""
        begin, own = nets.start(nets.NETS[self._item.net]), nets.weights_of(self.network)
        losses = self.losses(STEPS_CHECKED)
        weights = nets.weights_of(self.network, masters=True)
        return losses, {k: begin[k] + (weights[k] - own[k]) for k in weights}

    def peak_bytes(self) -> int:
        """Bytes that CuPy's pool, which gives nothing back, and the graphs hold, at most so far."""
        if self.xp is np:
            return 0
        pool = self.xp.get_default_memory_pool().total_bytes()
        return pool + int(getattr(self._plan, "arena_bytes", 0) or 0)

    def facts(self) -> dict[str, Any]:
        """What the plan says of itself."""
        if self._plan is None:
            return {}
        return {"plan": self._plan.describe().splitlines()[-1]}
