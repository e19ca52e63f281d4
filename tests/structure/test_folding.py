"""Constants that dead units leave behind: what may take them over, and what is left alone."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune import trees
from jaxprune.structure import check_shrunk, dead_units
from jaxprune.structure.merging import merge_similar
from jaxprune.structure.reconstruction import reconstruct


def normal(seed=0, dtype=float, **shapes):
    rng = np.random.default_rng(seed)
    factor = 1 + 1j if dtype is complex else 1
    return {name: jnp.asarray(rng.normal(size=shape) * factor) for name, shape in shapes.items()}


def masked_at(variables, **holes):
    """The full mask with holes: leaf name -> indices."""
    mask = dict(trees.full_mask(variables))
    for name, places in holes.items():
        for where in places if isinstance(places, list) else [places]:
            mask[name] = mask[name].at[where].set(False)
    return mask


def assert_exact(apply, variables, mask, *inputs):
    """The shrunk model is the masked one; how many units are left, by group."""
    coupling = jp.couple(apply, variables, *inputs)
    dead = dead_units(variables, mask, coupling)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Units of the group")
        assert check_shrunk(variables, mask, coupling, *inputs).largest < 1e-12
    return {name: int(keep.sum()) for name, keep in dead.kept.items()}, dead.stuck


EVERY = slice(None)


def heads(w, x):
    hidden = jax.nn.sigmoid(jnp.einsum("bi,ihd->bhd", x, w["in"]))
    return jnp.einsum("bhd,hdo->bo", hidden, w["out"]) + w["bias"]


def test_constants_along_two_axes_of_one_product_are_counted_once(x64):
    w = normal(**{"in": (5, 3, 4), "out": (3, 4, 2), "bias": (2,)})
    x = normal(1, x=(6, 5))["x"]
    mask = masked_at(w, **{"in": [(EVERY, 1), (EVERY, EVERY, 2)]})
    left, stuck = assert_exact(heads, w, mask, x)
    assert sorted(left.values()) == [2, 3]
    assert not stuck


def test_a_bias_that_took_a_constant_over_is_no_longer_zero(x64):
    def apply(w, x):
        x = jax.nn.relu(x @ w["a"] + w["one"]) + 1.0
        x = jnp.einsum("bi,ihd->bhd", x, w["b"]) + w["two"]
        return jnp.einsum("bhd,hdo->bo", x, w["c"]) + w["three"]

    w = normal(a=(5, 3), one=(3,), b=(3, 2, 4), two=(2, 4), c=(2, 4, 2), three=(2,))
    x = normal(1, x=(6, 5))["x"]
    # the first unit, which emits 1, is all that feeds the second head
    holes = {"a": (EVERY, 0), "one": 0, "b": (slice(1, 3), 1)}
    left, _ = assert_exact(apply, w, masked_at(w, **holes), x)
    assert sorted(left.values()) == [2, 2, 4]  # the head emits b[0] + its bias, and stays
    left, stuck = assert_exact(apply, w, masked_at(w, **holes, two=1), x)
    assert sorted(left.values()) == [2, 3, 4]  # its bias is pruned: nothing takes the 1 over
    assert "entries of 'two' that would take the constant are pruned" in stuck["a"]


def two_layers(w, x):
    return jax.nn.sigmoid(x @ w["a"]) @ w["b"] + w["bias"]


def test_a_pruned_entry_of_a_bias_stays_zero(x64):
    w, x = normal(a=(5, 3), b=(3, 2), bias=(2,)), normal(1, x=(6, 5))["x"]
    mask = masked_at(w, a=(EVERY, 0), bias=0)
    left, stuck = assert_exact(two_layers, w, mask, x)
    assert left == {"a": 3}
    assert "'bias'" in stuck["a"]
    mask = masked_at(w, a=(EVERY, 0), b=(0, 0), bias=0)  # that entry takes nothing over
    assert assert_exact(two_layers, w, mask, x) == ({"a": 2}, {})


@pytest.mark.parametrize("moved", [False, True])
def test_a_bias_that_is_an_output_takes_nothing_over(moved, x64):
    def apply(w, x):
        bias = w["bias"][None] if moved else w["bias"]
        return jax.nn.sigmoid(x @ w["a"]) @ w["b"] + bias, bias

    w, x = normal(a=(5, 3), b=(3, 2), bias=(2,)), normal(1, x=(6, 5))["x"]
    left, stuck = assert_exact(apply, w, masked_at(w, a=(EVERY, 0)), x)
    assert left == {"a": 3}
    assert "no bias after" in stuck["a"]


def complex_layers(w, x):
    y = (x @ w["a"] + w["one"]) @ w["b"]
    return jnp.abs(y + w["two"]) if "two" in w else jnp.abs(y)


def test_complex_constants_keep_their_imaginary_part(x64):
    shapes = {"a": (5, 4), "one": (4,), "b": (4, 2)}
    x = normal(1, x=(6, 5))["x"].astype(complex)
    w = normal(dtype=complex, **shapes)
    w["one"] = 1j * jnp.arange(4.0)
    hole = {"a": (EVERY, 1)}
    assert assert_exact(complex_layers, w, masked_at(w, **hole), x)[0] == {"a": 4}  # no real number
    w["one"], w["two"] = jnp.arange(4.0) + 0j, jnp.ones(2, complex)
    assert assert_exact(complex_layers, w, masked_at(w, **hole), x)[0] == {"a": 3}
    w["two"] = jnp.ones(2)  # takes no imaginary part
    assert assert_exact(complex_layers, w, masked_at(w, **hole), x)[0] == {"a": 4}


def test_complex_units_are_neither_merged_nor_reconstructed():
    w = normal(dtype=complex, a=(5, 4), one=(4,), b=(4, 2))
    x = normal(1, x=(6, 5))["x"]
    coupling, kept = jp.couple(complex_layers, w, x), {"a": np.arange(4) < 3}
    with pytest.raises(ValueError, match=r"'a' are complex \(\['a', 'b', 'one'\]\)"):
        merge_similar(w, kept, coupling)
    with pytest.raises(ValueError, match=r"'b' or what it reads is complex"):
        reconstruct(w, kept, coupling, x)


def test_a_complex_difference_is_seen(x64):
    apply = lambda w, x: jnp.tanh(x @ w["a"]) @ w["b"] * jax.lax.complex(0.0, x.shape[1] * 1.0)
    w, x = normal(a=(5, 3), b=(3, 2)), normal(1, x=(6, 5))["x"]
    coupling = jp.couple(apply, w, x)
    mask = coupling.mask({"a": np.arange(3) > 0}, w)
    reads_a_width = lambda w, x: apply(w, x) * w["b"].shape[0]
    other = jp.coupling.with_model(coupling, reads_a_width, w, x)
    assert check_shrunk(w, mask, other, x).original == pytest.approx(1 / 3)


def test_under_jit_one_sentence_says_that_shapes_depend_on_values():
    w, x = normal(a=(5, 3), b=(3, 2), bias=(2,)), jnp.ones((6, 5))
    coupling = jp.couple(two_layers, w, x)
    mask = masked_at(w, a=(EVERY, 0))
    with pytest.raises(TypeError, match=r"depend on the mask, whose values"):
        jax.jit(lambda m: jp.shrink(w, m, coupling))(mask)
    with pytest.raises(TypeError, match=r"depend on the constants that units"):
        jax.jit(lambda w: jp.shrink(w, mask, coupling))(w)
    whole = coupling.mask({"a": np.arange(3) > 0}, w)
    assert jax.jit(lambda w: jp.shrink(w, whole, coupling))(w)["a"].shape == (5, 2)


def test_units_kept_by_the_mask_that_shrink_removes_are_told():
    w, x = normal(a=(5, 3), b=(3, 2), bias=(2,)), jnp.ones((6, 5))
    coupling, mask = jp.couple(two_layers, w, x), masked_at(w, a=(EVERY, 0))
    small = jp.shrink(w, mask, coupling)
    with pytest.raises(
        ValueError, match=r"`structure.dead_units\(variables, mask, coupling\).kept"
    ):
        jp.shrunk_apply(coupling, coupling.kept(mask))(small, x)
    jp.shrunk_apply(coupling, dead_units(w, mask, coupling).kept)(small, x)
