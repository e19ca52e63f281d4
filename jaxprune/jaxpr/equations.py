"""A traced function as one flat list of equations: the wrappers of a jaxpr are looked through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Primitives that only wrap a jaxpr. Not custom_jvp and custom_vjp: evaluated inside, they would
# lose the derivative their author gave.
_WRAPPERS = {
    "pjit": "jaxpr",
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}

_LIBRARIES = ("/jax/", "/jax/_src/", "/flax/", "/jaxprune/jaxpr/", "/jaxprune/coupling/")


class Constant(NamedTuple):
    """An operand whose value is known when the function is traced."""

    value: Any


class Equation(NamedTuple):
    """One primitive applied.

    Attributes:
      primitive: the JAX primitive.
      params: its parameters.
      operands: variables, as numbers, or constants.
      results: the variables it defines.
      source: where it was written, and where the calls around it were, for `line_of`.
    """

    primitive: Any
    params: dict[str, Any]
    operands: tuple[int | Constant, ...]
    results: tuple[int, ...]
    source: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.primitive.name


class Program(NamedTuple):
    """A function in single-assignment form.

    Attributes:
      equations: in the order of evaluation.
      arguments: the variables that the flattened arguments are.
      outputs: variables or constants.
      shapes: shape and dtype of every variable, by its number.
    """

    equations: tuple[Equation, ...]
    arguments: tuple[int, ...]
    outputs: tuple[int | Constant, ...]
    shapes: tuple[Any, ...]


def trace(function: Callable[..., Any], *args: Any) -> tuple[Program, Any]:
    """The program of `function(*args)`, and the pytree of its outputs' shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> program, _ = trace(jax.jit(lambda x: jnp.sin(x) + 1), 0.5)
      >>> [equation.name for equation in program.equations]
      ['sin', 'add']
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    return flatten(closed), shapes


def flatten(closed: Any, calls: tuple[Any, ...] = ()) -> Program:
    """The program of a closed jaxpr; `calls` are the sources of the equation that holds it."""
    shapes: list[Any] = []
    equations: list[Equation] = []

    def new(variable: Any) -> int:
        shapes.append(variable.aval)
        return len(shapes) - 1

    def inline(
        jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], calls: tuple[Any, ...] = ()
    ) -> list[Any]:
        known: dict[Any, Any] = {
            v: Constant(c) for v, c in zip(jaxpr.constvars, consts, strict=True)
        }
        known.update(zip(jaxpr.invars, args, strict=True))
        read = lambda v: Constant(v.val) if is_literal(v) else known[v]
        for eqn in jaxpr.eqns:
            operands = [read(v) for v in eqn.invars]
            source = (eqn.source_info, *calls)
            inner = eqn.params.get(_WRAPPERS.get(eqn.primitive.name, ""))
            if inner is not None:
                body = getattr(inner, "jaxpr", inner)
                results = inline(body, getattr(inner, "consts", []), operands, source)
            else:
                results = [new(v) for v in eqn.outvars]
                equations.append(
                    Equation(
                        eqn.primitive,
                        eqn.params,
                        tuple(operands),
                        tuple(results),
                        source,
                    )
                )
            known.update(zip(eqn.outvars, results, strict=True))
        return [read(v) for v in jaxpr.outvars]

    arguments = [new(v) for v in closed.jaxpr.invars]
    outputs = inline(closed.jaxpr, closed.consts, arguments, calls)
    return Program(tuple(equations), tuple(arguments), tuple(outputs), tuple(shapes))


def apply(equation: Equation, operands: Sequence[Any]) -> list[Any]:
    """The results of one equation."""
    found = equation.primitive.bind(
        *operands, **equation.primitive.get_bind_params(equation.params)
    )
    return list(found) if equation.primitive.multiple_results else [found]


Hook = Callable[[int, Equation, list[Any]], list[Any] | None]


def evaluate(program: Program, args: Sequence[Any], hook: Hook | None = None) -> list[Any]:
    """The value of every variable of a program.

    Args:
      program: what to evaluate.
      args: its flattened arguments.
      hook: `(index, equation, operands) -> results`, or None to let the primitive decide.
    """
    values: list[Any] = [None] * len(program.shapes)
    for variable, value in zip(program.arguments, args, strict=True):
        values[variable] = value
    for index, equation in enumerate(program.equations):
        operands = [read(values, operand) for operand in equation.operands]
        results = hook(index, equation, operands) if hook else None
        if results is None:
            results = apply(equation, operands)
        for variable, value in zip(equation.results, results, strict=True):
            values[variable] = value
    return values


def read(values: Sequence[Any], operand: int | Constant) -> Any:
    """The value of an operand."""
    return operand.value if isinstance(operand, Constant) else values[operand]


def scan_sizes(params: dict[str, Any]) -> tuple[int, int]:
    """How many constants and how many carried values a `scan` has."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # newer JAX
    return len(consts), len(carry)


def is_literal(atom: Any) -> bool:
    """A number in a jaxpr, not a variable. `jax.extend.core` has the type, and imports Pallas."""
    return hasattr(atom, "val")


def inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among the parameters of a primitive."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if hasattr(part, "eqns"):
                yield part


def shape(program: Program, operand: int | Constant) -> tuple[int, ...]:
    """The shape of an operand."""
    if isinstance(operand, Constant):
        return jnp.shape(operand.value)
    return program.shapes[operand].shape


def line_of(equation: Equation) -> str:
    """Where in the user's code an equation was written, `file.py:12 (function)`, or `?`."""
    frames = [
        frame
        for source in equation.source
        for frame in (source.traceback.frames if source.traceback else ())
    ]
    ours = [f for f in frames if not any(part in f.file_name for part in _LIBRARIES)]
    for frame in (ours or frames)[:1]:
        return f"{Path(frame.file_name).name}:{frame.line_num} ({frame.function_name})"
    return "?"


def contains(function: Callable[..., Any], primitive: str, *args: Any) -> bool:
    """True if a primitive of that name is anywhere in `function(*args)`."""

    def inside(jaxpr: Any) -> bool:
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        return any(
            eqn.primitive.name == primitive or any(map(inside, inner_jaxprs(eqn.params)))
            for eqn in jaxpr.eqns
        )

    return inside(jax.make_jaxpr(function)(*args))
