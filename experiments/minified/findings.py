"""Which of the paper's findings hold: differences paired over seeds, with their intervals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from experiments.minified import parameters, units
from experiments.minified.lab import Config
from experiments.tables import difference, markdown

SUBSTANTIAL = 0.1
"""Networks with at most this share of the parameters left are substantially pruned."""
READINGS = ("obd_sd_damage", "obd_sd_gradient", "obd_sd_input")
Runs = list[float]


def quality(piece: dict[str, Any], arm: str) -> Runs | None:
    """A value a seed: the first metric on test examples."""
    measured = piece.get("arms", {}).get(arm)
    return None if measured is None else next(iter(measured["test"].values()))


def mean_over(runs: Iterable[Runs | None]) -> Runs | None:
    """The mean of several cells, seed by seed; None if one is missing."""
    found = list(runs)
    if not found or any(one is None for one in found):
        return None
    return [float(x) for x in np.mean(np.asarray(found, np.float64), axis=0)]


def said(a: Runs | None, b: Runs | None) -> tuple[str, str]:
    """`a - b` with its 95 % interval, and what follows: higher, lower, or undecided."""
    if a is None or b is None:
        return "-", "not measured"
    return difference(a, b)


def document(config: Config, pieces: dict[str, Any]) -> str:
    """The findings as Markdown."""
    parts = [
        "The paper's findings, here. Differences in points of test quality, paired over seeds, "
        f"with 95 % intervals (Student's, {config.seeds} seeds).",
        _selections(config, pieces, parameters.name_of, config.methods, "single weights"),
        _selections(config, pieces, units.name_of, config.unit_methods, "units"),
        _tuned_against_scratch(config, pieces),
        _units_against_scratch(config, pieces),
    ]
    return "\n\n".join(part for part in parts if part)


def _selections(
    config: Config, pieces: dict[str, Any], name_of: Any, methods: tuple[str, ...], what: str
) -> str:
    """OBD-SD against the others at substantial pruning."""
    sizes = [s for s in config.sizes if s <= SUBSTANTIAL]
    sizes = [s for s in sizes if any(pieces.get(name_of(m, s), {}).get("arms") for m in methods)]
    readings = [m for m in READINGS if m in methods]
    if not sizes or not readings:
        return ""
    lines = [
        '**Finding 1.** "OBD-SD slightly outperforms all other selections at substantial pruning" '
        f"({what}, mean over the sizes {', '.join(f'{100 * s:g} %' for s in sizes)}):",
        "",
    ]
    rows = []
    for arm, told in (("one_shot", "one-shot"), ("fine_tuned", "fine-tuned")):
        at = {
            m: mean_over(quality(pieces.get(name_of(m, s), {}), arm) for s in sizes)
            for m in methods
        }
        others = [m for m in methods if m not in READINGS and at[m] is not None]
        for reading in readings:
            verdicts = {m: said(at[reading], at[m])[1] for m in others}
            cells = [said(at[reading], at[m])[0] for m in others]
            rows.append([told, reading, *cells, _held(verdicts)])
    return "\n".join([*lines, markdown(["arm", "reading", *others, "finding"], rows)])


def _held(verdicts: dict[str, str]) -> str:
    """What differences to the paper's other selections say; joint is none of those."""
    own = {m: v for m, v in verdicts.items() if m != "joint"}
    lower = [m for m, v in own.items() if v == "lower"]
    if lower:
        return "does not hold: lower than " + ", ".join(lower)
    open_ = [m for m, v in own.items() if v == "undecided"]
    return "holds" if not open_ else "undecided against " + ", ".join(open_)


Compared = list[tuple[float, tuple[str, str], tuple[str, str]]]
"""Size, and what is said of a difference in the tuning steps, and in all steps."""


def _tuned_against_scratch(config: Config, pieces: dict[str, Any]) -> str:
    """Fine-tuned mask against the same mask from scratch, over the selections that have both."""
    methods = [m for m in config.scratch if m != "random"]
    compared: Compared = []
    for size in config.sizes:
        found = [pieces.get(parameters.name_of(m, size), {}) for m in methods]
        at = {
            arm: mean_over(quality(piece, arm) for piece in found)
            for arm in ("fine_tuned", "scratch_short", "scratch_long")
        }
        short = said(at["fine_tuned"], at["scratch_short"])
        long = said(at["fine_tuned"], at["scratch_long"])
        compared.append((size, short, long))
    title = (
        '**Finding 2.** "Fine-tuning slightly beats retraining the same mask from scratch" '
        f"(single weights, mean over {', '.join(methods)}; fine-tuned minus scratch):"
    )
    return _told(title, "tuned", compared)


def _units_against_scratch(config: Config, pieces: dict[str, Any]) -> str:
    """The shrunk network fine-tuned against the same architecture from scratch."""
    methods = [m for m in config.unit_methods if m not in ("random", "merge_pairs")]
    compared: Compared = []
    for size in config.sizes:
        scratch = pieces.get(units.name_of("scratch", size), {})
        if not scratch.get("arms"):
            continue
        found = [pieces.get(units.name_of(m, size), {}) for m in methods]
        tuned = mean_over(quality(piece, "fine_tuned") for piece in found)
        short = said(quality(scratch, "scratch_short"), tuned)
        long = said(quality(scratch, "scratch_long"), tuned)
        compared.append((size, short, long))
    title = (
        '**Finding 3.** "Retraining from scratch does much better" (units, mean over all '
        "selections but random and merge_pairs; scratch minus fine-tuned):"
    )
    return _told(title, "scratch", compared)


def _told(title: str, better: str, compared: Compared) -> str:
    """A finding: its table, and at how many sizes the one that should be better is."""
    head = ["left", "in the tuning steps", f"{better} is", "in all steps", f"{better} is"]
    rows = [[f"{100 * size:g} %", *short, *long] for size, short, long in compared]
    verdicts = [(short[1], long[1]) for _, short, long in compared]
    return "\n".join([title, "", markdown(head, rows), "", _counted(verdicts, "higher")])


def _counted(verdicts: list[tuple[str, str]], wanted: str) -> str:
    told = []
    for number, steps in enumerate(("the tuning steps", "all steps")):
        own = [pair[number] for pair in verdicts if pair[number] != "not measured"]
        other = sum(v not in (wanted, "undecided") for v in own)
        told.append(
            f"with {steps} it holds at {own.count(wanted)} of {len(own)} sizes, the contrary at "
            f"{other}, {own.count('undecided')} undecided"
        )
    return "So " + "; ".join(told) + "."
