"""What a report refuses, and what it says to do instead."""

import jax
import jax.numpy as jnp
import pytest

from jaxprune import trees
from jaxprune.reporting import report


def test_a_mask_that_does_not_fit_is_an_error_that_names_the_leaf():
    params = {"a": {"kernel": jnp.ones((2, 3))}, "b": jnp.ones((2, 2))}
    mask = trees.full_mask(params)
    with pytest.raises(ValueError, match=r"'a/kernel' has shape \(3, 2\)"):
        report(params, mask | {"a": {"kernel": jnp.ones((3, 2), bool)}})
    with pytest.raises(ValueError, match="missing from the mask: \\['b'\\]"):
        report(params, {"a": mask["a"]})
    with pytest.raises(TypeError, match="'b' has dtype float32"):
        report(params, mask | {"b": jnp.ones((2, 2))})


def test_counting_inside_jit_is_an_error_that_says_to_leave_it():
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda m: report({"k": jnp.ones((2, 2))}, m).totals.kept)({"k": jnp.eye(2) > 0})


@pytest.mark.parametrize("given", ["apply", "inputs"])
def test_apply_and_inputs_come_together(given):
    params = jnp.ones((2, 2))
    found = {"apply": lambda w, x: x @ w, "inputs": params}
    missing = {"apply": "inputs", "inputs": "apply"}[given]
    with pytest.raises(ValueError, match=f"`{missing}` is missing"):
        report(params, params > 0, **{given: found[given]})


def test_nothing_prunable_is_an_error():
    with pytest.raises(ValueError, match="Nothing to prune"):
        report([jnp.ones(3)], [jnp.ones(3, bool)])
