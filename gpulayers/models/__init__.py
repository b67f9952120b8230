"""Networks: how layers are put together, and a few well-known ones ready to train."""

from gpulayers.models._model import Model
from gpulayers.models.blocks import Activation, GatedActivation, Residual
from gpulayers.models.composite import Composite
from gpulayers.models.network import Sequential
from gpulayers.models.pixels import Pixels
from gpulayers.models.summary import Summary, summarize
from gpulayers.models.timing import Profile, profile
from gpulayers.models.vae import BernoulliVAE
from gpulayers.models.vocabulary import Vocabulary
from gpulayers.models.w2v import Word2Vec
from gpulayers.models.wgan_gp import WGAN_GP
from gpulayers.models.zoo import MODELS, build, lenet, mlp, resnet9, vgg_small

__all__ = [
    "MODELS",
    "WGAN_GP",
    "Activation",
    "BernoulliVAE",
    "Composite",
    "GatedActivation",
    "Model",
    "Pixels",
    "Profile",
    "Residual",
    "Sequential",
    "Summary",
    "Vocabulary",
    "Word2Vec",
    "build",
    "lenet",
    "mlp",
    "profile",
    "resnet9",
    "summarize",
    "vgg_small",
]
