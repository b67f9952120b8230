"""Loss functions and their gradients.

SquaredError, CrossEntropy, VAELoss, WGAN_GPLoss and NCELoss are numpy-ml's, with its argument
order and its sums and means. SoftmaxCrossEntropy is ours: integer labels and logits, softmax and
loss in one stable operation; so is DiscreteSampler, the noise NCELoss draws from.
Losses are 0-d arrays on the arrays' backend, so a GPU is not waited for; ``float(loss)`` waits.
"""

from gpulayers.losses._base import ObjectiveBase
from gpulayers.losses.classic import CrossEntropy, SquaredError
from gpulayers.losses.generative import VAELoss, WGAN_GPLoss
from gpulayers.losses.nce import NCELoss
from gpulayers.losses.sampling import DiscreteSampler
from gpulayers.losses.softmax import SoftmaxCrossEntropy

__all__ = [
    "CrossEntropy",
    "DiscreteSampler",
    "NCELoss",
    "ObjectiveBase",
    "SoftmaxCrossEntropy",
    "SquaredError",
    "VAELoss",
    "WGAN_GPLoss",
]
