"""Layers pruned one after another, and exceptions for some of them, by prune_gradually."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxprune as jp
from tests.transforms import zoo


def params():
    keys = jax.random.split(jax.random.key(0), 3)
    names = ("first", "second", "third")
    return {n: jax.random.normal(k, (5, 4)) for n, k in zip(names, keys, strict=True)}


def pruned_counts(scope, schedule, every, steps):
    """Entries pruned of every leaf after each update."""
    gradual = jp.prune_gradually(
        jp.saliency.magnitude(), jp.select.lowest(scope), schedule, every=every
    )
    tx = optax.chain(optax.sgd(0.01), gradual)
    now, state = params(), tx.init(params())
    update = jax.jit(tx.update)
    for _ in range(steps):
        updates, state = update(now, state, now)
        now = optax.apply_updates(now, updates)
        mask = jp.mask_of(state)
        assert zoo.alive(now, mask) == 0
        yield [int((~mask[name]).sum()) for name in ("first", "second", "third")]


def test_each_layer_is_pruned_at_once_at_the_end_of_its_turn_and_the_exception_never():
    turns = jp.schedule.in_turn(["third", "first"], 0.8) | {"second": 0.0}
    found = list(pruned_counts(turns, jp.schedule.linear(0.8, 4), every=2, steps=6))
    assert found == [[0, 0, 0]] * 2 + [[0, 0, 16]] * 2 + [[16, 0, 16]] * 2


def test_within_its_turn_a_layer_follows_the_schedule_and_the_others_hold():
    turns = jp.schedule.in_turn(["first", "second", "third"], 0.6)
    found = list(pruned_counts(turns, jp.schedule.linear(0.6, 9), every=1, steps=11))
    rise = [4, 8, 12]
    expected = [[0, 0, 0]] + [
        [12] * turn + [k] + [0] * (2 - turn) for turn in range(3) for k in rise
    ]
    assert found == expected + [[12, 12, 12]]


def test_traced_and_concrete_shares_agree_and_the_ends_are_exact():
    turns = jp.schedule.in_turn(["a", "b", "c"], 0.9)
    for step in range(31):
        call = 0.9 * step / 30
        for turn in turns.values():
            assert float(jax.jit(turn)(jnp.float32(call))) == pytest.approx(turn(call), abs=1e-6)
    assert [turn(0.9) for turn in turns.values()] == [0.9] * 3
    assert [turn(0.0) for turn in turns.values()] == [0.0] * 3


def test_turns_without_a_leaf_or_with_one_twice_are_errors():
    for names in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="Each leaf has one turn"):
            jp.schedule.in_turn(names, 0.5)
    with pytest.raises(ValueError, match="final sparsity"):
        jp.schedule.in_turn(["a"], 1.0)
