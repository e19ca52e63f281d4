"""Small changes of a source file, each of which some test should notice.

One change an operator, a constant, a condition, a keyword or a returned value. Left alone are
annotations, docstrings and strings, decorators (how, not what is computed), assertions, the
messages of errors, `__all__`, the names of types, and `strict=`, which checks the code itself.
"""

from __future__ import annotations

import ast
import copy
import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_BOTH_WAYS = (
    ("minimum", "maximum"),
    ("min", "max"),
    ("argmin", "argmax"),
    ("any", "all"),
    ("zeros", "ones"),
    ("zeros_like", "ones_like"),
    ("isfinite", "isnan"),
    ("cos", "sin"),
    ("sum", "mean"),
)
FUNCTIONS = dict(_BOTH_WAYS) | {b: a for a, b in _BOTH_WAYS}
FUNCTIONS |= {"round": "floor", "abs": "negative"}
_BUILTINS = ("min", "max", "any", "all")


class Mutant(NamedTuple):
    """One changed source: `name` is `function: before -> after`, alike in every run.

    `first_line` is that of the innermost function (or lambda) it lies in, None outside of one.
    """

    name: str
    kind: str
    line: int
    first_line: int | None
    source: str


class _Change(NamedTuple):
    kind: str
    old: ast.AST
    new: ast.AST
    where: str
    first_line: int | None


def mutants_of(source: str) -> list[Mutant]:
    """Every mutant of one source file, in the order of its syntax tree."""
    lines = [line.encode() for line in source.splitlines(keepends=True)]
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    data, seen, found = source.encode(), Counter[str](), []
    for change in _changes(ast.parse(source), "", None):
        old, new = change.old, ast.unparse(change.new)
        begin = starts[old.lineno - 1] + old.col_offset  # type: ignore[attr-defined]
        end = starts[old.end_lineno - 1] + old.end_col_offset  # type: ignore[attr-defined]
        text = f"({new})" if isinstance(old, ast.expr) else new
        name = f"{change.where or 'module'}: {ast.unparse(old)} -> {new}"
        seen[name] += 1
        name += f" #{seen[name]}" if seen[name] > 1 else ""
        mutated = (data[:begin] + text.encode() + data[end:]).decode()
        line = old.lineno  # type: ignore[attr-defined]
        found.append(Mutant(name, change.kind, line, change.first_line, mutated))
    return found


def sample(names: list[str], size: int | None) -> list[str]:
    """`size` of the names, the same ones in every run, and few others when one is added."""
    order = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return order[:size]


def _changes(node: ast.AST, where: str, first_line: int | None) -> Iterator[_Change]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        where = f"{where}.{node.name}".lstrip(".")
    if isinstance(node, ast.FunctionDef | ast.Lambda):
        # What a code object calls its first line: that of the first decorator.
        first_line = min([node.lineno] + [d.lineno for d in getattr(node, "decorator_list", [])])
    for kind, old, new in _of_node(node):
        yield _Change(kind, old, new, where, first_line)
    for child in _children(node):
        yield from _changes(child, where, first_line)


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a node that may be changed."""
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    match node:
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return
        case ast.Assign(col_offset=0, targets=[ast.Name(id=name)]) if name.istitle():
            return  # a name for a type
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "bases"):
            continue
        if isinstance(node, ast.keyword) and node.arg == "strict":
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child


def _of_node(node: ast.AST) -> Iterator[tuple[str, ast.AST, ast.AST]]:
    """`(kind, old, new)` for the changes at one node."""

    def changed(**fields: object) -> ast.AST:
        new = copy.copy(node)
        for name, value in fields.items():
            setattr(new, name, value)
        return new

    match node:
        case ast.Compare():
            for i, op in enumerate(node.ops):
                swapped = COMPARISONS[type(op)]()
                yield "comparison", node, changed(ops=[*node.ops[:i], swapped, *node.ops[i + 1 :]])
        case ast.BinOp():
            yield "arithmetic", node, changed(op=ARITHMETIC[type(node.op)]())
        case ast.AugAssign():
            yield "arithmetic", node, changed(op=ARITHMETIC[type(node.op)]())
        case ast.UnaryOp():
            yield "sign", node, node.operand
        case ast.BoolOp():
            yield (
                "and/or",
                node,
                changed(op=ast.Or() if isinstance(node.op, ast.And) else ast.And()),
            )
        case ast.Constant(value=bool()):
            yield "flag", node, ast.Constant(not node.value)
        case ast.Constant(value=int() | float() as number):
            for new in (number + 1, number - 1):
                if new != number:  # as 1e30 + 1 is
                    yield "constant", node, ast.Constant(new)
        case ast.If() | ast.While() | ast.IfExp():
            yield from _of_condition(node.test)
        case ast.comprehension():
            for test in node.ifs:
                yield from _of_condition(test)
        case ast.Return(value=ast.Constant(value=None) | None):
            pass
        case ast.Return():
            yield "return", node, ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call()):
            yield "statement", node, ast.Pass()
        case ast.Call():
            yield from _of_call(node)


def _of_condition(test: ast.expr) -> Iterator[tuple[str, ast.AST, ast.AST]]:
    match test:
        case (
            ast.UnaryOp(op=ast.Not())
            | ast.Compare(
                ops=[ast.Eq() | ast.NotEq() | ast.Is() | ast.IsNot() | ast.In() | ast.NotIn()]
            )
        ):
            pass  # negated by the change of its operator
        case _:
            yield "condition", test, ast.UnaryOp(ast.Not(), test)


def _of_call(node: ast.Call) -> Iterator[tuple[str, ast.AST, ast.AST]]:
    for i, keyword in enumerate(node.keywords):
        if keyword.arg not in (None, "strict"):
            rest = [*node.keywords[:i], *node.keywords[i + 1 :]]
            yield "keyword", node, ast.Call(node.func, node.args, rest)
    match node.func:
        case ast.Name(id=name) if name in _BUILTINS:
            yield "function", node.func, ast.Name(FUNCTIONS[name], ast.Load())
        case ast.Attribute(attr="where") if len(node.args) == 3:
            test, yes, no = node.args
            yield "function", node, ast.Call(node.func, [test, no, yes], node.keywords)
        case ast.Attribute(attr=name) if name in FUNCTIONS:
            new = ast.Attribute(node.func.value, FUNCTIONS[name], ast.Load())
            yield "function", node.func, new
