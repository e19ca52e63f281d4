"""The report: counts equal NumPy's, on every kind of tree, and nothing is left out."""

import csv
import io
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from flax import nnx

from jaxprune import trees
from jaxprune.reporting import leaf_bytes, report


def abstract(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def random_mask(params, density=0.3, prunable=trees.default_prunable):
    """A mask that drops entries of prunable leaves only."""
    rng = np.random.default_rng(0)
    named = trees.named_leaves(params)
    leaves = [
        rng.random(np.shape(leaf)) < (density if prunable(name, leaf) else 2)
        for name, leaf in named
    ]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


class Batched(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.BatchNorm(use_running_average=True)(x)
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


def linen_variables():
    shapes = jax.eval_shape(Batched().init, jax.random.key(0), jnp.ones((1, 4, 4, 2)))
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)


def nnx_state():
    return nnx.split(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))[1]


def mixed():
    return {
        "weights": [jnp.ones((6, 5), jnp.bfloat16), np.ones((3, 3, 2))],
        "steps": jnp.arange(4),
        "flag": jnp.ones((2, 2), bool),
        "key": jax.random.key(0),
        "keys": jax.random.split(jax.random.key(0), (2, 3)),
        "scalar": jnp.float32(1),
        "python": 2.5,
        "nothing": jnp.zeros((0, 4)),
        "embedding": jnp.ones((5, 2)),
        "complex": jnp.ones((2, 2), jnp.complex64),
    }


TREES = {
    "bare array": lambda: jnp.ones((5, 4)),
    "list": lambda: [jnp.ones((3, 4)), jnp.ones(4), jnp.ones((4, 2))],
    "linen variables": linen_variables,
    "nnx state": nnx_state,
    "mixed": mixed,
    "abstract": lambda: {"kernel": abstract(3, 4)},
}


@pytest.mark.parametrize("make", TREES.values(), ids=TREES)
def test_every_leaf_is_a_row_and_its_counts_are_numpys(make):
    params = make()
    mask = random_mask(params)
    found = report(params, mask)
    leaves, masks = jax.tree.leaves(params), jax.tree.leaves(mask)
    assert [row.name for row in found.rows] == trees.paths(params)
    assert [row.shape for row in found.rows] == [np.shape(leaf) for leaf in leaves]
    assert [row.dtype for row in found.rows] == [str(trees.dtype_of(leaf)) for leaf in leaves]
    assert [row.kept for row in found.rows] == [np.count_nonzero(m) for m in masks]
    assert [row.total for row in found.rows] == [np.size(m) for m in masks]
    assert all(type(row.kept) is int for row in found.rows)


@pytest.mark.parametrize("make", TREES.values(), ids=TREES)
def test_both_denominators_are_numpys(make):
    params = make()
    mask = random_mask(params)
    totals = report(params, mask).totals
    every = np.concatenate([np.ravel(m) for m in jax.tree.leaves(mask)])
    flags = trees.prunable_flags(params, trees.default_prunable)
    ours = np.concatenate([np.ravel(m) for m in trees.select_leaves(mask, flags)])
    assert totals.sparsity_of_prunable == np.count_nonzero(~ours) / ours.size > 0
    assert totals.sparsity_of_all == np.count_nonzero(~every) / every.size
    assert (totals.kept, totals.total) == (np.count_nonzero(every), every.size)
    assert (totals.prunable_kept, totals.prunable_total) == (np.count_nonzero(ours), ours.size)


def test_the_denominators_differ_where_leaves_are_not_prunable():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(4)}
    mask = {"kernel": jnp.array([[True, False], [False, False]]), "bias": jnp.ones(4, bool)}
    totals = report(params, mask).totals
    assert (totals.sparsity_of_prunable, totals.sparsity_of_all) == (0.75, 0.375)


def test_a_unit_mask_is_counted_on_the_leaves_it_drops_too():
    params = {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}
    unit = jnp.array([True, False])
    mask = {"kernel": jnp.broadcast_to(unit, (4, 2)), "bias": unit}
    found = report(params, mask)
    bias, kernel = found.rows
    assert (bias.kept, bias.total, bias.prunable) == (1, 2, False)
    assert (kernel.kept, kernel.total, kernel.prunable) == (4, 8, True)
    assert (found.totals.kept, found.totals.total) == (5, 10)
    assert (found.totals.prunable_kept, found.totals.prunable_total) == (4, 8)


def test_what_is_not_prunable_says_why():
    params = mixed() | {"scale": jnp.ones((2, 2)), "vector": jnp.ones(3)}
    found = {row.name: row.reason for row in report(params, trees.full_mask(params)).rows}
    assert found == {
        "weights/0": "",
        "weights/1": "",
        "complex": "",
        "steps": "integer",
        "flag": "dtype bool",
        "key": "PRNG key",
        "keys": "PRNG key",
        "scalar": "rank 0",
        "python": "rank 0",
        "nothing": "",
        "embedding": "named embedding",
        "scale": "named scale",
        "vector": "rank 1",
    }


def test_a_users_predicate_is_the_reason_and_decides_the_denominator():
    params = [jnp.ones((2, 2)), jnp.ones((3, 3)), jnp.arange(3)]
    mask = [jnp.zeros((2, 2), bool), jnp.ones((3, 3), bool), jnp.ones(3, bool)]
    found = report(params, mask, prunable=lambda name, leaf: name == "0")
    assert [row.reason for row in found.rows] == ["", "excluded by predicate", "integer"]
    assert found.totals.sparsity_of_prunable == 1.0
    assert found.totals.sparsity_of_all == 4 / 16


def test_bytes_are_those_of_each_leaf_and_dense_where_nothing_is_prunable():
    params = mixed()
    mask = random_mask(params)
    found = report(params, mask)
    for row, leaf in zip(found.rows, jax.tree.leaves(params), strict=True):
        itemsize = trees.dtype_of(leaf).itemsize
        dense = row.total * itemsize
        packed = leaf_bytes(row.shape, row.kept, itemsize)
        assert row.bytes == (packed if row.prunable else (dense, dense, dense))
        if isinstance(leaf, np.ndarray | jax.Array):
            assert row.bytes.dense == leaf.nbytes
    for i, size in enumerate(found.totals.bytes):
        assert size == sum(row.bytes[i] for row in found.rows)


def test_counts_are_exact_where_a_float32_count_is_not():
    n = 2**24 + 1
    mask = np.ones((1, n), bool)
    assert report({"kernel": abstract(1, n)}, {"kernel": mask}).rows[0].kept == n


def test_empty_and_nearly_empty_leaves_are_warnings_and_others_are_not():
    params = {name: jnp.ones((10, 100)) for name in ("empty", "nearly", "at_99", "full")}
    params |= {"bias": jnp.ones(3), "nothing": jnp.zeros((0, 3))}
    kept = {"empty": 0, "nearly": 9, "at_99": 10, "full": 1000}
    mask = {name: np.arange(1000).reshape(10, 100) < k for name, k in kept.items()}
    mask |= {"bias": np.zeros(3, bool), "nothing": np.zeros((0, 3), bool)}
    found = report(params, mask)
    assert found.warnings == (
        "leaf 'bias' is empty: all 3 entries pruned.",
        "leaf 'empty' is empty: all 1000 entries pruned.",
        "leaf 'nearly' is above 99 % sparsity: 9 of 1000 kept.",
    )
    assert all(warning in " ".join(str(found).split()) for warning in found.warnings)


def apply(params, x):
    return jax.nn.relu(x @ params["a"] + params["bias"]) @ params["b"]


def mlp():
    params = {"a": jnp.ones((6, 5)), "b": jnp.ones((5, 3)), "bias": jnp.ones(5)}
    return params, random_mask(params), jnp.ones((7, 6))


def test_the_cost_of_a_call_is_counted_and_timed():
    params, mask, x = mlp()
    cost = report(params, mask, apply=apply, inputs=x).cost
    assert cost.flops == 2 * 7 * (6 * 5 + 5 * 3)
    assert cost.flops_skipping_zeros == 2 * 7 * (mask["a"].sum() + mask["b"].sum())
    assert cost.latency.median_ms > 0
    assert cost.masked_latency.median_ms > 0
    assert cost.latency.device == jax.devices()[0].device_kind


def test_the_masked_latency_runs_the_masked_parameters():
    params, mask, x = mlp()
    zeros = []

    def spying(params, x):
        jax.debug.callback(lambda a: zeros.append(np.count_nonzero(a == 0)), params["a"])
        return apply(params, x)

    report(params, mask, apply=spying, inputs=x)
    jax.effects_barrier()
    assert set(zeros) == {0, np.count_nonzero(~mask["a"])}


def test_abstract_arrays_have_flops_and_no_latency():
    params, mask, x = mlp()
    shapes = jax.eval_shape(lambda p: p, params)
    found = report(shapes, mask, apply=apply, inputs=x)
    assert found.cost.flops == report(params, mask, apply=apply, inputs=x).cost.flops
    assert found.cost.latency is found.cost.masked_latency is None
    assert "not measured" in str(found)
    assert json.loads(found.to_json())["cost"]["latency"] is None


def test_a_loop_of_unknown_length_is_a_warning():
    def looped(w, x):
        return jax.lax.while_loop(lambda c: jnp.sum(c) < 0, lambda c: c @ w, x)

    w = jnp.ones((3, 3))
    (warning,) = report(w, w > 0, apply=looped, inputs=w).warnings
    assert "'while' are counted once" in warning


def test_linen_and_nnx_models_are_reported_whole():
    variables = linen_variables()
    found = report(
        variables, random_mask(variables), apply=Batched().apply, inputs=jnp.ones((2, 4, 4, 2))
    )
    assert found.cost.flops == 2 * 2 * (16 * 9 * 2 * 4 + 64 * 3)
    assert {row.name for row in found.rows if row.prunable} == {
        "params/Conv_0/kernel",
        "params/Dense_0/kernel",
    }
    graph, state = nnx.split(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    found = report(
        state,
        random_mask(state),
        apply=lambda state, x: nnx.merge(graph, state)(x),
        inputs=jnp.ones((2, 4)),
    )
    assert found.cost.flops == 2 * 2 * 4 * 3


def test_json_round_trips(tmp_path):
    params, mask, x = mlp()
    found = report(params, mask, apply=apply, inputs=x)
    text = found.to_json(tmp_path / "report.json")
    assert (tmp_path / "report.json").read_text() == text
    assert json.loads(text) == found.as_dict()
    assert json.loads(text)["totals"]["prunable_kept"] == found.totals.prunable_kept
    assert json.loads(text)["cost"]["latency"]["median_ms"] == found.cost.latency.median_ms


def test_csv_round_trips(tmp_path):
    params = mixed() | {'comma, "quote"': jnp.ones((2, 2))}
    found = report(params, random_mask(params))
    text = found.to_csv(tmp_path / "report.csv")
    with open(tmp_path / "report.csv", newline="") as file:
        assert file.read() == text
    lines = list(csv.DictReader(text.splitlines()))
    for line, row in zip(lines, found.rows, strict=True):
        assert line == {key: str(value) for key, value in row.as_dict().items()}
        assert (line["name"], int(line["kept"])) == (row.name, row.kept)
        assert tuple(int(n) for n in line["shape"].split("x") if n) == row.shape
        assert float(line["sparsity"]) == row.sparsity
        assert int(line["bytes_csr"]) == row.bytes.csr


def test_the_text_shows_every_leaf_both_sparsities_and_fits_100_columns():
    params = {"a/" * 30 + "kernel": jnp.ones((3, 4)), "[red]x": jnp.ones((2, 2)), "b": jnp.ones(3)}
    mask = random_mask(params)
    found = report(params, mask)
    text = str(found)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert text.isascii()
    assert "\x1b" not in text
    assert any(line.startswith("| [red]x") for line in lines)
    folded = "".join(line.split("|")[1].strip() for line in lines if line.startswith("|"))
    assert "a/" * 30 + "kernel" in folded
    assert f"sparsity {100 * found.totals.sparsity_of_prunable:.2f} %" in text
    assert f"sparsity {100 * found.totals.sparsity_of_all:.2f} %" in text


def test_a_theoretical_number_is_called_theoretical_wherever_it_is_shown():
    params, mask, x = mlp()
    found = report(params, mask, apply=apply, inputs=x)
    (line,) = [line for line in str(found).splitlines() if "FLOPs" in line]
    assert f"theoretical {found.cost.flops_skipping_zeros:,} if zeros were skipped" in line


def test_a_hundred_percent_is_shown_for_empty_leaves_only():
    params = {"kernel": abstract(1000, 1000)}
    one = np.zeros((1000, 1000), bool)
    assert "100.00 %" in str(report(params, {"kernel": one}))
    one[0, 0] = True
    text = str(report(params, {"kernel": one}))
    assert "100.00 %" not in text
    assert "> 99.99 %" in text


def test_rich_consoles_show_the_same_lines():
    params, mask, _ = mlp()
    console = rich.console.Console(width=100, record=True, file=io.StringIO())
    found = report(params, mask)
    console.print(found)
    shown = [line.rstrip() for line in console.export_text().splitlines()]
    assert "\n".join(shown).strip("\n") == str(found)
