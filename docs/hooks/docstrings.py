"""Docstrings as the API pages need them: griffe reads `Examples:` as code, and one name a line."""

import re

import griffe

_TOGETHER = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)", re.MULTILINE)


def readable(docstring: str) -> str:
    """`Example:` is called `Examples:`, and `mean, var: text` is said of each name by itself."""

    def one_each(match: re.Match[str]) -> str:
        indent, names, text = match.groups()
        return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))

    renamed = re.sub(r"^Example:$", "Examples:", docstring, flags=re.MULTILINE)
    return _TOGETHER.sub(one_each, renamed)


class Readable(griffe.Extension):
    """Makes every docstring readable when it is loaded."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Of one module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = readable(obj.docstring.value)
