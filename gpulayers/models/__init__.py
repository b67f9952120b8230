"""Networks: how layers are put together, and a few well-known ones ready to train."""

from gpulayers.models.blocks import Activation, Residual
from gpulayers.models.composite import Composite
from gpulayers.models.network import Pixels, Sequential
from gpulayers.models.zoo import MODELS, build, lenet, mlp, resnet9, vgg_small

__all__ = [
    "MODELS",
    "Activation",
    "Composite",
    "Pixels",
    "Residual",
    "Sequential",
    "build",
    "lenet",
    "mlp",
    "resnet9",
    "vgg_small",
]
