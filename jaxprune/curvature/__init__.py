"""Curvature of the loss: diagonals for second-order saliencies, and the products behind them."""

from jaxprune.curvature.exact import exact_diagonal
from jaxprune.curvature.factored import FactoredFisher, factored_fisher
from jaxprune.curvature.gauss_newton import gauss_newton_diagonal
from jaxprune.curvature.gradients import (
    fisher_diagonal,
    gradient_moments,
    true_fisher_diagonal,
)
from jaxprune.curvature.layers import layer_moments
from jaxprune.curvature.likelihoods import Likelihood, bernoulli, categorical, normal
from jaxprune.curvature.probes import hutchinson_diagonal
from jaxprune.curvature.products import gauss_newton_vp, hvp
from jaxprune.curvature.roots import sigmoid_root, softmax_root, squared_error_root
from jaxprune.curvature.sketched import sketched_gauss_newton

__all__ = [
    "FactoredFisher",
    "Likelihood",
    "bernoulli",
    "categorical",
    "exact_diagonal",
    "factored_fisher",
    "fisher_diagonal",
    "gauss_newton_diagonal",
    "gauss_newton_vp",
    "gradient_moments",
    "hutchinson_diagonal",
    "hvp",
    "layer_moments",
    "normal",
    "sigmoid_root",
    "sketched_gauss_newton",
    "softmax_root",
    "squared_error_root",
    "true_fisher_diagonal",
]
