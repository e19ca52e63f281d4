"""What an equation does to a diagonal Hessian of its result, read off a program."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from jaxprune.jaxpr import equations, primitives
from jaxprune.jaxpr.equations import Equation, Program
from jaxprune.jaxpr.taps import MOVES, Tapped


class Chains(NamedTuple):
    """The variables of a program by how they depend on parameters and data.

    Attributes:
      active: variables that depend on a real floating parameter.
      data: variables that depend on the inputs.
      root: of an active variable: the variable it is an entrywise function of (itself, if none).
      ends: variables that are not their own root and that something else than an entrywise
        function of that root reads: where a cluster of entrywise equations ends.
      quotients: results of divisions by something active, of several active operands.
    """

    active: frozenset[int]
    data: frozenset[int]
    root: dict[int, int]
    ends: frozenset[int]
    quotients: frozenset[int]


def variables(equation: Equation) -> list[int]:
    """The operands that are variables, each once."""
    return list(dict.fromkeys(v for v in equation.operands if isinstance(v, int)))


def chains(tapped: Tapped) -> Chains:
    """Follow parameters and data through a program."""
    program = tapped.program
    leaves = {site.leaf for site in tapped.sites} | set(tapped.direct)
    params = {v for i, v in enumerate(program.arguments) if i in leaves}
    active = _reached(program, params)
    data = _reached(program, set(program.arguments[tapped.parameters :]))
    root: dict[int, int] = {v: v for v in active}
    inner: set[int] = set()  # equations inside a cluster
    for index, equation in enumerate(program.equations):
        own = [v for v in variables(equation) if v in active]
        if not own or not entrywise(equation):
            continue
        roots = {root[v] for v in own}
        (result,) = equation.results
        shapes = {program.shapes[v].shape for v in (*own, *roots, result)}
        if len(roots) == 1 and len(shapes) == 1:
            root[result] = roots.pop()
            inner.add(index)
    read: set[int] = {v for v in program.outputs if isinstance(v, int)}
    for index, equation in enumerate(program.equations):
        if index not in inner:
            read.update(variables(equation))
    ends = frozenset(v for v in read if root.get(v, v) != v)
    quotients = frozenset(
        equation.results[0]
        for index, equation in enumerate(program.equations)
        if equation.name == "div" and index not in inner and equation.operands[1] in active
    )
    return Chains(frozenset(active), frozenset(data), root, ends, quotients)


def _reached(program: Program, start: set[int]) -> set[int]:
    reached = set(start)
    for equation in program.equations:
        if any(v in reached for v in equation.operands if isinstance(v, int)):
            reached.update(equation.results)
    return reached


def entrywise(equation: Equation) -> bool:
    """True for one result whose entries depend on the operands' entries at the same place."""
    if equation.name in primitives.ELEMENTWISE:
        return True
    if equation.name != "custom_jvp_call":
        return False
    inner = equations.flatten(equation.params["call_jaxpr"])
    reached = _reached(inner, set(inner.arguments))
    return len(inner.outputs) == 1 and all(
        entrywise(e) for e in inner.equations if any(v in reached for v in variables(e))
    )


def cluster(program: Program, found: Chains, end: int) -> list[Equation]:
    """The entrywise equations between a variable's root and the variable, in order."""
    wanted, chosen = {end}, []
    for equation in reversed(program.equations):
        (result, *more) = equation.results
        if more or result not in wanted or found.root.get(result, result) == result:
            continue
        chosen.append(equation)
        wanted.update(v for v in variables(equation) if v in found.active)
    return chosen[::-1]


def outside(program: Program, found: Chains, group: Iterable[Equation]) -> list[int]:
    """Variables that a cluster reads besides its root and its own results."""
    reads = {v for equation in group for v in variables(equation) if v not in found.active}
    return sorted(reads)


def single_reads(tapped: Tapped) -> frozenset[int]:
    """Parameters that one operand of one equation reads, moves of their entries apart."""
    program = tapped.program
    once = set()
    for leaf in tapped.direct:
        reads, views = 0, {program.arguments[leaf]}
        for equation in program.equations:
            count = sum(v in views for v in equation.operands if isinstance(v, int))
            if count == 1 and len(equation.operands) == 1 and equation.name in MOVES:
                views.update(equation.results)
            else:
                reads += count
        if reads == 1 and not views & set(program.outputs):
            once.add(leaf)
    return frozenset(once)
