"""What can be hooked into a `Trainer`: early stopping, best weights, averages, logs.

Trainer(network, data, callbacks=[EarlyStopping(patience=5), CSVLogger("log.csv")]).fit()
"""

from gpulayers.training.callbacks.average import WeightAverage
from gpulayers.training.callbacks.base import Callback, Callbacks
from gpulayers.training.callbacks.logs import CSVLogger, JSONLogger, TensorBoardLogger
from gpulayers.training.callbacks.monitor import BestModel, EarlyStopping

__all__ = [
    "BestModel",
    "CSVLogger",
    "Callback",
    "Callbacks",
    "EarlyStopping",
    "JSONLogger",
    "TensorBoardLogger",
    "WeightAverage",
]
