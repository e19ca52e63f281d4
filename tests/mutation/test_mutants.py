"""The tests of a module notice nine in ten small changes of its code.

`JAXPRUNE_MUTANTS` is the number of mutants a module, or `all`.
"""

import ast
import os

import pytest

from tests.mutation.equivalent import EQUIVALENT
from tests.mutation.judging import MODULES, all_mutants, judge, row, size_of, sources
from tests.mutation.mutants import mutants_of, sample

NEEDED = 0.9

SMALL = '''
"""Text."""
__all__ = ["f"]

def f(a: int = 1, *, b: bool = True) -> "x < y":
    """Text 1."""
    check(a)
    if a < 2 and b:
        raise ValueError(f"{a + 1}")
    return jnp.minimum(a, axis=0)
'''


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_nine_in_ten_mutants_are_noticed(module):
    result = judge(module, size_of(os.environ.get("JAXPRUNE_MUTANTS", "25")))
    print(row(result))
    assert result.score >= NEEDED, "\n".join([row(result), *result.survivors])


def test_the_mutants_of_a_small_function():
    assert [m.name.removeprefix("f: ") for m in mutants_of(SMALL)] == [
        "True -> False", "1 -> 2", "1 -> 0", "check(a) -> pass",
        "a < 2 and b -> not (a < 2 and b)", "a < 2 and b -> a < 2 or b", "a < 2 -> a <= 2",
        "2 -> 3", "2 -> 1", "return jnp.minimum(a, axis=0) -> return None",
        "jnp.minimum(a, axis=0) -> jnp.minimum(a)", "jnp.minimum -> jnp.maximum",
        "0 -> 1", "0 -> -1",
    ]  # fmt: skip


def test_every_mutant_is_another_program_with_a_name_of_its_own():
    (text,) = sources("schedule").values()
    whole, mutants = ast.dump(ast.parse(text)), all_mutants("schedule")
    for _, mutant in mutants.values():
        assert ast.dump(ast.parse(mutant.source)) != whole, mutant.name
    assert len(mutants) == len(mutants_of(text))


def test_what_is_called_equivalent_exists():
    known = {name for module in MODULES for name in all_mutants(module)}
    assert EQUIVALENT.keys() <= known


def test_a_larger_sample_contains_a_smaller_one():
    names = [f"mutant {i}" for i in range(100)]
    assert sample(names, 30)[:10] == sample(names, 10)
    assert sorted(sample(names, None)) == sorted(names)
