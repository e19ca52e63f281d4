"""What layer-wise pruning cannot do, it says: which leaf, what it got, and what to do."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.surgeon.layers.calibration import input_hessians
from jaxprune.surgeon.layers.columnwise import sparse_gpt
from jaxprune.surgeon.layers.rowwise import exact_obs

lowest, n_of_m = jp.select.lowest, jp.select.n_of_m
PARAMS = {"kernel": jnp.arange(1.0, 13).reshape(4, 3), "bias": jnp.ones(3)}
X = jnp.asarray(np.random.default_rng(0).normal(size=(9, 4)), jnp.float32)
both = pytest.mark.parametrize("surgeon", [exact_obs, sparse_gpt], ids=["exact", "sweep"])


def apply(params, x):
    return x @ params["kernel"] + params["bias"]


def says(error, *parts):
    """The error is raised with a message that has all the parts, in any order."""
    ahead = "".join(f"(?=.*{re.escape(part)})" for part in parts)
    return pytest.raises(error, match=f"(?s){ahead}")


@both
def test_a_sparsity_that_is_none_or_out_of_range(surgeon):
    for sparsity in (-0.1, 1.0, float("nan")):
        with says(ValueError, "[0, 1)", f"got {sparsity}"):
            surgeon(apply)(PARAMS, (X, None), sparsity=sparsity)
    with says(ValueError, "needs a sparsity in [0, 1)"):
        surgeon(apply)(PARAMS, (X, None))
    with says(ValueError, "2 of 4 has sparsity 0.5", "got sparsity=0.9"):
        surgeon(apply, select=n_of_m(2, 4))(PARAMS, (X, None), sparsity=0.9)


@both
def test_groups_that_do_not_divide_the_inputs_or_run_along_outputs(surgeon):
    with says(ValueError, "leaf 'kernel' has 4 entries along axis 0", "groups of 3"):
        surgeon(apply, select=n_of_m(1, 3))(PARAMS, (X, None))
    params = {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)}
    with says(ValueError, "2 of every 3 entries along axis 1 of leaf 'kernel'", "(4, 6)",
              "groups must run along the inputs", "exclude the leaf in `prunable`"):  # fmt: skip
        surgeon(apply, select=n_of_m(1, 3, axis=1))(params, (X, None))


@both
def test_batches_without_examples(surgeon):
    with says(ValueError, "needs calibration data", "(inputs, None)"):
        surgeon(apply)(PARAMS, sparsity=0.5)
    with says(ValueError, "The batch is empty"):
        surgeon(apply)(PARAMS, (X[:0], None), sparsity=0.5)
    with says(ValueError, "(inputs, targets)"):
        surgeon(apply)(PARAMS, X, sparsity=0.5)


@both
def test_numbers_that_are_none(surgeon):
    with says(ValueError, "inputs of leaf 'kernel' are NaN or infinite", "calibration batch"):
        surgeon(apply)(PARAMS, (X.at[3, 1].set(jnp.nan), None), sparsity=0.5)
    bad = {**PARAMS, "kernel": PARAMS["kernel"].at[0, 0].set(jnp.inf)}
    with says(ValueError, "leaf 'kernel' is NaN or infinite at 1 of 12 entries"):
        surgeon(apply)(bad, (X, None), sparsity=0.5)


@both
def test_leaves_that_are_no_layers_weights(surgeon):
    every = lowest("layer", prunable=lambda name, leaf: True)
    with says(ValueError, "leaf 'bias' is read by something other than a layer", "`prunable`"):
        surgeon(apply, select=every)(PARAMS, (X, None), sparsity=0.5)
    with says(ValueError, "leaf 'more' is read by no layer", "exclude it in `prunable`"):
        surgeon(apply)({**PARAMS, "more": jnp.ones((2, 2))}, (X, None), sparsity=0.5)
    table = {"table": jnp.ones((5, 3))}
    with says(ValueError, "leaf 'table' is looked up by rows, as an embedding is"):
        surgeon(lambda p, i: p["table"][i])(table, (jnp.array([1, 4]), None), sparsity=0.5)
    square = {"tied": jnp.ones((4, 4))}
    tied = lambda p, x: jnp.tanh(x @ p["tied"]) @ p["tied"].T
    with says(ValueError, "read leaf 'tied' in different ways", "once transposed"):
        surgeon(tied)(square, (X, None), sparsity=0.5)
    wide = lambda p, x: x @ jnp.broadcast_to(p["row"], (4, 3))
    with says(ValueError, "that reads leaf 'row' repeats or mixes its entries"):
        surgeon(wide)({"row": jnp.ones((1, 3))}, (X, None), sparsity=0.5)


@both
def test_complex_weights_loops_of_unknown_length_and_what_is_no_function(surgeon):
    params = {"kernel": PARAMS["kernel"] + 1j}
    with says(ValueError, "leaf 'kernel' is complex64", "exclude it in `prunable`"):
        surgeon(lambda p, x: (x @ p["kernel"]).real)(params, (X, None), sparsity=0.5)
    step = lambda state, p: (state[0] + 1, jnp.tanh(state[1] @ p["square"]))
    loop = lambda p, x: jax.lax.while_loop(lambda s: s[0] < 3, lambda s: step(s, p), (0, x))[1]
    with says(ValueError, "could not be shown to be independent", "`while_loop`"):
        surgeon(loop)({"square": jnp.eye(4)}, (X, None), sparsity=0.5)
    model = jp.surgeon.LocalModel(apply, lambda y, t: y.sum(-1))
    with says(TypeError, "of a LocalModel its `apply`"):
        surgeon(model)
    with says(TypeError, "`select` is a selection", "got 'layer'"):
        surgeon(apply, select="layer")


@both
def test_examples_that_depend_on_each_other(surgeon):
    net = nn.BatchNorm(use_running_average=False)
    stats = net.init(jax.random.key(0), X[:, :3])
    meet = lambda p, x: net.apply(stats, apply(p, x), mutable=["batch_stats"])[0]
    with says(ValueError, "independent of the other examples", "use_running_average=True"):
        surgeon(meet)(PARAMS, (X, None), sparsity=0.5)


@both
def test_whole_units(surgeon):
    net = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
    params = {"a": jnp.ones((4, 5)), "b": jnp.ones((5, 2))}
    coupling = jp.couple(net, params, X[:1])
    with says(ValueError, "prunes whole units", "`jp.one_shot`"):
        surgeon(net, select=jp.select.lowest_units(coupling))


@both
def test_arguments_out_of_range(surgeon):
    for damping in (-0.1, float("nan"), float("inf"), "0.1", None, True):
        with says(ValueError, "`damping`", "a number >= 0", f"got {damping!r}"):
            surgeon(apply, damping=damping)
    for microbatch in (0, -1, 2.0, True):
        with says(ValueError, "`microbatch`", f"got {microbatch!r}"):
            surgeon(apply, microbatch=microbatch)
    with says(ValueError, "`block`", "got 0"):
        sparse_gpt(apply, block=0)
    with says(ValueError, "`microbatch`", "got 0"):
        input_hessians(apply, PARAMS, (X, None), microbatch=0)


@both
def test_inside_jit(surgeon):
    prune = surgeon(apply)
    with says(ValueError, "call it outside jit"):
        jax.jit(lambda p: prune(p, (X, None), sparsity=0.5).params)(PARAMS)


@both
def test_masks_of_other_trees(surgeon):
    with says(ValueError, "mask does not have the tree structure"):
        surgeon(apply)(PARAMS, (X, None), sparsity=0.5, mask={"kernel": jnp.ones((4, 3), bool)})
    with says(TypeError, "a mask is bool"):
        surgeon(apply)(PARAMS, (X, None), sparsity=0.5, mask=PARAMS)
