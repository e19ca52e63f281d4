"""Bytes equal those of arrays really packed and written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from jaxprune.reporting import bitmask_bytes, csr_bytes, dense_bytes, leaf_bytes

SHAPES = [(), (1,), (13,), (5, 7), (3, 3, 4, 6), (40, 256), (2, 257), (300, 300), (0, 4), (4, 0)]


def masked(shape, seed=0, density=0.4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape).astype(np.float32), np.asarray(rng.random(shape) < density)


def unsigned(largest):
    return np.min_scalar_type(largest)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bit_mask_bytes_are_those_of_the_file(shape, tmp_path):
    values, mask = masked(shape)
    file = tmp_path / "leaf"
    file.write_bytes(values[mask].tobytes() + np.packbits(mask).tobytes())
    assert bitmask_bytes(shape, np.count_nonzero(mask), 4) == file.stat().st_size


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("density", [0.0, 0.002, 0.4, 1.0])
def test_csr_bytes_are_those_of_the_file(shape, density, tmp_path):
    _, mask = masked(shape, density=density)
    columns = shape[-1] if shape else 1
    rows = int(np.prod(shape[:-1]))
    matrix = scipy.sparse.csr_matrix(mask.reshape(rows, columns).astype(np.float32))
    index, pointer = unsigned(max(columns - 1, 0)), unsigned(matrix.nnz)
    file = tmp_path / "leaf"
    file.write_bytes(
        matrix.data.tobytes()
        + matrix.indices.astype(index).tobytes()
        + matrix.indptr.astype(pointer).tobytes()
    )
    assert csr_bytes(shape, matrix.nnz, 4) == file.stat().st_size


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "int8"])
def test_dense_bytes_are_those_of_the_array(dtype):
    with jax.enable_x64(True):
        array = jnp.zeros((3, 5), dtype)
    assert dense_bytes((3, 5), array.dtype.itemsize) == np.asarray(array).nbytes == array.nbytes


@pytest.mark.parametrize(("columns", "width"), [(256, 1), (257, 2), (65536, 2), (65537, 4)])
def test_the_column_index_is_as_narrow_as_the_last_column_allows(columns, width):
    empty = csr_bytes((1, columns), 0, 4)
    assert csr_bytes((1, columns), 1, 4) - empty == 4 + width


@pytest.mark.parametrize(("kept", "width"), [(255, 1), (256, 2), (65535, 2), (65536, 4)])
def test_the_row_pointer_is_as_narrow_as_the_count_allows(kept, width):
    assert csr_bytes((1, 65536), kept, 4) - kept * (4 + 2) == 2 * width


def test_a_mask_pays_above_one_bit_in_thirty_two_and_csr_only_when_very_sparse():
    full, half, rare = (leaf_bytes((64, 64), kept, 4) for kept in (4096, 2048, 40))
    assert full.dense < full.bitmask < full.csr
    assert half.bitmask < half.csr < half.dense
    assert rare.csr < rare.bitmask < rare.dense


@pytest.mark.parametrize("kept", [-1, 13])
def test_an_impossible_count_is_an_error(kept):
    with pytest.raises(ValueError, match=r"shape \(3, 4\) has 12 entries and cannot keep"):
        leaf_bytes((3, 4), kept, 4)
