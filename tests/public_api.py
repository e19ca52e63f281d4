"""The public names of jaxprune, one a line, with what they are called with.

    python tests/public_api.py     # writes tests/public_api.txt

Public is what `jaxprune.__all__` names and, of the modules in it, what their own `__all__` names,
or else what they define without an underscore. Annotations are left out: they break no call.
"""

import ast
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
LISTED = Path(__file__).with_suffix(".txt")


def public_names(module):
    """What a module offers: by its `__all__`, or defined in it without an underscore."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    found = []
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in found if not name.startswith("_")]


def called_with(function):
    """Names, kinds and defaults of its parameters, as in its definition."""
    signature = inspect.signature(function)
    ours = [p for name, p in signature.parameters.items() if not name.startswith("_")]
    plain = [p.replace(annotation=p.empty) for p in ours if p.name != "self"]
    bare = signature.replace(parameters=plain, return_annotation=signature.empty)
    text = re.sub(r"<function (\S+) at 0x[0-9a-f]+>", r"\1", str(bare))
    return re.sub(r"<class '([^']+)'>", r"\1", text)


def lines_of(name, value):
    """A line for a name, and one for every public method and property of a class of ours."""
    is_class = inspect.isclass(value) and value.__module__.startswith("jaxprune")
    is_protocol = is_class and getattr(value, "_is_protocol", False)
    is_made = is_class and not is_protocol and not issubclass(value, Exception)
    yield name + (called_with(value) if is_made or inspect.isfunction(value) else "")
    for part, inner in sorted(vars(value).items()) if is_class else ():
        inner = getattr(inner, "__func__", inner)
        wanted = not part.startswith("_") or (is_protocol and part == "__call__")
        if wanted and inspect.isfunction(inner):
            yield f"{name}.{part}{called_with(inner)}"
        elif wanted and isinstance(inner, property):
            yield f"{name}.{part}"


def public_api():
    """All lines, by module."""
    import jaxprune

    found = []
    for name in sorted(jaxprune.__all__):
        value = getattr(jaxprune, name)
        found += lines_of(f"jaxprune.{name}", value)
        if isinstance(value, ModuleType):
            for inner in sorted(public_names(value)):
                found += lines_of(f"jaxprune.{name}.{inner}", getattr(value, inner))
    return found


def difference(listed, found):
    """What was added, removed and changed, in words; "" if nothing."""
    name = lambda line: line.split("(")[0]
    old, new = ({name(line): line for line in lines} for lines in (listed, found))
    told = [f"added:   {new[n]}" for n in new if n not in old]
    told += [f"removed: {old[n]}" for n in old if n not in new]
    told += [f"changed: {old[n]}\n     to: {new[n]}" for n in new if old.get(n, new[n]) != new[n]]
    return "\n".join(told)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    LISTED.write_text("\n".join(public_api()) + "\n", encoding="utf-8")
