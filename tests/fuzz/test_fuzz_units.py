"""Units of random networks: coupled, scored, selected, removed and shrunk, against numpy slices."""

import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests import doubles
from tests.fuzz.drawing import Row, each, holds
from tests.fuzz.random_net import Net, close, flat, loss

saliency, structure, coupling_of = jp.saliency, jp.structure, jp.coupling


class Units(Net):
    """A network and its coupling: one group, the hidden units. One alone is never removable."""

    def __init__(self, draw, kind=None, least=2):
        while True:
            super().__init__(draw, kind)
            if self.leaves[1].size >= least:
                break
        self.coupling = jp.couple(self.apply, self.tree, self.batch[0])
        (self.group,) = self.coupling.groups
        self.units = self.leaves[1].size

    def some(self, draw):
        """Flags of units, at least one True."""
        keep = draw.rng().random(self.units) < 0.5
        keep[draw.number(0, self.units - 1)] = True
        return keep

    def cut(self, keep):
        """The leaves without the other units."""
        w, b, v, c = (np.asarray(x) for x in jax.tree.leaves(self.tree))
        return [w[:, keep], b[keep], v[keep], c]

    def like_cut(self, keep):
        return jax.tree.unflatten(jax.tree.structure(self.tree), self.cut(keep))

    def forward(self, leaves):
        w, b, v, c = (np.asarray(x, np.float64) for x in leaves)
        z = np.asarray(self.batch[0], np.float64) @ w + b
        return (np.tanh(z) if self.kind == "tanh" else np.maximum(z, 0)) @ v + c


def coupled(draw):
    """The hidden units are coupled; a loaded coupling is the same, and has a model if given one."""
    net = Units(draw)
    group = net.coupling.group(net.group)
    found = {(m.leaf, m.axis, tuple(m.positions.ravel())) for m in group.members}
    every = tuple(range(net.units))
    a, b, c, _ = net.names
    assert found == {(a, 1, every), (b, 0, every), (c, 0, every)}
    assert net.coupling.units == net.units
    assert net.coupling.parameters() == net.vector.size
    loaded = coupling_of.from_json(coupling_of.to_json(net.coupling))
    assert coupling_of.to_json(loaded) == coupling_of.to_json(net.coupling)
    keep = net.some(draw)
    assert loaded.parameters({net.group: keep}) == sum(x.size for x in net.cut(keep))
    with pytest.raises(ValueError, match="has no model"):
        jp.shrunk_apply(loaded, {net.group: keep})
    again = coupling_of.with_model(loaded, net.apply, net.tree, net.batch[0])
    close(jp.shrunk_apply(again, {net.group: keep})(net.like_cut(keep), net.batch[0]),
          net.forward(net.cut(keep)), 1e-3)  # fmt: skip


def shrunk(draw):
    """`shrink` slices; the small model computes what the masked one does."""
    net = Units(draw)
    keep = net.some(draw)
    mask = net.coupling.mask({net.group: keep}, net.tree)
    small = jp.shrink(net.tree, mask, net.coupling)
    for found, truth in zip(jax.tree.leaves(small), net.cut(keep), strict=True):
        np.testing.assert_array_equal(found, truth)
    units = structure.shrink_units(net.tree, {net.group: keep}, net.coupling)
    assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (small, units)), strict=True))
    truth = net.forward(net.cut(keep))
    close(jp.shrunk_apply(net.coupling, {net.group: keep})(small, net.batch[0]), truth, 1e-3)
    close(net.apply(jp.apply_mask(net.tree, mask), net.batch[0]), truth, 1e-3)
    check = jp.check_shrunk(net.tree, mask, net.coupling, net.batch[0])
    assert check.relative < 1e-3
    dead = structure.dead_units(net.tree, mask, net.coupling)
    np.testing.assert_array_equal(dead.kept[net.group], keep)
    with pytest.raises(ValueError, match="Keep at least one"):
        structure.shrink_units(net.tree, {net.group: np.zeros(net.units, bool)}, net.coupling)


def folded(draw):
    """Units whose incoming or outgoing weights alone are pruned go too."""
    net = Units(draw, least=2)
    gone = draw.number(0, net.units - 1)
    leaves = jax.tree.leaves(jp.trees.full_mask(net.tree))
    incoming = draw.yes()
    leaves[0 if incoming else 2] = (leaves[0].at[:, gone] if incoming else leaves[2].at[gone]).set(
        False
    )
    mask = jax.tree.unflatten(jax.tree.structure(net.tree), leaves)
    small = jp.shrink(net.tree, mask, net.coupling)
    assert jax.tree.leaves(small)[1].shape == (net.units - 1,)
    masked = jp.apply_mask(net.tree, mask)
    close(net.apply(small, net.batch[0]), net.forward(jax.tree.leaves(masked)), 1e-3)


def gated(draw):
    """A gate of 1 is the unit, a gate of 0 is the model without it."""
    net = Units(draw)
    keep = net.some(draw)
    gates = coupling_of.ones(net.coupling)
    np.testing.assert_array_equal(gates[net.group], np.ones(net.units))
    run = coupling_of.gated(net.coupling, net.tree)
    close(run(gates, net.batch[0]), net.forward(net.leaves), 1e-3)
    shut = {net.group: jnp.asarray(keep, jnp.float32)}
    close(run(shut, net.batch[0]), net.forward(net.cut(keep)), 1e-3)
    close(coupling_of.gated_apply(net.coupling)(net.tree, shut, net.batch[0]),
          net.forward(net.cut(keep)), 1e-3)  # fmt: skip


def by_weights(draw):
    """Sums, norms and shares of each unit's weights."""
    net = Units(draw)
    w, b, v, _ = net.leaves
    rows = np.concatenate([w.T, v], axis=1)
    prunable = {"prunable": lambda name, leaf: np.ndim(leaf) == 2}
    one = saliency.unit_magnitude(net.coupling, 1, **prunable)(net.tree)
    two = saliency.unit_magnitude(net.coupling, 2, **prunable)(net.tree)
    close(one[net.group], np.abs(rows).sum(1))
    close(two[net.group], np.sqrt((rows**2).sum(1)))
    most = saliency.on_units(net.coupling, saliency.magnitude(), "max", **prunable)(net.tree)
    close(most[net.group], np.abs(rows).max(1))
    per = saliency.per_cost(one, net.coupling)
    close(per[net.group], np.abs(rows).sum(1) / (rows.shape[1] + 1))
    scales = {"scales": lambda name, leaf: name == net.names[1]}
    close(saliency.batch_norm_scale(net.coupling, **scales)(net.tree)[net.group], np.abs(b))
    key = jax.random.key(draw.number(0, 9))
    drawn = saliency.random_units(net.coupling, key)(net.tree)[net.group]
    assert drawn.shape == (net.units,)
    assert ((drawn >= 0) & (drawn < 1)).all()


def by_data(draw):
    """Derivatives in a unit's gate, and what the loss loses without it."""
    net = Units(draw)
    s, of = net.truth["gates"], net.coupling
    whole = net.truth["losses"].mean()
    without = []
    for unit in range(net.units):
        keep = np.arange(net.units) != unit
        y = net.forward(net.cut(keep))
        without.append(((y - np.asarray(net.batch[1], np.float64)) ** 2).sum(1).mean() - whole)
    score = lambda make: make(net.tree, net.batch)[net.group]
    close(score(saliency.unit_taylor(of, loss)), np.abs(s.mean(0)), 1e-3)
    close(score(saliency.unit_fisher(of, loss)), (s**2).mean(0) / 2, 1e-3)
    gates = saliency.on_gates(of, loss, saliency.taylor)
    close(score(gates), s.mean(0) ** 2, 1e-3)
    scale = max(whole, np.abs(without).max())
    found = np.asarray(score(saliency.unit_ablation(of, loss)), np.float64)
    assert np.abs(found - without).max() <= 1e-4 * scale


def damaged(draw):
    """Stats of batches add; a rate that drops nothing is refused."""
    net = Units(draw)
    key = jax.random.key(draw.number(0, 9))
    for make in (saliency.dropout_damage, saliency.damage_with_errors):
        made = make(net.coupling, loss, key, masks=8, rate=0.5)
        once = made.measure(net.tree, net.batch)
        twice = saliency.add(once, once)
        one, two = (made.score(net.tree, stats) for stats in (once, twice))
        close(flat(two), flat(one), 1e-4)
        assert int(twice.count) == 2 * len(net.batch[0])
    with pytest.raises(ValueError, match="rate"):
        saliency.dropout_damage(net.coupling, loss, key, masks=8, rate=0.0)


def chosen(draw):
    """The lowest go, ties by index; a budget takes the fewest."""
    net = Units(draw)
    n = net.units
    scores = np.asarray(draw.rng().choice([-1.0, 0.0, 0.5, 2.0], n), np.float32)
    floor, goes = draw.number(1, 2), draw.number(0, n - 1)
    pick = jp.select.lowest_units(net.coupling, floor=floor)
    given = {net.group: jnp.asarray(scores)}
    if goes > n - min(floor, n):
        with pytest.raises(ValueError, match="protects"):
            pick(net.tree, given, sparsity=goes / n)
    else:
        mask = pick(net.tree, given, sparsity=goes / n)
        np.testing.assert_array_equal(net.coupling.kept(mask)[net.group],
                                      doubles.lose(scores, goes))  # fmt: skip
    least = net.leaves[3].size + (net.vector.size - net.leaves[3].size) // n
    most = draw.number(least, net.vector.size)
    budget = jp.select.Budget("parameters", at_most=most)
    mask = jp.select.lowest_units(net.coupling, budget=budget)(net.tree, given)
    keep = np.asarray(net.coupling.kept(mask)[net.group])
    each_unit = (net.vector.size - net.leaves[3].size) // n
    needed = max(0, -(-(net.vector.size - most) // each_unit))
    np.testing.assert_array_equal(keep, doubles.lose(scores, needed))
    with pytest.raises(ValueError, match="met"):
        jp.select.lowest_units(
            net.coupling, budget=jp.select.Budget("parameters", at_most=least - 1)
        )(net.tree, given)


def removed(draw):
    """After every two steps the unit of the least mean squared slope goes, and stays 0."""
    net = Units(draw, least=3)
    tx = jp.remove_units(net.coupling, every=2)
    state, tree, keep = tx.init(net.tree), net.tree, np.ones(net.units, bool)
    zero = jax.tree.map(jnp.zeros_like, tree)
    sums = np.zeros(net.units)
    for step in range(4):
        slopes = draw.rng().normal(size=(3, net.units)) * keep
        updates, state = tx.update(
            zero, state, tree, gates={net.group: jnp.asarray(slopes / 3, jnp.float32)}
        )
        tree = optax.apply_updates(tree, updates)
        sums += (slopes**2).sum(0) / 2
        if step % 2 and keep.sum() > 1:
            keep[np.argmin(np.where(keep, sums, np.inf))] = False
            sums[:] = 0
        np.testing.assert_array_equal(np.asarray(state.kept[net.group]), keep)
        np.testing.assert_array_equal(jax.tree.leaves(tree)[0][:, ~keep], 0)


def profiled(draw):
    """Widths as numbers and shares, there and back; a scaled profile keeps within its target."""
    net = Units(draw)
    keep = net.some(draw)
    kept = {net.group: keep}
    profile = structure.width_profile(net.coupling, kept)
    assert profile == {net.group: keep.sum()}
    assert structure.width_shares(net.coupling, kept) == {net.group: keep.sum() / net.units}
    np.testing.assert_array_equal(structure.kept_of(net.coupling, profile)[net.group],
                                  np.arange(net.units) < keep.sum())  # fmt: skip
    factor = draw.one([0.3, 0.5, 1.0, 2.0])
    expected = min(max(int(np.floor(factor * keep.sum() + 0.5)), 1), net.units)
    scaled = structure.scaled_profile(net.coupling, profile, factor)
    assert scaled == {net.group: expected}
    fresh = structure.reinitialise(lambda key: net.tree, kept, net.coupling, None, fan=None)
    for found, truth in zip(jax.tree.leaves(fresh), net.cut(keep), strict=True):
        np.testing.assert_array_equal(found, truth)
    report = jp.reporting.structure_report(net.coupling, kept)
    text = str(report)
    assert f"{net.units} -> {keep.sum()}" in text
    ways = structure.ways_in_and_out(net.coupling)[net.group]
    assert {m.leaf for m in ways.ins} == {net.names[0], net.names[1]}
    assert {m.leaf for m in ways.outs} == {net.names[2]}


def made_up_for(draw):
    """Least squares never errs more than removal; a unit's twin takes over all that it did."""
    net = Units(draw, "relu", least=2)
    keep = net.some(draw)
    kept = {net.group: keep}
    found = structure.reconstruct(net.tree, kept, net.coupling, net.batch[0])
    for name, error in found.after.items():
        assert error <= found.before[name] + 1e-6
    leaves = [jnp.asarray(x) for x in jax.tree.leaves(net.tree)]
    factor = draw.one([0.5, 1.0, 3.0])
    leaves[0] = leaves[0].at[:, 1].set(factor * leaves[0][:, 0])
    leaves[1] = leaves[1].at[1].set(factor * leaves[1][0])
    twins = jax.tree.unflatten(jax.tree.structure(net.tree), leaves)
    keep = np.arange(net.units) != 1
    merged = structure.merge_similar(twins, {net.group: keep}, net.coupling)
    small = structure.shrink_units(merged.variables, merged.kept, net.coupling)
    if np.abs(np.asarray(leaves[0][:, 0])).max() > 0:
        assert merged.into[net.group][1] == 0 or np.abs(leaves[0]).sum() == 0
        close(net.apply(small, net.batch[0]), net.forward(leaves), 1e-3)
    pairs = structure.merge_pairs(twins, net.coupling, {net.group: net.units - 1})
    assert pairs.kept[net.group].sum() == net.units - 1


def recalibrated(draw):
    """Statistics over batches of any size are those of all examples."""
    width = draw.number(1, 4) if draw.wide else 2
    rng = draw.rng()
    batches = [rng.normal(size=(draw.number(1, 4) if draw.wide else 2, width)) for _ in range(3)]

    def apply_train(v, x):
        now = {"mean": x.mean(0), "var": x.var(0)}
        return x, jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, v, now)

    old = {"mean": jnp.ones(width), "var": jnp.ones(width)}
    given = [jnp.asarray(x, jnp.float32) for x in batches]
    new = structure.recalibrate_batch_norm(apply_train, old, given)
    every = np.concatenate(batches)
    np.testing.assert_allclose(new["mean"], every.mean(0), atol=1e-5)
    np.testing.assert_allclose(new["var"], every.var(0), atol=1e-4)


def stored(draw):
    """A shrunk model comes back with its coupling and its units."""
    net = Units(draw)
    kept = {net.group: net.some(draw)}
    small = structure.shrink_units(net.tree, kept, net.coupling)
    with tempfile.TemporaryDirectory() as folder:
        jp.checkpoint.save_shrunk(folder, small, net.coupling, kept)
        found = jp.checkpoint.restore_shrunk(folder, like=small)
    for a, b in zip(*map(jax.tree.leaves, (found.variables, small)), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(found.kept[net.group], kept[net.group])
    assert coupling_of.to_json(found.coupling) == coupling_of.to_json(net.coupling)


def rows(law, fast, slow, *names):
    return dict.fromkeys(names, Row(law, fast, slow))


LAWS = {
    **rows(coupled, 1, 60, "couple", "coupling.couple", "coupling.to_json", "coupling.from_json",
           "coupling.with_model"),
    **rows(shrunk, 1, 60, "shrink", "shrunk_apply", "check_shrunk", "structure.shrink",
           "structure.shrink_units", "structure.check_shrunk", "structure.dead_units",
           "coupling.shrunk_apply"),
    **rows(gated, 1, 60, "coupling.gated", "coupling.gated_apply", "coupling.ones"),
    **rows(by_weights, 1, 60, "saliency.unit_magnitude", "saliency.on_units", "saliency.per_cost",
           "saliency.batch_norm_scale", "saliency.random_units"),
    **rows(by_data, 1, 60, "saliency.unit_taylor", "saliency.unit_fisher", "saliency.on_gates",
           "saliency.unit_ablation"),
    **rows(damaged, 1, 30, "saliency.dropout_damage", "saliency.damage_with_errors"),
    **rows(chosen, 3, 200, "select.lowest_units", "select.Budget"),
    **rows(removed, 1, 60, "remove_units", "transforms.remove_units"),
    **rows(profiled, 2, 200, "structure.width_profile", "structure.width_shares",
           "structure.kept_of", "structure.scaled_profile", "structure.reinitialise",
           "structure.ways_in_and_out", "reporting.structure_report"),
    **rows(made_up_for, 1, 60, "structure.reconstruct", "structure.merge_similar",
           "structure.merge_pairs"),
    **rows(recalibrated, 1, 60, "structure.recalibrate_batch_norm"),
    **rows(stored, 1, 30, "checkpoint.save_shrunk", "checkpoint.restore_shrunk"),
}  # fmt: skip
FOLDED = {"shrink, weights on one side alone": Row(folded, 1, 60)}


@each({**LAWS, **FOLDED})
def test_units_are_removed_as_slices_are(row):
    holds(row)


@pytest.mark.slow
@each({**LAWS, **FOLDED}, wide=True)
def test_units_are_removed_as_slices_are_in_networks_of_other_shapes(row):
    holds(row, wide=True)
