"""What a user can mend is told in one line, and the exit code is not 0."""

import runpy

import pytest
import tyro

from experiments.problems import PROBLEMS
from tests.transforms.fresh import ROOT

SCRIPTS = (
    "combinatorial_brain_surgeon", "compare_saliencies", "dense_networks", "minified_models",
    "nip_it_in_the_bud", "pretrained_models", "to_prune_or_not",
)  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_problems_end_every_experiment_with_one_line(script, monkeypatch):
    for kind in PROBLEMS:

        def fail(*args, kind=kind, **options):
            raise kind("what was wrong")

        monkeypatch.setattr(tyro, "cli", fail)
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(ROOT / "experiments" / f"{script}.py"), run_name="__main__")
        assert caught.value.code == "error: what was wrong"


def test_mistakes_of_ours_keep_their_traceback(monkeypatch):
    def fail(*args, **options):
        raise TypeError("ours")

    monkeypatch.setattr(tyro, "cli", fail)
    with pytest.raises(TypeError, match="ours"):
        runpy.run_path(str(ROOT / "experiments" / "compare_saliencies.py"), run_name="__main__")
