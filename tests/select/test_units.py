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


@pytest.fixture(scope="module")
def mlp():
    """Groups '0' of 100 units and '1' of 8, and scores that rise with the index."""
    w = [jnp.ones((4, 100)), jnp.ones((100, 8)), jnp.ones((8, 2))]
    apply = lambda w, x: jax.nn.relu(jax.nn.relu(x @ w[0]) @ w[1]) @ w[2]
    coupling = jp.couple(apply, w, jnp.ones((3, 4)))
    return w, coupling, {n: jnp.arange(1.0, g.units + 1) for n, g in coupling.groups.items()}


def widths(mlp, mask=None, sparsity=None, **options):
    """How many units of the two groups are kept, and what the Pruner returned."""
    w, coupling, scores = mlp
    prune = jp.one_shot(lambda params, batch: scores, lowest_units(coupling, **options))
    pruned = prune(w, mask=mask, sparsity=sparsity)
    assert pruned.info["units"] == {
        n: int(k.sum()) for n, k in whole(coupling, pruned.mask).items()
    }
    return (*pruned.info["units"].values(),), pruned


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
    with pytest.raises(ValueError, match="score of group 'Conv_0' is NaN"):
        jp.one_shot(lambda p, b: bad, lowest_units(coupling))(variables, sparsity=0.5)
    apply = lambda w, x: x @ w
    with pytest.raises(ValueError, match="no group of removable units"):
        lowest_units(jp.couple(apply, jnp.ones((3, 2)), jnp.ones((1, 3))))
    with pytest.raises(TypeError, match=r"`jp.select.Budget`.* got \('flops', 0.5\)"):
        lowest_units(net[1], budget=("flops", 0.5))
    with pytest.raises(TypeError, match=r"bound of a budget is a number, got '0.5'"):
        lowest_units(net[1], budget=Budget("flops", "0.5"))


def units_kept(kept):
    """A cost that reads every group: nothing may be missing."""
    return float(np.sum(kept["0"]) + np.sum(kept["1"]))


@pytest.mark.parametrize(("budget", "protected", "expected"), [
    (Budget(units_kept, at_most=9), ["1"], (1, 8)),
    (Budget(units_kept, at_most=12), ["1"], (4, 8)),
    (Budget(units_kept, fraction=0.5), ["1"], (46, 8)),
    (Budget(units_kept, fraction=0.5), [], (51, 3)),
])  # fmt: skip
def test_a_cost_by_a_function_sees_every_group_and_the_dense_network(
    mlp, budget, protected, expected
):
    found, _ = widths(mlp, budget=budget, protected=protected)
    assert sum(found) == sum(expected)
    assert found == expected or not protected


@pytest.mark.parametrize("scope", ["global", "group"])
def test_a_second_budget_goes_on_from_the_first(mlp, scope):
    coupling = mlp[1]
    at_once, _ = widths(mlp, budget=Budget("parameters", fraction=0.5), scope=scope)
    _, first = widths(mlp, budget=Budget("parameters", fraction=0.8), scope=scope)
    again, second = widths(mlp, first.mask, budget=Budget("parameters", fraction=0.5), scope=scope)
    assert again == at_once
    assert jp.trees.keep(second.mask) <= 0.5 * coupling.parameters()
    reached, same = widths(mlp, second.mask, budget=Budget("parameters", fraction=0.9), scope=scope)
    assert reached == at_once  # met already
    assert jp.trees.keep(same.mask) == jp.trees.keep(second.mask)


@pytest.mark.parametrize("scope", ["global", "group"])
@pytest.mark.parametrize("floor", [0, 1, 8])
def test_a_budget_reaches_down_to_every_floor(mlp, scope, floor):
    coupling = mlp[1]
    least = {name: np.arange(g.units) < max(floor, 1) for name, g in coupling.groups.items()}
    budget = Budget("parameters", at_most=coupling.parameters(least))
    assert widths(mlp, budget=budget, scope=scope, floor=floor)[0] == (max(floor, 1),) * 2
    below = budget._replace(at_most=budget.at_most - 1)
    with pytest.raises(ValueError, match=f"still costs {budget.at_most}"):
        widths(mlp, budget=below, scope=scope, floor=floor)


@pytest.mark.parametrize("scope", ["global", "group"])
def test_unit_scores_that_are_nan_are_refused_but_not_of_protected_groups(mlp, scope):
    w, coupling, scores = mlp
    bad = {**scores, "1": scores["1"].at[2].set(jnp.nan).at[3].set(-jnp.inf)}
    with pytest.raises(ValueError, match=r"score of group '1' is NaN at 1 of 8 units.*protected"):
        lowest_units(coupling, scope=scope)(w, bad, sparsity=0.5)
    select = lowest_units(coupling, scope=scope, protected=["1"])
    prune = jp.one_shot(lambda params, batch: bad, select)
    for found in (prune(w, sparsity=0.5), jax.jit(lambda w: prune(w, sparsity=0.5))(w)):
        assert {name: int(n) for name, n in found.info["units"].items()} == {"0": 50, "1": 8}
        assert int(found.info.get("bad_scores", 0)) == 0
    with pytest.raises(ValueError, match="score of group '1' is NaN"):
        jp.one_shot(lambda params, batch: bad, lowest_units(coupling))(w, sparsity=0.5)


def test_what_is_counted_are_the_units_that_can_go(mlp):
    info = widths(mlp, protected=["0"], sparsity=0.5)[1].info
    assert (info["kept"], info["prunable"], info["sparsity"]) == (4, 8, 0.5)


@pytest.mark.parametrize("scope", ["global", "group"])
def test_rounded_widths_keep_the_floor(mlp, scope):
    few = 0.83 if scope == "global" else 0.95
    assert widths(mlp, scope=scope, floor=10, round_to=8, sparsity=few)[0] == (16, 8)
    assert widths(mlp, scope=scope, floor=3, round_to=8, sparsity=few)[0][0] >= 8
    # No multiple of 8 from 98 to 100, nor of 16 up to 8.
    assert widths(mlp, scope="group", floor=98, round_to=8, sparsity=0.5)[0] == (100, 8)
    assert widths(mlp, scope="group", round_to=16, sparsity=0.5)[0] == (48, 8)
    jitted = jax.jit(lambda s: mlp[1].kept(
        lowest_units(mlp[1], scope=scope, floor=10, round_to=8)(mlp[0], mlp[2], sparsity=s)
    ))(few)  # fmt: skip
    assert tuple(int(keep.sum()) for keep in jitted.values()) == (16, 8)


@pytest.mark.parametrize("scope", ["global", "group"])
def test_rounding_is_no_sparsity_that_was_reached_and_less_is(mlp, scope):
    at, mask, last = {"scope": scope, "round_to": 8}, None, 100
    for sparsity in (0.3, 0.45, 0.5, 0.52, 0.55, 0.8):
        found, pruned = widths(mlp, mask, sparsity=sparsity, **at)
        assert found[0] % 8 == 0
        assert found[0] <= last
        mask, last = pruned.mask, found[0]
    whose = "all groups" if scope == "global" else "group '0'"
    with pytest.raises(ValueError, match=rf"\d+ units of {whose} are pruned already, more than"):
        widths(mlp, mask, sparsity=0.3, **at)
    _, half = widths(mlp, scope=scope, sparsity=0.5)
    with pytest.raises(ValueError, match=rf"5\d units of {whose} are pruned already"):
        widths(mlp, half.mask, scope=scope, sparsity=0.48)


def test_words_are_of_units(mlp):
    with pytest.raises(ValueError, match=r"Cannot prune 103 of 108 units.* 10 units in 2 groups"):
        widths(mlp, floor=5, sparsity=0.95)
    ints = {"floor": np.int64(10), "round_to": np.int32(8)}
    assert widths(mlp, scope="group", sparsity=0.95, **ints)[0] == (16, 8)
