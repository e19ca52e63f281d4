"""Selection of whole units: exact counts, budgets, floors, multiples, whole-group consistency."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune import trees
from jaxprune.select import Budget, lowest_units
from tests.structure.net_zoo import NETS


@pytest.fixture(scope="module")
def net():
    found = NETS["lenet5"]()
    return found.variables, jp.couple(found.apply, found.variables, *found.inputs)


def pruner(coupling, **options):
    return jp.one_shot(jp.saliency.magnitude(), lowest_units(coupling, **options))


def whole(coupling, mask):
    """Every slice of a removed unit is pruned, and nothing else."""
    kept = {name: np.asarray(keep) for name, keep in coupling.kept(mask).items()}
    again = coupling.mask(kept, mask)
    assert all(map(np.array_equal, jax.tree.leaves(mask), jax.tree.leaves(again)))
    return kept


@pytest.mark.every(3)
@pytest.mark.parametrize("scope", ["global", "group"])
@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.55, 0.8])
def test_exactly_the_lowest_units_go_and_whole(net, scope, sparsity):
    variables, coupling = net
    pruned = pruner(coupling, scope=scope)(variables, sparsity=sparsity)
    kept = whole(coupling, pruned.mask)
    assert all(keep.any() for keep in kept.values())
    scores = coupling.reduce(jax.tree.map(jnp.abs, variables))
    if scope == "global":
        n = coupling.units
        assert sum(int((~keep).sum()) for keep in kept.values()) == round(sparsity * n)
        gone = [float(s) for g in kept for s in scores[g][~kept[g]]]
        loose = [float(s) for g in kept for s in scores[g][kept[g]] if kept[g].sum() > 1]
        assert not gone or max(gone) <= min(loose)
    else:
        for keep in kept.values():
            assert int((~keep).sum()) == round(sparsity * len(keep))
    assert pruned.info["kept"] == sum(int(keep.sum()) for keep in kept.values())
    assert pruned.info["parameters"] == coupling.parameters(kept)


@pytest.mark.parametrize("scope", ["global", "group"])
def test_of_equal_units_the_first_go_inside_jit_and_outside(scope):
    params = [jnp.ones((1, 200)), jnp.ones((200, 1))]
    coupling = jp.couple(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], params, jnp.ones((1, 1)))
    scores = np.random.default_rng(0).integers(0, 3, 200).astype(np.float32)
    select = lowest_units(coupling, scope=scope)
    choose = lambda scores: select(params, {"0": scores}, sparsity=0.55)[0][0]
    expected = np.ones(200, bool)
    expected[np.argsort(scores, kind="stable")[:110]] = False
    np.testing.assert_array_equal(choose(scores), expected)
    np.testing.assert_array_equal(jax.jit(choose)(scores), expected)


def test_a_higher_sparsity_removes_more_of_the_same_and_jit_agrees(net):
    variables, coupling = net
    prune = pruner(coupling)
    first = prune(variables, sparsity=0.3)
    second = prune(variables, sparsity=0.6, mask=first.mask)
    for low, high in zip(jax.tree.leaves(second.mask), jax.tree.leaves(first.mask), strict=True):
        assert bool((low <= high).all())
    jitted = jax.jit(lambda v, s, m: prune(v, sparsity=s, mask=m))(variables, 0.6, first.mask)
    assert all(map(np.array_equal, jax.tree.leaves(jitted.mask), jax.tree.leaves(second.mask)))
    assert int(jitted.info["kept"]) == second.info["kept"]


def test_iterative_pruning_ends_at_its_sparsity(net):
    variables, coupling = net
    slow = jp.iterative(pruner(coupling), jp.schedule.cubic(0.5, 3), rounds=3)
    pruned = slow(variables, sparsity=0.5)
    assert pruned.info["kept"] == coupling.units - round(0.5 * coupling.units)
    whole(coupling, pruned.mask)


@pytest.mark.parametrize("what", ["parameters", "bytes", "flops", "activations"])
@pytest.mark.parametrize("scope", ["global", "group"])
def test_a_budget_is_met_and_one_unit_more_would_not(net, what, scope):
    variables, coupling = net
    cost = getattr(coupling, what)
    mask = pruner(coupling, budget=Budget(what, fraction=0.5), scope=scope)(variables).mask
    kept = whole(coupling, mask)
    assert cost(kept) <= 0.5 * cost()
    n = sum(int((~keep).sum()) for keep in kept.values())
    if scope == "group":
        return  # every group rounds by itself
    fewer = pruner(coupling, scope=scope)(variables, sparsity=(n - 1) / coupling.units).mask
    assert cost(whole(coupling, fewer)) > 0.5 * cost()


def test_a_budget_by_a_function(net):
    variables, coupling = net
    count = lambda kept: sum(int(np.sum(k)) for k in kept.values()) if kept else coupling.units
    mask = pruner(coupling, budget=Budget(count, at_most=20))(variables).mask
    assert count(whole(coupling, mask)) == 20


def test_multiples_floors_and_protected_groups(net):
    variables, coupling = net
    names = list(coupling.groups)
    prune = pruner(coupling, round_to=4, floor=3, protected=names[:1])
    kept = whole(coupling, prune(variables, sparsity=0.4).mask)
    for name, keep in kept.items():
        assert keep.sum() % 4 == 0 or len(keep) <= 4 or name == names[0]
        assert keep.sum() >= min(3, len(keep))
    assert kept[names[0]].all()


def test_unit_scores_are_taken_as_they_are(net):
    variables, coupling = net
    scores = {name: jnp.arange(g.units, dtype=jnp.float32) for name, g in coupling.groups.items()}
    prune = jp.one_shot(lambda params, batch: scores, lowest_units(coupling, scope="group"))
    for keep in whole(coupling, prune(variables, sparsity=0.5).mask).values():
        assert (np.diff(keep.astype(int)) >= 0).all()


@pytest.mark.parametrize("how", ["sum", "mean", "max", "norm", jnp.min])
def test_reductions_are_numpys(net, how):
    variables, coupling = net
    found = coupling.reduce(jax.tree.map(jnp.abs, variables), how)
    numpy = {"sum": np.sum, "mean": np.mean, "max": np.max, "norm": np.linalg.norm, jnp.min: np.min}
    leaves = dict(trees.named_leaves(variables))
    for name, group in coupling.groups.items():
        for unit in range(group.units):
            entries = [
                np.abs(np.take(np.asarray(leaves[m.leaf]), m.positions[unit], m.axis)).ravel()
                for m in group.members
                if trees.default_prunable(m.leaf, leaves[m.leaf])
            ]
            expected = numpy[how](np.concatenate(entries))
            np.testing.assert_allclose(found[name][unit], expected, rtol=1e-5)


def test_bad_input_is_named(net):
    variables, coupling = net
    with pytest.raises(ValueError, match="No group of units is called 'nothing'"):
        lowest_units(coupling, protected=["nothing"])
    with pytest.raises(ValueError, match="'global', 'group' or a mapping"):
        lowest_units(coupling, scope="layer")
    with pytest.raises(ValueError, match="`round_to`"):
        lowest_units(coupling, round_to=0)
    with pytest.raises(ValueError, match="A budget is in one of"):
        lowest_units(coupling, budget=Budget("seconds", fraction=0.5))
    with pytest.raises(ValueError, match="either `fraction=`"):
        lowest_units(coupling, budget=Budget("flops"))
    with pytest.raises(ValueError, match=r"cannot be met.*still costs"):
        pruner(coupling, budget=Budget("flops", at_most=10))(variables)
    with pytest.raises(ValueError, match="pass no sparsity"):
        pruner(coupling, budget=Budget("flops", fraction=0.5))(variables, sparsity=0.5)
    with pytest.raises(ValueError, match="fraction of units, or a `budget`"):
        pruner(coupling)(variables)
    with pytest.raises(ValueError, match="All groups are protected"):
        lowest_units(coupling, protected=list(coupling.groups))
    bad = {name: jnp.full(g.units, jnp.nan) for name, g in coupling.groups.items()}
    with pytest.raises(ValueError, match="score of leaf 'Conv_0' is NaN"):
        jp.one_shot(lambda p, b: bad, lowest_units(coupling))(variables, sparsity=0.5)
    apply = lambda w, x: x @ w
    with pytest.raises(ValueError, match="no group of removable units"):
        lowest_units(jp.couple(apply, jnp.ones((3, 2)), jnp.ones((1, 3))))
