"""The command line: what a checkpoint holds, without the code of its model.

python -m jaxprune report CHECKPOINT --only "params/*" --sort sparsity
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import jax

from jaxprune import checkpoint_reading
from jaxprune.reporting.array_records import ORDERS
from jaxprune.reporting.array_report import array_report

_ABOUT = """
Count what a checkpoint holds, leaf by leaf: nonzeros, whole slices of zeros, bytes. It may be one
of jaxprune.checkpoint or any pytree that Orbax saved; neither the model's code nor its devices are
needed.
"""
_COLUMNS = """
"by mask" is the sparsity of a mask stored in the same checkpoint: bool leaves under the name mask
or masks, with the names and shapes of others; in brackets, how many entries that it prunes are not
0. "zero slices" are, axis by axis, slices of zeros alone: of a kernel rows x columns. "bit-mask B"
and "CSR B" are bytes of the nonzeros and of where they are, "smallest B" those of each leaf in its
smallest format. PRNG keys are counted as integers.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jaxprune")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    report = commands.add_parser(
        "report", help="count what a checkpoint holds", description=_ABOUT, epilog=_COLUMNS
    )
    report.add_argument("checkpoint", help="a checkpoint, or the folder of those of several steps")
    report.add_argument("--step", type=int, help="which step (default: the newest)")
    report.add_argument(
        "--only", default="*", metavar="PATTERN", help="leaves such as 'params/*' or '*/kernel'"
    )
    report.add_argument(
        "--sort", choices=list(ORDERS), help="most sparse, largest or first name first"
    )
    report.add_argument("--json", action="store_true", help="print JSON")
    report.set_defaults(run=_report)
    return parser


def _report(asked: argparse.Namespace) -> None:
    from rich.console import Console

    stored = checkpoint_reading.find(asked.checkpoint, asked.step)
    found = array_report(stored.leaves, stored.read, only=asked.only)
    found = found.ordered(asked.sort) if asked.sort else found
    if asked.json:
        about = {"path": str(stored.path), "step": stored.step, "left_out": stored.left_out}
        print(found.to_json(**about))
        return
    step = "" if stored.step is None else f", step {stored.step}"
    lines = [f"not counted: {name} ({kind})" for name, kind in stored.left_out.items()]
    if not sys.stdout.isatty():
        print(f"{asked.checkpoint}{step}", found, *lines, sep="\n")
        return
    console = Console()
    console.print(f"{asked.checkpoint}{step}", found, *lines, sep="\n", markup=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; an error is one line and the exit status 1.

    Args:
      arguments: what follows `python -m jaxprune` (default: of this process).
    """
    asked = _parser().parse_args(arguments)
    try:
        asked.run(asked)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # counting takes no memory of an accelerator
    main()
