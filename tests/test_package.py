"""What is public, what a wheel holds, and that it works where nothing else is installed."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxprune as jp
from tests import public_api

ROOT = Path(__file__).parents[1]


def test_the_public_names_and_what_they_are_called_with_are_those_listed():
    listed = public_api.LISTED.read_text(encoding="utf-8").splitlines()
    told = public_api.difference(listed, public_api.public_api())
    assert not told, (
        f"The public API is not the one in tests/public_api.txt:\n{told}\n"
        "If that is meant, run `python tests/public_api.py` and say it in CHANGELOG.md. What was "
        "removed or changed breaks users: the next version is a new major one, or before 1.0 a "
        "new minor one."
    )


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (["a.f(x)", "a.g(y=1)", "a.C", "a.C.run()"], "added:   a.C.run()"),
        (["a.f(x)", "a.C"], "removed: a.g(y=1)"),
        (["a.f(x)", "a.g(y=2)", "a.C"], "changed: a.g(y=1)\n     to: a.g(y=2)"),
        (["a.C", "a.g(y=1)", "a.f(x)"], ""),
    ],
    ids=["added", "removed", "changed", "same"],
)
def test_a_difference_of_the_api_is_told_by_its_kind(found, told):
    assert public_api.difference(["a.f(x)", "a.g(y=1)", "a.C"], found) == told


def test_a_listed_call_has_names_kinds_and_defaults_and_no_addresses():
    def call(a, /, b=public_api.difference, *, c: int = 3, _private=None) -> None: ...

    assert public_api.called_with(call) == "(a, /, b=difference, *, c=3)"
    assert not [line for line in public_api.public_api() if " at 0x" in line]


def test_the_version_is_the_same_in_the_package_and_in_its_metadata():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project.get("version", jp.__version__) == jp.__version__
    assert ("version" in project) != ("version" in project.get("dynamic", []))


def test_a_jax_that_cannot_lay_arrays_alike_computes_the_same(monkeypatch):
    array = jnp.arange(3.0)
    call = jax.jit(lambda x: jp.trees.beside(2 * x, x))
    monkeypatch.setitem(sys.modules, "jax.experimental.shard_alike", None)  # as in newer JAX
    assert call(array).tolist() == [0, 2, 4]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and a source distribution, built from a copy of the tree."""
    folder = tmp_path_factory.mktemp("built")
    source, builder = folder / "source", folder / "builder"
    shutil.copytree(ROOT / "jaxprune", source / "jaxprune", ignore=shutil.ignore_patterns("__py*"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (source / "experiments").mkdir()  # which must not be taken
    (source / "experiments" / "__init__.py").touch()
    venv.create(builder, with_pip=True)
    python = builder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "build"], check=True)
    subprocess.run([python, "-m", "build", "-o", folder / "dist", source], check=True)
    return folder / "dist"


def modules():
    return {p.relative_to(ROOT).as_posix() for p in (ROOT / "jaxprune").rglob("*.py")}


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_types_its_licence_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    about = f"jaxprune-{jp.__version__}.dist-info/"
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in names if not name.startswith(about)}
    assert package == modules() | {"jaxprune/py.typed"}
    assert f"{about}licenses/LICENSE" in names


@pytest.mark.slow
def test_the_source_distribution_builds_the_same_package(built):
    (source,) = built.glob("*.tar.gz")
    top = f"jaxprune-{jp.__version__}/"
    with tarfile.open(source) as archive:
        names = {name.removeprefix(top) for name in archive.getnames()}
    assert names >= modules() | {"jaxprune/py.typed", "pyproject.toml", "README.md", "LICENSE"}
    assert not [name for name in names if name.startswith("experiments")]


@pytest.mark.slow
def test_an_installed_wheel_prunes_shrinks_and_reports_without_extras(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", wheel], check=True)
    installed = {path.name for path in tmp_path.glob("venv/lib/*/site-packages/*")}
    assert not installed & {"experiments", "tyro", "matplotlib", "sklearn", "tensorflow_datasets"}
    hidden = ("PYTHONPATH", "XLA_FLAGS")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    program = ROOT / "tests" / "installed_package.py"
    subprocess.run([python, program], check=True, cwd=tmp_path, env=environment)
