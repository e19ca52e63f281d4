"""What a Hessian has beyond Gauss-Newton: the curvature of the model's own functions.

For one example, `H = J' H_out J + sum_u g_u f''_u (dz_u/dw)(dz_u/dw)'` over the entrywise
functions f of the model, g_u the slope of the loss in f's result. A diagonal `g f''` at z is
carried down towards the layers' outputs. It stays a diagonal through entrywise functions and moves;
through ONE matrix product it can still be read off: `diag(A' D A) = (A o A)' d`. Beyond that it
is not known from its diagonal, and a leaf below is left to `units.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.jaxpr import equations, primitives
from jaxprune.jaxpr.chains import Chains, chains, cluster, entrywise, outside, variables
from jaxprune.jaxpr.equations import Equation
from jaxprune.jaxpr.linear import rule_bends
from jaxprune.jaxpr.pullback import Pullback, Watch
from jaxprune.jaxpr.taps import Tapped


class Bend(NamedTuple):
    """Residual curvature at a variable, one example at a time.

    Attributes:
      diagonal: [n, ...], or None where it could not be carried.
      whole: the Hessian there has nothing off its diagonal.
    """

    diagonal: jax.Array | None
    whole: bool


_LOST = Bend(None, False)
_PRODUCTS = frozenset({"dot_general", "conv_general_dilated"})


def watched(tapped: Tapped) -> Watch:
    """All values, and the slopes at the ends of clusters of entrywise functions."""
    found = chains(tapped)
    results = {v for equation in tapped.program.equations for v in equation.results}
    read = frozenset(results.union(tapped.program.arguments))
    return Watch(read, found.ends | found.quotients)


def residual_bends(found: Pullback, slopes: dict[int, jax.Array]) -> dict[int, Bend]:
    """Residual curvature at every active variable that has any.

    Args:
      found: a pull-back with the values and slopes of `watched`.
      slopes: the gradient of each example's loss at the ends of clusters, [n, ...].

    Returns:
      variable -> Bend; a variable that is not in it has none.
    """
    carry = _Carry(found, slopes)
    program, chain = found.tapped.program, carry.chain
    defined = {v: equation for equation in program.equations for v in equation.results}
    last = max((*program.arguments, *defined), default=-1)
    for variable in range(last, -1, -1):  # every reader has a higher number than what it reads
        if variable in chain.ends:
            carry.through_cluster(variable)
        equation = defined.get(variable)
        if equation is None or equation.results[-1] != variable:
            continue
        if len(equation.results) == 1 and chain.root.get(variable, variable) != variable:
            continue  # inside a cluster
        carry.through(equation)
    for index, argument in enumerate(program.arguments):
        if carry.met >> index & 1:
            carry.send(argument, _LOST)
    return {v: b for v in chain.active if (b := carry.bend(v)) is not None}


class _Carry:
    """Bends on their way down, collected at the variables they reach.

    Attributes:
      met: the arguments, as bits, two functions of which meet in a product or in what is bent: what
        arrives at such an argument by each way is not all.
    """

    def __init__(self, found: Pullback, slopes: dict[int, jax.Array]):
        self.found, self.slopes = found, slopes
        self.program = found.tapped.program
        self.chain: Chains = chains(found.tapped)
        self.reads = _reads(self.program, self.chain)
        self.met = 0
        self.arrived: dict[int, list[Bend]] = {}

    def bend(self, variable: int) -> Bend | None:
        """All that arrived at a variable, together."""
        parts = self.arrived.get(variable, [])
        if len(parts) < 2:
            return parts[0] if parts else None
        if not all(part.whole for part in parts):
            return _LOST  # two readers of one variable may meet again
        return Bend(sum(part.diagonal for part in parts), True)  # type: ignore[misc,arg-type]

    def send(self, variable: int, bend: Bend) -> None:
        self.arrived.setdefault(variable, []).append(bend)

    def lose(self, equation: Equation) -> None:
        for variable in variables(equation):
            if variable in self.chain.active:
                self.send(variable, _LOST)

    def value(self, operand: Any) -> tuple[Any, int | None]:
        """An operand's value, and the axis of examples if it has one."""
        if isinstance(operand, int):
            return self.found.values[operand], 0
        return operand.value, None

    def through_cluster(self, end: int) -> None:
        """`f'^2 d + g f''` from the end of a cluster to its root."""
        group = cluster(self.program, self.chain, end)
        if any(end in variables(equation) for equation in group) or self._read_inside(end):
            return self.send(self.chain.root[end], _LOST)
        root, others = self.chain.root[end], outside(self.program, self.chain, group)
        given = {v: self.found.values[v] for v in others}

        def entry(x: jax.Array, given: dict[int, Any]) -> jax.Array:
            values = {**given, root: x}
            for equation in group:
                operands = [values[v] if isinstance(v, int) else v.value for v in equation.operands]
                (values[equation.results[0]],) = equations.apply(equation, operands)
            return values[end]

        function = jax.vmap(entry)
        x = self.found.values[root]
        if any(map(self._is_complex, (root, end))):
            return self.send(root, _LOST)
        ones = jnp.ones_like(x)
        slope = lambda x: jax.jvp(lambda x: function(x, given), (x,), (ones,))[1]
        above = self.bend(end)
        smooth = any(self._is_smooth(equation) for equation in group)
        if not smooth and above is None:
            return None
        if above is not None and above.diagonal is None:
            return self.send(root, _LOST)
        first, second = jax.jvp(slope, (x,), (ones,)) if smooth else (slope(x), None)
        total = jnp.zeros_like(x) if second is None else self.slopes[end].astype(x.dtype) * second
        if above is not None:
            total = total + first * first * above.diagonal
        return self.send(root, Bend(total, above is None or above.whole))

    def _read_inside(self, end: int) -> bool:
        """True if another entrywise equation of the same cluster reads this end as well."""
        return any(
            end in variables(equation)
            and len(equation.results) == 1
            and self.chain.root.get(equation.results[0]) == self.chain.root[end]
            for equation in self.program.equations
        )

    def through(self, equation: Equation) -> None:
        """From an equation's result to its active operands."""
        own = [v for v in variables(equation) if v in self.chain.active]
        if not own:
            return None
        bends = [self.bend(v) for v in equation.results]
        name = equation.name
        twice = [v for v in own if equation.operands.count(v) > 1]
        if any(map(self._is_complex, own)) or (twice and not entrywise(equation)):
            return self.lose(equation)
        if name in primitives.BILINEAR | _PRODUCTS or any(bend is not None for bend in bends):
            self._meet(equation)
        if entrywise(equation):
            return self._through_entries(equation, own, bends[0])
        linear = len(own) == 1 or name in ("concatenate", "dynamic_update_slice", "stack")
        site = name in _PRODUCTS and self._one_is_parameter(own)
        if len(bends) > 1 or not (linear or site):
            return self.lose(equation)
        known = primitives.MOVES | primitives.SUMS | _PRODUCTS
        known |= {"reduce_max", "reduce_min", "reduce_window_max"}
        if name not in known:
            return self.lose(equation)
        (bend,) = bends
        if bend is None:
            return None
        if bend.diagonal is None:
            return self.lose(equation)
        if name in _PRODUCTS:
            return self._through_product(equation, own, bend)
        moves = name in primitives.MOVES and name != "gather"
        if not bend.whole and not (moves and name != "broadcast_in_dim"):
            return self.lose(equation)
        for variable in own:
            pulled = self._pulled(equation, variable, bend.diagonal, lambda x: x)
            self.send(variable, Bend(pulled, bend.whole and name not in primitives.SUMS))
        return None

    def _meet(self, equation: Equation) -> None:
        """Note the arguments that several operands depend on."""
        seen = 0
        for operand in equation.operands:
            if isinstance(operand, int):
                self.met |= seen & self.reads.get(operand, 0)
                seen |= self.reads.get(operand, 0)

    def _is_complex(self, variable: int) -> bool:
        return jnp.issubdtype(self.program.shapes[variable].dtype, jnp.complexfloating)

    def _one_is_parameter(self, own: list[int]) -> bool:
        return len(own) == 2 and sum(v in self.chain.data for v in own) == 1

    def _through_product(self, equation: Equation, own: list[int], bend: Bend) -> None:
        """To the data that meets a weight; the weight itself is read at the product's output."""
        for variable in own:
            if not bend.whole or variable not in self.chain.data:
                self.send(variable, _LOST)
            else:
                assert bend.diagonal is not None
                pulled = self._pulled(equation, variable, bend.diagonal, jnp.square)
                self.send(variable, Bend(pulled, False))

    def _through_entries(self, equation: Equation, own: list[int], bend: Bend | None) -> None:
        """Sums and products in which several active operands meet, entry by entry."""
        if equation.name in primitives.FLAT:
            return None
        if equation.name not in primitives.PIECEWISE_LINEAR | primitives.BILINEAR:
            return self.lose(equation)
        several = sum(v in self.chain.data for v in own) > 1
        curved = equation.name in primitives.BILINEAR and several
        if curved or (bend is not None and (several or bend.diagonal is None)):
            return self.lose(equation)
        for variable in own:
            below = equation.name == "div" and equation.operands[1] == variable
            if bend is None and not below:
                continue
            once = sum(v == variable for v in equation.operands) == 1
            same = self.program.shapes[variable].shape
            spread = same != self.program.shapes[equation.results[0]].shape
            whole = bend is None or bend.whole
            if not once or (spread and not whole):
                self.send(variable, _LOST)
                continue
            first, second = self._derivatives(equation, variable)
            total = self.slopes[equation.results[0]] * second if below else jnp.zeros_like(first)
            if bend is not None:
                total = total + first * first * bend.diagonal  # type: ignore[operator]
            if len(same) < total.ndim - 1:  # a scalar, which every entry reads
                total = jnp.sum(total, axis=tuple(range(1, total.ndim)))
            gone = tuple(1 + a for a, size in enumerate(same) if total.shape[1 + a] != size)
            total = jnp.sum(total, axis=gone, keepdims=True)
            self.send(variable, Bend(total, whole))
        return None

    def _derivatives(self, equation: Equation, variable: int) -> tuple[jax.Array, jax.Array]:
        """First and second derivative of each entry of the result in the operand's entry."""
        place = equation.operands.index(variable)
        pairs = [self.value(v) for v in equation.operands]

        def both(*operands: Any) -> tuple[jax.Array, jax.Array]:
            run = lambda x: equations.apply(
                equation, [*operands[:place], x, *operands[place + 1 :]]
            )[0]
            x = operands[place]
            ones = jnp.ones_like(x)
            return jax.jvp(lambda x: jax.jvp(run, (x,), (ones,))[1], (x,), (ones,))

        return jax.vmap(both, in_axes=[axis for _, axis in pairs])(*[v for v, _ in pairs])

    def _pulled(self, equation: Equation, variable: int, diagonal: jax.Array, power: Any) -> Any:
        """The transpose of a linear equation, its other operand raised to a power."""
        place = equation.operands.index(variable)
        pairs = [self.value(v) for v in equation.operands]
        parameter = [isinstance(v, int) and v not in self.chain.data for v in equation.operands]
        # A parameter that is not tapped itself is one for all examples.
        pairs = [
            (value[0], None) if alone and i != place and self._is_shared(operand) else (value, axis)
            for i, ((value, axis), alone, operand) in enumerate(
                zip(pairs, parameter, equation.operands, strict=True)
            )
        ]

        def one(diagonal: jax.Array, *operands: Any) -> jax.Array:
            others = [power(v) if jnp.issubdtype(jnp.result_type(v), jnp.floating) else v
                      for v in operands]  # fmt: skip
            run = lambda x: equations.apply(equation, [*others[:place], x, *others[place + 1 :]])[0]
            _, back = jax.vjp(run, operands[place])
            return back(diagonal.astype(jax.eval_shape(run, operands[place]).dtype))[0]

        axes = [0, *(axis for _, axis in pairs)]
        return jax.vmap(one, in_axes=axes)(diagonal, *[v for v, _ in pairs])

    def _is_shared(self, operand: Any) -> bool:
        """True for a variable that neither data nor a tapped parameter reaches."""
        direct = {self.program.arguments[i] for i in self.found.tapped.direct}
        reached = set(direct)
        for equation in self.program.equations:
            if any(v in reached for v in variables(equation)):
                reached.update(equation.results)
        return operand not in reached

    def _is_smooth(self, equation: Equation) -> bool:
        """True if an entrywise equation may have a second derivative."""
        if equation.name != "custom_jvp_call":
            return equation.name in primitives.SMOOTH | primitives.BILINEAR
        shapes = [self.program.shapes[v] if isinstance(v, int) else jax.typeof(v.value)
                  for v in equation.operands]  # fmt: skip
        return rule_bends(equation, shapes)


def _reads(program: equations.Program, chain: Chains) -> dict[int, int]:
    """The active arguments that each active variable depends on, as bits."""
    found = {v: 1 << i for i, v in enumerate(program.arguments) if v in chain.active}
    for equation in program.equations:
        bits = 0
        for variable in variables(equation):
            bits |= found.get(variable, 0)
        found.update(dict.fromkeys((v for v in equation.results if v in chain.active), bits))
    return found
