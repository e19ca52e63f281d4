"""Lottery tickets: early weights under a late mask, once and in rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.transforms import zoo

PRUNE = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest())


def late():
    return jax.tree.map(lambda w: jnp.sin(7 * w) + 1, zoo.dense_params())


def test_a_ticket_has_the_early_values_where_the_late_mask_keeps_and_zeros_elsewhere():
    early, pruned = zoo.dense_params(), PRUNE(late(), sparsity=0.75)
    ticket = jp.rewind(pruned, early)
    zoo.assert_same_bits(ticket, jp.rewind(pruned.mask, early))
    zoo.assert_same_bits(ticket, jax.jit(jp.rewind)(pruned, early))
    zoo.assert_same_bits(ticket["hidden"]["bias"], early["hidden"]["bias"])
    for name in ("hidden", "readout"):
        mask = np.asarray(pruned.mask[name]["kernel"])
        expected = np.where(mask, early[name]["kernel"], 0)
        np.testing.assert_array_equal(ticket[name]["kernel"], expected)


def test_rounds_with_rewinding_train_every_time_from_the_early_weights():
    early, starts = zoo.dense_params(), []

    def train(params, mask):
        starts.append((params, mask))
        return jax.tree.map(lambda w: w * (2 - w), params)

    winner = jp.iterative(
        PRUNE,
        jp.schedule.exponential(0.75, 3),
        rounds=3,
        fine_tune=lambda params, mask: train(jp.rewind(mask, early), mask),
    )(late(), sparsity=0.75)
    for start, mask in starts:
        zoo.assert_same_bits(start, jp.apply_mask(early, mask))
    dropped = [zoo.dropped(mask) for _, mask in starts]
    assert dropped[0] < dropped[1] < dropped[2] == 54
    zoo.assert_same_bits(starts[-1][0], jp.rewind(winner, early))
    zoo.assert_same_bits(winner.params, train(*starts[-1]))


def test_a_ticket_of_another_tree_names_the_leaf():
    pruned = PRUNE(late(), sparsity=0.5)
    early = zoo.dense_params() | {"readout": {"kernel": jnp.ones((2, 2))}}
    with pytest.raises(ValueError, match="leaf 'readout/kernel' has shape"):
        jp.rewind(pruned, early)
