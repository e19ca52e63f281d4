"""Curvature of the loss: diagonals for second-order saliencies, and the products behind them."""

from jaxprune.curvature.exact import exact_diagonal
from jaxprune.curvature.gauss_newton import gauss_newton_diagonal
from jaxprune.curvature.gradients import fisher_diagonal, gradient_moments
from jaxprune.curvature.layers import layer_moments
from jaxprune.curvature.probes import hutchinson_diagonal
from jaxprune.curvature.products import hvp
from jaxprune.curvature.roots import sigmoid_root, softmax_root, squared_error_root

__all__ = [
    "exact_diagonal",
    "fisher_diagonal",
    "gauss_newton_diagonal",
    "gradient_moments",
    "hutchinson_diagonal",
    "hvp",
    "layer_moments",
    "sigmoid_root",
    "softmax_root",
    "squared_error_root",
]
