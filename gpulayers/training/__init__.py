"""Training: data, the loop, checkpoints, figures of merit.

data = load_data("mnist-10k")
history = Trainer(network, data, epochs=3).fit()
"""

from gpulayers.models import Residual, Sequential
from gpulayers.training.checkpoint import Checkpoint, load, load_checkpoint, save
from gpulayers.training.data import (
    DATASETS,
    Dataset,
    Normalizer,
    Split,
    batches,
    index_batches,
    load_data,
)
from gpulayers.training.evaluation import Evaluation, evaluate
from gpulayers.training.history import Epoch, History
from gpulayers.training.metrics import accuracy, confusion_matrix, per_class
from gpulayers.training.plots import plot_curves
from gpulayers.training.safetensors import read_safetensors, write_safetensors
from gpulayers.training.trainer import Trainer

__all__ = [
    "DATASETS",
    "Checkpoint",
    "Dataset",
    "Epoch",
    "Evaluation",
    "History",
    "Normalizer",
    "Residual",
    "Sequential",
    "Split",
    "Trainer",
    "accuracy",
    "batches",
    "confusion_matrix",
    "evaluate",
    "index_batches",
    "load",
    "load_checkpoint",
    "load_data",
    "per_class",
    "plot_curves",
    "read_safetensors",
    "save",
    "write_safetensors",
]
