"""Pages of text that are run: their blocks of code, and what these print against what is shown."""

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    language: str
    text: str


class Shown(NamedTuple):
    """What a page says a block prints, and what it printed."""

    expected: str
    printed: str


def blocks(page: str, language: str = "") -> list[Block]:
    """The fenced blocks of a page, in order; of one language, or all."""
    found = [Block(*match) for match in _FENCE.findall(page)]
    return [block for block in found if language in ("", block.language)]


def run(block: Block, space: dict[str, Any], page: str) -> None:
    """Runs a block in a namespace that later ones share."""
    exec(compile(block.text, page, "exec"), space)


def run_all(page: str, space: dict[str, Any], name: str) -> list[Shown]:
    """Runs a page's Python blocks in order; a `text` block is what the one before it prints."""
    shown, printed = [], ""
    for block in blocks(page):
        if block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                run(block, space, name)
            printed = out.getvalue()
        elif block.language == "text":
            shown.append(Shown(block.text, printed))
    return shown


def agree(expected: str, printed: str) -> bool:
    """Word by word: `...` is anything, a number with a point may be 5 % off, all else is exact.

    Numbers with a point are measured (accuracies), and differ in their last digits between
    machines; counts do not.
    """
    want, got = expected.split(), printed.split()
    return len(want) == len(got) and all(map(_same, want, got))


def _same(want: str, got: str) -> bool:
    if want in ("...", got):
        return True
    if "." not in want:
        return False
    try:
        return abs(float(want) - float(got)) <= 0.05 * abs(float(want))
    except ValueError:
        return False


if __name__ == "__main__":  # in a process of its own, with as many devices as it was given
    for one in run_all(Path(sys.argv[1]).read_text(), {"__name__": sys.argv[1]}, sys.argv[1]):
        assert agree(*one), one
    print("as shown")
