"""Imports go one way, and the core is light to import. By parsing, and in a fresh process."""

import ast
import pathlib
import subprocess
import sys

import pytest

import jaxprune

ROOT = pathlib.Path(jaxprune.__file__).parent
# Earlier stages first; those of one line do not know each other.
STAGES = [
    {"types"},
    {"trees", "pooling"},
    {"objective"},
    {"jaxpr"},
    {"coupling"},
    {"saliency", "curvature", "select", "schedule", "structure", "quantize"},
    {"surgeon"},
    {"prune", "checkpoint_contents"},
    {"transforms", "shrunk_checkpoint"},
    {"reporting", "checkpoint", "checkpoint_reading", "nnx_modules"},
    {"__main__"},
]
LEVEL = {stage: i for i, stages in enumerate(STAGES) for stage in stages}
CORE = {stage for stage, level in LEVEL.items() if level < LEVEL["reporting"]}


def modules():
    """(stage, path, its imports) of every module but the package's own front."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts != ("__init__",):
            yield parts[0], path, ast.parse(path.read_text())


def imported(tree):
    """Full names of what a module imports, anywhere in it, and the names it takes from them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((node.module, alias.name) for alias in node.names)


def stages_used(tree):
    for module, name in imported(tree):
        parts = module.split(".")
        if parts[0] == "jaxprune":
            yield parts[1] if len(parts) > 1 else name


def test_every_module_belongs_to_a_stage():
    assert {stage for stage, _, _ in modules()} <= set(LEVEL)


def test_imports_between_stages_go_one_way_and_siblings_do_not_meet():
    wrong = [
        f"{path.relative_to(ROOT)} imports {used}"
        for stage, path, tree in modules()
        for used in stages_used(tree)
        if used != stage and not LEVEL[used] < LEVEL[stage]
    ]
    assert not wrong


def test_the_core_knows_no_framework_no_data_and_no_experiments():
    heavy = {"experiments", "benchmarks", "tests", "tensorflow_datasets", "tensorflow", "rich",
             "matplotlib", "orbax", "flax", "torch"}  # fmt: skip
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for stage, path, tree in modules()
        for module, _ in imported(tree)
        if stage in CORE and module.split(".")[0] in heavy
    ]
    assert not wrong


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, jaxprune; print(*sorted({m.split('.')[0] for m in sys.modules})); "
    code += "assert 'jaxprune.surgeon' not in sys.modules; jaxprune.surgeon.joint_surgeon"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    ).stdout.split()
    heavy = {"experiments", "tensorflow_datasets", "tensorflow", "rich", "matplotlib", "orbax",
             "flax", "torch", "chex", "scipy", "sklearn", "tyro"}  # fmt: skip
    assert "jaxprune" in found
    assert not heavy & set(found)


def test_the_front_has_only_its_own_names():
    with pytest.raises(AttributeError, match="module 'jaxprune' has no attribute 'nothing'"):
        jaxprune.nothing  # noqa: B018


def test_no_module_shares_the_name_of_a_public_function():
    functions = {name for name in jaxprune.__all__ if callable(getattr(jaxprune, name))}
    inner = (jaxprune.saliency, jaxprune.select, jaxprune.curvature, jaxprune.transforms)
    functions |= {name for module in inner for name in module.__all__}
    assert not functions & {path.stem for _, path, _ in modules()}


def test_all_names_exist_and_are_sorted():
    for module in (jaxprune, jaxprune.saliency, jaxprune.select, jaxprune.curvature):
        assert all(hasattr(module, name) for name in module.__all__)
        assert sorted(module.__all__) == list(module.__all__)
