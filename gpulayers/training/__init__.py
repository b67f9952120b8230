"""Training: data, the loop, checkpoints, figures of merit.

data = load_data("mnist-10k")
history = Trainer(network, data, epochs=3).fit()
"""

from gpulayers.models import Residual, Sequential
from gpulayers.training.callbacks import (
    BestModel,
    Callback,
    CSVLogger,
    EarlyStopping,
    JSONLogger,
    TensorBoardLogger,
    WeightAverage,
)
from gpulayers.training.checkpoint import Checkpoint, load, load_checkpoint, save
from gpulayers.training.data import (
    DATASETS,
    Dataset,
    LazyImages,
    Normalizer,
    Split,
    batches,
    class_weights,
    index_batches,
    load_data,
    save_data,
    train_validation_split,
)
from gpulayers.training.evaluation import Evaluation, evaluate
from gpulayers.training.feed import Feed
from gpulayers.training.finder import RateSearch, find_learning_rate
from gpulayers.training.history import Epoch, History
from gpulayers.training.metrics import accuracy, confusion_matrix, per_class
from gpulayers.training.mixed import MixedLabels, MixedLoss
from gpulayers.training.plots import plot_curves
from gpulayers.training.precision import LossScaler
from gpulayers.training.safetensors import read_safetensors, write_safetensors
from gpulayers.training.samplers import (
    BalancedSampler,
    Sampler,
    SequentialSampler,
    ShuffledSampler,
    SubsetSampler,
    WeightedSampler,
)
from gpulayers.training.trainer import Trainer
from gpulayers.training.transforms import (
    Compose,
    Cutout,
    Mixup,
    Normalize,
    RandomCrop,
    RandomFlip,
    Transform,
    make_transform,
)

__all__ = [
    "DATASETS",
    "BalancedSampler",
    "BestModel",
    "CSVLogger",
    "Callback",
    "Checkpoint",
    "Compose",
    "Cutout",
    "Dataset",
    "EarlyStopping",
    "Epoch",
    "Evaluation",
    "Feed",
    "History",
    "JSONLogger",
    "LazyImages",
    "LossScaler",
    "MixedLabels",
    "MixedLoss",
    "Mixup",
    "Normalize",
    "Normalizer",
    "RandomCrop",
    "RandomFlip",
    "RateSearch",
    "Residual",
    "Sampler",
    "Sequential",
    "SequentialSampler",
    "ShuffledSampler",
    "Split",
    "SubsetSampler",
    "TensorBoardLogger",
    "Trainer",
    "Transform",
    "WeightAverage",
    "WeightedSampler",
    "accuracy",
    "batches",
    "class_weights",
    "confusion_matrix",
    "evaluate",
    "find_learning_rate",
    "index_batches",
    "load",
    "load_checkpoint",
    "load_data",
    "make_transform",
    "per_class",
    "plot_curves",
    "read_safetensors",
    "save",
    "save_data",
    "train_validation_split",
    "write_safetensors",
]
