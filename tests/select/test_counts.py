"""From a sparsity to how many go: integers, the same inside jit and outside."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import trees
from jaxprune.select.counts import erk_sparsities, pruned_count
from tests import doubles

SIZES = [1, 2, 3, 7, 10, 99, 1000, 12_345, 10**6 + 3, 10**7 - 1, 10**7, 10**8, 2**31 - 1]


def test_a_number_is_rounded_as_python_rounds():
    for n in SIZES:
        for sparsity in (0.0, 0.1, 0.5, 0.9, 1 / 3, 0.999):
            assert pruned_count(sparsity, n) == round(sparsity * n)


@pytest.mark.parametrize("n", SIZES)
def test_a_traced_float32_is_read_to_seven_decimals_and_multiplied_exactly(n):
    rng = np.random.default_rng(n)
    decimals = np.concatenate([rng.integers(0, 10**7, 5000), [0, 1, 5 * 10**6, 10**7 - 1]])
    count = jax.jit(jax.vmap(lambda s: pruned_count(s, n)))
    found = count((decimals / 1e7).astype(np.float32))
    expected = [round(Fraction(int(d), 10**7) * n) for d in decimals]  # halves to even
    np.testing.assert_array_equal(np.asarray(found, np.int64), expected)


def test_every_sparsity_of_seven_decimals_is_read_back():
    decimals = np.arange(10**7)
    share = jax.jit(jax.vmap(lambda s: pruned_count(s, 10**7)))
    found = np.asarray(share((decimals / 1e7).astype(np.float32)))
    np.testing.assert_array_equal(found, decimals)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
@pytest.mark.parametrize("n", [5, 1000, 10**8])
def test_a_narrow_array_means_the_same_outside_jit_as_inside(dtype, n):
    values = np.random.default_rng(n).random(300)
    inside_jit = jax.jit(pruned_count, static_argnums=1)
    for value in (0.1, 0.3, 0.5, 0.9, 0.99, *values):
        narrow = jnp.asarray(value, dtype)
        if narrow == 1:
            continue
        inside = inside_jit(narrow, n)
        assert pruned_count(narrow, n) == int(inside)
        assert pruned_count(np.asarray(narrow), n) == int(inside)


def test_float32_counts_as_its_decimal():
    assert pruned_count(jnp.float32(0.1), 5) == pruned_count(0.1, 5) == 0
    assert pruned_count(jnp.float32(0.9), 10**8) == 9 * 10**7


def test_a_traced_float64_is_rounded_as_python_rounds(x64):
    rng = np.random.default_rng(0)
    values = rng.random(1000)
    for n in (7, 1000, 10**9, 5 * 10**9):
        found = jax.jit(jax.vmap(lambda s, n=n: pruned_count(s, n)))(jnp.asarray(values))
        np.testing.assert_array_equal(found, [round(float(v) * n) for v in values])


def test_counting_past_32_bits_needs_64_bit_integers():
    with pytest.raises(ValueError, match=r"Cannot count 2147483648 entries in 32 bits.*x64"):
        trees.count_dtype(2**31)
    assert trees.count_dtype(2**31 - 1) == jnp.int32
    with jax.enable_x64(True):
        assert trees.count_dtype(2**31) == jnp.int64


SHAPES = [
    [(100, 100), (10, 10)],
    [(784, 300), (300, 100), (100, 10)],
    [(3, 3, 3, 64), (3, 3, 64, 64), (1, 1, 64, 128), (128, 10)],
    [(5, 5)],
    [(1, 7), (7, 1), (64, 64)],
]


@pytest.mark.parametrize("shapes", SHAPES)
def test_erk_is_the_solution_that_bisection_finds(shapes):
    sizes = [int(np.prod(s)) for s in shapes]
    for sparsity in (0.0, 0.05, 0.3, 0.5, 0.8, 0.9, 0.99, 0.999):
        found = erk_sparsities(shapes, sparsity)
        np.testing.assert_allclose(found, doubles.erk_sparsities(shapes, sparsity), atol=1e-12)
        total = np.dot(found, sizes)
        np.testing.assert_allclose(total, sparsity * sum(sizes), atol=1e-9 * sum(sizes))
        assert min(found) >= 0


@pytest.mark.parametrize("shapes", SHAPES)
def test_erk_inside_jit_is_the_same_to_float32(shapes):
    traced = jax.jit(lambda s: erk_sparsities(shapes, s))
    for sparsity in (0.0, 0.05, 0.3, 0.5, 0.8, 0.9, 0.99, 0.999):
        found = [float(x) for x in traced(sparsity)]
        # Some ten roundings; the density is a difference from 1.
        np.testing.assert_allclose(
            found, erk_sparsities(shapes, sparsity), atol=10 * np.finfo(np.float32).eps
        )


def test_erk_at_zero_prunes_nothing_inside_jit():
    shapes = [(4000, 4000), (100, 100), (7, 3)]
    for n, share in zip((16_000_000, 10_000, 21), jax.jit(lambda s: erk_sparsities(shapes, s))(0.0),
                        strict=True):  # fmt: skip
        assert pruned_count(float(share), n) == 0
