"""What tests of the command line run it with, and the two ways they save."""

import json
import os
from pathlib import Path

import orbax.checkpoint as ocp
import pytest

import jaxprune as jp
from jaxprune.__main__ import main

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def told(capsys, *arguments):
    main(["report", *map(str, arguments)])
    found = capsys.readouterr()
    assert not found.err
    return found.out


def in_json(capsys, *arguments):
    return json.loads(told(capsys, *arguments, "--json"))


def refused(capsys, *arguments):
    """The one line of an error."""
    with pytest.raises(SystemExit) as stopped:
        main(["report", *map(str, arguments)])
    assert not capsys.readouterr().out
    assert isinstance(stopped.value.code, str), "an exit status of 1, with the text on stderr"
    assert "\n" not in stopped.value.code
    return stopped.value.code


def with_orbax(directory, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory, tree)


def with_jaxprune(directory, tree):
    jp.checkpoint.save(directory, tree, step=3)
