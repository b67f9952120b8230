"""Neural-network layers with hand-written gradients, on NumPy or on an NVIDIA GPU through CuPy."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_SUBMODULES = (
    "activations",
    "backend",
    "errors",
    "gradients",
    "initializers",
    "interchange",
    "layers",
    "losses",
    "models",
    "modules",
    "ops",
    "optimizers",
    "plot",
    "random",
    "schedulers",
    "threads",
    "training",
    "utils",
    "wrappers",
)
_NAMES = {
    "asarray": "backend",
    "available": "backend",
    "check_gradients": "gradients",
    "set_default_dtype": "backend",
    "to_cpu": "backend",
    "to_gpu": "backend",
    "use_backend": "backend",
    "use_engine": "ops",
    "Sequential": "training",
    "Trainer": "training",
    "profile": "models",
    "summarize": "models",
    "load": "training",
    "load_data": "training",
    "save": "training",
}

__all__ = [
    "Sequential",
    "Trainer",
    "__version__",
    "activations",
    "asarray",
    "available",
    "backend",
    "check_gradients",
    "errors",
    "gradients",
    "initializers",
    "interchange",
    "layers",
    "load",
    "load_data",
    "losses",
    "models",
    "modules",
    "ops",
    "optimizers",
    "plot",
    "profile",
    "random",
    "save",
    "schedulers",
    "set_default_dtype",
    "summarize",
    "threads",
    "to_cpu",
    "to_gpu",
    "training",
    "use_backend",
    "use_engine",
    "utils",
    "wrappers",
]

if TYPE_CHECKING:
    from gpulayers import (
        activations,
        backend,
        errors,
        gradients,
        initializers,
        interchange,
        layers,
        losses,
        models,
        modules,
        ops,
        optimizers,
        plot,
        random,
        schedulers,
        threads,
        training,
        utils,
        wrappers,
    )
    from gpulayers.backend import (
        asarray,
        available,
        set_default_dtype,
        to_cpu,
        to_gpu,
        use_backend,
    )
    from gpulayers.gradients import check_gradients
    from gpulayers.models import profile, summarize
    from gpulayers.ops import use_engine
    from gpulayers.training import Sequential, Trainer, load, load_data, save


def __getattr__(name: str) -> Any:
    """Import submodules and the public names on first use, so that the import itself is fast."""
    if name in _SUBMODULES:
        return importlib.import_module(f"gpulayers.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"gpulayers.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'gpulayers' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
