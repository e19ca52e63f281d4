"""What primitives do, as far as several readers of a jaxpr need to know."""

# Each entry of the result is a function of the entries of the operands at the same place.
SMOOTH = frozenset({
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e", "bessel_i1e", "cbrt",
    "cos", "cosh", "digamma", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "igamma",
    "igamma_grad_a", "igammac", "integer_pow", "lgamma", "log", "log1p", "logistic", "nextafter",
    "polygamma", "pow", "random_gamma_grad", "regularized_incomplete_beta", "rsqrt", "sin", "sinh",
    "sqrt", "square", "tan", "tanh", "zeta",
})  # fmt: skip
PIECEWISE_LINEAR = frozenset({
    "abs", "add", "add_any", "clamp", "conj", "convert_element_type", "copy", "copy_p", "imag",
    "max", "min", "neg", "real", "reduce_precision", "rem", "select_n", "sub",
})  # fmt: skip
BILINEAR = frozenset({"mul", "div"})
FLAT = frozenset({  # without a derivative
    "and", "argmax", "argmin", "ceil", "clz", "eq", "floor", "ge", "gt", "is_finite", "le", "lt",
    "ne", "not", "or", "population_count", "round", "shift_left",
    "shift_right_arithmetic", "shift_right_logical", "sign", "stop_gradient", "xor",
})  # fmt: skip
ELEMENTWISE = (SMOOTH | PIECEWISE_LINEAR | BILINEAR | FLAT) - {"argmax", "argmin"}

# Linear, or linear piece by piece, in their first operand; the others only say where.
MOVES = frozenset({
    "broadcast_in_dim", "concatenate", "dynamic_slice", "dynamic_update_slice", "expand_dims",
    "gather", "optimization_barrier", "pad", "pcast", "pvary", "reshape", "rev",
    "select_and_gather_add", "sharding_constraint", "slice", "split", "squeeze", "stack",
    "transpose", "unstack",
})  # fmt: skip
SUMS = frozenset({"cumsum", "reduce_sum", "reduce_window_sum", "scatter-add", "scatter_add"})
EXTREMES = frozenset({
    "cummax", "cummin", "reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min",
    "sort", "top_k",
})  # fmt: skip
