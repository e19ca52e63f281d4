"""What an entrywise primitive makes of constants: NaN stands for "not a known constant"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Known = np.ndarray | float


def _special(name: str) -> Callable[..., Any]:
    """A function of scipy.special, a dependency of JAX that is a third of its own import time."""

    def function(x: Known) -> Any:
        from scipy import special

        return getattr(special, name)(x)

    return function


_UNARY: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "cbrt": np.cbrt,
    "ceil": np.ceil,
    "cos": np.cos,
    "cosh": np.cosh,
    "digamma": _special("digamma"),
    "erf": _special("erf"),
    "erf_inv": _special("erfinv"),
    "erfc": _special("erfc"),
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "floor": np.floor,
    "is_finite": np.isfinite,
    "lgamma": _special("gammaln"),
    "log": np.log,
    "log1p": np.log1p,
    "logistic": _special("expit"),
    "neg": np.negative,
    "not": np.logical_not,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "tan": np.tan,
    "tanh": np.tanh,
    "acos": np.arccos,
    "acosh": np.arccosh,
    "asin": np.arcsin,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "atanh": np.arctanh,
}
_SAME = frozenset({
    "copy", "copy_p", "optimization_barrier", "pcast", "pvary", "real", "reduce_precision",
    "stop_gradient", "sharding_constraint", "name",
})  # fmt: skip
_BINARY: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "add_any": np.add,
    "atan2": np.arctan2,
    "div": np.divide,
    "eq": np.equal,
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "nextafter": np.nextafter,
    "pow": np.power,
    "rem": np.fmod,
    "sub": np.subtract,
}


def emitted(name: str, params: dict[str, Any], operands: Sequence[Known]) -> Known:
    """The constant that a primitive gives for constant operands, entry by entry.

    Zero times anything is zero, and so is zero divided by anything: what is not known is taken to
    be finite, and not zero.

    Args:
      name, params: the primitive.
      operands: float64 arrays of one shape, or numbers; NaN where the operand is not constant.

    Returns:
      NaN where the result is not a known constant.
    """
    with np.errstate(all="ignore"):
        if name in _SAME:
            return operands[0]
        if name in _UNARY:
            return _where_known(_UNARY[name](operands[0]), operands)
        if name == "convert_element_type":
            return _converted(operands[0], params["new_dtype"])
        if name == "round":
            return _rounded(operands[0], params["rounding_method"])
        if name == "integer_pow":
            return _where_known(np.power(operands[0], float(params["y"])), operands)
        if name == "clamp":
            low, x, high = operands
            return _where_known(np.minimum(np.maximum(x, low), high), operands)
        if name == "select_n":
            return _selected(operands)
        if name in _BINARY and len(operands) == 2:
            found = _where_known(_BINARY[name](*operands), operands)
            if name == "mul":
                found = np.where((operands[0] == 0) | (operands[1] == 0), 0.0, found)
            if name == "div":
                zero = np.equal(operands[0], 0) & np.not_equal(operands[1], 0)
                found = np.where(zero, 0.0, found)
            return found
    return np.nan


def _converted(values: Known, dtype: Any) -> Known:
    kind = np.dtype(dtype).kind
    if kind in "iu":
        return np.trunc(values)
    return np.where(np.isnan(values), np.nan, values != 0) if kind == "b" else values


def _rounded(values: Known, method: Any) -> Known:
    halves = np.copysign(np.floor(np.abs(values) + 0.5), values)
    return np.round(values) if method.name == "TO_NEAREST_EVEN" else halves


def _where_known(values: Any, operands: Sequence[Known]) -> Any:
    unknown = np.isnan(operands[0])
    for operand in operands[1:]:
        unknown = unknown | np.isnan(operand)
    return np.where(unknown, np.nan, values)


def _selected(operands: Sequence[Known]) -> Any:
    """`select_n(which, *cases)`: the chosen case, or what all cases have in common."""
    which, *cases = operands
    found: Any = cases[0]
    for case in cases[1:]:
        found = np.where(found == case, found, np.nan)
    for number, case in enumerate(cases):
        found = np.where(which == number, case, found)
    return found
