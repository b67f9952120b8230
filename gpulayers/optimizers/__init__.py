"""Optimizers: update rules that keep their state by parameter name, as in numpy-ml.

``opt(param, grad, name)`` returns a new array; ``opt.update_(param, grad, name)`` changes `param`
in place, which is what layers do. The state (velocities, averages) lives where the parameter lives,
in its dtype, and is changed in place too. Everything but the learning rate stays on the device.

A float16 or bfloat16 parameter has a float32 copy in the cache, its master weights: rule and state
are in float32, and the parameter is the copy rounded. Weights put into the parameter from outside
are taken over at the next update.

One optimizer object serves one layer: its cache goes by parameter name ("W", "b"), so layers copy
the object they are given (numpy-ml shares it, and mixes the layers' state).
"""

from gpulayers.optimizers.base import OptimizerBase
from gpulayers.optimizers.clipping import clip_global_norm, clip_value
from gpulayers.optimizers.rules import SGD, AdaGrad, Adam, AdamW, RMSProp

__all__ = [
    "SGD",
    "AdaGrad",
    "Adam",
    "AdamW",
    "OptimizerBase",
    "RMSProp",
    "clip_global_norm",
    "clip_value",
]
