"""Layers with hand-written gradients, numpy-ml's contract.

Every layer has ``forward(X)``, ``backward(dLdY)``, ``update()``; see `LayerBase`. One file per
family: `_forward` and `_backward` stand next to each other, what they share stands in `base.py`.
"""

from gpulayers.layers.attention import DotProductAttention
from gpulayers.layers.base import LayerBase
from gpulayers.layers.conv import Conv1D, Conv2D
from gpulayers.layers.deconv import Deconv2D
from gpulayers.layers.dense import FullyConnected
from gpulayers.layers.dropout import Dropout
from gpulayers.layers.embedding import Embedding
from gpulayers.layers.gru import GRU, GRUCell
from gpulayers.layers.layernorm import GroupNorm, LayerNorm1D, LayerNorm2D
from gpulayers.layers.lstm import LSTM, LSTMCell
from gpulayers.layers.merge import Add, Multiply
from gpulayers.layers.normalization import BatchNorm1D, BatchNorm2D
from gpulayers.layers.pool import GlobalAvgPool2D, Pool2D
from gpulayers.layers.rbm import RBM
from gpulayers.layers.recurrent import RNN, RNNCell
from gpulayers.layers.reshape import Flatten
from gpulayers.layers.softmax import Softmax
from gpulayers.layers.sparse import SparseEvolution
from gpulayers.layers.upsample import Upsample2D, ZeroPad2D

__all__ = [
    "GRU",
    "LSTM",
    "RBM",
    "RNN",
    "Add",
    "BatchNorm1D",
    "BatchNorm2D",
    "Conv1D",
    "Conv2D",
    "Deconv2D",
    "DotProductAttention",
    "Dropout",
    "Embedding",
    "Flatten",
    "FullyConnected",
    "GRUCell",
    "GlobalAvgPool2D",
    "GroupNorm",
    "LSTMCell",
    "LayerBase",
    "LayerNorm1D",
    "LayerNorm2D",
    "Multiply",
    "Pool2D",
    "RNNCell",
    "Softmax",
    "SparseEvolution",
    "Upsample2D",
    "ZeroPad2D",
]
