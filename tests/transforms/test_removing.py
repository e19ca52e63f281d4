"""Units removed by what the train steps say: the signal, which units go, and when."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jaxprune as jp
from tests.near import assert_near

N = 6


class Net(nn.Module):
    """A stem, two residual blocks with BatchNorm, a head."""

    widths: tuple[int, int] = (5, 6)

    @nn.compact
    def __call__(self, x, train=False):
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = nn.Conv(4, (3, 3), name="stem")(x)
        for block, width in enumerate(self.widths):
            hidden = nn.Conv(width, (3, 3), use_bias=False, name=f"first_{block}")(x)
            hidden = nn.relu(norm(name=f"norm_{block}")(hidden))
            x = nn.relu(x + nn.Conv(4, (3, 3), name=f"second_{block}")(hidden))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


MODEL = Net()
TRAIN = partial(MODEL.apply, train=True, mutable=["batch_stats"])
INNER = ("first_0", "first_1")


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.fixture(scope="module")
def problem():
    with jax.enable_x64(True):
        x, y = drawn(N, 5, 5, 2), jnp.arange(N) % 3
        variables = MODEL.init(jax.random.key(0), x)
        variables = jax.tree.map(lambda leaf: leaf + 0.1 * drawn(*leaf.shape, seed=9), variables)
        coupling = jp.couple(MODEL.apply, variables, x)
        return variables, coupling, x, y


@pytest.fixture(scope="module")
def light(problem):
    """The same in float32."""
    narrow = lambda leaf: leaf.astype(jnp.float32)
    variables, coupling, x, y = problem
    return jax.tree.map(narrow, variables), coupling, narrow(x), y


def losses(logits, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)


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


@pytest.mark.half
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


@pytest.mark.half
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


def trainer(model, coupling, variables, x, y, every, stop=None, each=1):
    """The optimizer, and a jitted step of `(params, stats, state)`."""
    part = coupling.part(lambda v: v["params"], variables)
    train = partial(model.apply, train=True, mutable=["batch_stats"])
    apply = jp.coupling.gated_apply(coupling, train, has_aux=True)
    gates = jp.coupling.ones(coupling, x.dtype, groups=INNER, examples=N)
    tx = optax.chain(
        optax.adam(1e-2), jp.remove_units(part, every=every, each=each, groups=INNER, stop=stop)
    )

    @jax.jit
    def step(params, stats, state):
        def objective(params, gates):
            logits, aux = apply({"params": params, "batch_stats": stats}, gates, x)
            return losses(logits, y).mean(), aux["batch_stats"]

        found = jax.value_and_grad(objective, (0, 1), has_aux=True)(params, gates)
        (_, stats_), (gradient, slopes) = found
        updates, state_ = tx.update(gradient, state, params, gates=slopes)
        return optax.apply_updates(params, updates), stats_, state_

    return tx, step


def kept_in(state):
    return {name: np.asarray(flags) for name, flags in state[1].kept.items()}


def test_masked_and_shrunk_compute_the_same_along_the_path(light):
    variables, coupling, x, y = light
    tx, step = trainer(MODEL, coupling, variables, x, y, every=2)
    params, stats = variables["params"], variables["batch_stats"]
    state = tx.init(params)
    for removed in range(1, 6):
        for _ in range(2):
            params, stats, state = step(params, stats, state)
        kept = kept_in(state)
        assert sum(int((~flags).sum()) for flags in kept.values()) == removed
        assert float(state[1].masking.reached) == pytest.approx(removed / 11)
        whole = {"params": params, "batch_stats": stats}
        small = jp.structure.shrink_units(whole, kept, coupling)
        shrunk = jp.shrunk_apply(coupling, kept)
        np.testing.assert_allclose(shrunk(small, x), MODEL.apply(whole, x), rtol=1e-4, atol=1e-5)


def test_one_after_the_other_is_not_what_goes_at_once(light):
    """What is left says other things of itself when a unit is gone; both are offered."""
    variables, coupling, x, y = light
    found = []
    for each in (1, 5):
        tx, step = trainer(MODEL, coupling, variables, x, y, every=each, each=each)
        params, stats = variables["params"], variables["batch_stats"]
        state = tx.init(params)
        for _ in range(5):
            params, stats, state = step(params, stats, state)
        found.append(kept_in(state))
    assert [sum(int((~flags).sum()) for flags in kept.values()) for kept in found] == [5, 5]
    assert any((found[0][name] != found[1][name]).any() for name in INNER)


@pytest.mark.parametrize("at", [4, pytest.param(6, marks=pytest.mark.slow)])
def test_a_path_that_is_shrunk_on_the_way_goes_on_as_the_masked_one(at, problem, x64):
    """Shrunk between two removals, half of the signal summed, or at one."""
    variables, coupling, x, y = problem
    tx, step = trainer(MODEL, coupling, variables, x, y, every=3, stop=4)
    params, stats = variables["params"], variables["batch_stats"]
    state, path = tx.init(params), []
    for _ in range(13):
        path.append((params, stats, state))
        params, stats, state = step(params, stats, state)
    last = kept_in(state)
    expected = jp.structure.shrink_units({"params": params, "batch_stats": stats}, last, coupling)

    params, stats, state = path[at]
    kept = kept_in(state)
    gone = sum(int((~flags).sum()) for flags in kept.values())
    assert 0 < gone < 4
    whole = {"params": params, "batch_stats": stats}
    small, state = jp.shrink(whole, coupling.mask(kept, whole), coupling, state)
    model = Net(tuple(int(kept[name].sum()) for name in INNER))
    again = jp.couple(model.apply, small, x)
    _, step = trainer(model, again, small, x, y, every=3, stop=4 - gone)
    params, stats = small["params"], small["batch_stats"]
    for _ in range(at, 13):
        params, stats, state = step(params, stats, state)
    found = kept_in(state)
    assert sum(int((~flags).sum()) for flags in found.values()) == 4 - gone
    for name, flags in found.items():
        np.testing.assert_array_equal(np.flatnonzero(kept[name])[flags], np.flatnonzero(last[name]))
    ours = jp.structure.shrink_units({"params": params, "batch_stats": stats}, found, again)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), ours, expected
    )


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
