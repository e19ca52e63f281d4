"""Whatever the labels call removable is removed exactly, unit by unit, against the masked model.

Models that a rule read wrongly, or could not read, each with the groups that are left.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune as jp
from jaxprune import trees
from jaxprune.jaxpr import label_rules, labels
from jaxprune.jaxpr.emitted import emitted

KEY = jax.random.key(0)


def normal(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def assert_exact(apply, weights, *inputs):
    """The group sizes; every unit removed by itself gives the masked model's outputs."""
    coupling = jp.couple(apply, weights, *inputs)
    for name, group in coupling.groups.items():
        for unit in range(group.units):
            kept = {name: np.arange(group.units) != unit}
            mask = coupling.mask(kept, weights)
            expected = apply(trees.apply_mask(weights, mask), *inputs)
            small = jp.structure.shrink_units(weights, kept, coupling)
            found = jp.shrunk_apply(coupling, kept)(small, *inputs)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
            gates = {n: jnp.asarray(keep, jnp.float32) for n, keep in kept.items()}
            found = jp.coupling.gated(coupling, weights)(gates, *inputs)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    return [group.units for group in coupling.groups.values()]


def looped(added, last):
    def apply(w, x):
        h = x @ w[0]
        step = lambda i, a: jnp.tanh(a @ w[1] + added(h, i, w))
        return lax.fori_loop(0, 3, step, x) @ w[last]

    return apply


def stacked(w, x):
    _, ys = lax.scan(lambda c, _: ((c[0] + 1.0, c[1] * 0.5), c[0]), (jnp.float32(0), x), None, 3)
    return (jax.nn.sigmoid(x @ w[0]) * ys[1]).sum(-1, keepdims=True)


def written(write, before=jnp.zeros):
    return lambda w, x: jax.nn.relu(write(before((len(x), 8)), x @ w[0])) @ w[1]


def changed(change, after=lambda h: h):
    """Rows of the units changed in place, and summed: what is removed must be 0 there."""
    return lambda w, x: after(change(x @ w[0])).sum(-1, keepdims=True) @ w[1]


def larger(a, b):
    first = a[0] >= b[0]
    return jnp.where(first, a[0], b[0]), jnp.where(first, a[1], b[1])


def reduced_in_pairs(axis):
    def apply(w, x):
        h = x @ w[0]
        start = jnp.float32(-jnp.inf), jnp.float32(0)
        largest, other = lax.reduce((h, x @ w[1]), start, larger, (axis,))
        return largest @ w[2] + other @ w[3] if axis == 0 else (h @ w[2]) * largest[:, None]

    return apply


def pooled_in_pairs(w, x):
    start = jnp.float32(-jnp.inf), jnp.float32(0)
    window = (1, 2, 1)
    pair = lax.reduce_window((x @ w[0], x @ w[1]), start, larger, window, window, "VALID")
    return pair[0] @ w[2] + pair[1] @ w[3]


HIDDEN = ((5, 6), (6, 2))
PAIRS = ((5, 6), (5, 6), (6, 2), (6, 2))
MODELS = {
    # what a loop carries is not what it starts with
    "added_counter": (looped(lambda h, i, w: (h + i).sum(-1, keepdims=True), 2),
                      ((5, 6), (5, 5), (5, 2)), (4, 5), []),
    "added_counter_through_relu": (looped(lambda h, i, w: jax.nn.relu(h + i) @ w[2], 3),
                                   ((5, 6), (5, 5), (6, 5), (5, 2)), (4, 5), [6]),
    "stacked_counter": (stacked, ((5, 6),), (4, 5), []),
    # writes into a part of an axis
    "set_in_the_middle": (written(lambda z, h: z.at[:, 2:5].set(h)), ((5, 3), (8, 2)), (4, 5), []),
    "set_at_the_front": (written(lambda z, h: z.at[:, :3].set(h)), ((5, 3), (8, 2)), (4, 5), []),
    "added_to_ones": (written(lambda z, h: z.at[:, 2:5].add(h), jnp.ones),
                      ((5, 3), (8, 2)), (4, 5), []),
    "set_whole": (written(lambda z, h: z.at[1:3].set(h[:2])), ((5, 8), (8, 2)), (4, 5), [8]),
    # writes of whole slices
    "subtracted_row": (changed(lambda h: h.at[0].subtract(h[1])), ((5, 6), (1, 2)), (4, 5), [6]),
    "multiplied_row": (changed(lambda h: h.at[0].mul(h[1])), ((5, 6), (1, 2)), (4, 5), [6]),
    "least_row": (changed(lambda h: h.at[0].min(h[1])), ((5, 6), (1, 2)), (4, 5), [6]),
    "largest_row": (changed(lambda h: h.at[0].max(h[1])), ((5, 6), (1, 2)), (4, 5), [6]),
    "cosines_of_a_row": (changed(lambda h: h.at[0].apply(jnp.cos)), ((5, 6), (1, 2)), (4, 5), []),
    "rounded": (changed(jnp.round), ((5, 6), (1, 2)), (4, 5), [6]),
    "products": (changed(lambda h: h, lambda h: jnp.exp(h / 9).prod(-1, keepdims=True)),
                 ((5, 6), (1, 2)), (4, 5), [6]),
    # several operands, and axes that are not the last
    "reduced_in_pairs": (reduced_in_pairs(0), PAIRS, (4, 5), [6]),
    "reduced_in_pairs_over_units": (reduced_in_pairs(1), PAIRS, (4, 5), []),
    "pooled_in_pairs": (pooled_in_pairs, PAIRS, (2, 4, 5), [6]),
    "top_of_examples": (lambda w, x: lax.top_k(x @ w[0], 3, axis=0)[0] @ w[1], HIDDEN, (4, 5), [6]),
    "top_of_units": (lambda w, x: lax.top_k((x @ w[0]).T, 3, axis=0)[0].T @ w[1],
                     ((5, 6), (3, 2)), (4, 5), []),
    "all_of_examples_sorted": (lambda w, x: lax.approx_max_k(x @ w[0], 4, 0)[0] @ w[1],
                               HIDDEN, (4, 5), [6]),
    "all_units_sorted": (lambda w, x: lax.top_k((x @ w[0]).T, 6, axis=0)[0].T @ w[1],
                         HIDDEN, (4, 5), []),
    # random numbers of a key in a closure
    "permuted": (lambda w, x: jnp.tanh(x @ w[0])[:, jax.random.permutation(KEY, 6)] @ w[1],
                 HIDDEN, (4, 5), []),
    "random_signs": (lambda w, x: (x @ w[0] * jax.random.normal(KEY, (6,))) @ w[1],
                     HIDDEN, (4, 5), []),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_what_is_removable_is_removed_exactly(name):
    apply, shapes, size, groups = MODELS[name]
    [x] = normal(size, seed=1)
    assert assert_exact(apply, normal(*shapes), x) == groups


@pytest.mark.parametrize("method", list(lax.RoundingMethod))
def test_a_constant_is_rounded_as_the_model_rounds(method):
    values = np.array([-2.5, -1.5, -0.7, -0.5, 0.0, 0.4, 0.5, 1.5, 2.5, np.nan])
    found = emitted("round", {"rounding_method": method}, [values])
    expected = lax.round(values.astype(np.float32), method)
    np.testing.assert_array_equal(found, expected)


def test_a_rule_that_loses_an_axis_is_an_error_with_its_line(monkeypatch):
    rules = {**label_rules.RULES, "tanh": lambda frame, equation, values: [frame.walk.data((4,))]}
    monkeypatch.setattr("jaxprune.jaxpr.reading.RULES", rules)
    weights, [x] = normal((5, 6)), normal((4, 5))
    with pytest.raises(ValueError, match=r"'tanh' at test_labels.py.*\(4,\).*\(4, 6\)"):
        jp.couple(lambda w, x: jnp.tanh(x @ w[0]), weights, x)


def test_a_key_is_static_and_stays_a_key():
    frame = labels.Frame(labels.Walk({}), jp.jaxpr.equations.trace(lambda x: x, 1.0)[0])
    assert frame.static(jp.jaxpr.equations.Constant(KEY)) is KEY
