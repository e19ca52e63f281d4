"""Random trees quantized, packed, counted, reported, saved: bounds of errors, bits that return."""

import json
import math
import statistics
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import jaxprune as jp
from tests import doubles
from tests.fuzz.drawing import (
    Row,
    another_leaf,
    each,
    float_specs,
    float_tree,
    floats,
    holds,
    is_floating,
    mixed_tree,
    nested,
    random_mask,
    raw,
    same_tree,
    spoiled,
)
from tests.near import assert_trees_equal

quantize, reporting = jp.quantize, jp.reporting
ANY = {"quantizable": is_floating}
QUANTIZERS = {
    "uniform 3": quantize.uniform(3, **ANY),
    "uniform 8 affine": quantize.uniform(8, symmetric=False, **ANY),
    "uniform 4 channels": quantize.uniform(4, channels=True, **ANY),
    "shared 2": quantize.shared_values(2, iterations=5, **ANY),
    "bfloat16": quantize.half_precision(**ANY),
    "unquantized": quantize.unquantized(),
}


def quantized(draw):
    """A quantizer's name, a tree, a mask or None, and what came out."""
    name = draw.one(list(QUANTIZERS))
    specs = float_specs(draw) if draw.wide else [((4, 4), "float32"), ((3,), draw.one(
        ["float32", "bfloat16"]))]  # fmt: skip
    leaves = [jnp.asarray(floats(draw, *spec)) for spec in specs]
    if draw.yes():
        leaves.append(another_leaf(draw))
    tree, _ = nested(draw, leaves)
    mask = draw.one([None, random_mask(draw, tree)])
    return name, tree, mask, QUANTIZERS[name](tree, mask)


def bounded(draw):
    """Pruned is 0, what is stored is what is computed with, and errors have their bounds."""
    name, tree, mask, found = quantized(draw)
    assert jax.tree.structure(found.params) == jax.tree.structure(tree)
    assert_trees_equal(quantize.dequantize(found), found.params)
    tables = quantize.tables_of(found)
    assert_trees_equal(quantize.with_tables(found, tables).params, found.params)
    kept = [True] * len(tables) if mask is None else jax.tree.leaves(mask)
    for leaf, keep, new, stored in zip(
        jax.tree.leaves(tree), kept, jax.tree.leaves(found.params), found.stored, strict=True
    ):
        if not is_floating("", leaf):
            continue
        assert new.dtype == leaf.dtype
        w, q = np.asarray(leaf, np.float64), np.asarray(new, np.float64)
        keep = np.broadcast_to(np.asarray(keep), w.shape)
        np.testing.assert_array_equal(q[~keep], 0)
        error = np.abs(q - w)[keep]
        unit = float(jnp.finfo(leaf.dtype).eps)
        if isinstance(stored, quantize.Grid):
            step = np.broadcast_to(np.asarray(stored.scale, np.float64), w.shape)[keep]
            # Half a step; XLA flushes subnormal numbers, and narrow dtypes round once more.
            allowed = step / 2 + 4 * unit * np.abs(w[keep]) + 2.0**-125
            assert (error <= allowed).all()
        elif isinstance(stored, quantize.Codebook):
            span = np.ptp(w[keep]) if keep.any() else 0
            values = np.asarray(stored.values, np.float64)
            nearest = np.abs(w[keep][:, None] - values[None, :]).min(axis=1)
            assert (error <= nearest + 4 * unit * np.abs(w[keep]) + 2.0**-125).all()
            assert np.isfinite(span)
        elif name == "bfloat16" and leaf.dtype == np.float32:
            normal = np.abs(w[keep]) >= 2.0**-126
            assert (error <= 2.0**-8 * np.abs(w[keep]) + 2.0**-126)[normal].all()
        else:
            assert raw(new) == raw(np.where(keep, np.asarray(leaf), np.zeros((), leaf.dtype)))


def packed(draw):
    """Bytes are as many as were counted, and give every bit back; cut ones are refused."""
    _, tree, _, found = quantized(draw)
    form = draw.one([*quantize.FORMS, "smallest"])
    data = quantize.pack(found, form)
    counted = quantize.stored_bytes(found, form)
    assert counted.total == len(data) == sum(leaf.total for leaf in counted.leaves.values())
    assert len(counted.leaves) == len(found.stored)
    assert_trees_equal(quantize.unpack(data, like=tree), found.params)
    if form != "smallest":
        assert quantize.stored_bytes(found).total <= len(data)
    cut = draw.number(0, len(data) - 1)
    with pytest.raises(ValueError, match="packed from other parameters"):
        quantize.unpack(data[:cut], like=tree)
    with pytest.raises(ValueError, match="packed from other parameters"):
        quantize.unpack(data + b"0", like=tree)


def not_quantized(draw):
    """NaN and infinities, and leaves without a range, are named."""
    leaves = [jnp.asarray(floats(draw, (4, 4), "float32")), jnp.ones(3)]
    i = draw.number(0, 1)
    leaves[i] = spoiled(draw, leaves[i])
    tree, names = nested(draw, leaves)
    quantizer = QUANTIZERS[draw.one(list(QUANTIZERS)[:-1])]
    with pytest.raises(ValueError, match="NaN or infinite") as caught:
        quantizer(tree)
    assert f"{jp.trees.label(names[i])}:" in str(caught.value)
    tree, names = nested(draw, [another_leaf(draw)])
    for make in (quantize.uniform, quantize.shared_values):
        with pytest.raises(TypeError, match="Cannot quantize") as caught:
            make(3, quantizable=lambda *_: True)(tree)
        assert jp.trees.label(names[0]) in str(caught.value)


def finely_tuned(draw):
    """The model sees quantized weights, the gradient passes as if it saw its own."""
    w, x = (jnp.asarray(floats(draw, (4, 4), "float32", "normal")) for _ in range(2))
    quantizer = quantize.uniform(3)
    product = lambda params, x: jnp.sum(params["w"] * x)
    apply = quantize.fake_quantized(product, quantizer)
    small = quantizer({"w": w})
    np.testing.assert_allclose(apply({"w": w}, x), product(small.params, x), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(jax.grad(apply)({"w": w}, x)["w"], x)
    again = quantize.frozen(small)({"w": w})
    assert_trees_equal(again.params, small.params)


def named_masks(draw):
    tree, _ = mixed_tree(draw)
    return tree, random_mask(draw, tree), random_mask(draw, tree)


def changed(draw):
    """Kept, dropped and revived entries of each leaf; a line of JSON of them all."""
    tree, old, new = named_masks(draw)
    found = reporting.mask_changes(old, new)
    totals = np.zeros(4, int)
    for name, a, b in zip(jp.trees.paths(tree), *map(jax.tree.leaves, (old, new)), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        expected = (a.size, b.sum(), (a & ~b).sum(), (b & ~a).sum())
        assert tuple(found[name]) == expected
        totals += expected
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "masks.jsonl"
        for step in (1, 2):
            reporting.append_changes(path, step, found)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0]["churn"] == (totals[2] + totals[3]) / max(totals[0], 1)
    assert set(lines[0]["leaves"]) == set(found)
    with pytest.raises(ValueError, match="does not have the tree structure"):
        reporting.mask_changes(old, [new])


def reported(draw):
    """Totals and bytes are sums over leaves; text, JSON and CSV hold every leaf."""
    tree, names = mixed_tree(draw)
    mask = random_mask(draw, tree)
    found = reporting.report(tree, mask, prunable=is_floating)
    assert [row.name for row in found.rows] == names
    kept = [int(np.asarray(m).sum()) for m in jax.tree.leaves(mask)]
    assert [row.kept for row in found.rows] == kept
    assert found.totals.kept == sum(kept)
    ours = [row for row in found.rows if row.prunable]
    assert found.totals.prunable_total == sum(row.total for row in ours)
    for row, leaf in zip(found.rows, jax.tree.leaves(tree), strict=True):
        assert (row.shape, row.total) == (leaf.shape, math.prod(leaf.shape))
        assert row.bytes.dense == row.total * leaf.dtype.itemsize
    assert found.totals.bytes.dense == sum(row.bytes.dense for row in found.rows)
    assert len(reporting.as_text(found)) > 0
    assert json.loads(found.to_json())["totals"]["kept"] == sum(kept)
    assert len(found.to_csv().splitlines()) >= len(names)
    with pytest.raises(TypeError, match="a mask is bool"):
        reporting.report(tree, jax.tree.map(lambda m: m.astype(np.int8), mask))


def _index_width(largest):
    return next(w for w in (1, 2, 4, 8) if largest < 256**w)


def sized(draw):
    """Bytes of a leaf by writing them out in numpy."""
    shape = tuple(draw.number(0, 300) for _ in range(draw.number(0, 3)))
    n = math.prod(shape)
    kept, itemsize = draw.number(0, n), draw.one([1, 2, 4, 8])
    columns = shape[-1] if shape else 1
    rows = math.prod(shape[:-1])
    csr = kept * (itemsize + _index_width(max(columns - 1, 0))) + (rows + 1) * _index_width(kept)
    expected = (n * itemsize, kept * itemsize + len(np.packbits(np.zeros(n, bool))), csr)
    assert tuple(reporting.leaf_bytes(shape, kept, itemsize)) == expected
    assert reporting.dense_bytes(shape, itemsize) == expected[0]
    assert reporting.bitmask_bytes(shape, kept, itemsize) == expected[1]
    assert reporting.csr_bytes(shape, kept, itemsize) == expected[2]
    with pytest.raises(ValueError, match="cannot keep"):
        reporting.leaf_bytes(shape, n + 1, itemsize)


finite = st.floats(-1e6, 1e6)


def spread(draw):
    """Means and spreads are the standard library's; a diverged run is refused."""
    a = draw(st.lists(finite, min_size=2, max_size=8))
    b = [draw(finite) for _ in a]
    found = reporting.mean_and_spread(a)
    assert math.isclose(found.mean, statistics.fmean(a), rel_tol=1e-9, abs_tol=1e-6)
    assert math.isclose(found.sd, statistics.stdev(a), rel_tol=1e-9, abs_tol=1e-6)
    assert found.n == len(a)
    mean, low, high = reporting.paired_difference(a, b)
    differences = [x - y for x, y in zip(a, b, strict=True)]
    assert math.isclose(mean, statistics.fmean(differences), rel_tol=1e-9, abs_tol=1e-6)
    assert math.isclose(low + high, 2 * mean, rel_tol=1e-9, abs_tol=1e-6)
    half = 1.96 * statistics.stdev(differences) / math.sqrt(len(a))  # Student's is wider
    assert high - mean >= half * (1 - 1e-9) - 1e-6
    with pytest.raises(ValueError, match="diverged"):
        reporting.mean_and_spread([*a, draw.one([math.nan, math.inf])])
    with pytest.raises(ValueError, match="same seeds"):
        reporting.paired_difference(a, b[1:])


def tabled(draw):
    """One row a method, one cell a sparsity, in order of appearance."""
    runs = [
        {"method": draw.one("abc"), "sparsity": draw.one([0.5, 0.9]), "accuracy": draw(finite)}
        for _ in range(draw.number(1, 6))
    ]
    found = reporting.summarise(runs)
    groups = {}
    for run in runs:
        groups.setdefault((run["method"], run["sparsity"]), []).append(run["accuracy"])
    assert {(s.method, s.sparsity): s.value for s in found} == {
        key: reporting.mean_and_spread(values) for key, values in groups.items()
    }
    text = reporting.as_text(reporting.method_table(runs))
    assert all(f" {method} " in text for method, _ in groups)
    with pytest.raises(ValueError, match="has no"):
        reporting.summarise([*runs, {"method": "a"}])


def sensitive(draw):
    """Each leaf alone loses exactly its lowest."""
    tree, names = float_tree(draw, "ties")
    leaves, share = jax.tree.leaves(tree), draw.number(0, 99) / 100
    count = lambda t: float(sum(np.abs(np.asarray(x, np.float64)).sum()
                                for x in jax.tree.leaves(t)))  # fmt: skip
    scores = jax.tree.map(lambda x: jnp.abs(x).astype(jnp.float32), tree)
    found = reporting.sensitivity(tree, scores, count, (share,), prunable=is_floating)
    assert found.names == tuple(names)
    for i, leaf in enumerate(leaves):
        keep = doubles.by_leaf([np.abs(np.asarray(leaf, np.float32))], [share])[0]
        cut = [*leaves[:i], np.where(keep, np.asarray(leaf, np.float32), 0), *leaves[i + 1 :]]
        assert found.values[i] == (count(same_tree(tree, cut)),)


def saved(draw):
    """Every bit comes back, at every step; another tree is refused."""
    trees = []
    for _ in range(2):
        tree, _ = mixed_tree(draw)
        trees.append({"params": tree, "mask": random_mask(draw, tree), "step": draw.number(0, 9)})
    with tempfile.TemporaryDirectory() as folder:
        at = sorted(draw(st.sets(st.integers(0, 99), min_size=2, max_size=2)))
        for step, tree in zip(at, trees, strict=True):
            jp.checkpoint.save(folder, tree, step=step)
        assert jp.checkpoint.steps(folder) == at
        assert jp.checkpoint.latest_step(folder) == at[-1]
        for step, tree in zip(at, trees, strict=True):
            zero = jax.tree.map(lambda x: x if isinstance(x, int) else jp.trees.from_host(
                np.zeros_like(np.asarray(x)), 0) if raw(x)[0] != "uint32" else x, tree)  # fmt: skip
            assert_trees_equal(jp.checkpoint.restore(folder, zero, step=step), tree)
        with pytest.raises(ValueError, match="already"):
            jp.checkpoint.save(folder, trees[0], step=at[0])
        with pytest.raises(ValueError, match="extra"):
            jp.checkpoint.restore(folder, trees[1] | {"extra": np.zeros(2)})
        with pytest.raises(FileNotFoundError):
            jp.checkpoint.restore(folder, trees[0], step=100)


LAWS = {
    "quantize.uniform": Row(bounded, fast=7, slow=500),
    "quantize.shared_values": Row(bounded, fast=7, slow=500),
    "quantize.half_precision": Row(bounded, fast=7, slow=500),
    "quantize.unquantized": Row(bounded, fast=7, slow=500),
    "quantize.dequantize": Row(bounded, fast=7, slow=500),
    "quantize.tables_of": Row(bounded, fast=7, slow=500),
    "quantize.with_tables": Row(bounded, fast=7, slow=500),
    "quantize.pack": Row(packed, fast=8, slow=500),
    "quantize.unpack": Row(packed, fast=8, slow=500),
    "quantize.stored_bytes": Row(packed, fast=8, slow=500),
    "quantize.fake_quantized": Row(finely_tuned, fast=2, slow=100),
    "quantize.frozen": Row(finely_tuned, fast=2, slow=100),
    "reporting.mask_changes": Row(changed, fast=15),
    "reporting.append_changes": Row(changed, fast=15),
    "reporting.report": Row(reported, fast=8, slow=500),
    "reporting.as_text": Row(reported, fast=8, slow=500),
    "reporting.leaf_bytes": Row(sized),
    "reporting.dense_bytes": Row(sized),
    "reporting.bitmask_bytes": Row(sized),
    "reporting.csr_bytes": Row(sized),
    "reporting.mean_and_spread": Row(spread),
    "reporting.paired_difference": Row(spread),
    "reporting.summarise": Row(tabled, fast=8, slow=500),
    "reporting.method_table": Row(tabled, fast=8, slow=500),
    "reporting.sensitivity": Row(sensitive, fast=1, slow=200),
    "checkpoint.save": Row(saved, fast=2, slow=60),
    "checkpoint.restore": Row(saved, fast=2, slow=60),
    "checkpoint.steps": Row(saved, fast=2, slow=60),
    "checkpoint.latest_step": Row(saved, fast=2, slow=60),
}
REFUSALS = Row(not_quantized, fast=8, slow=500)


@each({**LAWS, "refusals": REFUSALS})
def test_what_is_stored_and_counted_is_what_numpy_counts(row):
    holds(row)


@pytest.mark.slow
@each({**LAWS, "refusals": REFUSALS}, wide=True)
def test_what_is_stored_and_counted_is_what_numpy_counts_in_hundreds_of_cases(row):
    holds(row, wide=True)
