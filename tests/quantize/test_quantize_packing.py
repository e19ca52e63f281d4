"""What is counted is what is written, and what was written comes back bit for bit."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from jaxprune import quantize
from jaxprune.quantize import forms
from jaxprune.quantize.bits import pack_bits, packed_bytes, unpack_bits
from jaxprune.reporting import storage
from tests.laws import TREES
from tests.quantize.quantize_cases import QUANTIZERS, assert_same_bits, normal, small_net

each_form = pytest.mark.parametrize("form", [*quantize.FORMS, "smallest"])
HEADER = 16


def sparse(w, share):
    """The mask of the largest `share` of a leaf."""
    return jnp.abs(w) >= jnp.quantile(jnp.abs(w), 1 - share)


def check(found, like, form="smallest"):
    data = quantize.pack(found, form)
    counted = quantize.stored_bytes(found, form)
    assert len(data) == counted.total == sum(leaf.total for leaf in counted.leaves.values())
    assert_same_bits(quantize.unpack(data, like), found.params)
    return counted


@pytest.mark.parametrize("which", QUANTIZERS)
def test_every_quantizer_and_form_comes_back_bit_for_bit(which):
    params, mask = small_net()
    for given_mask in (None, mask):
        found = QUANTIZERS[which].make()(params, given_mask)
        sizes = {form: check(found, params, form).total for form in quantize.FORMS}
        assert check(found, params).total <= min(sizes.values())


@each_form
@pytest.mark.parametrize("name", TREES)
def test_any_tree_comes_back_bit_for_bit(form, name):
    params = TREES[name].make()
    check(quantize.unquantized()(params), params, form)


@each_form
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "bool", "complex64"])
def test_any_dtype_comes_back_bit_for_bit(form, dtype):
    leaf = jnp.where(sparse(normal(7, 5), 0.3), normal(7, 5) * 3, 0).astype(dtype)
    check(quantize.unquantized()([leaf]), [leaf], form)
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        for quantizer in (quantize.uniform(3), quantize.half_precision()):
            check(quantizer([leaf], [leaf != 0]), [leaf], form)


@each_form
def test_float64_comes_back_bit_for_bit(form, x64):
    leaf = jnp.asarray(np.random.default_rng(0).normal(size=(7, 5)))
    for quantizer in (quantize.uniform(3, channels=True), quantize.unquantized()):
        check(quantizer([leaf], [sparse(leaf, 0.3)]), [leaf], form)


@each_form
@pytest.mark.parametrize(
    "shape", [(), (1,), (5,), (0, 3), (3, 0), (2, 3, 4, 5), (1, 300), (300, 1)]
)
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_any_shape_and_sparsity_comes_back_bit_for_bit(form, shape, share):
    keep = np.random.default_rng(1).random(shape) < share
    leaf = jnp.where(keep, normal(*shape), 0)
    check(quantize.unquantized()([leaf]), [leaf], form)


def test_negative_zeros_and_subnormal_floats_come_back():
    leaf = jnp.asarray(np.float32([[-0.0, 1e-40, 0.0, np.inf, np.nan]]))
    for form in quantize.FORMS:
        check(quantize.unquantized()([leaf]), [leaf], form)


@each_form
def test_python_numbers_come_back_as_the_arrays_that_jax_makes_of_them(form):
    params = {"w": normal(4, 6), "lr": 0.1, "n": 3, "flag": True, "c": 1 + 2j}
    found = quantize.uniform(4)(params)
    back = quantize.unpack(quantize.pack(found, form), params)
    assert_same_bits(back, jax.tree.map(jnp.asarray, found.params))
    for number in (2**40, 2**70):
        with pytest.raises(ValueError, match="Cannot pack leaf 'n': it is a Python number"):
            quantize.pack(quantize.unquantized()({"n": number}))


@each_form
def test_arrays_of_64_bits_that_jax_does_not_have_come_back_bit_for_bit(form):
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(4, 6)), "bias": rng.normal(size=6), "n": np.int64(2**40)}
    mask = {"kernel": params["kernel"] > 0, "bias": np.ones(6, bool), "n": np.array(True)}
    for kept in (None, mask):
        found = quantize.unquantized()(params, kept)
        pruned = lambda w, k: np.where(k, w, np.zeros((), w.dtype))
        expected = params if kept is None else jax.tree.map(pruned, params, mask)
        assert_same_bits(found.params, jax.tree.map(np.asarray, expected))
        check(found, params, form)
        assert_same_bits(quantize.dequantize(found), found.params)
    with pytest.raises(TypeError, match="Cannot quantize leaf 'kernel': its dtype is float64"):
        quantize.uniform(4)(params)
    half = quantize.uniform(4, quantizable=lambda name, leaf: name == "w")
    check(half({**params, "w": normal(3, 2)}, {**mask, "w": np.ones((3, 2), bool)}),
          {**params, "w": normal(3, 2)}, form)  # fmt: skip


@pytest.mark.parametrize("which", ["8 bits", "3 bits shared", "float16"])
def test_what_was_packed_with_64_bits_is_read_without(which):
    with jax.enable_x64(True):
        params = [jnp.asarray(np.random.default_rng(0).normal(size=(7, 5)))]
        found = QUANTIZERS[which].make()(params)
        data, expected = quantize.pack(found), [np.asarray(found.params[0])]
    assert_same_bits(quantize.unpack(data, [np.zeros((7, 5))]), expected)


@given(st.data())
def test_bits_of_any_width_come_back(data):
    width = data.draw(st.integers(0, 32))
    values = data.draw(npst.arrays(np.uint32, st.integers(0, 40),
                                   elements=st.integers(0, 2**width - 1)))  # fmt: skip
    written = pack_bits(values, width)
    assert len(written) == packed_bytes(len(values), width) == math.ceil(len(values) * width / 8)
    np.testing.assert_array_equal(unpack_bits(written, len(values), width), values)
    as_text = "".join(format(v, f"0{width}b")[::-1] if width else "" for v in values)
    padded = as_text.ljust(8 * len(written), "0")
    assert written == bytes(int(padded[i : i + 8][::-1], 2) for i in range(0, len(padded), 8))


@given(keep=npst.arrays(bool, (6, 50)), gap=st.integers(1, 6))
def test_relative_indices_are_those_of_an_encoder_that_walks_along(keep, gap):
    positions, gaps, skipped = [], [], 0
    for place in range(keep.size):
        if keep.flat[place] or skipped == 2**gap - 1:
            # A run as long as a gap can tell ends in an entry, be it a filler that is 0. Fillers
            # after the last entry would say nothing.
            positions.append(place)
            gaps.append(skipped)
            skipped = 0
        else:
            skipped += 1
    last = max(np.flatnonzero(keep), default=-1)
    expected = [p for p in positions if p <= last]
    places = np.flatnonzero(keep)
    how = forms.Plan("relative", gap, len(expected), 1, packed_bytes(len(expected), gap))
    found, index = forms.write_index(how, keep.shape, places)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(unpack_bits(index, len(expected), gap), gaps[: len(expected)])
    read = forms.read_index("relative", gap, len(expected), keep.shape, index)
    np.testing.assert_array_equal(read, expected)
    chosen = forms.plan("relative", keep.shape, places, 5, 5)
    others = [
        packed_bytes(len(places) + fillers, g) + packed_bytes(len(places) + fillers, 5)
        for g in range(1, 17)
        for fillers in [int(np.sum((np.diff(places, prepend=-1) - 1) // 2**g))]
    ]
    assert chosen.bytes == min(others)


def test_the_example_of_deep_compression():
    """Figure 2 of Han, Mao, Dally 2016: entries at 1, 4 and 15, gaps of 3 bits, one filler."""
    positions, index = forms.write_index(
        forms.Plan("relative", 3, 4, 32, 2), (16,), np.array([1, 4, 15])
    )
    np.testing.assert_array_equal(positions, [1, 4, 12, 15])
    np.testing.assert_array_equal(unpack_bits(index, 4, 3) + 1, [2, 3, 8, 3])  # theirs count from 1


@settings(max_examples=40)
@given(keep=npst.arrays(bool, (9, 11)), bits=st.sampled_from([2, 5]))
def test_the_formulas_of_the_docstring_are_what_is_counted(keep, bits):
    leaf = jnp.where(keep, jnp.arange(1.0, 100.0).reshape(9, 11) / 99 + 1, 0)  # all round to > 0
    found = quantize.uniform(bits, symmetric=False)([leaf], [jnp.asarray(keep)])
    n, k, ceil = keep.size, int(keep.sum()), lambda x: -(-x // 8)
    tables = 4 + 1
    sized = lambda form: quantize.stored_bytes(found, form).leaves["0"]
    assert sized("dense")[1:] == (ceil(n * bits), tables, 0, HEADER)
    assert sized("bitmask")[1:] == (ceil(k * bits), tables, ceil(n), HEADER)
    assert sized("csr")[1:] == (ceil(k * bits), tables, k + 10, HEADER)
    assert sized("relative").codes >= ceil(k * bits)


@given(keep=npst.arrays(bool, (9, 300)))
def test_floats_take_the_bytes_of_the_report_and_a_header(keep):
    leaf = jnp.where(keep, 1.5, 0)
    expected = storage.leaf_bytes(keep.shape, int(keep.sum()), 4)
    for form in ("dense", "bitmask", "csr"):
        found = quantize.stored_bytes(quantize.unquantized()([leaf]), form)
        assert found.total == getattr(expected, form) + HEADER


def test_a_codebook_is_as_long_as_it_is_used_and_a_zero_is_one_code_more():
    w = jnp.asarray(np.resize(np.float32([1, 2, 3, 4]), (8, 8)))
    counted = check(quantize.shared_values(8)([w]), [w], "dense").leaves["0"]
    assert (counted.codes, counted.tables) == (64 * 2 // 8, 4 * 4)
    keep = jnp.arange(64).reshape(8, 8) < 32
    pruned = quantize.shared_values(8)([w], [keep])
    assert check(pruned, [w], "dense").leaves["0"].codes == 64 * 3 // 8
    assert check(pruned, [w], "bitmask").leaves["0"].codes == 32 * 2 // 8
    assert check(pruned, [w], "relative").leaves["0"].codes == 32 * 2 // 8  # no fillers here
    one = jnp.full((8, 8), 0.3)
    assert check(quantize.shared_values(4)([one]), [one], "dense").leaves["0"].codes == 0


def test_the_sparser_the_fewer_bytes_and_the_best_form_changes():
    w = normal(100, 100)
    quantizer, best = quantize.uniform(4), []
    for share in (1.0, 0.5, 0.2, 0.02):
        best.append(quantize.stored_bytes(quantizer([w], [sparse(w, share)])).leaves["0"])
    assert (np.diff([leaf.total for leaf in best]) < 0).all()
    assert [leaf.form for leaf in best][1:] == ["bitmask", "relative", "relative"]


def test_bytes_of_another_model_are_an_error_that_names_the_leaf():
    params = {"a": normal(4, 4), "b": normal(4, 4)}
    data = quantize.pack(quantize.uniform(4)(params))
    with pytest.raises(ValueError, match=r"leaf 'a' are not those of one of shape \(5, 4\)"):
        quantize.unpack(data, {"a": normal(5, 4), "b": normal(4, 4)})
    with pytest.raises(ValueError, match="the last leaf"):
        quantize.unpack(data, {"a": params["a"]})
    with pytest.raises(ValueError, match="end before leaf 'c'"):
        quantize.unpack(data, {**params, "c": params["a"]})
    with pytest.raises(ValueError, match="leaf 'b' are not"):
        quantize.unpack(data[:-1], params)
    floats = quantize.pack(quantize.unquantized()(params))
    with pytest.raises(ValueError, match="and dtype float16"):
        quantize.unpack(floats, jax.tree.map(lambda w: w.astype(jnp.float16), params))
    with pytest.raises(ValueError, match="Unknown form 'coo'"):
        quantize.stored_bytes(quantize.uniform(4)(params), "coo")


ABSTRACT = jax.ShapeDtypeStruct
KEYS = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (4, 6)))
WRONG = {  # of what was packed from float32[4, 6]
    "channels of another shape": ("3 bits, channels", ABSTRACT((6, 4), jnp.float32)),
    "channels of a vector": ("3 bits, channels", ABSTRACT((24,), jnp.float32)),
    "codebooks of another shape": ("2 bits shared, channels", ABSTRACT((2, 12), jnp.float32)),
    "a codebook of integers": ("3 bits shared", ABSTRACT((4, 6), jnp.int32)),
    "a codebook of bfloat16": ("3 bits shared", ABSTRACT((4, 6), jnp.bfloat16)),
    "halves of integers": ("float16", ABSTRACT((4, 6), jnp.int32)),
    "halves of halves": ("bfloat16", ABSTRACT((4, 6), jnp.float16)),
    "a grid of integers": ("8 bits", ABSTRACT((4, 6), jnp.int32)),
    "a grid of keys": ("8 bits", KEYS),
}


@pytest.mark.parametrize("name", WRONG)
def test_bytes_that_do_not_fit_are_an_error_that_names_the_leaf(name):
    which, like = WRONG[name]
    data = quantize.pack(QUANTIZERS[which].make()({"w": normal(4, 6)}))
    with pytest.raises(ValueError, match="The bytes at leaf 'w' are not those of one of shape"):
        quantize.unpack(data, {"w": like})


def test_channels_are_not_taken_for_others_whose_codebooks_have_as_many_values():
    data = quantize.pack(quantize.shared_values(8, channels=True)([normal(4, 6)]))
    with pytest.raises(ValueError, match="The bytes at leaf '0' are not"):
        quantize.unpack(data, [ABSTRACT((6, 4), jnp.float32)])


def test_keys_are_read_into_abstract_ones():
    keys = {"k": jax.random.split(jax.random.key(0, impl="rbg"), 2)}
    found = quantize.unquantized()(keys)
    assert_same_bits(quantize.unpack(quantize.pack(found), jax.eval_shape(lambda: keys)), keys)


@given(data=st.binary(max_size=60))
def test_bytes_that_nobody_packed_are_an_error_or_parameters(data):
    like = [jax.ShapeDtypeStruct((3, 4), jnp.float32)]
    try:
        found = quantize.unpack(data, like)
    except ValueError:
        return
    assert found[0].shape == (3, 4)
