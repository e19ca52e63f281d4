"""What every quantizer keeps to: dtypes, masks, zeros, transformations, messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import quantize, trees
from tests.laws import TREES
from tests.quantize.quantize_cases import QUANTIZERS, assert_same_bits, normal, small_net

each_quantizer = pytest.mark.parametrize("row", QUANTIZERS.values(), ids=QUANTIZERS.keys())


@each_quantizer
def test_what_is_pruned_is_0_and_decides_nothing(row):
    params, mask = small_net()
    found = row.make()(params, mask)
    for keep, leaf in zip(jax.tree.leaves(mask), jax.tree.leaves(found.params), strict=True):
        np.testing.assert_array_equal(np.asarray(leaf)[~np.asarray(keep)], 0)
    elsewhere = jax.tree.map(lambda w, k: jnp.where(k, w, jnp.nan), params, mask)
    assert_same_bits(row.make()(elsewhere, mask), found)


@each_quantizer
def test_inside_jit_and_vmap_it_is_the_same(row):
    quantizer = row.make()
    nets = [small_net(seed) for seed in (0, 10)]
    each = [quantizer(*net) for net in nets]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *nets)
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    mapped = jax.jit(jax.vmap(quantizer))(*stacked)
    if not row.sums:
        assert_same_bits(mapped, together)
    else:  # sums of squares round differently, and may choose a neighbouring ratio
        errors = [
            float(jnp.sum((found.params["conv"]["kernel"] - stacked[0]["conv"]["kernel"]) ** 2))
            for found in (mapped, together)
        ]
        np.testing.assert_allclose(*errors, rtol=1e-5)


@each_quantizer
def test_dequantized_are_the_parameters_and_codes_fit_their_bits(row):
    params, mask = small_net()
    for found in (row.make()(params), row.make()(params, mask)):
        assert_same_bits(quantize.dequantize(found), found.params)
        for leaf, stored in zip(jax.tree.leaves(found.params), found.stored, strict=True):
            if not isinstance(stored, quantize.Plain):
                assert stored.codes.shape == leaf.shape
                assert int(stored.codes.max()) < 2**stored.bits
            if isinstance(stored, quantize.Codebook) and stored.values.ndim == 1:
                assert len(np.unique(leaf)) <= 2**stored.bits + 1  # and 0, by the mask


@each_quantizer
def test_quantizing_twice_is_quantizing_once(row):
    if not row.idempotent:
        pytest.skip("by its definition it is not")
    params, mask = small_net()
    once = row.make()(params, mask)
    assert_same_bits(row.make()(once.params, mask).params, once.params)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["3 bits shared", "2 bits shared, channels", "bfloat16"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_16_bits_shared_values_are_shared_exactly_too(which, dtype):
    params, mask = small_net()
    params = jax.tree.map(lambda w: w.astype(dtype), params)
    for given in (None, mask):
        once = QUANTIZERS[which].make()(params, given)
        assert_same_bits(QUANTIZERS[which].make()(once.params, given).params, once.params)


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize(
    "which", ["6 bits, affine", pytest.param("3 bits shared", marks=pytest.mark.slow)]
)
def test_any_tree_keeps_its_structure_and_what_is_not_quantizable_is_untouched(name, which):
    params = TREES[name].make()
    found = QUANTIZERS[which].make()(params)
    assert jax.tree.structure(found.params) == jax.tree.structure(params)
    for (leaf_name, before), (_, after) in zip(
        trees.named_leaves(params), trees.named_leaves(found.params), strict=True
    ):
        assert before.dtype == after.dtype
        assert before.shape == after.shape
        if leaf_name not in TREES[name].prunable:
            assert_same_bits(after, before)


ODD_LEAVES = {
    "scalar": jnp.float32(-2.5),
    "vector": normal(5),
    "equal": jnp.full((3, 2), 0.7),
    "zero": jnp.zeros((2, 3)),
    "empty": jnp.zeros((0, 3)),
    "no channel": jnp.zeros((3, 0)),
    "rank 4": normal(2, 2, 3, 2),
}


few = ["3 bits, channels", "3 bits shared", "float16"]
others = [pytest.param(name, marks=pytest.mark.slow) for name in QUANTIZERS if name not in few]


@pytest.mark.every(3)
@pytest.mark.parametrize("which", [*few, *others])
def test_odd_leaves_are_quantized_too(which):
    quantizer = QUANTIZERS[which].make(quantizable=lambda name, leaf: True)
    found = quantizer(ODD_LEAVES, trees.full_mask(ODD_LEAVES))
    for name in ("zero", "empty", "no channel"):
        assert_same_bits(found.params[name], ODD_LEAVES[name])
    half = isinstance(found.stored[0], quantize.Plain)
    for name in ("scalar", "equal"):  # a scale is rounded up by 2**(bits - 23), a half by 2**-8
        tolerance = 2.0**-8 if half else 2.0**-10
        np.testing.assert_allclose(found.params[name], ODD_LEAVES[name], rtol=tolerance)
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), ODD_LEAVES)
    for leaf in jax.tree.leaves(quantizer(ODD_LEAVES, nothing).params):
        np.testing.assert_array_equal(leaf, 0)


@pytest.mark.parametrize("which", ["6 bits, affine", "3 bits shared", "float16"])
def test_float64_is_quantized_in_float64(which, x64):
    row = QUANTIZERS[which]
    params = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)))}
    found = row.make()(params)
    assert found.params["kernel"].dtype == jnp.float64
    if isinstance(found.stored[0], quantize.Grid):
        assert found.stored[0].scale.dtype == jnp.float64


@pytest.mark.parametrize("which", ["8 bits", "3 bits shared", "bfloat16"])
def test_a_nan_or_an_infinity_is_an_error_that_names_the_leaf(which):
    params, _ = small_net()
    for bad in (jnp.nan, jnp.inf):
        params["conv"]["kernel"] = params["conv"]["kernel"].at[1, 1, 1, 1].set(bad)
        with pytest.raises(ValueError, match=r"leaf 'conv/kernel': 1 of its 72 entries are NaN"):
            QUANTIZERS[which].make()(params)
        quantizer = QUANTIZERS[which].make(quantizable=lambda name, leaf: name == "conv/bias")
        quantizer(params)  # a leaf that is not quantized may hold anything


def test_a_mask_is_taken_by_keyword_too():
    params, mask = small_net()
    for row in (QUANTIZERS["8 bits"], QUANTIZERS["bfloat16"]):
        assert_same_bits(row.make()(params, mask=mask), row.make()(params, mask))
    found = quantize.unquantized()(params, mask=mask)
    assert_same_bits(found.params, trees.apply_mask(params, mask))
    assert_same_bits(quantize.frozen(found)(params, mask=mask), found)


def test_keys_and_flags_under_a_mask_come_back_from_every_function():
    params = {
        "w": normal(3, 2),
        "k": jax.random.split(jax.random.key(0), 2),
        "f": jnp.array([True]),
    }
    mask = {"w": normal(3, 2) > 0, "k": jnp.ones(2, bool), "f": jnp.ones(1, bool)}
    found = quantize.uniform(4)(params, mask)
    assert_same_bits(quantize.dequantize(found), found.params)
    assert_same_bits(quantize.frozen(found)(params, mask).params, found.params)
    same = quantize.with_tables(found, quantize.tables_of(found))
    assert_same_bits(same.params, found.params)


def test_what_is_not_quantized_and_tables_of_another_are_said_to_be():
    params, _ = small_net()
    replace = lambda found: quantize.with_tables(found, ())
    for function in (quantize.pack, quantize.stored_bytes, quantize.dequantize, quantize.frozen,
                     quantize.tables_of, replace):  # fmt: skip
        with pytest.raises(TypeError, match="Expected what a quantizer returns, a `Quant"):
            function(params)
    with pytest.raises(ValueError, match="of 0 leaves, the parameters have 2"):
        quantize.with_tables(quantize.uniform(4)(params), ())


def test_bad_arguments_are_named():
    for bits in (0, 17, 2.5, True, "4"):
        with pytest.raises(ValueError, match="takes 1 to 16 bits, a whole number; got"):
            quantize.uniform(bits, symmetric=False)
        with pytest.raises(ValueError, match="takes 1 to 16 bits, a whole number; got"):
            quantize.shared_values(bits)
    with pytest.raises(ValueError, match="takes 2 to 16 bits, a whole number; got 1"):
        quantize.uniform(1)
    with pytest.raises(ValueError, match=r"one of .*'mse'.*; got 'best'"):
        quantize.uniform(4, calibration="best")
    for percentile in (50, 101, float("nan")):
        with pytest.raises(ValueError, match="lies in"):
            quantize.uniform(4, calibration="percentile", percentile=percentile)
    with pytest.raises(ValueError, match="a count, 0 or more; got -1"):
        quantize.shared_values(4, iterations=-1)
    with pytest.raises(ValueError, match="bfloat16 or float16; got float32"):
        quantize.half_precision(jnp.float32)


def test_leaves_that_cannot_be_quantized_are_named():
    with pytest.raises(ValueError, match=r"Nothing to quantize.*\['bias'\]"):
        quantize.uniform(4)({"bias": jnp.ones(3)})
    for dtype in (jnp.int32, jnp.complex64):
        with pytest.raises(TypeError, match=f"leaf 'w': its dtype is {jnp.dtype(dtype)}"):
            quantize.uniform(4, quantizable=lambda name, leaf: True)({"w": jnp.ones((2, 2), dtype)})
    with pytest.raises(ValueError, match="The mask at leaf 'w' has shape"):
        quantize.uniform(4)({"w": jnp.ones((2, 2))}, {"w": jnp.ones((2, 3), bool)})


def test_a_half_precision_error_is_half_a_unit_in_the_last_place():
    params = [normal(40, 30)]
    for dtype, unit in ((jnp.bfloat16, 2.0**-8), (jnp.float16, 2.0**-11)):
        found = np.asarray(quantize.half_precision(dtype)(params).params[0])
        smallest_step = 2.0**-24 / 2 if dtype == jnp.float16 else 0  # below its normal range
        error = np.abs(found - params[0])
        assert (error <= np.maximum(unit * np.abs(params[0]), smallest_step)).all()
    big = quantize.half_precision(jnp.float16)([jnp.array([[1e9, -1e9]])]).params[0]
    np.testing.assert_array_equal(big, [[65504, -65504]])
    short = normal(3, 3, dtype=jnp.float16)
    assert_same_bits(quantize.half_precision(jnp.bfloat16)([short]).params[0], short)


def test_unquantized_is_what_was_given():
    params, mask = small_net()
    assert_same_bits(quantize.unquantized()(params).params, params)
    assert_same_bits(quantize.unquantized()(params, mask).params, trees.apply_mask(params, mask))


def test_a_quantizer_compiles_once_for_a_shape():
    quantizer = quantize.uniform(4)
    traced = []
    step = jax.jit(lambda params: traced.append(1) or quantizer(params).params)
    for seed in range(3):
        step(small_net(seed)[0])
    assert len(traced) == 1
