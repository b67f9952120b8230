"""What recurrent layers with gates share: the second activation."""

from __future__ import annotations

from typing import Any

from gpulayers.initializers import ActivationInitializer
from gpulayers.layers import _arguments as check
from gpulayers.layers._sequence import Recurrent


class Gated(Recurrent):
    """A step with `gate_fn` beside `act_fn`."""

    _gated = True
    _hyper = ("init", "n_in", "n_out", "act_fn", "gate_fn")

    def __init__(
        self,
        n_out: int,
        act_fn: Any = "Tanh",
        gate_fn: Any = "Sigmoid",
        init: str = "glorot_uniform",
        optimizer: Any = None,
    ) -> None:
        super().__init__(n_out, act_fn, init, optimizer)
        self.gate_fn: Any = gate_fn
        self._check_hyperparameters()

    def _check_hyperparameters(self) -> None:
        self.gate_fn = ActivationInitializer(self.gate_fn)()
        check.weights(self._name, self.gate_fn, self.init)
        super()._check_hyperparameters()

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """As `LayerBase.hyperparameters`, with the gates' activation as a string too."""
        return {**super().hyperparameters, "gate_fn": str(self.gate_fn)}

    def _assign(self, values: dict[str, Any]) -> None:
        if values.get("gate_fn") == str(self.gate_fn):
            del values["gate_fn"]  # keep the object, which may be a user's own
        super()._assign(values)
