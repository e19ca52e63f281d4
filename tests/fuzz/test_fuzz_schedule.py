"""Schedules at random steps: their formulas, their ends, their errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import jaxprune as jp
from tests.fuzz.drawing import Row, each, holds


def _rise(final, initial, x, kind):
    if kind == "cubic":
        return final + (initial - final) * (1 - x) ** 3
    if kind == "exponential":
        return 1 - (1 - initial) * ((1 - final) / (1 - initial)) ** x
    return initial + (final - initial) * x


def rising(kind):
    share = st.floats(0, 0.999)

    def law(draw):
        initial, final = sorted((draw(share), draw(share)))
        steps, begin = draw.number(1, 10**6), draw.number(-5, 10**6)
        make = getattr(jp.schedule, kind)
        schedule = make(final, steps, begin=begin, initial=initial)
        at = sorted(draw.number(begin - 3, begin + steps + 3) for _ in range(3))
        values = [schedule(t) for t in at]
        assert values == sorted(values)
        assert (schedule(begin), schedule(begin + steps)) == (initial, final)
        for t, value in zip(at, values, strict=True):
            x = min(max((t - begin) / steps, 0), 1)
            assert math.isclose(value, _rise(final, initial, x, kind), abs_tol=1e-9)
        found = jax.vmap(schedule)(jnp.array(at))
        np.testing.assert_allclose(found, values, atol=2e-6)
        for wrong in ({"steps": 0}, {"steps": -1}):
            with pytest.raises(ValueError, match="positive number of steps"):
                make(final, **wrong)
        for wrong in ((1.0, 0.0), (0.5, -0.1), (math.nan, 0.0)):
            with pytest.raises(ValueError, match="sparsity"):
                make(wrong[0], 5, initial=wrong[1])
        if initial < final:
            with pytest.raises(ValueError, match="starts at"):
                make(initial, steps, initial=final)

    return law


def held(draw):
    final, step = draw(st.floats(0, 0.999)), draw.number(0, 100)
    schedule = jp.schedule.constant(final)
    assert schedule(step) == final
    np.testing.assert_array_equal(jax.vmap(schedule)(jnp.arange(2)), np.float32([final] * 2))
    with pytest.raises(ValueError, match="must lie in"):
        jp.schedule.constant(1 + final)


def falling(draw):
    initial, steps = draw(st.floats(0, 0.999)), draw.number(1, 1000)
    schedule = jp.schedule.cosine_decay(initial, steps)
    at = [0, draw.number(0, steps), steps, steps + 7]
    expected = [initial / 2 * (1 + math.cos(math.pi * min(t / steps, 1))) for t in at]
    np.testing.assert_allclose([schedule(t) for t in at], expected, atol=1e-12)
    np.testing.assert_allclose(jax.vmap(schedule)(jnp.array(at)), expected, atol=1e-6)
    with pytest.raises(ValueError, match="positive number"):
        jp.schedule.cosine_decay(initial, 0)


def turns(draw):
    """Every leaf has its turn, the mean of the leaves is the call's sparsity."""
    many, final = draw.number(1, 6), draw(st.floats(0.01, 0.99))
    own = jp.schedule.in_turn([f"leaf{i}" for i in range(many)], final)
    s = draw(st.floats(0, 1)) * final
    values = [own[f"leaf{i}"](s) for i in range(many)]
    assert values == sorted(values, reverse=True)
    assert sum(0 < v < final for v in values) <= 1
    assert math.isclose(sum(values) / many, s, abs_tol=1e-6)
    assert all(f(final) == final for f in own.values())
    with pytest.raises(ValueError, match="none twice"):
        jp.schedule.in_turn(["a", "a"], final)


LAWS = {
    "schedule.constant": Row(held),
    "schedule.linear": Row(rising("linear")),
    "schedule.cubic": Row(rising("cubic")),
    "schedule.exponential": Row(rising("exponential")),
    "schedule.cosine_decay": Row(falling),
    "schedule.in_turn": Row(turns),
}


@each(LAWS)
def test_schedules_are_their_formulas(row):
    holds(row)


@pytest.mark.slow
@each(LAWS, wide=True)
def test_schedules_are_their_formulas_hundreds_of_times(row):
    holds(row, wide=True)
