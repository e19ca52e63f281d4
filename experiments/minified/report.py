"""The results as Markdown tables and a plot, from the ledger alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments import ledger
from experiments.ledger import write_atomically
from experiments.minified import findings, parameters, pictures, quantized, rates, units
from experiments.minified.candidates import BASELINE, FAMILIES, Candidate, best_within, collect
from experiments.minified.lab import ARMS, Config, Lab, as_text, latency_of
from experiments.minified.task import FALSE_POSITIVES, TASKS
from experiments.tables import markdown, percent, spread, with_failed

BUDGETS = (0.5, 0.25, 0.1, 0.05, 0.03, 0.02, 0.015, 0.01)
"""Shares of the dense network's bytes at which families are compared."""
Pieces = dict[str, Any]
_SAID = {
    "tune": "fine-tuned", "short": "scratch, tuning steps", "long": "scratch, all steps"
}  # fmt: skip
_METRICS = {"auc": "area under the ROC curve",
            "recall": f"recall at {100 * FALSE_POSITIVES:g} % false positives"}  # fmt: skip


def show(lab: Lab, stem: Path) -> None:
    """Print everything; write it as Markdown, and a plot, beside the JSON."""
    from rich.console import Console
    from rich.markdown import Markdown

    machine = lab.book.made_on
    text = document(lab.config, lab.book.pieces, budgets(lab), machine)
    write_atomically(stem.with_name(stem.name + ".md"), with_failed(text, lab.book.failed))
    picture = stem.with_name(stem.name + ".png")
    pictures.draw(lab.config, lab.book.pieces, picture)
    write_atomically(stem.with_name("minified_models.md"), summary(stem.parent))
    console = Console(width=max(140, Console().width))
    told = headline(lab.config, lab.book.pieces, machine)
    console.print(Markdown(with_failed(told, lab.book.failed)))
    for what, path in (
        ("Tables", stem.with_name(stem.name + ".md")), ("Plot", picture), ("Results", lab.book.path)
    ):  # fmt: skip
        console.print(f"{what}: {path}", soft_wrap=True)


def headline(config: Config, pieces: Pieces, machine: dict[str, Any]) -> str:
    """What is printed; the whole is in the file."""
    return "\n\n".join(
        [
            caption(config, pieces, machine),
            "At equal bytes on disk, test quality in % (the best of each family on the validation "
            "part that is no larger):\n\n" + equal_bytes(config, pieces),
            findings.document(config, pieces),
        ]
    )


def summary(folder: Path) -> str:
    """The headlines of all the results of a folder, in Markdown."""
    parts = []
    for path, found in ledger.results(folder, "minified_models-"):
        config, stem = Config(**found["config"]), path.stem
        told = headline(config, found["pieces"], found["hardware"])
        parts.append(
            f"## {TASKS[config.task].title} ({config.preset})\n\n"
            f"{with_failed(told, found.get('failed', {}))}\n\n"
            f"![quality against bytes, FLOPs and milliseconds]({stem}.png)\n\n"
            f"[All tables]({stem}.md)."
        )
    return "\n\n".join(["# Minified models", *parts]) + "\n"


def document(config: Config, pieces: Pieces, spent: str, machine: dict[str, Any]) -> str:
    """The whole report."""
    metrics = list(pieces["dense"]["arms"]["one_shot"]["test"])
    parts = [
        caption(config, pieces, machine),
        "Budgets of one network:\n\n" + spent,
        f"Adam's rates, of {', '.join(f'{rate:g}' for rate in config.rates)} the best on the "
        "validation part, with masks by magnitude or units by l2; other sizes take those of the "
        "nearest, all selections and merging those of their level, rounds (iterative) those of "
        "fine-tuning at once. A rate with * is the lowest or the highest that was tried: one "
        "beyond it may be better:\n\n" + rate_table(config, pieces),
        "At equal bytes on disk (the best of each family on the validation part that is no larger; "
        "test quality):\n\n" + equal_bytes(config, pieces),
        f'The same as differences to "{BASELINE}" of equal bytes, paired over seeds, with 95 % '
        "intervals:\n\n" + differences(config, pieces),
        "Which they are, what they compute and take (ms: median forward pass at batch 1 / 256; "
        "MFLOP of one example, for masks theory: no kernel here skips zeros):\n\n"
        + picks(config, pieces),
        *(
            f"At equal bytes, {metric} in %:\n\n" + equal_bytes(config, pieces, metric)
            for metric in metrics[1:]
        ),
        findings.document(config, pieces),
        "Single weights pruned (iterative: in all the steps of fine-tuning):\n\n"
        + parameter_table(config, pieces),
        "Units removed, every hidden layer in the same proportion (merged: each removed unit "
        "poured into the most similar one that stays):\n\n" + unit_table(config, pieces),
        "All weights quantized:\n\n" + quantized_table(config, pieces),
    ]
    return "\n\n".join(parts) + "\n"


def caption(config: Config, pieces: Pieces, machine: dict[str, Any]) -> str:
    """What was done, with what, on what."""
    arms = pieces["dense"]["arms"]
    dense = ", ".join(
        f"{_METRICS.get(metric, metric)} {spread(values)} %"
        for metric, values in arms["one_shot"]["test"].items()
    )
    tuned = spread(next(iter(arms["fine_tuned"]["test"].values())))
    return (
        f"{TASKS[config.task].title}, {config.seeds} seeds (0 to {config.seeds - 1}); mean ± "
        f"sample standard deviation. Dense: {dense}; fine-tuned as the others are: {tuned} %; "
        f"{pieces['dense']['bytes'][0]:,} bytes in float32. Trained on {_examples(config)}."
        "\n\n"
        f"`python experiments/minified_models.py --task {config.task} --preset {config.preset}`; "
        f"{machine['device']} ({machine['platform']}, {machine['cores']} cores), jax "
        f"{machine['jax']}."
    )


def _examples(config: Config) -> str:
    if config.examples is None:
        return "the whole training part"
    return f"{config.examples:,} examples of the training part"


def budgets(lab: Lab) -> str:
    """Steps and FLOPs of every arm."""
    rows = []
    arms = {_SAID[arm]: lab.budget_of(arm, 0.0) for arm in ARMS}
    for name, budget in {"dense": lab.budget(lab.dense_steps, 0.0), **arms}.items():
        whole = lab.training_flops(budget) / 1e9
        rows.append(
            [name, f"{budget.steps:,}", str(budget.batch), f"{budget.warmup}", f"{whole:,.1f}"]
        )
    widths = units.widths_at(lab, 0.1)
    if widths is not None:
        long = lab.budget_of("long", 0.0)
        small = lab.training_flops(long, widths) / 1e9
        name = f"{_SAID['long']}, widths {as_text(widths)}"
        rows.append([name, f"{long.steps:,}", str(long.batch), f"{long.warmup}", f"{small:,.1f}"])
    return markdown(["arm", "steps", "batch", "of them warm-up", "GFLOP"], rows)


def rate_table(config: Config, pieces: Pieces) -> str:
    """The rates of every level; with a star those at an end of what was tried."""
    ends = {min(config.rates), max(config.rates)} if len(config.rates) > 1 else set()
    say = lambda rate: f"{rate:g}{'*' * (rate in ends)}"
    rows = [["dense, from new weights", "", "", say(pieces["dense rate"]["rate"])]]
    rows += [
        [level, *(say(found[arm]) if arm in found else "" for arm in ARMS)]
        for level, found in rates.told(pieces)
    ]
    return markdown(["level and share left", *(_SAID[arm] for arm in ARMS)], rows)


def _best(config: Config, pieces: Pieces) -> list[tuple[float, dict[str, Candidate | None]]]:
    candidates, whole = collect(config, pieces), pieces["dense"]["bytes"][0]
    return [
        (share, {family: best_within(candidates, family, share * whole) for family in FAMILIES})
        for share in BUDGETS
    ]


def equal_bytes(config: Config, pieces: Pieces, metric: str | None = None) -> str:
    """Quality of every family's best at every budget."""
    rows = []
    for share, best in _best(config, pieces):
        cells = [_test(best[family], metric) for family in FAMILIES]
        rows.append([percent(share), *cells])
    return markdown(["bytes", *FAMILIES], rows)


def _test(candidate: Candidate | None, metric: str | None = None) -> str:
    if candidate is None:
        return "-"
    return spread(candidate.test[metric or next(iter(candidate.test))])


def differences(config: Config, pieces: Pieces) -> str:
    """The families' best minus the small dense network's."""
    others = [family for family in FAMILIES if family != BASELINE]
    rows = []
    first = lambda c: None if c is None else next(iter(c.test.values()))
    for share, best in _best(config, pieces):
        base = first(best[BASELINE])
        rows.append([percent(share), *(findings.said(first(best[f]), base)[0] for f in others)])
    return markdown(["bytes", *others], rows)


def picks(config: Config, pieces: Pieces) -> str:
    """Which candidate stands for its family, and its costs."""
    rows = []
    for share, best in _best(config, pieces):
        for family, candidate in best.items():
            if candidate is None:
                continue
            taken = pieces[latency_of(candidate.widths)]
            rows.append(
                [
                    percent(share), family, candidate.label, f"{candidate.largest / 1024:.1f}",
                    f"{candidate.flops / 1e6:.3f}", f"{taken['1']:.3f} / {taken['256']:.2f}",
                    _test(candidate),
                ]
            )  # fmt: skip
    return markdown(["bytes", "family", "chosen", "KiB", "MFLOP", "ms", "test %"], rows)


def _arms(piece: dict[str, Any], arms: tuple[str, ...]) -> list[str]:
    return [spread(findings.quality(piece, arm)) for arm in arms]


def parameter_table(config: Config, pieces: Pieces) -> str:
    """Every selection of single weights at every size."""
    arms = ("one_shot", "fine_tuned", "iterative", "scratch_short", "scratch_long")
    rows = []
    for size in config.sizes:
        for method in config.methods:
            piece = pieces.get(parameters.name_of(method, size))
            if piece is not None:
                kib = f"{max(piece['bytes']) / 1024:.1f}"
                rows.append([percent(size), method, *_arms(piece, arms), kib])
    head = ["left", "selection", "one-shot", "fine-tuned", "iterative",
            "scratch, tuning steps", "scratch, all steps", "KiB"]  # fmt: skip
    return markdown(head, rows)


def unit_table(config: Config, pieces: Pieces) -> str:
    """Every selection of units at every size, and the same architecture from scratch."""
    arms = ("one_shot", "merged", "fine_tuned", "merged_tuned", "scratch_short", "scratch_long")
    rows = []
    for size in config.sizes:
        for method in ("scratch", *config.unit_methods):
            piece = pieces.get(units.name_of(method, size))
            if piece is not None and piece["arms"]:
                kib = f"{max(piece['bytes']) / 1024:.1f}"
                widths = as_text(piece["widths"])
                rows.append([percent(size), widths, method, *_arms(piece, arms), kib])
    head = ["left", "widths", "selection", "one-shot", "merged", "fine-tuned",
            "merged and tuned", "scratch, tuning steps", "scratch, all steps", "KiB"]  # fmt: skip
    return markdown(head, rows)


def quantized_table(config: Config, pieces: Pieces) -> str:
    """Every quantizer of the dense network, KiB below 16 bits those of one scale a tensor."""
    bits = list(map(str, config.bits))
    names = dict.fromkeys(scheme for scheme, b in quantized.schemes(config) if b in bits)
    rows = []
    for scheme in (*names, "straight through"):
        arm = "fine_tuned" if scheme == "straight through" else "one_shot"
        cells = []
        for b in bits:
            piece = pieces.get(quantized.name_of(scheme, b), {})
            measured = piece.get("arms", {}).get(arm)
            size = "" if measured is None else f" ({max(measured['bytes']) / 1024:.1f} KiB)"
            cells.append(spread(findings.quality(piece, arm)) + size)
        rows.append([scheme, *cells])
    told = [markdown(["quantizer", *(f"{b} bits" for b in bits)], rows)]
    for form in ("bfloat16", "float16"):
        piece = pieces.get(quantized.name_of("half", form), {})
        told.append(f"{form}: {spread(findings.quality(piece, 'one_shot'))} %.")
    return "\n\n".join(told)
