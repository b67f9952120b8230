"""Modules: several layers that form one piece, used like a layer; numpy-ml's names.

``module.components`` lists the layers; `parameters`, `gradients`, `derived_variables` and
`hyperparameters` hold theirs under ``"components"``, by name.
"""

from gpulayers.modules.attention import MultiHeadedAttentionModule
from gpulayers.modules.base import ModuleBase
from gpulayers.modules.recurrent import BidirectionalLSTM
from gpulayers.modules.skip import SkipConnectionConvModule, SkipConnectionIdentityModule
from gpulayers.modules.wavenet import WavenetResidualModule

__all__ = [
    "BidirectionalLSTM",
    "ModuleBase",
    "MultiHeadedAttentionModule",
    "SkipConnectionConvModule",
    "SkipConnectionIdentityModule",
    "WavenetResidualModule",
]
