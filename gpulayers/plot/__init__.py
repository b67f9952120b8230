"""Pictures of training runs, networks and benchmarks, each as a matplotlib ``Figure``.

    figure = gpulayers.plot.training_curves(history)
    figure.savefig("curves.png")

They need matplotlib, which the extra ``train`` brings; no display is needed.
"""

from gpulayers.plot.curves import training_curves
from gpulayers.plot.diagram import network_diagram
from gpulayers.plot.judgement import confusion_matrix, worst_mistakes
from gpulayers.plot.roofline import roofline
from gpulayers.plot.weights import feature_maps, filters, saliency

__all__ = [
    "confusion_matrix",
    "feature_maps",
    "filters",
    "network_diagram",
    "roofline",
    "saliency",
    "training_curves",
    "worst_mistakes",
]
