"""Taps: every layer's inputs, and a place to read its output deltas, from the jaxpr.

The model is traced once and evaluated equation by equation. Where a parameter enters a
`dot_general` or a `conv_general_dilated` (as it is, or through casts), the other operand is
captured and a zero is added to the output: the gradient in that zero is the layer's delta.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxprune.types import Apply, Params, PyTree

# Primitives that only wrap a jaxpr: evaluated inside, so that layers within them are seen. Not
# custom_jvp and custom_vjp: evaluated inside, they would lose the derivative their author gave.
_WRAPPERS = {
    "pjit": "jaxpr",
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}
_SAME_VALUE = ("convert_element_type", "copy", "copy_p")


class Site(NamedTuple):
    """A place where a parameter enters a layer.

    Attributes:
      leaf: index of the parameter among the flattened leaves.
      primitive: "dot_general" or "conv_general_dilated".
      params: the primitive's own parameters (dimension numbers and so on).
      side: which operand the parameter is, 0 or 1.
      output: shape and dtype of the layer's output.
    """

    leaf: int
    primitive: str
    params: dict[str, Any]
    side: int
    output: jax.ShapeDtypeStruct


class Tapped(NamedTuple):
    """A traced model with its sites.

    Attributes:
      sites: the places where parameters enter layers, in the order of evaluation.
      elsewhere: the leaves that also, or only, enter something other than a site.
      run: `(params, inputs, taps) -> (outputs, captured inputs)`, one tap and one capture a site.
    """

    sites: list[Site]
    elsewhere: frozenset[int]
    run: Callable[[Params, PyTree, list[jax.Array]], tuple[PyTree, list[jax.Array]]]


def tap(apply: Apply, params: Params, inputs: PyTree) -> Tapped:
    """Trace `apply` at these shapes and find its sites.

    Example:
      >>> w = jnp.ones((3, 2))
      >>> tapped = tap(lambda w, x: jnp.tanh(x @ w), w, jnp.ones((5, 3)))
      >>> [(site.leaf, site.primitive, site.output.shape) for site in tapped.sites]
      [(0, 'dot_general', (5, 2))]
    """
    flat, _ = jax.tree.flatten(params)
    closed, shapes = jax.make_jaxpr(apply, return_shape=True)(params, inputs)
    structure = jax.tree.structure(shapes)
    sites: list[Site] = []
    elsewhere: set[int] = set()
    origins: list[int | None] = list(range(len(flat)))

    def visit(site: Site, captured: Any, out: Any) -> Any:
        sites.append(site)
        return out

    def find(args: list[Any]) -> list[Any]:
        return _evaluate(closed.jaxpr, closed.consts, args, origins, visit, elsewhere)[0]

    jax.eval_shape(find, [*flat, *jax.tree.leaves(inputs)])

    def run(params: Params, inputs: PyTree, taps: list[jax.Array]) -> tuple[PyTree, list]:
        captures: list[jax.Array] = []

        def add(site: Site, captured: Any, out: Any) -> Any:
            captures.append(captured)
            return out + taps[len(captures) - 1].astype(out.dtype)

        args = [*jax.tree.leaves(params), *jax.tree.leaves(inputs)]
        outs, _ = _evaluate(closed.jaxpr, closed.consts, args, origins, add, set())
        return jax.tree.unflatten(structure, outs), captures

    return Tapped(sites, frozenset(elsewhere), run)


def _evaluate(
    jaxpr: Any,
    consts: list[Any],
    args: list[Any],
    origins: list[int | None],
    visit: Callable[[Site, Any, Any], Any],
    elsewhere: set[int],
) -> tuple[list[Any], list[int | None]]:
    """Evaluate a jaxpr; `origins[i]` is the parameter leaf that argument i is, or None.

    Leaves that something other than a site consumes are added to `elsewhere`.
    """
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    padded = origins + [None] * (len(jaxpr.invars) - len(origins))
    origin: dict[Any, int | None] = dict(zip(jaxpr.invars, padded, strict=True))
    read = lambda v: v.val if isinstance(v, core.Literal) else values[v]
    source = lambda v: None if isinstance(v, core.Literal) else origin.get(v)

    for eqn in jaxpr.eqns:
        operands = [read(v) for v in eqn.invars]
        sources = [source(v) for v in eqn.invars]
        name = eqn.primitive.name
        new: list[int | None] = [None] * len(eqn.outvars)
        if name in _WRAPPERS and _WRAPPERS[name] in eqn.params:
            inner = eqn.params[_WRAPPERS[name]]
            closed_consts = getattr(inner, "consts", [])
            inner = getattr(inner, "jaxpr", inner)
            outs, new = _evaluate(inner, closed_consts, operands, sources, visit, elsewhere)
        else:
            result = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
            outs = list(result) if eqn.primitive.multiple_results else [result]
            site = _site(name, eqn.params, sources, outs[0])
            if site is not None:
                outs = [visit(site, operands[1 - site.side], outs[0])]
            elif name in _SAME_VALUE:
                new = [sources[0]]
            else:
                elsewhere.update(s for s in sources if s is not None)
        values.update(zip(eqn.outvars, outs, strict=True))
        origin.update(zip(eqn.outvars, new, strict=True))
    return [read(v) for v in jaxpr.outvars], [source(v) for v in jaxpr.outvars]


def _site(name: str, params: dict[str, Any], sources: list[int | None], out: Any) -> Site | None:
    """The site that an equation is: a layer that ONE parameter enters."""
    layer = name in ("dot_general", "conv_general_dilated")
    if not (layer and jnp.issubdtype(out.dtype, jnp.floating)):
        return None
    for side in (0, 1):
        leaf, other = sources[side], sources[1 - side]
        if leaf is not None and other is None:
            return Site(leaf, name, params, side, jax.ShapeDtypeStruct(jnp.shape(out), out.dtype))
    return None
