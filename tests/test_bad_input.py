"""Bad input raises where it is given, and says what was wrong, what was got and what to do."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.problems import squared_loss

select, saliency, curvature = jp.select, jp.saliency, jp.curvature
PARAMS = {"dense": {"kernel": jnp.arange(1.0, 13).reshape(4, 3), "bias": jnp.ones(3)}}
BY_MAGNITUDE = jp.one_shot(saliency.magnitude(), select.lowest())
X, T = jnp.ones((5, 4)), jnp.ones((5, 3))


def apply(params, x):
    return x @ params["dense"]["kernel"] + params["dense"]["bias"]


def says(error, *parts):
    """The error is raised with a message that has all the parts, in any order."""
    ahead = "".join(f"(?=.*{re.escape(part)})" for part in parts)
    return pytest.raises(error, match=f"(?s){ahead}")


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan"), np.float32("nan"),
                                      jnp.float32(1.0)])  # fmt: skip
def test_a_sparsity_outside_zero_to_one(sparsity):
    calls = [lambda: BY_MAGNITUDE(PARAMS, sparsity=sparsity),
             lambda: select.lowest()(PARAMS, PARAMS, sparsity=sparsity),
             lambda: select.lowest({"dense/kernel": sparsity})(PARAMS, PARAMS),
             lambda: select.blocks((2, 1))(PARAMS, PARAMS, sparsity=sparsity),
             lambda: select.n_of_m(1, 2)(PARAMS, PARAMS, sparsity=sparsity)]  # fmt: skip
    for call in calls:
        with says(ValueError, "[0, 1)", f"got {float(sparsity)}", "For 90 % pruned pass 0.9"):
            call()


@pytest.mark.parametrize("sparsity", ["0.5", b"0.5", True, [0.5, 0.6], np.ones(2), {}])
def test_a_sparsity_that_is_no_number(sparsity):
    with says(TypeError, "number in [0, 1)", f"got {sparsity!r}"):
        BY_MAGNITUDE(PARAMS, sparsity=sparsity)


def test_a_sparsity_that_is_missing():
    with says(ValueError, "needs a sparsity in [0, 1)", "pass `sparsity=`"):
        BY_MAGNITUDE(PARAMS)
    with says(TypeError, "number in [0, 1)", "got None"):
        jp.iterative(BY_MAGNITUDE, jp.schedule.constant(0.5), 1)(PARAMS)


def test_n_of_m_that_does_not_divide():
    with says(ValueError, "leaf 'dense/kernel' has 4 entries along axis 0", "(4, 3)",
              "groups of 3", "Exclude it in `prunable`"):  # fmt: skip
        select.n_of_m(1, 3)(PARAMS, PARAMS)
    with says(ValueError, "leaf 'dense/kernel'", "(4, 3)", "axis 2 does not exist"):
        select.n_of_m(1, 2, axis=2)(PARAMS, PARAMS)
    with says(ValueError, "the only leaf has shape (5,): axis -2 does not exist"):
        select.n_of_m(1, 2, prunable=lambda *_: True)(jnp.ones(5), jnp.ones(5))
    with says(ValueError, "2 of 4 has sparsity 0.5", "got sparsity=0.9", "Pass that or None"):
        select.n_of_m(2, 4)(PARAMS, PARAMS, sparsity=0.9)


@pytest.mark.parametrize(("n", "m"), [(0, 4), (5, 4), (-1, 2), (1.0, 2), ("2", 4), (2, 4.0)])
def test_n_of_m_out_of_range(n, m):
    with says(ValueError, "1 <= n <= m", f"got n={n}, m={m}"):
        select.n_of_m(n, m)


def test_blocks_that_do_not_divide_or_are_none():
    with says(ValueError, "leaf 'dense/kernel' has shape (4, 3)", "blocks of 2 x 2",
              "Exclude it in `prunable`"):  # fmt: skip
        select.blocks((2, 2))(PARAMS, PARAMS, sparsity=0.5)
    for shape in ((0, 2), (2,), (-1, 2), (1.5, 2), (2, 2, 2)):
        with says(ValueError, "rows and columns", f"got shape={shape!r}"):
            select.blocks(shape)
    with says(ValueError, "Blocks span outputs", "'layer', 'global' or 'erk'"):
        select.blocks((2, 2), "output")
    with says(ValueError, "Unknown scope 'layers'", "Did you mean 'layer'?"):
        select.blocks((2, 2), "layers")


@pytest.mark.parametrize("floor", [-1, 1.0, True, None, "1"])
def test_a_floor_that_is_no_count(floor):
    for make in (select.lowest, lambda **options: select.blocks((2, 2), **options)):
        with says(ValueError, "`floor` counts entries", "integer >= 0", f"got {floor!r}"):
            make(floor=floor)


def test_an_unknown_scope_suggests_the_nearest():
    with says(ValueError, "Unknown scope 'globl'", "Known: global, layer", "mean 'global'?"):
        select.lowest("globl")
    with says(ValueError, "Unknown scope 'zzz'"):
        select.lowest("zzz")
    with says(ValueError, "No prunable leaf is named 'dense/kernal'", "mean 'dense/kernel'?"):
        select.lowest({"dense/kernal": 0.5})(PARAMS, PARAMS, sparsity=0.5)
    # A leaf that exists, but takes no part, is not silently ignored either.
    with says(ValueError, "No prunable leaf is named 'dense/bias'"):
        select.lowest({"dense/bias": 0.5})(PARAMS, PARAMS, sparsity=0.5)
    with says(ValueError, "output_axis=5", "(4, 3)"):
        select.lowest("output", output_axis=5)(PARAMS, PARAMS, sparsity=0.5)


def test_an_unknown_reading_suggests_the_nearest():
    source = curvature.exact_diagonal(apply, squared_loss)
    with says(ValueError, "Unknown reading 'damage_spred'", "mean 'damage_spread'?"):
        saliency.optimal_brain_damage_sd(source, reading="damage_spred")


def test_trees_that_differ():
    other = {"dense": {"kernel": jnp.ones((4, 3), bool)}}
    with says(ValueError, "mask does not have the tree structure", "missing", "'dense/bias'",
              "Make it from the same parameter tree"):  # fmt: skip
        BY_MAGNITUDE(PARAMS, sparsity=0.5, mask=other)
    with says(ValueError, "scores does not have the tree structure", "only there", "'extra'"):
        select.lowest()(PARAMS, {**PARAMS, "extra": jnp.ones(1)}, sparsity=0.5)
    with says(ValueError, "scores does not have the tree structure"):
        select.lowest()([X], (X,), sparsity=0.5)
    mask = jp.trees.full_mask(PARAMS)
    mask["dense"]["kernel"] = mask["dense"]["kernel"].T
    with says(ValueError, "mask at leaf 'dense/kernel' has shape (3, 4)", "parameter has (4, 3)"):
        jp.apply_mask(PARAMS, mask)
    with says(TypeError, "mask at leaf 'dense/bias' has dtype float32", "True = kept", "!= 0"):
        jp.apply_mask(PARAMS, jax.tree.map(jnp.ones_like, PARAMS))


def test_results_by_name_of_leaves_that_share_one():
    params = {"a/b": jnp.ones((3, 3)), "a": {"b": jnp.ones((3, 2))}}
    mask = jp.trees.full_mask(params)
    model = lambda p, x: jax.nn.relu(x @ p["a/b"]) @ p["a"]["b"]
    small = jp.quantize.unquantized()(params)
    for call in (
        lambda: jp.couple(model, params, X[:, :3]).reduce(params),
        lambda: saliency.output_axes(model, params, X[:, :3]),
        lambda: jp.surgeon.input_hessians(model, params, (X[:, :3], None)),
        lambda: jp.reporting.mask_changes(mask, mask),
        lambda: jp.quantize.stored_bytes(small),
    ):
        with says(ValueError, "share the names ['a/b']", "contain '/'"):
            call()
    assert len(jp.quantize.pack(small)) > 0  # bytes have no names


@pytest.mark.parametrize("make", [select.lowest, lambda: select.n_of_m(1, 2),
                                  lambda: select.blocks((2, 1))])  # fmt: skip
def test_nan_in_scores_given_to_a_selection(make):
    scores = {"dense": {"kernel": PARAMS["dense"]["kernel"].at[2, 1].set(jnp.nan),
                        "bias": jnp.full(3, jnp.nan)}}  # fmt: skip
    sparsity = 0.5
    with says(ValueError, "leaf 'dense/kernel' is NaN at 1 of 12", "`prunable`"):
        make()(PARAMS, scores, sparsity=sparsity)


def test_integer_leaves_asked_to_be_pruned():
    params = {"w": jnp.ones((2, 2)), "table": jnp.ones((2, 2), jnp.int32)}
    for leaf in (params["table"], jax.random.split(jax.random.key(0), (2, 2)), jnp.ones(2, bool)):
        params["table"] = leaf
        prune = jp.one_shot(saliency.magnitude(), select.lowest(prunable=lambda *_: True))
        with says(TypeError, "Cannot prune leaf 'table'", f"dtype is {leaf.dtype}",
                  "Exclude it in `prunable`"):  # fmt: skip
            prune(params, sparsity=0.5)


def test_nothing_to_prune():
    with says(ValueError, "Nothing to prune", "['bias']", "rank >= 2", "pass `prunable="):
        BY_MAGNITUDE({"bias": jnp.ones(3)}, sparsity=0.5)


READERS = {
    "taylor": lambda loss: saliency.taylor(apply, loss),
    "snip": lambda loss: saliency.snip(apply, loss),
    "exact": lambda loss: curvature.exact_diagonal(apply, loss),
    "gauss-newton": lambda loss: curvature.gauss_newton_diagonal(apply, loss),
    "fisher": lambda loss: curvature.fisher_diagonal(apply, loss),
    "moments": lambda loss: curvature.gradient_moments(apply, loss),
    "layers": lambda loss: curvature.layer_moments(apply, loss),
    "hutchinson": lambda loss: curvature.hutchinson_diagonal(
        apply, loss, key=jax.random.key(0)),
    "hvp": lambda loss: lambda p, b: curvature.hvp(apply, loss)(p, b, p),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_a_loss_of_the_wrong_shape(name):
    mean = READERS[name](lambda y, t: jnp.mean((y - t) ** 2))
    with says(ValueError, "one loss per example", "got ()", "Drop the mean over examples"):
        mean(PARAMS, (X, T))
    not_summed = READERS[name](lambda y, t: (y - t) ** 2)
    with says(ValueError, "one loss per example", "3)"):
        not_summed(PARAMS, (X, T))


@pytest.mark.parametrize("name", READERS)
def test_batches_that_are_missing_empty_or_uneven(name):
    call = lambda batch: READERS[name](squared_loss)(PARAMS, batch)
    with says(ValueError, "needs data, and got no batch", "batch=(inputs, targets)", "tx.update("):
        call(None)
    with says(ValueError, "batch is empty: N = 0", "Pass at least one"):
        call((X[:0], T[:0]))
    with says(ValueError, "'0' has 5", "'1' has 4", "share a leading axis N"):
        call((X, T[:4]))
    with says(ValueError, "leaf '1' is a scalar", "leading axis N"):
        call((X, jnp.float32(1.0)))
    with says(ValueError, "the pair `(inputs, targets)`, got dict", "loss(params, batch)"):
        call({"inputs": X, "targets": T})


def test_a_plain_loss_that_is_no_scalar():
    plain = saliency.taylor(lambda params, batch: squared_loss(apply(params, batch[0]), batch[1]))
    with says(ValueError, "must return a scalar, got shape (5,)", "or pass `(apply, loss)`"):
        plain(PARAMS, (X, T))


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
def test_counts_that_are_no_counts_are_named(value):
    makes = {
        "chunk": lambda v: curvature.exact_diagonal(apply, squared_loss, chunk=v),
        "microbatch": lambda v: curvature.fisher_diagonal(apply, squared_loss, microbatch=v),
        "probes": lambda v: curvature.hutchinson_diagonal(
            apply, squared_loss, key=jax.random.key(0), probes=v),
    }  # fmt: skip
    for name, make in makes.items():
        if name == "microbatch" and value is None:
            continue  # as many as fit a cache
        with says(ValueError, f"`{name}`", "integer >= 1", f"got {value!r}"):
            make(value)


def test_a_source_of_another_kind():
    moments = curvature.gradient_moments(apply, squared_loss)
    for make in (saliency.optimal_brain_damage, saliency.fisher, saliency.optimal_brain_damage_sd):
        with says(TypeError, "needs a source that returns Diagonal", "returned GradientMoments"):
            make(moments)(PARAMS, (X, T))
    bare = lambda params, batch: params
    for reading, kind in (("gradient_variance", "GradientMoments"),
                          ("input_spread", "LayerMoments")):  # fmt: skip
        with says(TypeError, f"'{reading}'", f"returns {kind}", "returned dict"):
            saliency.optimal_brain_damage_sd(bare, reading=reading)(PARAMS, (X, T))
    probes = curvature.hutchinson_diagonal(apply, squared_loss, key=jax.random.key(0), probes=1)
    with says(ValueError, "no second moment", "exact_diagonal"):
        saliency.optimal_brain_damage_sd(probes)(PARAMS, (X, T))


def test_more_outputs_than_autodiff_should_be_asked_for():
    wide = lambda w, x: x @ w
    batch = (jnp.ones((2, 3)), jnp.ones((2, 65)))
    for make in (curvature.gauss_newton_diagonal, curvature.layer_moments):
        with says(ValueError, "65 outputs", "up to 64", "Pass `root=`"):
            make(wide, squared_loss)(jnp.ones((3, 65)), batch)
        with says(ValueError, "columns of shape [N, 65, C]", "got (65,)"):
            make(wide, squared_loss, root=lambda y, t: y[0])(jnp.ones((3, 65)), batch)


def test_a_leaf_that_a_saliency_cannot_score_is_named_by_the_pruner():
    params = {"shared": jnp.ones((3, 3))}
    tied = lambda p, x: jnp.tanh(x @ p["shared"]) @ p["shared"].T
    spread = saliency.optimal_brain_damage_sd(
        curvature.layer_moments(tied, squared_loss), reading="input_spread"
    )
    with says(ValueError, "leaf 'shared' is NaN", "at 9 of 9", "exclude it in `prunable`"):
        jp.one_shot(spread, select.lowest())(params, (X[:, :3], T), sparsity=0.5)
