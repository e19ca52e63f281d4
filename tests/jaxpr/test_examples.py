"""independent_examples: whose models may be cut into single examples."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxprune.jaxpr.examples import independent_examples
from tests.problems import PROBLEMS

N, T, F = 4, 6, 3
X = jnp.asarray(np.random.default_rng(0).normal(size=(N, T, F)))
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, 5, (N, T)))
IMAGES = jnp.asarray(np.random.default_rng(2).normal(size=(N, 6, 6, F)))
W = jnp.asarray(np.random.default_rng(3).normal(size=(F, F)))
KEY = jax.random.key(0)


def scanned(w, x):
    step = lambda h, v: (jnp.tanh(h @ w + v), h)
    last, ys = lax.scan(step, jnp.zeros((x.shape[0], F)), jnp.swapaxes(x, 0, 1))
    return last + jnp.swapaxes(ys, 0, 1)[:, 0]


def attention(w, x):
    scores = jnp.einsum("ntf,nsf->nts", x @ w, x) + jnp.log(jnp.tri(T))
    return jnp.einsum("nts,nsf->ntf", jax.nn.softmax(scores), x)


def heads(w, x):
    split = (x @ w).reshape(*x.shape[:2], F, 1)
    return jnp.einsum("nthd,nshd->nhts", split, split)


def kernel(channels=F, groups=1):
    return jnp.ones((3, 3, channels // groups, 6))


def conv(x, groups=1):
    return lax.conv_general_dilated(
        x, kernel(F, groups), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip


ALONE = {
    "dense": lambda w, x: x @ w,
    "dense with a bias": lambda w, x: jnp.tanh(x @ w + w[0]),
    "vmap of one example": lambda w, x: jax.vmap(lambda v: v @ w - jnp.mean(v))(x),
    "softmax over features": lambda w, x: jax.nn.softmax(x @ w),
    "layer norm": lambda w, x: (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True),
    "pooled over time": lambda w, x: jnp.max(x @ w, axis=1),
    "argmax over time": lambda w, x: jnp.argmax(x @ w, axis=1),
    "batch and time merged": lambda w, x: (x.reshape(-1, F) @ w).reshape(x.shape),
    "all flattened": lambda w, x: (2 * x.ravel()).reshape(x.shape),
    "time major and back": lambda w, x: jnp.swapaxes(jnp.swapaxes(x, 0, 1) @ w, 0, 1),
    "features first and back": lambda w, x: jnp.transpose(jnp.transpose(x, (2, 1, 0)), (2, 1, 0)),
    "examples last": lambda w, x: (w @ x[:, 0].T).T,
    "scan over time": scanned,
    "attention": attention,
    "heads": heads,
    "joined with zeros": lambda w, x: jnp.concatenate([jnp.zeros((x.shape[0], 1, F)), x], axis=1),
    "a token in front": lambda w, x: jnp.concatenate(
        [jnp.broadcast_to(w[:1], (x.shape[0], 1, F)), x], axis=1
    ),
    "split and joined": lambda w, x: jnp.concatenate(jnp.split(x, 3, axis=1), axis=2),
    "stacked": lambda w, x: jnp.stack([x, x @ w], axis=2),
    "unstacked": lambda w, x: sum(jnp.unstack(x, axis=1)),
    "rolled in time": lambda w, x: jnp.roll(x, 1, axis=1),
    "cumulative in time": lambda w, x: jnp.cumsum(x, axis=1),
    "sorted features": lambda w, x: jnp.sort(x, axis=-1),
    "best features": lambda w, x: lax.top_k(x, 2)[0],
    "a fixed mask over features": lambda w, x: x * jnp.array([1.0, 0.0, 1.0]),
    "a mask drawn over features": lambda w, x: x * jax.random.bernoulli(KEY, 0.5, (F,)),
    "a position table": lambda w, x: x + jnp.arange(T * F).reshape(T, F),
    "a branch on the weights": lambda w, x: lax.cond(w[0, 0] > 0, lambda: x @ w, lambda: x),
    "jit, remat and a custom rule": lambda w, x: jax.jit(jax.checkpoint(jax.nn.relu))(x @ w),
    "its own last step": lambda w, x: jnp.take_along_axis(x, jnp.argmax(x, 1)[:, None], 1),
    "window sums over time": lambda w, x: nn.avg_pool(x, (2,), (2,)),
    "select of two": lambda w, x: jnp.where(x > 0, x @ w, x),
    "clipped and rounded": lambda w, x: jnp.round(jnp.clip(x, -1, 1)),
    "outputs in a dict": lambda w, x: {"a": x @ w, "b": [x.sum((1, 2))]},
}  # fmt: skip
MEET = {
    "batch mean": lambda w, x: x - jnp.mean(x, axis=0),
    "batch maximum": lambda w, x: x / jnp.max(x),
    "softmax over the batch": lambda w, x: jax.nn.softmax(x @ w, axis=0),
    "sum with the next example": lambda w, x: x + jnp.roll(x, 1, axis=0),
    "reversed": lambda w, x: x[::-1],
    "only the first": lambda w, x: jnp.broadcast_to(x[:1], x.shape),
    "cumulative over the batch": lambda w, x: jnp.cumsum(x, axis=0),
    "sorted over the batch": lambda w, x: jnp.sort(x, axis=0),
    "contrastive": lambda w, x: x[:, 0] @ x[:, 0].T,
    "attention over the batch": lambda w, x: jax.nn.softmax(x[:, 0] @ x[:, 0].T) @ x[:, 0],
    "scan over examples": lambda w, x: lax.scan(lambda h, v: (h + v, h), x[0], x)[1],
    "dropout drawn for the batch": lambda w, x: x * jax.random.bernoulli(KEY, 0.5, x.shape),
    "a number for each row": lambda w, x: x + jax.random.normal(KEY, (x.shape[0], 1, 1)),
    "rows numbered": lambda w, x: x * jnp.arange(x.shape[0])[:, None, None],
    "a fixed array for each row": lambda w, x: x + jnp.arange(4.0)[: x.shape[0], None, None],
    "one row an example, all equal": lambda w, x: x + np.ones((N, 1, 1)),
    "stacked in front": lambda w, x: jnp.stack([x, x]),
    "row n with parameter n": lambda w, x: x[:, 0] + jnp.tile(w, (2, 1))[: x.shape[0]],
    "time and batch mixed up": lambda w, x: jnp.swapaxes(x, 0, 1).reshape(x.shape),
    "shifted by one entry": lambda w, x: jnp.roll(x.ravel(), 1).reshape(x.shape),
    "a branch on the batch": lambda w, x: lax.cond(x.sum() > 0, lambda: x @ w, lambda: x),
    "examples left out": lambda w, x: x[:-1],
    "one output for all": lambda w, x: jnp.sum(x),
    "outputs time major": lambda w, x: jnp.swapaxes(x, 0, 1) @ w,
    "looked up in the batch": lambda w, x: x[jnp.zeros(x.shape[0], int)],
    "written by row": lambda w, x: jnp.zeros_like(x).at[0].set(x[0]),
    "divided by the size of the batch": lambda w, x: x @ w / x.shape[0],
    "divided by an array of that size": lambda w, x: x / np.full(F, float(x.shape[0])),
    "divided by a count of rows": lambda w, x: x / jnp.sum(jnp.ones(x.shape[0])),
    "divided by a device scalar": lambda w, x: x / jnp.asarray(float(x.shape[0])),
    "to the power of the size": lambda w, x: x ** x.shape[0],
    "weighed by the last row number": lambda w, x: x * jnp.arange(x.shape[0])[-1],
    "a constant": lambda w, x: jnp.ones((x.shape[0], F)) @ w,
}


@pytest.mark.parametrize("name", ALONE)
def test_examples_by_themselves_are_seen_to_be(name):
    assert independent_examples(ALONE[name], W, X)


@pytest.mark.every(3)
@pytest.mark.parametrize("name", ALONE)
def test_models_of_that_table_do_treat_examples_alone(name):
    apply = ALONE[name]
    whole = apply(W, X)
    for n in range(N):
        one = apply(W, X[n : n + 1])
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(a[0], b[n], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", MEET)
def test_examples_that_meet_or_are_not_alike_are_never_cut_apart(name):
    assert not independent_examples(MEET[name], W, X)


@pytest.mark.parametrize("name", [p for p in PROBLEMS if p != "cluttered"])
def test_problems_are_made_of_single_examples(name):
    problem = PROBLEMS[name]()
    assert independent_examples(problem.apply, problem.params, problem.batch[0])


def modules():
    class Recurrent(nn.Module):
        cell: type

        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.RNN(self.cell(3))(x)[:, -1])

    class Attend(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.LayerNorm()(x)
            return nn.MultiHeadDotProductAttention(3)(y, mask=nn.make_causal_mask(x[..., 0]))

    class Embed(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            return nn.Embed(5, 4)(tokens) + nn.Embed(T, 4)(jnp.arange(T))

    class Images(nn.Module):
        norm: type

        @nn.compact
        def __call__(self, x):
            x = nn.max_pool(nn.Conv(4, (3, 3))(x), (2, 2), (2, 2))
            return nn.Dense(3)(self.norm()(x).reshape(x.shape[0], -1))

    still = partial(nn.BatchNorm, use_running_average=True)
    return {
        "LSTM": (Recurrent(nn.LSTMCell), X),
        "GRU": (Recurrent(nn.GRUCell), X),
        "attention": (Attend(), X),
        "embedding": (Embed(), TOKENS),
        "group norm": (Images(partial(nn.GroupNorm, 2)), IMAGES),
        "batch norm, evaluated": (Images(still), IMAGES),
    }


@pytest.mark.parametrize("name", modules())
def test_flax_modules_are_made_of_single_examples(name):
    module, x = modules()[name]
    variables = jax.eval_shape(module.init, KEY, x)
    assert independent_examples(lambda v, x: module.apply(v, x), variables, x)


def test_batch_norm_in_training_mixes_examples():
    module = nn.BatchNorm(use_running_average=False)
    variables = jax.eval_shape(module.init, KEY, X)
    apply = lambda v, x: module.apply(v, x, mutable=["batch_stats"])[0]
    assert not independent_examples(apply, variables, X)


def test_dropout_mixes_examples_where_it_draws():
    module = nn.Dropout(0.5, deterministic=False)
    apply = lambda _, x: module.apply({}, x, rngs={"dropout": KEY})
    assert not independent_examples(apply, W, X)
    shared = nn.Dropout(0.5, broadcast_dims=(0,), deterministic=False)
    apply = lambda _, x: shared.apply({}, x, rngs={"dropout": KEY})
    assert independent_examples(apply, W, X)


def test_convolutions_keep_images_apart_and_groups_of_the_batch_do_not():
    assert independent_examples(lambda w, x: conv(x), W, IMAGES)
    assert independent_examples(lambda w, x: conv(x, groups=3), W, IMAGES)

    def grouped(w, x):
        filters = jnp.ones((3, 3, F, 8))
        return lax.conv_general_dilated(x, filters, (1, 1), "SAME", batch_group_count=4,
                                        dimension_numbers=("NHWC", "HWIO", "NHWC"))  # fmt: skip

    assert not independent_examples(grouped, W, IMAGES)


def test_a_size_that_is_the_number_of_examples_by_chance_confuses_nothing():
    x = jnp.ones((N, N, N))
    w = jnp.ones((N, N))
    assert independent_examples(lambda w, x: x @ w, w, x)
    assert independent_examples(lambda w, x: jnp.swapaxes(x, 1, 2) @ w, w, x)
    assert not independent_examples(lambda w, x: jnp.swapaxes(x, 0, 1) @ w, w, x)
    assert not independent_examples(lambda w, x: jnp.transpose(x, (2, 0, 1)), w, x)
    assert not independent_examples(lambda w, x: x + w[:, :, None], w, x)
    assert independent_examples(lambda w, x: x + w, w, x)


def test_one_example_is_always_alone():
    assert independent_examples(lambda w, x: x - jnp.mean(x, axis=0), W, X[:1])


def test_a_model_for_one_size_of_batch_cannot_be_cut():
    apply = lambda w, x: x.reshape(2, 2, T, F).reshape(N, T, F) @ w
    assert not independent_examples(apply, W, X)


def test_every_leaf_of_the_inputs_is_followed():
    inputs = {"left": X, "right": [X[:, 0]]}
    both = lambda w, x: x["left"] @ w + x["right"][0][:, None]
    assert independent_examples(both, W, inputs)
    crossed = lambda w, x: x["left"] @ w + jnp.mean(x["right"][0], axis=0)
    assert not independent_examples(crossed, W, inputs)


def test_an_index_that_is_made_of_examples_is_no_lookup_of_each():
    """Two examples are the two coordinates of one entry."""
    numbers = lax.GatherDimensionNumbers((), (0, 1), (0, 1))

    def apply(w, x):
        entry = lax.gather(w, x, numbers, (1, 1))
        return x + entry.astype(int)

    assert not independent_examples(apply, W, jnp.array([1, 2]))


def test_errors_of_the_model_itself_are_the_callers():
    with pytest.raises(TypeError):
        independent_examples(lambda w, x: x @ w, jnp.ones((7, 7)), X)
