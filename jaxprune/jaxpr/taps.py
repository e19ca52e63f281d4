"""Taps: every layer's inputs, and a place to read its output deltas, from the jaxpr.

Where a parameter enters a `dot_general`, a `conv_general_dilated` or a `gather` of rows, as it is
or through casts, transposes, reshapes, broadcasts and slices, the other operand is captured and a
zero is added to the output: the gradient in that zero is the layer's delta. A parameter that enters
anything else (a bias, a scale, a custom rule) is tapped itself, all its uses at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.jaxpr import equations
from jaxprune.jaxpr.convolution import convolve
from jaxprune.jaxpr.equations import Equation, Program
from jaxprune.jaxpr.faster import faster
from jaxprune.types import Apply, Params, PyTree

SAME_VALUE = ("convert_element_type", "copy", "copy_p", "reduce_precision")
MOVES = ("transpose", "reshape", "squeeze", "expand_dims", "rev", "slice", "broadcast_in_dim")
_BROADCASTING = ("add", "sub", "mul", "div", "add_any")
Key = tuple[int, ...]


class Step(NamedTuple):
    """A move on the way from a parameter to the operand that it becomes.

    Attributes:
      primitive, params: what is applied.
      shape: of what it is applied to.
      depth: over how many leading axes of stacked slices (`scan` over a parameter) it is mapped.
    """

    primitive: Any
    params: dict[str, Any]
    shape: tuple[int, ...]
    depth: int


class Origin(NamedTuple):
    """The parameter that a variable is, moved.

    Attributes:
      leaf: index of the parameter among the flattened leaves.
      steps: the moves.
      injective: no entry of the parameter occurs twice.
      loops: (length, "constant" | "slices") for each `scan` it was passed into.
    """

    leaf: int
    steps: tuple[Step, ...] = ()
    injective: bool = True
    loops: tuple[tuple[int, str], ...] = ()


class Site(NamedTuple):
    """A place where a parameter enters a layer.

    Attributes:
      key: number of the equation, of an equation inside that one if it is a `scan`, ...
      origin: which parameter, and how it got there.
      primitive: "dot_general", "conv_general_dilated" or "gather".
      params: the primitive's own parameters (dimension numbers and so on).
      side: which operand the parameter is, 0 or 1.
      operand: shape of the parameter as the layer sees it.
      captured: shape of the other operand, one leading axis for each enclosing `scan`.
      output: shape and dtype of the layer's output, likewise.
    """

    key: Key
    origin: Origin
    primitive: str
    params: dict[str, Any]
    side: int
    operand: tuple[int, ...]
    captured: tuple[int, ...]
    output: jax.ShapeDtypeStruct

    @property
    def leaf(self) -> int:
        """Index of the parameter among the flattened leaves."""
        return self.origin.leaf


class Taps(NamedTuple):
    """What is added: to the output of every site, to every parameter tapped itself, to variables.

    Attributes:
      sites: by the key of the site.
      leaves: by the index of the parameter.
      variables: by number, variables of the program's own equations; none by default.
    """

    sites: dict[Key, Any]
    leaves: dict[int, Any]
    variables: dict[int, Any]


class Tapped(NamedTuple):
    """A traced model with its sites.

    Attributes:
      program: the model as equations.
      parameters: how many of its arguments are parameters; the others are inputs.
      sites: where parameters enter layers, in the order of evaluation, all uses of a parameter.
      direct: the parameters that are tapped themselves, because something else reads them too.
      slow: those among them whose uses are more than sums and products with what they broadcast to.
      zeros: taps that change nothing.
      run: `(params leaves, inputs, taps) -> (outputs, captured inputs by key)`. With `twice=True`
        it can be differentiated twice.
      run_all: the same, and the value of every variable.
    """

    program: Program
    parameters: int
    sites: tuple[Site, ...]
    direct: tuple[int, ...]
    slow: tuple[int, ...]
    zeros: Taps
    run: Callable[..., tuple[PyTree, dict[Key, Any]]]
    run_all: Callable[..., tuple[PyTree, dict[Key, Any], list[Any]]]


def tap(apply: Apply, params: Params, inputs: PyTree) -> Tapped:
    """Trace `apply` at these shapes and find its sites; only real floating leaves count.

    Example:
      >>> w = jnp.ones((3, 2))
      >>> tapped = tap(lambda w, x: jnp.tanh(x @ w), w, jnp.ones((5, 3)))
      >>> [(site.leaf, site.primitive, site.output.shape) for site in tapped.sites]
      [(0, 'dot_general', (5, 2))]
    """
    program, shapes = equations.trace(apply, params, inputs)
    leaves = [program.shapes[v] for v in program.arguments[: len(jax.tree.leaves(params))]]
    real = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    origins = [Origin(i) if is_real else None for i, is_real in enumerate(real)]
    origins += [None] * (len(program.arguments) - len(leaves))
    found = _find(program, origins, ())
    direct = found.elsewhere
    sites = tuple(site for site in found.sites if site.leaf not in direct)
    slow = direct & (found.opaque | {site.leaf for site in found.sites})
    zeros = Taps(
        {site.key: jnp.zeros(site.output.shape, site.output.dtype) for site in sites},
        {i: jnp.zeros(leaves[i].shape, leaves[i].dtype) for i in sorted(direct)},
        {},
    )
    structure = jax.tree.structure(shapes)

    def run_all(params: list[Any], inputs: PyTree, taps: Taps, twice: bool = False) -> Any:
        moved = [leaf + taps.leaves[i] if i in direct else leaf for i, leaf in enumerate(params)]
        args = [*moved, *jax.tree.leaves(inputs)]
        values, captures = _run(program, sites, args, taps.sites, taps.variables, twice)
        outs = [equations.read(values, v) for v in program.outputs]
        return jax.tree.unflatten(structure, outs), captures, values

    def run(params: list[Any], inputs: PyTree, taps: Taps, twice: bool = False) -> Any:
        return run_all(params, inputs, taps, twice)[:2]

    ordered = tuple(sorted(direct)), tuple(sorted(slow))
    return Tapped(program, len(leaves), sites, *ordered, zeros, run, run_all)


class _Found(NamedTuple):
    sites: list[Site]
    elsewhere: set[int]  # leaves that something other than a site reads
    opaque: set[int]  # those among them that enter more than sums and products


def _find(program: Program, origins: list[Origin | None], at: Key) -> _Found:
    """The sites of a program whose i-th argument is the parameter `origins[i]`."""
    origin: dict[Any, Origin] = {
        v: o for v, o in zip(program.arguments, origins, strict=True) if o is not None
    }
    found = _Found([], set(), set())
    for index, equation in enumerate(program.equations):
        sources = [origin.get(v) if isinstance(v, int) else None for v in equation.operands]
        if not any(sources):
            continue
        key = (*at, index)
        moved = _moved(program, equation, sources[0])
        site = _site(program, equation, sources, key)
        if moved is not None:
            origin[equation.results[0]] = moved
        elif site is not None:
            found.sites.append(site)
        elif equation.name == "scan":
            _find_in_scan(equation, sources, key, found)
        else:
            leaves = {source.leaf for source in sources if source is not None}
            found.elsewhere.update(leaves)
            if equation.name not in _BROADCASTING:
                found.opaque.update(leaves)
    returned = {origin[v].leaf for v in program.outputs if isinstance(v, int) and v in origin}
    found.elsewhere.update(returned)
    return found


def _find_in_scan(
    equation: Equation, sources: list[Origin | None], key: Key, found: _Found
) -> None:
    """Sites in the body; a parameter that is carried changes, so it is tapped itself."""
    consts, carry = equations.scan_sizes(equation.params)
    length = equation.params["length"]
    inner: list[Origin | None] = []
    for i, source in enumerate(sources):
        if source is None:
            inner.append(None)
        elif consts <= i < consts + carry:
            found.elsewhere.add(source.leaf)
            found.opaque.add(source.leaf)
            inner.append(None)
        else:
            kind = "constant" if i < consts else "slices"
            inner.append(source._replace(loops=(*source.loops, (length, kind))))
    body = equations.flatten(equation.params["jaxpr"])
    within = _find(body, inner, key)
    stack = lambda shape: (length, *shape)
    for site in within.sites:
        out = jax.ShapeDtypeStruct(stack(site.output.shape), site.output.dtype)
        found.sites.append(site._replace(captured=stack(site.captured), output=out))
    # What the body computes from a parameter leaves it as something else.
    found.elsewhere.update(within.elsewhere)
    found.opaque.update(within.opaque)


def _moved(program: Program, equation: Equation, source: Origin | None) -> Origin | None:
    """The origin of the result, where the equation only moves the entries of a parameter."""
    if source is None or len(equation.operands) != 1:
        return None
    (operand,) = equation.operands
    assert isinstance(operand, int)
    before, after = program.shapes[operand], program.shapes[equation.results[0]]
    if equation.name in SAME_VALUE:
        return source if jnp.issubdtype(after.dtype, jnp.floating) else None
    if equation.name not in MOVES:
        return None
    stacked = sum(kind == "slices" for _, kind in source.loops)
    step = Step(equation.primitive, equation.params, before.shape, stacked)
    injective = source.injective and not (
        equation.name == "broadcast_in_dim" and after.size > before.size
    )
    return source._replace(steps=(*source.steps, step), injective=injective)


def _site(
    program: Program, equation: Equation, sources: list[Origin | None], key: Key
) -> Site | None:
    """The site that an equation is: a layer that ONE parameter enters."""
    layers = {
        "dot_general": (0, 1),
        "conv_general_dilated": (1,),
        "gather": (0,) if _takes_rows(equation) else (),
    }
    for side in layers.get(equation.name, ()):
        source, other = sources[side], sources[1 - side]
        if source is None or other is not None:
            continue
        operands = [equations.shape(program, v) for v in equation.operands]
        out = program.shapes[equation.results[0]]
        if not jnp.issubdtype(out.dtype, jnp.floating):
            return None
        if equation.params.get("batch_group_count", 1) != 1:
            return None
        result = jax.ShapeDtypeStruct(out.shape, out.dtype)
        name = equation.name
        here, there = operands[side], operands[1 - side]
        return Site(key, source, name, equation.params, side, here, there, result)
    return None


def _takes_rows(equation: Equation) -> bool:
    """True for a gather that looks up whole rows, entries of the first axis."""
    if equation.name != "gather":
        return False
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    rows = numbers.start_index_map == numbers.collapsed_slice_dims == (0,)
    return rows and not numbers.operand_batching_dims and sizes[0] == 1


def _run(
    program: Program,
    sites: tuple[Site, ...],
    args: list[Any],
    taps: dict[Key, Any],
    variables: dict[int, Any],
    twice: bool,
) -> tuple[list[Any], dict[Key, Any]]:
    """Evaluate with taps added; the keys of `sites` are relative to this program."""
    here = {site.key[0]: site for site in sites if len(site.key) == 1}
    deeper = {site.key[0] for site in sites if len(site.key) > 1}
    captures: dict[Key, Any] = {}

    def hook(index: int, equation: Equation, operands: list[Any]) -> list[Any] | None:
        if any(v in variables for v in equation.results):
            outs = results(index, equation, operands) or equations.apply(equation, operands)
            added = zip(equation.results, outs, strict=True)
            return [out + variables[v] if v in variables else out for v, out in added]
        return results(index, equation, operands)

    def results(index: int, equation: Equation, operands: list[Any]) -> list[Any] | None:
        if index in here:
            site = here[index]
            captures[index,] = operands[1 - site.side]
            if site.primitive == "conv_general_dilated" and not (twice or site.origin.loops):
                out = convolve(equation, *operands)
            else:
                (out,) = equations.apply(equation, operands)
            return [out + taps[index,].astype(out.dtype)]
        if index not in deeper:
            return faster(equation, operands)
        inside = lambda keyed: {key[1:]: v for key, v in keyed.items() if key[0] == index}
        inner = tuple(s._replace(key=s.key[1:]) for s in sites if s.key[0] == index)
        outs, stacked = _run_scan(equation, inner, operands, inside(taps), twice)
        captures.update({(index, *key): value for key, value in stacked.items()})
        return outs

    return equations.evaluate(program, args, hook), captures


def _run_scan(
    equation: Equation,
    sites: tuple[Site, ...],
    operands: list[Any],
    taps: dict[Key, Any],
    twice: bool,
) -> tuple[list[Any], dict[Key, Any]]:
    consts, carry = equations.scan_sizes(equation.params)
    body = equations.flatten(equation.params["jaxpr"])
    fixed, start, slices = operands[:consts], operands[consts:][:carry], operands[consts + carry :]

    def step(carried: list[Any], rest: Any) -> Any:
        xs, taps_now = rest
        values, captures = _run(body, sites, [*fixed, *carried, *xs], taps_now, {}, twice)
        outs = [equations.read(values, v) for v in body.outputs]
        return outs[:carry], (outs[carry:], captures)

    last, (stacked, captures) = jax.lax.scan(
        step,
        start,
        (slices, taps),
        length=equation.params["length"],
        reverse=equation.params["reverse"],
        unroll=equation.params["unroll"],
    )
    return [*last, *stacked], captures
