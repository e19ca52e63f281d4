"""What is saved comes back with its bits, or the leaf that cannot is named."""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze
from flax.training.train_state import TrainState

import jaxprune as jp
from tests.transforms import zoo


class Pair(NamedTuple):
    kernel: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: Any
    bias: Any


@jax.tree_util.register_pytree_node_class
class Unnamed:
    """A pytree node without names for its children."""

    def __init__(self, *children):
        self.children = children

    def tree_flatten(self):
        return self.children, None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def linen_variables():
    net = nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=False), nn.Dense(2)])
    return net.init(jax.random.key(0), jnp.ones((4, 5)))


def nnx_state():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(3, 2, rngs=rngs)
            self.norm = nnx.BatchNorm(2, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

    return nnx.state(Net(nnx.Rngs(0)))


def training_state(masking):
    params = zoo.dense_params()
    tx = optax.chain(optax.adamw(0.01), zoo.TRANSFORMS[masking]())
    state = tx.init(params)
    step = zoo.step_of(tx)
    for _ in range(3):
        params, state = step(params, state)
    return {"params": params, "mask": jp.mask_of(state), "opt_state": state, "step": jnp.int32(3)}


def train_state():
    params = linen_variables()["params"]
    tx = optax.chain(optax.adam(0.1), zoo.magnitude_pruning(0.5, 1))
    train = TrainState.create(apply_fn=None, params=params, tx=tx)
    for _ in range(2):
        train = train.apply_gradients(grads=jax.tree.map(jnp.ones_like, train.params))
    return train


SPECIAL = np.array([np.nan, -np.nan, -0.0, np.inf, 1e-45, 3.4e38], np.float32)

TREES = {
    **{f"{name}_training": lambda name=name: training_state(name) for name in zoo.TRANSFORMS},
    "linen_train_state": train_state,
    "linen_variables": linen_variables,
    "frozen_dict": lambda: freeze(linen_variables()),
    "nnx_state": nnx_state,
    "list": lambda: [jnp.arange(float(n)) for n in range(1, 13)],  # 10 sorts before 2 as text
    "tuple": lambda: (jnp.ones(2), (jnp.zeros(3), [jnp.ones(1)])),
    "named_tuple": lambda: Pair(jnp.ones(2), Pair(jnp.zeros(3), ())),
    "dataclass": lambda: Layer(jnp.ones(2), {"x": jnp.zeros(1)}),
    "unnamed_children": lambda: Unnamed(jnp.ones(2), Unnamed(jnp.zeros(3))),
    "bare_array": lambda: jnp.arange(3.0),
    "bare_scalar": lambda: jnp.int32(7),
    "special_floats": lambda: {"w": jnp.asarray(SPECIAL)},
    "bfloat16": lambda: {"w": jnp.asarray(SPECIAL, jnp.bfloat16)},
    "narrow": lambda: {"f8": jnp.ones(3, jnp.float8_e4m3fn), "i4": jnp.ones(3, jnp.int4)},
    "complex": lambda: {"w": jnp.array([1 + 2j, -0.0j])},
    "integers": lambda: {"a": jnp.int8(-3), "b": jnp.uint32(2**32 - 1), "c": jnp.arange(5)},
    "bool": lambda: {"mask": jnp.array([[True, False]]), "flag": jnp.array(False)},
    "keys": lambda: {
        "one": jax.random.key(3),
        "many": jax.random.split(jax.random.key(1), (2, 3)),
        "rbg": jax.random.key(1, impl="rbg"),
        "raw": jax.random.PRNGKey(0),
    },
    "zero_size": lambda: {"none": jnp.zeros((0, 3), jnp.bfloat16), "some": jnp.ones(2)},
    "only_zero_size": lambda: {"none": jnp.zeros((0, 3))},
    "no_leaf": lambda: {"a": {}, "b": (), "c": None},
    "holes": lambda: {"a": None, "b": {}, "w": jnp.ones(2)},
    "names_that_run_into_each_other": lambda: {
        "a.b": jnp.zeros(2),
        "a/b": jnp.ones(2),
        "a": {"b": jnp.full(2, 2.0), "0": jnp.full(2, 3.0), "0.0": jnp.full(2, 4.0)},
        "a/b'": jnp.full(2, 5.0),
    },
    "odd_names": lambda: {"": jnp.ones(1), "ünï c/ö [x]": {3: jnp.zeros(1), 12: jnp.ones(1)}},
    "numpy": lambda: {"f64": np.arange(3.0), "i64": np.int64(2**40), "scalar": np.float64(0.1)},
    "python_numbers": lambda: {"i": 2**40, "f": 0.1, "b": True, "c": 1 + 2j},
}
HAVE_NUMBERS = ("numpy", "python_numbers", "linen_train_state")  # abstractly, these are arrays


def bits(tree):
    """Keys as their integers, so that bits can be compared."""
    is_key = lambda leaf: jax.dtypes.issubdtype(
        getattr(leaf, "dtype", np.dtype("f")), jax.dtypes.prng_key
    )
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)


@pytest.mark.every(3)
@pytest.mark.parametrize("name", sorted(TREES))
def test_what_was_saved_is_restored_bit_for_bit(name, tmp_path):
    tree = TREES[name]()
    jp.checkpoint.save(tmp_path, tree, step=0)
    found = jp.checkpoint.restore(tmp_path, tree)
    zoo.assert_same_bits(bits(found), bits(tree))
    for old, new in zip(jax.tree.leaves(tree), jax.tree.leaves(found), strict=True):
        assert isinstance(new, jax.Array) == isinstance(old, jax.Array)
        assert isinstance(old, jax.Array) or type(new) is type(old)
    if name not in HAVE_NUMBERS:
        abstract = jax.eval_shape(lambda: tree)
        zoo.assert_same_bits(bits(jp.checkpoint.restore(tmp_path, abstract)), bits(tree))


def test_restored_keys_draw_what_the_saved_ones_would(tmp_path):
    keys = {"default": jax.random.key(3), "rbg": jax.random.key(1, impl="rbg")}
    jp.checkpoint.save(tmp_path, keys, step=0)
    found = jp.checkpoint.restore(tmp_path, jax.eval_shape(lambda: keys))
    for name, key in keys.items():
        np.testing.assert_array_equal(
            jax.random.normal(found[name], (3,)), jax.random.normal(key, (3,))
        )


def test_a_restored_nnx_optimizer_goes_on_as_the_saved_one(tmp_path):
    def training():
        model = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
        tx = optax.chain(optax.adam(0.1), zoo.magnitude_pruning(0.5, 4))
        return model, nnx.Optimizer(model, tx, wrt=nnx.Param)

    def step(model, optimizer):
        grads = nnx.grad(lambda m: jnp.mean((m(jnp.ones((2, 4))) - 1) ** 2))(model)
        optimizer.update(model, grads)

    model, optimizer = training()
    for _ in range(3):
        step(model, optimizer)
    jp.checkpoint.save(tmp_path, nnx.state((model, optimizer)), step=3)
    other, resumed = training()
    nnx.update((other, resumed), jp.checkpoint.restore(tmp_path, nnx.state((other, resumed))))
    for _ in range(3):
        step(model, optimizer)
        step(other, resumed)
    zoo.assert_same_bits(nnx.state(other), nnx.state(model))
    zoo.assert_same_bits(nnx.state(resumed), nnx.state(optimizer))
    assert zoo.dropped(jp.mask_of(resumed.opt_state)) == 16


def test_a_donated_step_can_follow_a_restore(tmp_path):
    tree = training_state("prune_gradually")
    jp.checkpoint.save(tmp_path, tree, step=3)
    found = jp.checkpoint.restore(tmp_path, tree)
    tx = optax.chain(optax.adamw(0.01), zoo.TRANSFORMS["prune_gradually"]())
    expected = zoo.step_of(tx)(tree["params"], tree["opt_state"])
    zoo.assert_same_bits(zoo.step_of(tx)(found["params"], found["opt_state"]), expected)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"net": {"kernel": jnp.ones((2, 3))}}, "leaf 'net/bias' is in the checkpoint but not"),
        (
            {"net": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "more": jnp.ones(1)},
            "leaf 'more' is not in the checkpoint",
        ),
        (
            {"net": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(3)}},
            r"leaf 'net/kernel' was saved as float32\[2, 3\], .* has float32\[3, 2\]",
        ),
        (
            {"net": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3, jnp.bfloat16)}},
            r"leaf 'net/bias' was saved as float32\[3\], .* has bfloat16\[3\]",
        ),
        (
            {"net": {"kernel": jnp.ones((2, 0)), "bias": jnp.ones(3)}},
            r"leaf 'net/kernel' was saved as float32\[2, 3\], .* has float32\[2, 0\]",
        ),
    ],
    ids=["missing", "extra", "shape", "dtype", "zero_size"],
)
def test_restoring_into_another_tree_names_the_leaf(like, message, tmp_path):
    tree = {"net": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    jp.checkpoint.save(tmp_path, tree, step=0)
    with pytest.raises(ValueError, match=message):
        jp.checkpoint.restore(tmp_path, like)


def test_another_kind_of_prng_key_is_an_error_that_names_the_leaf(tmp_path):
    jp.checkpoint.save(tmp_path, {"rng": jax.random.key(0)}, step=0)
    with pytest.raises(ValueError, match=r"leaf 'rng' was saved as key<fry>\[\]"):
        jp.checkpoint.restore(tmp_path, {"rng": jax.random.key(0, impl="rbg")})


def test_no_directory_no_checkpoint_and_no_such_step_are_errors_that_say_what_there_is(tmp_path):
    tree = {"w": jnp.ones(2)}
    assert jp.checkpoint.steps(tmp_path / "nowhere") == []
    assert jp.checkpoint.latest_step(tmp_path / "nowhere") is None
    for directory in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileNotFoundError, match="has no checkpoint; complete ones: none"):
            jp.checkpoint.restore(directory, tree)
    assert not (tmp_path / "nowhere").exists()  # asking makes nothing
    jp.checkpoint.save(tmp_path, tree, step=3)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 4; complete ones: \[3\]"):
        jp.checkpoint.restore(tmp_path, tree, step=4)


def test_each_step_is_saved_once_in_any_order_and_restored_by_number(tmp_path):
    for step in (7, 2, 11):
        jp.checkpoint.save(tmp_path / "deep" / "er", {"w": jnp.full(2, step)}, step=step)
    directory, like = str(tmp_path / "deep" / "er"), {"w": jnp.zeros(2, jnp.int32)}
    assert jp.checkpoint.steps(directory) == [2, 7, 11]
    assert jp.checkpoint.latest_step(directory) == 11
    for step, wanted in ((None, 11), (2, 2), (7, 7)):
        assert jp.checkpoint.restore(directory, like, step=step)["w"].tolist() == [wanted] * 2
    with pytest.raises(ValueError, match="has a checkpoint of step 2 already"):
        jp.checkpoint.save(directory, {"w": jnp.zeros(2, jnp.int32)}, step=2)
    assert jp.checkpoint.restore(directory, like, step=2)["w"].tolist() == [2, 2]


def test_keep_retains_the_newest_checkpoints(tmp_path):
    for step in range(5):
        jp.checkpoint.save(tmp_path, {"w": jnp.full(2, step)}, step=step, keep=2)
        assert jp.checkpoint.steps(tmp_path) == [s for s in (step - 1, step) if s >= 0]
    with pytest.raises(ValueError, match="checkpoint of step 4, later than 1"):
        jp.checkpoint.save(tmp_path, {"w": jnp.zeros(2)}, step=1, keep=2)
    assert jp.checkpoint.steps(tmp_path) == [3, 4]


@pytest.mark.parametrize(
    ("tree", "options", "error", "message"),
    [
        ({"w": 1.0}, {"step": -1}, ValueError, "`step` is a step number"),
        ({"w": 1.0}, {"step": 1.5}, TypeError, "float"),
        ({"w": 1.0}, {"step": 1, "keep": 0}, ValueError, "`keep` counts checkpoints"),
        ({"net": {"name": "relu"}}, {"step": 1}, TypeError, "leaf 'net/name': it is a str,"),
        ({"net": np.array(["a"])}, {"step": 1}, TypeError, "leaf 'net': it is a ndarray of <U1"),
        (
            {"w": jax.ShapeDtypeStruct((2,), jnp.float32)},
            {"step": 1},
            TypeError,
            "leaf 'w': it is a ShapeDtypeStruct",
        ),
        ({"w": jnp.ones(3, jnp.uint4)}, {"step": 1}, TypeError, "'w': Orbax cannot store uint4"),
        ({"w": 2**70}, {"step": 1}, ValueError, "leaf 'w': it is 1180591620717411303424"),
    ],
    ids=["negative", "fraction", "keep", "text", "text_array", "abstract", "uint4", "wide"],
)
def test_what_cannot_be_saved_is_an_error_before_anything_is_written(
    tree, options, error, message, tmp_path
):
    with pytest.raises(error, match=message):
        jp.checkpoint.save(tmp_path / "new", tree, **options)
    assert not (tmp_path / "new").exists()


def test_an_array_that_was_donated_is_named(tmp_path):
    tree = {"net": {"w": jnp.ones(3)}}
    jax.jit(lambda w: w + 1, donate_argnums=0)(tree["net"]["w"])
    with pytest.raises(ValueError, match="leaf 'net/w': its array was donated"):
        jp.checkpoint.save(tmp_path, tree, step=0)


def test_array_steps_count_as_numbers(tmp_path):
    for step in (np.int64(1), jnp.int32(2)):
        jp.checkpoint.save(tmp_path, {"w": jnp.ones(1)}, step=step)
    assert jp.checkpoint.steps(tmp_path) == [1, 2]
    assert jp.checkpoint.restore(tmp_path, {"w": jnp.zeros(1)}, step=jnp.int32(1))["w"] == 1


def test_nothing_on_disk_is_a_pickle(tmp_path):
    jp.checkpoint.save(tmp_path, training_state("prune_gradually"), step=0)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if path.read_bytes()[:1] == b"\x80"]


def test_where_an_array_was_committed_nowhere_the_restored_one_is_not_either(tmp_path):
    jp.checkpoint.save(tmp_path, {"w": jnp.ones(3)}, step=0)
    device = jax.devices()[0]
    for like, committed in (
        (jnp.zeros(3), False),
        (jax.ShapeDtypeStruct((3,), jnp.float32), False),
        (jax.device_put(jnp.zeros(3), device), True),
    ):
        assert jp.checkpoint.restore(tmp_path, {"w": like})["w"].committed == committed
