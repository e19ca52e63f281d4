"""A checkpoint is read with its bits or not at all, and what is wrong with it is told."""

import json
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import jaxprune as jp
from experiments import resumable
from experiments.locking import alone
from tests.faults import breaking
from tests.transforms.zoo import assert_same_bits

TREE = {
    "net": {"kernel": np.random.default_rng(0).normal(size=(9, 50)).astype(np.float32)},
    "mask": np.ones((4, 4), bool),
    "step": np.int32(3),
}
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"  # of tensorstore
)


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of step 1, and a way to damage a copy of one of its files."""
    jp.checkpoint.save(tmp_path / "whole", TREE, step=1)
    copy = tmp_path / "copy"

    def damage(file, way, **options):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", copy)
        way(copy / file, **options)
        return copy

    names = [path.relative_to(tmp_path / "whole") for path in breaking.files(tmp_path / "whole")]
    return names, damage


def largest(folder):
    return max(breaking.files(folder), key=lambda path: path.stat().st_size)


def noticed(folder):
    """Is a damage told? Otherwise all bits must be there."""
    try:
        found = jp.checkpoint.restore(folder, TREE)
    except jp.checkpoint.Damaged as problem:
        told = str(problem)
    else:
        assert_same_bits(found, TREE)
        return False
    assert f"The checkpoint of step 1 in {folder} was complete and has been" in told
    assert "Restore another step, or another copy." in told
    assert "tensorstore_spec" not in told
    return True


def test_whatever_file_is_damaged_no_wrong_bit_is_ever_restored(saved):
    names, damage = saved
    ways = list(breaking.WAYS.values())
    told = sum(noticed(damage(name, ways[i % len(ways)])) for i, name in enumerate(names))
    assert told >= 4  # some files are Orbax's own notes, and not read


@pytest.mark.slow
@pytest.mark.parametrize("way", breaking.WAYS.values())
def test_whatever_file_is_damaged_in_any_way_no_wrong_bit_is_ever_restored(saved, way):
    names, damage = saved
    assert sum(noticed(damage(name, way)) for name in names) >= 4


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_one_bit_that_flips_in_the_arrays_is_an_error_that_names_the_leaf(saved, tmp_path, place):
    _, damage = saved
    file = largest(tmp_path / "whole").relative_to(tmp_path / "whole")
    folder = damage(file, breaking.flipped, place=place)
    with pytest.raises(jp.checkpoint.Damaged, match=r"net/kernel"):
        jp.checkpoint.restore(folder, TREE)


def test_another_tree_is_no_damage(saved, tmp_path):
    other = {**TREE, "step": np.int64(3)}
    with pytest.raises(ValueError, match="leaf 'step' was saved as int32") as caught:
        jp.checkpoint.restore(tmp_path / "whole", other)
    assert not isinstance(caught.value, jp.checkpoint.Damaged)


def test_checkpoints_of_version_0_1_have_no_hashes_and_are_restored(saved, tmp_path):
    path = tmp_path / "whole" / "1" / "leaves" / "metadata"
    new = json.loads(path.read_text())
    assert all(len(about) == 3 for about in new.values())
    path.write_text(json.dumps({name: about[:2] for name, about in new.items()}))
    assert_same_bits(jp.checkpoint.restore(tmp_path / "whole", TREE), TREE)


def state(step):
    return {"w": jnp.full(300, step, jnp.float32), "step": jnp.int32(step)}


def test_a_run_goes_on_from_the_newest_checkpoint_that_is_whole(tmp_path):
    for step in (1, 2, 3):
        jp.checkpoint.save(tmp_path, state(step), step=step)
    breaking.cut(tmp_path / "3" / "leaves" / "metadata")
    (tmp_path / "4.orbax-checkpoint-tmp").mkdir()  # of a process that was killed
    (tmp_path / "3.damaged").mkdir()  # it happened before
    (tmp_path / "3.damaged" / "old").touch()
    with pytest.warns(UserWarning, match=rf"step 3 in {tmp_path} .* moved to 3\.damaged"):
        assert_same_bits(resumable.newest(tmp_path, lambda: state(0)), state(2))
    assert jp.checkpoint.steps(tmp_path) == [1, 2]
    jp.checkpoint.save(tmp_path, state(3), step=3, keep=2)
    assert_same_bits(resumable.newest(tmp_path, lambda: state(0)), state(3))


def test_a_run_without_a_whole_checkpoint_starts_over(tmp_path):
    for step in (1, 2):
        jp.checkpoint.save(tmp_path, state(step), step=step)
        breaking.garbage(largest(tmp_path / str(step)))
        breaking.gone(tmp_path / str(step) / "leaves" / "metadata")
    with pytest.warns(UserWarning, match=r"starts over if there is none") as caught:
        assert_same_bits(resumable.newest(tmp_path, lambda: state(0)), state(0))
    assert len(caught) == 2
    assert_same_bits(resumable.newest(tmp_path / "nowhere", lambda: state(0)), state(0))


def test_a_checkpoint_of_another_tree_is_not_thrown_away(tmp_path):
    jp.checkpoint.save(tmp_path, state(1), step=1)
    with pytest.raises(ValueError, match="leaf 'w' was saved as"):
        resumable.newest(tmp_path, lambda: {**state(0), "w": jnp.zeros(2)})
    assert jp.checkpoint.steps(tmp_path) == [1]


def test_what_is_made_once_is_made_again_only_when_it_is_damaged(tmp_path):
    made = []
    make = lambda: made.append(1) or state(5)
    once = lambda: resumable.made_once(tmp_path, state(0), make, step=7)
    for _ in range(2):
        assert_same_bits(once(), state(5))
    assert len(made) == 1
    breaking.empty(tmp_path / "7" / "leaves" / "metadata")
    with pytest.warns(UserWarning, match="step 7"):
        assert_same_bits(once(), state(5))
    assert len(made) == 2
    assert_same_bits(jp.checkpoint.restore(tmp_path, state(0)), state(5))


def test_what_two_make_at_once_is_made_by_one_and_a_ledger_may_write_meanwhile(tmp_path):
    folder, made, found = tmp_path / "dense", [], []
    other = threading.Thread(target=lambda: found.append(once(lambda: made.append(2) or state(6))))
    once = lambda make: resumable.made_once(folder, state(0), make, step=7)

    def make():
        other.start()
        other.join(0.2)
        assert other.is_alive()  # it waits
        with alone(tmp_path, wait=False):
            return made.append(1) or state(5)

    found.append(once(make))
    other.join(60)
    assert made == [1]
    for one in found:
        assert_same_bits(one, state(5))
    assert len(found) == 2


def raises(error, write_first):
    """A save that writes something and fails."""

    def save(self, path, *args, **kwargs):
        part = path.with_name(f"{path.name}.orbax-checkpoint-tmp")
        if write_first:
            part.mkdir()
            (part / "part").write_bytes(b"half")
        raise error

    return save


@pytest.mark.parametrize("kind", breaking.ERRORS)
@pytest.mark.parametrize("by", ["python", "tensorstore"])
def test_a_disk_that_fails_is_an_error_that_names_the_path_and_leaves_nothing(
    kind, by, tmp_path, monkeypatch
):
    jp.checkpoint.save(tmp_path, state(1), step=1)
    error = breaking.disk_error(kind)
    if by == "tensorstore":
        error = ValueError(f"Error writing [os_error_code='{breaking.ERRORS[kind]}']")
    with monkeypatch.context() as patch:
        patch.setattr(ocp.Checkpointer, "save", raises(error, kind == "full"))
        with pytest.raises(OSError, match="the checkpoint was not saved") as caught:
            jp.checkpoint.save(tmp_path, state(2), step=2, keep=1)
    assert caught.value.errno == breaking.ERRORS[kind]
    assert caught.value.filename == str(tmp_path / "2")
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert_same_bits(jp.checkpoint.restore(tmp_path, state(0)), state(1))


def test_other_errors_of_a_save_stay_what_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(ocp.Checkpointer, "save", raises(RuntimeError("no device"), True))
    with pytest.raises(RuntimeError, match="no device"):
        jp.checkpoint.save(tmp_path, state(2), step=2)
    assert list(tmp_path.iterdir()) == []


def test_keep_deletes_what_killed_processes_left_and_nothing_else(tmp_path):
    jp.checkpoint.save(tmp_path, state(1), step=1)
    for name in ("2.orbax-checkpoint-tmp", "1.dropped", "0.dropped", "notes", "3.damaged"):
        (tmp_path / name / "inside").mkdir(parents=True)
    jp.checkpoint.save(tmp_path, state(4), step=4, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3.damaged", "4", "notes"]


@pytest.mark.parametrize("error", [MemoryError(), PermissionError(13, "no", "file")])
def test_what_is_no_damage_is_not_called_so(error, tmp_path, monkeypatch):
    jp.checkpoint.save(tmp_path, state(1), step=1)

    def restore(self, *args, **kwargs):
        raise error

    monkeypatch.setattr(ocp.Checkpointer, "restore", restore)
    with pytest.raises(type(error)):
        jp.checkpoint.restore(tmp_path, state(0))


def test_hashes_cover_keys_numbers_and_narrow_types(tmp_path):
    tree = {"key": jax.random.key(1), "float": 0.1, "int4": jnp.ones(3, jnp.int4), "none": ()}
    jp.checkpoint.save(tmp_path, tree, step=0)
    about = json.loads((tmp_path / "0" / "leaves" / "metadata").read_text())
    assert {name: len(said) for name, said in about.items()} == {"key": 3, "float": 3, "int4": 3}
    assert jp.checkpoint.restore(tmp_path, tree)["float"] == 0.1
