"""Schedules: exact ends, no falls, the same inside jit and outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import schedule

RISING = [schedule.linear, schedule.cubic, schedule.exponential]
ENDS = [(0.9, 0.0), (0.9, 0.1), (0.9, 0.3), (0.95, 0.45), (0.5, 0.5), (0.999, 0.2)]
EPS = float(np.finfo(np.float32).eps)


def inside_jit(rise, steps):
    return np.asarray(jax.jit(jax.vmap(rise))(jnp.arange(steps)))


def test_the_cubic_schedule_passes_through_the_check_values_of_zhu_and_gupta():
    rise = schedule.cubic(0.9, 100)
    for step, sparsity in ((23.686, 0.5), (44.968, 0.75), (69.715, 0.875)):
        # The steps are given to three digits, and the slope is at most 3 * .9 / 100 a step.
        assert abs(rise(step) - sparsity) < 0.0005 * 3 * 0.9 / 100
        assert abs(float(jax.jit(rise)(step)) - sparsity) < 0.0005 * 3 * 0.9 / 100 + 2 * EPS


def test_each_schedule_is_its_formula():
    n, s0, s1 = 50, 0.2, 0.9
    x = np.arange(n + 1) / n
    formulas = {
        schedule.linear: s0 + (s1 - s0) * x,
        schedule.cubic: s1 + (s0 - s1) * (1 - x) ** 3,
        schedule.exponential: 1 - (1 - s0) * ((1 - s1) / (1 - s0)) ** x,
    }
    for make, expected in formulas.items():
        rise = make(s1, n, begin=7, initial=s0)
        np.testing.assert_allclose([rise(7 + i) for i in range(n + 1)], expected, rtol=1e-14)
        np.testing.assert_allclose(inside_jit(rise, 7 + n + 1)[7:], expected, rtol=8 * EPS)


@pytest.mark.parametrize("make", RISING)
@pytest.mark.parametrize(("final", "initial"), ENDS)
@pytest.mark.parametrize("steps", [1, 3, 1000])
def test_the_ends_are_exact_and_nothing_falls_or_overshoots(make, final, initial, steps):
    rise = make(final, steps, begin=2, initial=initial)
    plain = np.array([rise(i) for i in range(-1, steps + 10)])
    traced = inside_jit(rise, steps + 10)
    for values, of in ((plain[1:], float), (traced, np.float32)):
        assert (values[:3] == of(initial)).all()  # before it begins, and at its begin
        assert (values[2 + steps :] == of(final)).all()
        assert values.max() == of(final)
        # exp and log are good to a few last places, which can be a fall of that size midway.
        assert np.diff(values).min() >= (0 if make is not schedule.exponential else -4 * EPS)
    assert plain[0] == initial


def test_no_rounding_makes_a_late_step_overshoot():
    # .1 + (.9 - .1) * 1 is above .9 in float32, and .3 + (.9 - .3) in float64.
    for initial in (0.1, 0.3):
        rise = schedule.cubic(0.9, 10**6, initial=initial)
        late = 10**6 - 1
        assert rise(late) <= 0.9
        assert jax.jit(rise)(late) <= np.float32(0.9)


@pytest.mark.parametrize("make", RISING)
def test_no_rounding_makes_the_end_fall_short(make):
    # .01 + (.05 - .01) * 1 is below .05 in float32, and stays there for a while after the end.
    held = jax.vmap(make(0.05, 1000, initial=0.01))(jnp.array([1000, 1001, 1002, 2000]))
    np.testing.assert_array_equal(held, [np.float32(0.05)] * 4)
    # And .05 + (.21 - .05) * 1 is below .21 in float64.
    rise = make(0.21, 10**9, initial=0.05)
    assert {rise(10**9 + after) for after in (0, 1, 100)} == {0.21}


@pytest.mark.parametrize("make", RISING)
def test_by_default_a_schedule_rises_from_0_at_step_0(make):
    rise = make(0.9, 10)
    assert (rise(-1), rise(0)) == (0, 0)
    assert rise(1) == make(0.9, 10, begin=0, initial=0.0)(1) > 0


def test_the_fraction_that_decays_is_whole_before_step_0():
    fall = schedule.cosine_decay(0.3, 10)
    assert fall(-5) == fall(0) == 0.3
    assert jax.jit(fall)(-5) == np.float32(0.3)


def test_a_fraction_outside_zero_to_one_is_refused():
    for bad in (-0.1, -1, 1, 1.0, float("nan"), True, False):
        with pytest.raises(ValueError, match=f"dropped, in .*; got {bad!r}"):
            schedule.cosine_decay(bad, 10)


@pytest.mark.parametrize("final", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("many", [1, 3, 7])
def test_each_leaf_has_its_turn_and_its_ends_are_exact(many, final):
    own = list(schedule.in_turn([str(i) for i in range(many)], final).values())
    inside = jax.jit(lambda s: jnp.stack([at(s) for at in own]))
    for done in range(many + 1):  # so many turns are over, and the others have not begun
        ends = np.array([final] * done + [0.0] * (many - done))
        reached = final * done / many
        np.testing.assert_array_equal([at(reached) for at in own], ends)
        np.testing.assert_array_equal([at(np.float32(reached)) for at in own], ends)
        np.testing.assert_array_equal(inside(reached), ends.astype(np.float32))
    for reached in np.random.default_rng(many).random(20) * final:
        passed = np.clip(reached * many / (final or 1) - np.arange(many), 0, 1)
        plain = [at(reached) for at in own]
        np.testing.assert_allclose(plain, final * passed, rtol=0, atol=0.51e-6)
        np.testing.assert_allclose(inside(reached), plain, rtol=0, atol=1e-6 + many * EPS)


def test_bad_turns_are_refused():
    for names in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="at least one, and none twice"):
            schedule.in_turn(names, 0.5)
    with pytest.raises(ValueError, match=r"final sparsity .* got 1\.0"):
        schedule.in_turn(["a"], 1.0)


def test_constant_is_constant():
    assert schedule.constant(0.9)(0) == schedule.constant(0.9)(10**9) == 0.9
    np.testing.assert_array_equal(inside_jit(schedule.constant(0.5), 3), [0.5] * 3)


def test_python_numbers_give_python_numbers():
    for make in RISING:
        assert type(make(0.9, 10)(3)) is float
        assert type(make(0.9, 10)(jnp.int32(3))) is float
    assert type(schedule.constant(0.9)(3)) is float


@pytest.mark.parametrize("make", RISING)
def test_bad_schedules_are_refused_when_they_are_made(make):
    for steps in (0, -5, float("nan")):
        with pytest.raises(ValueError, match="positive number of steps, got steps="):
            make(0.9, steps)
    for bad in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"sparsity .* must lie in \[0, 1\), got"):
            make(bad, 10)
        with pytest.raises(ValueError, match=r"sparsity .* must lie in \[0, 1\), got"):
            make(0.9, 10, initial=bad)
    with pytest.raises(
        ValueError, match=r"starts at 0\.9, above its end 0\.5.*`initial` <= `final`"
    ):
        make(0.5, 10, initial=0.9)
    with pytest.raises(TypeError, match=r"got '0\.9'"):
        make("0.9", 10)
    with pytest.raises(ValueError, match=r"got 1\.5"):
        schedule.constant(1.5)


def test_numbers_in_strings_are_refused_when_a_schedule_is_made():
    for make in RISING:
        with pytest.raises(TypeError, match="number of steps is a number, got '100'"):
            make(0.5, "100")
        with pytest.raises(TypeError, match="begins at is a number, got None"):
            make(0.5, 100, begin=None)
    with pytest.raises(TypeError, match=r"fraction is a number, got '0\.5'"):
        schedule.cosine_decay("0.5", 100)
    with pytest.raises(TypeError, match=r"number of steps is a number, got \[1\]"):
        schedule.cosine_decay(0.5, [1])
    assert schedule.linear(0.5, np.int32(2), begin=np.float32(1))(2) == 0.25
