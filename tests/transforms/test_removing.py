"""Units removed by what the train steps say: the signal, which units go, and when."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jaxprune as jp
from tests.near import assert_near
from tests.transforms.residual_net import INNER, MODEL, TRAIN, N, drawn, losses


def slopes_of(problem, gates, train=TRAIN):
    variables, coupling, x, y = problem
    apply = jp.coupling.gated_apply(coupling, train, has_aux=True)

    def objective(variables, gates):
        logits, aux = apply(variables, gates, x)
        return losses(logits, y).mean(), aux

    return jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))(variables, gates)


def test_a_step_with_gates_is_the_plain_step_and_gives_every_examples_slope(problem, x64):
    variables, coupling, x, y = problem
    gates = jp.coupling.ones(coupling, jnp.float64, groups=INNER, examples=N)
    (loss, aux), (gradient, slopes) = slopes_of(problem, gates)

    def plain(variables):
        logits, aux = TRAIN(variables, x)
        return losses(logits, y).mean(), aux

    (expected, updated), other = jax.jit(jax.value_and_grad(plain, has_aux=True))(variables)
    assert_near(loss, expected, jnp.float64)
    jax.tree.map(lambda a, b: assert_near(a, b, jnp.float64, 1e4), gradient, other)
    jax.tree.map(lambda a, b: assert_near(a, b, jnp.float64), aux, updated)

    def hidden_scaled(scales, name):
        """The network with the inputs of the block's second convolution scaled by hand."""

        def scaled(following, args, kwargs, context):
            if context.module.name == f"second_{name[-1]}":
                args = (args[0] * scales[:, None, None, :],)
            return following(*args, **kwargs)

        with nn.intercept_methods(scaled):
            return plain(variables)[0]

    for name in INNER:
        brute = jax.grad(hidden_scaled)(jnp.ones_like(slopes[name]), name)
        assert_near(slopes[name], brute, jnp.float64, 1e4)


def test_where_examples_are_alone_the_signal_is_unit_fisher_and_unit_taylor(problem, x64):
    variables, coupling, x, y = problem
    gates = jp.coupling.ones(coupling, jnp.float64, examples=N)
    _, (_, slopes) = slopes_of(problem, gates, lambda v, x: (MODEL.apply(v, x), ()))
    for kind, score in (
        ("fisher", jp.saliency.unit_fisher(coupling, losses)),
        ("taylor", jp.saliency.unit_taylor(coupling, losses)),
    ):
        signal = jp.transforms.removing.SIGNALS[kind]
        expected = score(variables, (x, y))
        for name, rows in slopes.items():
            assert_near(abs(signal(N * rows)) / N, expected[name], jnp.float64, 1e5)


def plan(batches, kept, each, floor, most, cost=None):
    """The units that go, by sorting: {group: flags}."""
    squares = lambda rows: ((len(rows) * rows) ** 2).sum(0) / 2
    count = sum(len(batch["first_0"]) for batch in batches)
    total = {name: sum(squares(batch[name]) for batch in batches) / count for name in kept}
    cost = cost or dict.fromkeys(kept, 1)
    ranked = sorted(
        (float(score / np.broadcast_to(cost[name], len(kept[name]))[i]), name, i)
        for name in kept
        for i, score in enumerate(total[name])
        if kept[name][i]
    )
    kept = {name: flags.copy() for name, flags in kept.items()}
    for _, name, i in ranked:
        gone = sum(int((~flags).sum()) for flags in kept.values())
        if each and gone < most and kept[name].sum() > floor:
            kept[name][i] = False
            each -= 1
    return kept


def test_a_group_smaller_than_the_floor_keeps_all_and_takes_nothing_from_the_others():
    params = [jnp.ones((1, 2)), jnp.ones((2, 5)), jnp.ones((5, 1))]
    apply = lambda w, x: jax.nn.relu(jax.nn.relu(x @ w[0]) @ w[1]) @ w[2]
    coupling = jp.couple(apply, params, jnp.ones((1, 1)))
    scores = {name: jnp.arange(1.0, 1 + group.units) for name, group in coupling.groups.items()}
    tx = jp.remove_units(coupling, every=1, each=9, floor=3, signal=lambda params, batch: scores)
    _, state = tx.update(params, tx.init(params), params)
    kept = sorted(state.kept.values(), key=len)
    np.testing.assert_array_equal(kept[0], [True, True])
    np.testing.assert_array_equal(kept[1], [False, False, True, True, True])


@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("each", "floor", "stop", "cost"),
    [(1, 1, None, None), (2, 2, None, None), (1, 1, 3, None), (3, 1, None, "flops")],
)
def test_the_lowest_units_since_the_last_removal_go(light, each, floor, stop, cost):
    variables, coupling, _, _ = light
    params = variables["params"]
    part = coupling.part(lambda v: v["params"], variables)
    tx = optax.chain(
        optax.sgd(0.1),
        jp.remove_units(
            part, every=3, each=each, stop=stop, groups=INNER, floor=floor, cost=cost
        ),
    )  # fmt: skip
    state, kept, since = tx.init(params), {n: np.ones(coupling.groups[n].units, bool)
                                           for n in INNER}, []  # fmt: skip
    most = min(stop or 99, sum(len(flags) - floor for flags in kept.values()))
    costs = cost and {name: coupling.unit_costs(cost)[name] for name in INNER}
    step = jax.jit(lambda p, s, g: tx.update(p, s, p, gates=g))
    for number in range(30):
        slopes = {n: np.asarray(drawn(4 + number % 2, len(kept[n]), seed=number)) for n in INNER}
        since.append({name: rows.astype(np.float32) for name, rows in slopes.items()})
        updates, state = step(params, state, slopes)
        params = optax.apply_updates(params, updates)
        if number % 3 == 2:
            kept, since = plan(since, kept, each, floor, most, costs), []
        for name in INNER:
            np.testing.assert_array_equal(state[1].kept[name], kept[name])
        mask = part.mask(kept, params)
        jax.tree.map(np.testing.assert_array_equal, jp.mask_of(state), mask)
        gone = jax.tree.map(lambda p, m: bool(jnp.all(jnp.where(m, True, p == 0))), params, mask)
        assert all(jax.tree.leaves(gone))
    assert sum(int((~flags).sum()) for flags in kept.values()) == most


@pytest.mark.every(3)
@pytest.mark.parametrize("kind", ["l1", "random", "taylor"])
def test_other_signals_are_asked_when_units_go(light, kind):
    variables, coupling, x, y = light
    params = variables["params"]
    part = coupling.part(lambda v: v["params"], variables)
    whole = lambda params: {**variables, "params": params}
    signal = {
        "l1": jp.saliency.unit_magnitude(part, incoming=True),
        "random": jp.saliency.random_units(part, jax.random.key(0)),
        "taylor": lambda p, batch: jp.saliency.unit_taylor(coupling, losses)(whole(p), batch),
    }[kind]
    tx = jp.remove_units(part, every=2, signal=signal, groups=INNER)
    state = tx.init(params)
    gradient = jax.tree.map(jnp.zeros_like, params)
    for _ in range(2):
        scores = signal(params, (x, y))
        _, state = tx.update(gradient, state, params, batch=(x, y))
    lowest = min((float(scores[name].min()), name) for name in INNER)[1]
    expected = {name: np.ones(coupling.groups[name].units, bool) for name in INNER}
    expected[lowest][int(scores[lowest].argmin())] = False
    jax.tree.map(np.testing.assert_array_equal, state.kept, expected)


def test_a_signal_that_is_not_finite_removes_nothing_and_is_forgotten(light):
    variables, coupling, _, _ = light
    params = variables["params"]
    part = coupling.part(lambda v: v["params"], variables)
    tx = jp.remove_units(part, every=1, groups=INNER)
    state = tx.init(params)
    good = {name: drawn(N, coupling.groups[name].units) for name in INNER}
    bad = {**good, "first_0": good["first_0"].at[2, 1].set(jnp.nan)}
    _, state = tx.update(params, state, params, gates=bad)
    assert int(state.masking.refused) == 1
    assert all(bool(flags.all()) for flags in state.kept.values())
    _, state = tx.update(params, state, params, gates=good)
    assert int(state.masking.refused) == 1
    assert sum(int((~flags).sum()) for flags in state.kept.values()) == 1


def test_a_part_keeps_the_units_and_names_of_its_own(light):
    variables, coupling, _, _ = light
    part = coupling.part(lambda v: v["params"], variables)
    kept = {"first_0": np.arange(5) > 1}
    whole = coupling.mask(kept, variables)["params"]
    jax.tree.map(np.testing.assert_array_equal, part.mask(kept, variables["params"]), whole)
    found = part.kept(whole)
    np.testing.assert_array_equal(found["first_0"], kept["first_0"])
    names = {member.leaf for group in part.groups.values() for member in group.members}
    assert "first_0/kernel" in names
    assert not [name for name in names if "mean" in name]
    with pytest.raises(ValueError, match="is a part of one"):
        jp.coupling.gated_apply(part)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"signal": "fischer"}, "Unknown signal 'fischer'"),
        ({"every": 0}, "`every` is an integer >= 1"),
        ({"each": 1.5}, "`each` is an integer >= 1"),
        ({"stop": 0}, "`stop` is an integer >= 1"),
        ({"groups": ["first_9"]}, "No group of units is called 'first_9'"),
        ({"floor": -1}, "floor"),
    ],
)
def test_what_cannot_be_done_is_refused(problem, change, words):
    with pytest.raises(ValueError, match=words):
        jp.remove_units(problem[1], **{"every": 1, **change})


@pytest.mark.parametrize(
    ("gates", "words"),
    [
        (None, "gates=slopes"),
        ({"first_0": jnp.ones((2, 5))}, "nothing for the group 'first_1'"),
        ({"first_0": jnp.ones(5), "first_1": jnp.ones((2, 6))}, r"shape \(5,\).*\[N, 5\]"),
    ],
)
def test_slopes_that_are_missing_or_of_another_shape_are_refused(light, gates, words):
    variables, coupling, _, _ = light
    params = variables["params"]
    tx = jp.remove_units(coupling.part(lambda v: v["params"], variables), every=1, groups=INNER)
    with pytest.raises(ValueError, match=words):
        tx.update(params, tx.init(params), params, gates=gates)


def test_gates_of_examples_need_an_axis_of_examples():
    w = [drawn(3, 4), drawn(4, 2)]
    x = drawn(2, 5, 3)

    def merged(w, x):
        hidden = jax.nn.relu(x.reshape(-1, 3) @ w[0]) @ w[1]
        return hidden.reshape(*x.shape[:2], 2)

    coupling = jp.couple(merged, w, x)
    run = jp.coupling.gated_apply(coupling)
    with pytest.raises(ValueError, match="not an axis of their own"):
        run(w, jp.coupling.ones(coupling, examples=2), x)
    with pytest.raises(ValueError, match="those of 3 examples"):
        run(w, jp.coupling.ones(coupling, examples=3), x)
    with pytest.raises(ValueError, match="the group has 4 units"):
        run(w, {"0": jnp.ones((2, 5))}, x)


def hidden(width=6):
    w = [drawn(3, width), drawn(width, 2)]
    return w, jp.couple(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, drawn(2, 3))


def test_what_a_mask_of_ones_own_prunes_stays_pruned_at_removals():
    w, coupling = hidden()
    tx = jp.remove_units(coupling, every=2, signal=jp.saliency.unit_magnitude(coupling))
    given = coupling.mask({"0": np.arange(6) != 3}, w)
    given[1] = given[1].at[0, 1].set(False)
    params, state = w, jp.with_mask(tx.init(w), given)
    for _ in range(8):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, w), state, params)
        params = optax.apply_updates(params, updates)
        for leaf, keep in zip(params, given, strict=True):
            assert not np.asarray(leaf)[~np.asarray(keep)].any()
        expected = jax.tree.map(jnp.logical_and, given, coupling.mask(state.kept, w))
        jax.tree.map(np.testing.assert_array_equal, jp.mask_of(state), expected)
    assert int(state.kept["0"].sum()) == 2


def test_scores_of_entries_are_summed_over_each_unit():
    w, coupling = hidden()
    by_unit = jp.saliency.unit_magnitude(coupling)
    for signal in (jp.saliency.magnitude(), lambda params, batch: jax.tree.map(jnp.abs, params)):
        states = []
        for scores in (signal, by_unit):
            tx = jp.remove_units(coupling, every=np.int64(1), each=np.int32(2), signal=scores)
            states.append(tx.update(w, tx.init(w), w)[1])
        jax.tree.map(np.testing.assert_array_equal, states[0].kept, states[1].kept)
        assert int(states[0].kept["0"].sum()) == 4
    # A leaf that is called as the group is no score of it.
    named = {"a": w[0], "b": w[1]}
    apply = lambda w, x: jax.nn.relu(x @ w["a"]) @ w["b"]
    coupling = jp.couple(apply, named, drawn(2, 3))
    tx = jp.remove_units(coupling, every=1, each=2, signal=jp.saliency.magnitude())
    kept = tx.update(named, tx.init(named), named)[1].kept
    np.testing.assert_array_equal(kept["a"], states[0].kept["0"])
