"""Which plan `Sequential.compile` makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpulayers import backend
from gpulayers.errors import BackendError, ParameterError, suggest

if TYPE_CHECKING:
    from gpulayers.models.plan import CompiledNetwork

__all__ = ["ENGINES", "plan_class"]

#: "auto": on a GPU a captured graph
ENGINES = ("auto", "mega")


def plan_class(network: Any, engine: str) -> type[CompiledNetwork]:
    """Return the class of plans for a network where its parameters are.

    Raises
    ------
    ParameterError
        If there is no such engine.
    BackendError
        If the engine needs a GPU.
    """
    place = network.home or backend.current_backend()
    if engine not in ENGINES:
        raise ParameterError(
            f"{network.name}.compile: unknown engine {engine!r}, expected one of "
            f"{', '.join(ENGINES)}{suggest(str(engine), ENGINES)}"
        )
    if engine == "mega":
        if place != "cupy":
            raise BackendError(
                f'{network.name}.compile: engine "mega" needs a GPU, the network is on {place}'
            )
        from gpulayers.models.mega import MegaNetwork

        return MegaNetwork
    if place == "cupy":
        from gpulayers.models.graph_resident import ResidentNetwork

        return ResidentNetwork
    from gpulayers.models.plan import CompiledNetwork

    return CompiledNetwork
