"""What mega*.cuh and those who write kernels with them have in common; needs no CuPy."""

from __future__ import annotations

__all__ = [
    "ACTIVATIONS",
    "CONSTANTS",
    "DRAWN",
    "NAME",
    "PART",
    "RULES",
    "THREADS",
    "TILE",
    "TILE_FLOATS",
]

#: of the kernel
NAME = "train_steps"
#: threads of a block
THREADS = 256
#: the activations whose slope follows from their value (`slope_at`)
ACTIVATIONS = ("identity", "relu", "tanh", "sigmoid")
#: the update rules, and the constants of one (of `rules.Numbers`), in the kernel's order
RULES = ("sgd", "adagrad", "rmsprop", "adam")
CONSTANTS = ("a", "b", "c", "d", "log_a", "log_c", "eps", "decay")
#: rows and columns of a dense layer that a block updates at a time, and the room that it needs
TILE = (16, 32)
TILE_FLOATS = 64 * sum(TILE)
#: parameters of a convolution that a block updates at a time
PART = 32
#: numbers that a block of random words gives dropout
DRAWN = 8
