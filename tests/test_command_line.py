"""What `python -m jaxprune report` says of a checkpoint, NumPy counts in the saved arrays."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import jaxprune as jp
from jaxprune.checkpoint_reading import find
from jaxprune.reporting import array_report as counting
from tests import stored_trees as trees
from tests.commands import ENVIRONMENT, ROOT, in_json, told, with_jaxprune, with_orbax


def as_arrays(tree):
    """The leaves as they are stored: keys as integers, Python's numbers with 64 bits."""
    leaves = {}
    for name, leaf in jp.trees.named_leaves(tree):
        is_key = jax.dtypes.issubdtype(jp.trees.dtype_of(leaf), jax.dtypes.prng_key)
        while name in leaves:
            name += "'"
        leaves[name] = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        if is_key and not leaf.size:
            leaves[name] = np.zeros(leaf.shape, np.uint32)  # no integers are stored
    return leaves


def check_row(row, array):
    """Against loops over single entries and slices."""
    entries = [complex(x) for x in array.ravel()]
    nonzeros = sum(x != 0 for x in entries)
    slices = [[array.take(i, axis) for i in range(n)] for axis, n in enumerate(array.shape)]
    empty = lambda part: part.size > 0 and all(complex(x) == 0 for x in part.ravel())
    assert row["shape"] == list(array.shape)
    assert row["dtype"] == str(array.dtype)
    assert (row["size"], row["nonzeros"]) == (len(entries), nonzeros)
    assert row["sparsity"] == (1 - nonzeros / len(entries) if entries else 0) or np.isclose(
        row["sparsity"], 1 - nonzeros / len(entries), rtol=1e-15
    )
    assert row["zero_slices"] == [sum(map(empty, parts)) for parts in slices]
    kept = array[array != 0]
    bits = np.packbits((array != 0).ravel())
    assert row["bytes_dense"] == array.nbytes
    assert row["bytes_bitmask"] == kept.nbytes + bits.nbytes
    narrow = lambda last: np.min_scalar_type(max(last, 0)).itemsize
    columns, rows = (array.shape[-1], int(np.prod(array.shape[:-1]))) if array.ndim else (1, 1)
    pointers = (rows + 1) * narrow(nonzeros)
    assert row["bytes_csr"] == kept.nbytes + nonzeros * narrow(columns - 1) + pointers


CASES = [(with_jaxprune, name) for name in (*trees.ARRAYS, *trees.ALONE)]
CASES += [(with_orbax, name) for name in trees.ARRAYS]


@pytest.mark.parametrize(("save", "name"), CASES)
def test_every_leaf_is_counted_as_numpy_counts_it(save, name, tmp_path, capsys):
    tree = {**trees.ARRAYS, **trees.ALONE}[name]()
    save(tmp_path / "saved", tree)
    found = in_json(capsys, tmp_path / "saved")
    arrays = as_arrays(tree)
    assert {row["name"] for row in found["leaves"]} == set(arrays)
    if save is with_jaxprune:  # Orbax's own trees come back with their keys sorted
        assert [row["name"] for row in found["leaves"]] == list(arrays)
    for row in found["leaves"]:
        check_row(row, arrays[row["name"]])
    assert found["left_out"] == {}
    assert found["step"] == (3 if save is with_jaxprune else None)


def test_sums_are_those_of_the_rows(tmp_path, capsys):
    with_jaxprune(tmp_path, trees.training())
    found = in_json(capsys, tmp_path)
    assert set(found["parts"]) == {"params", "ema", "opt_state"}
    for name, part in {**found["parts"], "": found["totals"]}.items():
        rows = [row for row in found["leaves"] if row["name"].startswith(name)]
        assert part["leaves"] == len(rows)
        for key in ("size", "nonzeros", "bytes_dense", "bytes_bitmask", "bytes_csr"):
            assert part[key] == sum(row[key] for row in rows)
        sizes = [[row[f"bytes_{n}"] for n in ("dense", "bitmask", "csr")] for row in rows]
        assert part["bytes_smallest"] == sum(map(min, sizes))
        assert part["sparsity"] == pytest.approx(1 - part["nonzeros"] / part["size"], rel=1e-15)


@pytest.mark.parametrize("save", [with_jaxprune, with_orbax])
def test_a_mask_in_the_optimizer_stands_beside_all_that_it_is_the_mask_of(save, tmp_path, capsys):
    tree = trees.training()
    save(tmp_path / "saved", tree)
    mask, arrays = as_arrays(jp.mask_of(tree["opt_state"])), as_arrays(tree)
    rows = {row["name"]: row for row in in_json(capsys, tmp_path / "saved")["leaves"]}
    masked = [name for name, row in rows.items() if row["masks"]]
    for root in ("params", "ema", "opt_state/0/0/mu", "opt_state/0/0/nu"):
        for tail, kept in mask.items():
            (beside,) = rows[f"{root}/{tail}"]["masks"]
            assert beside["name"].endswith(f"mask/{tail}")
            assert beside["kept"] == int(kept.sum())
            assert beside["sparsity"] == pytest.approx(1 - kept.mean(), rel=1e-6)
            assert beside["not_zero"] == int((arrays[f"{root}/{tail}"][~kept] != 0).sum())
    assert not [name for name in masked if "mask" in name or "count" in name]
    assert any(row["masks"] and row["masks"][0]["not_zero"] for row in rows.values())


def shaped(**leaves):
    return {n.replace("_", "/"): np.zeros(s, t) for n, (s, t) in leaves.items()}


def test_a_mask_belongs_to_no_tree_of_other_names_or_shapes():
    leaves = shaped(
        mask_a=((2,), bool), mask_b=((3,), bool),
        good_a=((2,), "f4"), good_b=((3,), "f4"), good_more=((1,), "f4"),
        wide_a=((2,), "f4"), wide_b=((4,), "f4"),
        half_a=((2,), "f4"),
        other_a=((2,), bool), other_b=((3,), bool),
        good_deep_a=((2,), "f4"), good_deep_b=((3,), "f4"),
    )  # fmt: skip
    beside = counting.masks_beside(leaves)
    assert {name: masks for name, masks in beside.items() if masks} == {
        "good/a": ["mask/a"],
        "good/b": ["mask/b"],
        "good/deep/a": ["mask/a"],
        "good/deep/b": ["mask/b"],
    }


def test_a_model_with_random_keys_has_its_masks_too(tmp_path, capsys):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(3, 2, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)
            self.keys = nnx.Variable(jax.random.split(jax.random.key(1), 3))

    state = nnx.state(Net(nnx.Rngs(0)))
    pruned = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest())(state, sparsity=0.5)
    with_jaxprune(tmp_path, {"model": pruned.params, "mask": pruned.mask})
    rows = {row["name"]: row for row in in_json(capsys, tmp_path, "--only", "model/*")["leaves"]}
    assert rows["model/dense/kernel"]["masks"][0]["kept"] == 3
    assert rows["model/keys"]["shape"] == [3, 2]
    assert all(len(row["masks"]) == 1 and not row["masks"][0]["not_zero"] for row in rows.values())


def test_two_masks_of_one_leaf_are_both_told(tmp_path, capsys):
    flags = lambda *kept: {"w": jnp.array(kept, bool)}
    tree = {
        "p": {"w": jnp.ones(4)},
        "1": {"mask": flags(1, 0, 0, 0)},
        "2": {"masks": flags(1, 1, 1, 0)},
    }
    with_jaxprune(tmp_path, tree)
    row = in_json(capsys, tmp_path, "--only", "p/*")["leaves"][0]
    assert [mask["kept"] for mask in row["masks"]] == [1, 3]
    assert "75.00 % (3 not 0), 25.00 % (1 not 0)" in told(capsys, tmp_path, "--only", "p/*")


def test_the_newest_step_is_counted_unless_another_is_asked_for(tmp_path, capsys):
    arrays = {step: {"w": jnp.arange(12) < step} for step in (2, 11, 7)}
    for step, tree in arrays.items():
        jp.checkpoint.save(tmp_path / "ours", tree, step=step)
    options = ocp.CheckpointManagerOptions(step_prefix="net", step_format_fixed_length=5)
    with ocp.CheckpointManager(tmp_path / "orbax", options=options) as manager:
        for step in sorted(arrays):
            manager.save(step, args=ocp.args.StandardSave(arrays[step]))
    for folder in (tmp_path / "ours", tmp_path / "orbax"):
        for wanted, asked in ((11, ()), (2, ("--step", 2)), (7, ("--step", 7))):
            found = in_json(capsys, folder, *asked)
            assert (found["step"], found["totals"]["nonzeros"]) == (wanted, wanted)
    (itself,) = tmp_path.glob("orbax/*7")
    assert in_json(capsys, itself)["totals"]["nonzeros"] == 7


def test_items_of_a_composite_are_parts_and_those_without_arrays_are_listed(tmp_path, capsys):
    with ocp.CheckpointManager(tmp_path) as manager:
        items = ocp.args.Composite(
            params=ocp.args.StandardSave({"w": trees.drawn(0, (3, 2))}),
            state=ocp.args.PyTreeSave({"mask": {"w": jnp.ones((3, 2), bool)}, "text": "relu"}),
            about=ocp.args.JsonSave({"epochs": 3}),
        )
        manager.save(1, args=items)
    found = in_json(capsys, tmp_path)
    assert [row["name"] for row in found["leaves"]] == ["params/w", "state/mask/w"]
    assert found["leaves"][0]["masks"][0]["kept"] == 6
    assert found["left_out"] == {"state/text": "string", "about": "an item without arrays"}
    assert "not counted: state/text (string)" in told(capsys, tmp_path)


def test_a_shrunk_checkpoint_is_counted_without_its_code(tmp_path, capsys):
    apply = lambda w, x: jax.nn.relu(x @ w["in"]) @ w["out"]
    dense, x = {"in": trees.drawn(0, (3, 4)), "out": jnp.ones((4, 2))}, jnp.ones((1, 3))
    coupling, kept = jp.couple(apply, dense, x), {"in": np.array([True, False, True, False])}
    small = jp.structure.shrink_units(dense, kept, coupling)
    code = jp.shrunk_apply(coupling, kept)
    jp.checkpoint.save_shrunk(tmp_path, small, coupling, kept, apply=code, inputs=x)
    found = in_json(capsys, tmp_path)
    assert [row["shape"] for row in found["leaves"]] == [[3, 2], [2, 2]]
    for row, array in zip(found["leaves"], small.values(), strict=True):
        check_row(row, np.asarray(array))
    assert list(found["left_out"]) == ["shrunk", "function"]


def test_leaves_are_read_in_groups_that_fit_into_memory(tmp_path, monkeypatch):
    with_jaxprune(tmp_path, trees.training())
    stored, calls = find(tmp_path), []

    def read(names):
        arrays = stored.read(names)
        calls.append(sum(array.nbytes for array in arrays.values()))
        return arrays

    whole = counting.array_report(stored.leaves, read)
    assert len(calls) == 1
    monkeypatch.setattr(counting, "_AT_ONCE", 400)
    calls.clear()
    assert counting.array_report(stored.leaves, read) == whole
    assert len(calls) > 3
    assert max(calls) <= 400


def test_sorting_orders_the_same_rows_and_a_pattern_chooses_some(tmp_path, capsys):
    with_jaxprune(tmp_path, trees.training())
    rows = lambda *more: in_json(capsys, tmp_path, *more)["leaves"]
    key = lambda row: row["name"]
    for name, values in {
        "size": [-row["size"] for row in rows("--sort", "size")],
        "sparsity": [-row["sparsity"] for row in rows("--sort", "sparsity")],
        "name": [row["name"] for row in rows("--sort", "name")],
    }.items():
        assert values == sorted(values)
        assert sorted(rows("--sort", name), key=key) == sorted(rows(), key=key)
    chosen = rows("--only", "*/kernel")
    assert chosen == [row for row in rows() if row["name"].endswith("/kernel")]
    assert len(chosen) == 10  # of parameters, average, two moments and mask
    names = [row["name"] for row in rows("--only", "params/dense/[kb]*")]
    assert names == ["params/dense/kernel", "params/dense/bias"]


def test_the_table_has_the_numbers_of_the_json(tmp_path, capsys):
    with_jaxprune(tmp_path, trees.training())
    text, found = told(capsys, tmp_path), in_json(capsys, tmp_path)
    lines = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    cells = {line[1]: line[2:-1] for line in lines if len(line) > 1}
    for row in found["leaves"]:
        shape, dtype, size, nonzeros, *_, slices, dense, bits, csr = cells[row["name"]]
        assert shape == ("x".join(map(str, row["shape"])) or "scalar")
        assert slices == ("x".join(map(str, row["zero_slices"])) if len(row["shape"]) > 1 else "")
        numbers = [
            row[k] for k in ("size", "nonzeros", "bytes_dense", "bytes_bitmask", "bytes_csr")
        ]
        assert [int(n.replace(",", "")) for n in (size, nonzeros, dense, bits, csr)] == numbers
        assert dtype == row["dtype"]
    assert cells["all"][1] == f"{found['totals']['size']:,}"
    assert cells["params"][0] == "4"


@pytest.mark.slow
def test_one_process_counts_what_eight_devices_saved(tmp_path, capsys):
    flags = "--xla_force_host_platform_device_count=8"
    folders = [tmp_path / "ours", tmp_path / "orbax"]
    saving = [sys.executable, "-m", "tests.saved_on_eight_devices", *map(str, folders)]
    subprocess.run(saving, check=True, cwd=ROOT, env={**ENVIRONMENT, "XLA_FLAGS": flags})
    for folder in folders:
        for row in in_json(capsys, folder)["leaves"]:
            check_row(row, np.asarray(trees.sharded()[row["name"]]))


def test_the_command_prints_what_main_does_and_nothing_beside_it(tmp_path, capsys):
    with_jaxprune(tmp_path, trees.ARRAYS["nested"]())
    run = [sys.executable, "-m", "jaxprune", "report", tmp_path]
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == told(capsys, tmp_path)
