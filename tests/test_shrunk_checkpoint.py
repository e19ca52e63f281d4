"""A shrunk model comes back with its bits in a process that never saw its code."""

import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze

from jaxprune import checkpoint, trees
from jaxprune.coupling import couple, shrunk_apply, to_json, with_model
from jaxprune.structure import shrink_units
from tests.structure.net_zoo import NETS
from tests.transforms import fresh, zoo


def halved(coupling):
    return {name: np.arange(group.units) % 2 == 0 for name, group in coupling.groups.items()}


def shrunk(apply, variables, *inputs):
    """Small variables, the coupling, the kept units, and the small model."""
    coupling = couple(apply, variables, *inputs)
    kept = halved(coupling)
    return shrink_units(variables, kept, coupling), coupling, kept, shrunk_apply(coupling, kept)


def layers(x, pairs):
    for w, b in pairs[:-1]:
        x = jnp.tanh(x @ w + b)
    return x @ pairs[-1][0] + pairs[-1][1]


def random(*size):
    return jnp.asarray(np.random.default_rng(len(size)).normal(size=size), jnp.float32)


X = random(2, 3)
PAIR = [(random(3, 4), random(4)), (random(4, 2), random(2))]


class Dropped(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.layers[1](self.drop(jnp.tanh(self.layers[0](x))))


def with_random_numbers():
    graphdef, state = nnx.split(Dropped(nnx.Rngs(0)))
    return (lambda state, x: nnx.merge(graphdef, state)(x)), state


# A model of X by name, as (apply, variables).
TREES = {
    "twelve_layers": lambda: (  # 10 sorts before 2 as text
        lambda w, x: layers(x, w["layers"]),
        {"layers": [(random(3, 3), random(3))] * 11 + [(random(3, 2), random(2))]},
    ),
    "tuple": lambda: (lambda w, x: layers(x, w), tuple(PAIR)),
    "frozen_dict": lambda: (
        lambda w, x: layers(x, [w["a"], w["b"]]),
        freeze({"a": PAIR[0], "b": PAIR[1]}),
    ),
    "bare_array": lambda: (lambda w, x: jnp.tanh(x @ w), random(3, 4)),
    "nnx_state_with_keys": with_random_numbers,
    "bfloat16": lambda: (
        lambda w, x: layers(x.astype(jnp.bfloat16), w),
        jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PAIR),
    ),
    "names_that_run_into_each_other": lambda: (
        lambda w, x: layers(x, [(w["a"], w["a/b"]["c"]), (w["b/c"], w["b"]["c"])]),
        {"a": random(3, 4), "a/b": {"c": random(4)}, "b/c": random(4, 2), "b": {"c": random(2)}},
    ),
}


def equal(one, two):
    is_key = jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key)
    assert one.dtype == two.dtype
    np.testing.assert_array_equal(*map(jax.random.key_data if is_key else np.asarray, (one, two)))


@pytest.mark.parametrize("name", sorted(TREES))
def test_it_comes_back_as_nested_dictionaries_and_runs(name, tmp_path):
    apply, variables = TREES[name]()
    small, coupling, kept, run = shrunk(apply, variables, X)
    checkpoint.save_shrunk(tmp_path, small, coupling, kept, apply=run, inputs=X)
    found = checkpoint.restore_shrunk(tmp_path)
    saved, restored = (dict(trees.named_leaves(tree)) for tree in (small, found.variables))
    if name != "names_that_run_into_each_other":
        assert set(saved) == set(restored)
        jax.tree.map(equal, saved, restored)
    assert type(found.variables) is dict or name == "bare_array"
    expected = np.asarray(jax.jit(run)(small, X), np.float32)
    for tree in (found.variables, checkpoint.restore_shrunk(tmp_path, like=small).variables, small):
        outputs = jax.jit(found.apply)(tree, X)
        np.testing.assert_allclose(np.asarray(outputs, np.float32), expected, rtol=1e-6, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, found.kept, kept)
    assert to_json(found.coupling) == to_json(coupling)
    again = with_model(found.coupling, apply, variables, X)
    outputs = np.asarray(shrunk_apply(again, found.kept)(small, X), np.float32)
    np.testing.assert_allclose(outputs, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["frozen_dict", "nnx_state_with_keys"])
def test_into_a_tree_like_it_or_by_restore_it_comes_back_bit_for_bit(name, tmp_path):
    apply, variables = TREES[name]()
    small, coupling, kept, _ = shrunk(apply, variables, X)
    checkpoint.save_shrunk(tmp_path, small, coupling, kept, step=4)
    found = checkpoint.restore_shrunk(tmp_path, 4, like=jax.eval_shape(lambda: small))
    assert found.apply is None
    for tree in (found.variables, checkpoint.restore(tmp_path, small)):
        assert jax.tree.structure(tree) == jax.tree.structure(small)
        jax.tree.map(equal, tree, small)


def test_types_that_need_64_bits_come_back_as_they_were(tmp_path):
    variables = [np.arange(3.0), np.int64(2**40), jnp.float32(2)]
    coupling = couple(lambda w, x: w[0] * w[2] * x, variables, jnp.ones(3))
    checkpoint.save_shrunk(tmp_path, variables, coupling, {})
    found = checkpoint.restore_shrunk(tmp_path).variables
    for old, name in zip(variables, "012", strict=True):
        equal(np.asarray(old), np.asarray(found[name]))


IN_A_FRESH_PROCESS = """
import json, pickle, sys
def refuse(*_, **__): raise AssertionError("unpickled")
import numpy as np, jax
from jaxprune import checkpoint, coupling, trees
pickle.load = pickle.loads = refuse
report = {}
for name in sys.argv[2:]:
    found = checkpoint.restore_shrunk(f"{sys.argv[1]}/{name}")
    inputs = np.load(f"{sys.argv[1]}/{name}.npy")
    np.save(f"{sys.argv[1]}/{name}.found.npy", found.apply(found.variables, inputs))
    report[name] = [sorted(trees.paths(found.variables)), found.coupling.parameters(found.kept),
                    coupling.to_json(found.coupling)]
print(json.dumps({"report": report, "flax": "flax" in sys.modules}))
"""


def test_a_process_without_the_models_code_restores_and_runs_it(tmp_path):
    names, expected, wanted = ("mlp_dataclass", "nnx_transformer"), {}, {}
    for name in names:
        net = NETS[name]()
        small, coupling, kept, run = shrunk(net.apply, net.variables, *net.inputs)
        checkpoint.save_shrunk(tmp_path / name, small, coupling, kept, apply=run, inputs=net.inputs)
        np.save(tmp_path / f"{name}.npy", net.inputs[0])
        expected[name] = jax.jit(run)(small, *net.inputs)
        wanted[name] = [sorted(trees.paths(small)), trees.count(small), to_json(coupling)]
    environment = {**os.environ, "PYTHONPATH": str(fresh.ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS, tmp_path, *names],
        env=environment, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found == {"report": wanted, "flax": False}
    for name in names:
        outputs = np.load(tmp_path / f"{name}.found.npy")
        np.testing.assert_allclose(outputs, expected[name], rtol=1e-5, atol=1e-6)


def saved(directory, **more):
    small, coupling, kept, run = shrunk(TREES["tuple"]()[0], tuple(PAIR), X)
    checkpoint.save_shrunk(directory, small, coupling, kept, **({"apply": run, "inputs": X} | more))
    return small


def damaged(data, how):
    middle = len(data) // 2
    rest = bytes([data[middle] ^ 255]) + data[middle + 1 :]
    return data[:middle] + (rest if how == "flipped" else b"")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of tensorstore
@pytest.mark.parametrize("item", ["leaves", "shrunk", "tree", "function"])
@pytest.mark.parametrize("how", ["gone", "cut", "flipped"])
def test_a_checkpoint_damaged_afterwards_is_an_error_that_says_so(item, how, tmp_path):
    saved(tmp_path)
    file = (
        tmp_path / "0" / item / ("metadata" if item in ("leaves", "shrunk") else "manifest.ocdbt")
    )
    data = file.read_bytes()
    file.unlink()
    if how != "gone":
        file.write_bytes(damaged(data, how))
    with pytest.raises(ValueError, match=r"The checkpoint of step 0 in .* and has been damaged: "):
        checkpoint.restore_shrunk(tmp_path)
    file.write_bytes(data)
    assert checkpoint.restore_shrunk(tmp_path).apply is not None


def test_arrays_of_another_save_are_not_taken_for_these(tmp_path):
    small = saved(tmp_path / "one")
    checkpoint.save(tmp_path / "other", jax.tree.map(lambda leaf: leaf + 1, small), step=0)
    shutil.rmtree(tmp_path / "one" / "0" / "tree")
    shutil.copytree(tmp_path / "other" / "0" / "tree", tmp_path / "one" / "0" / "tree")
    with pytest.raises(ValueError, match="the arrays are not those that were saved"):
        checkpoint.restore_shrunk(tmp_path / "one")


def test_a_save_that_died_half_way_is_not_seen(tmp_path):
    saved(tmp_path, step=1)
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
    assert checkpoint.steps(tmp_path) == [1]
    checkpoint.restore_shrunk(tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 2; complete ones: \\[1\\]"):
        checkpoint.restore_shrunk(tmp_path, 2)
    with pytest.raises(FileNotFoundError, match="has no checkpoint; complete ones: none"):
        checkpoint.restore_shrunk(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has a checkpoint of step 1 already"):
        saved(tmp_path, step=1)


def test_other_trees_and_checkpoints_are_refused(tmp_path):
    small, coupling, kept, run = shrunk(TREES["tuple"]()[0], tuple(PAIR), X)
    checkpoint.save(tmp_path, small, step=3)
    with pytest.raises(ValueError, match="holds no shrunk model, but a tree: restore it by `rest"):
        checkpoint.restore_shrunk(tmp_path)
    save = lambda tree, **more: checkpoint.save_shrunk(tmp_path, tree, coupling, kept, **more)
    with pytest.raises(ValueError, match=r"leaf '0/0' .*has shape \(3, 4\), .* leave \(3, 2\)"):
        save(tuple(PAIR))
    with pytest.raises(ValueError, match="have 2 leaves, the coupling 4: "):
        save(small[0])
    with pytest.raises(ValueError, match="`inputs` is missing"):
        save(small, apply=run)
    with pytest.raises(ValueError, match="`apply` is missing"):
        save(small, inputs=X)
    with pytest.raises(TypeError, match="Cannot save leaf '1/1': it is a str"):
        save((small[0], (small[1][0], "b")))
    with pytest.raises(ValueError, match="The code cannot be saved: its inputs and outputs may be"):
        save(small, apply=lambda w, x: nnx.State({"y": run(w, x)}), inputs=X)
    saved(tmp_path / "good")
    with pytest.raises(ValueError, match="leaf '0/0' was saved as"):
        checkpoint.restore_shrunk(tmp_path / "good", like=tuple(PAIR))
    with pytest.raises(TypeError, match=r"got a tuple\. Pass a tree to restore into as `like=`"):
        checkpoint.restore_shrunk(tmp_path / "good", small)
    assert checkpoint.steps(tmp_path) == [3]


def test_the_restored_code_takes_what_it_was_saved_for(tmp_path):
    saved(tmp_path)
    found = checkpoint.restore_shrunk(tmp_path)
    with pytest.raises(ValueError, match=r"missing: \['1/0', '1/1'\], too many: \['x'\]"):
        found.apply({"0": found.variables["0"], "x": X}, X)
    with pytest.raises(ValueError, match="Shape mismatch"):
        found.apply(found.variables, X[:1])


def test_code_for_other_platforms_is_saved_and_runs_on_those_alone(tmp_path):
    small = saved(tmp_path, platforms=("cpu", "cuda"))
    saved(tmp_path, platforms=("cuda",), step=1)
    run = lambda step: checkpoint.restore_shrunk(tmp_path, step).apply(small, X)
    assert run(0).shape == (2, 2)
    with pytest.raises(ValueError, match=r"exported for platforms '.*cuda.* used on '.*cpu"):
        run(1)


def test_without_flatbuffers_it_says_what_to_install(tmp_path, monkeypatch):
    saved(tmp_path)
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    monkeypatch.delitem(sys.modules, "jax._src.export.serialization", raising=False)
    for function in (lambda: saved(tmp_path, step=1), lambda: checkpoint.restore_shrunk(tmp_path)):
        with pytest.raises(ImportError, match="pip install flatbuffers"):
            function()
    saved(tmp_path, step=2, apply=None, inputs=None)
    zoo.assert_same_bits(checkpoint.restore_shrunk(tmp_path, 2).variables["1"]["1"], PAIR[1][1])
