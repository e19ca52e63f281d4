"""Tables in the paper's form, the claim at equal nonzeros and at equal bytes, and the plot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import ledger
from experiments.gradual.running import FORMS
from experiments.gradual.task import PUBLISHED, Config, Task
from experiments.gradual.ways import DENSE, GRADUAL, Arm, arms, choose_rates, trials
from experiments.presenting import show_page
from experiments.tables import difference, markdown, percent, spread, with_failed
from jaxprune.reporting import mean_and_spread


class Found(NamedTuple):
    """One arm, all its finished seeds.

    Attributes:
      arm: with the first seed.
      seeds: those that are finished.
      pieces: what was measured, in their order.
    """

    arm: Arm
    seeds: list[int]
    pieces: list[dict[str, Any]]

    def test(self, metric: str) -> list[float]:
        """A metric on test examples, a value a seed."""
        return [piece["test"][metric] for piece in self.pieces]

    def nonzeros(self) -> int:
        """Weights kept, all leaves; the largest of the seeds."""
        return max(piece["nonzeros"] for piece in self.pieces)

    def bytes(self, form: str) -> int:
        """Bytes in a form; the largest of the seeds."""
        return max(piece["bytes"][form] for piece in self.pieces)


def collect(config: Config, task: Task, pieces: dict[str, Any]) -> list[Found]:
    """The arms of which a seed is finished, at the rates that were chosen."""
    found: dict[str, Found] = {}
    for arm in arms(config, choose_rates(config, task, pieces)):
        if arm.name in pieces:
            group = found.setdefault(arm.kind, Found(arm._replace(seed=0), [], []))
            group.seeds.append(arm.seed)
            group.pieces.append(pieces[arm.name])
    return list(found.values())


def quality_table(found: list[Found], task: Task) -> str:
    """Network, nonzeros, every metric, bytes in every form, and what of the smallest is index."""
    metrics = list(found[0].pieces[0]["test"])
    index = lambda one: (
        one.bytes("smallest")
        - one.bytes("dense")
        + 4 * (one.pieces[0]["parameters"] - one.nonzeros())
    )
    rows = [
        [
            said(one.arm), f"{one.nonzeros():,}",
            *(spread(one.test(metric)) for metric in metrics),
            *(f"{one.bytes(form) / 1024:,.1f}" for form in FORMS),
            f"{index(one) / 1024:,.1f}",
        ]
        for one in found
    ]  # fmt: skip
    return markdown(["network", "nonzeros", *metrics, *(f"{f}, KiB" for f in FORMS),
                     "of it index, KiB"], rows)  # fmt: skip


def rates_table(config: Config, task: Task, pieces: dict[str, Any]) -> str:
    """What the trials reached on validation examples, the chosen ones in bold."""
    chosen = choose_rates(config, task, pieces)
    rows: dict[float, list[str]] = {width: [f"{width:g}"] for width in chosen}
    for arm in trials(config):
        piece = pieces.get(arm.name)
        value = "not finite" if piece is None else f"{piece['validation'][task.quality]:.2f}"
        rows[arm.width].append(f"**{value}**" if arm.rate == chosen[arm.width] else value)
    return markdown(["dense, width", *(f"{rate:g}" for rate in config.rates)], rows.values())


def said(arm: Arm) -> str:
    """An arm as the tables name it."""
    if arm.way == DENSE:
        return f"dense, width {arm.width:g}"
    way = "" if arm.way == GRADUAL else f", {arm.way}"
    return f"width {arm.width:g}, {percent(arm.sparsity)} pruned{way}"


def at_equal(
    found: list[Found], task: Task, cost: Callable[[Found], float]
) -> list[tuple[Found, list[float], list[float]]]:
    """Sparse networks, and what dense ones of the same cost would have: both a value a seed.

    The dense networks' quality is interpolated seed by seed, linear in the logarithm of the cost,
    between the two that are next to it; `claim_table` says so of sparse networks that are smaller
    than all of them.
    """
    dense = sorted((one for one in found if one.arm.way == DENSE), key=cost)
    answers = []
    for one in found:
        below = [d for d in dense if cost(d) <= cost(one)]
        above = [d for d in dense if cost(d) > cost(one)]
        if one.arm.way == DENSE or not below or not above:
            continue
        low, high = below[-1], above[0]
        share = np.log(cost(one) / cost(low)) / np.log(cost(high) / cost(low))
        seeds = [s for s in one.seeds if s in low.seeds and s in high.seeds]
        value = lambda group, seed: group.test(task.quality)[group.seeds.index(seed)]
        held = [(1 - share) * value(low, s) + share * value(high, s) for s in seeds]
        answers.append((one, [value(one, s) for s in seeds], held))
    return answers


def claim_table(found: list[Found], task: Task, cost: Callable[[Found], float], what: str) -> str:
    """Large-sparse minus small-dense at equal cost, paired over seeds."""
    rows = []
    words = ("better", "worse") if task.lower else ("worse", "better")
    equal = at_equal(found, task, cost)
    for one, ours, dense in equal:
        rows.append([said(one.arm), spread(ours), spread(dense), *difference(ours, dense, words)])
    held = [one.arm for one, _, _ in equal]
    for one in found:
        if one.arm.way != DENSE and one.arm not in held:
            own = spread(one.test(task.quality))
            rows.append([said(one.arm), own, "none: smaller than the smallest", "-", "-"])
    head = ["network", task.quality, f"dense at equal {what}", "difference", "the sparse one is"]
    return markdown(head, rows)


def document(config: Config, task: Task, book: ledger.Ledger) -> str:
    """Everything as Markdown."""
    pieces, hardware = book.pieces, book.made_on
    found = collect(config, task, pieces)
    title, head, rows = PUBLISHED[config.task]
    seeds = max(len(one.seeds) for one in found)
    begin, end = round(config.begin * config.steps), round(config.end * config.steps)
    parts = [
        f"## {task.title} ({config.preset})",
        f"{seeds} seeds (0 to {seeds - 1}): mean ± sample standard deviation on test examples. "
        f"Every network is trained for {config.steps:,} steps of {config.batch} examples; sparse "
        f"ones are pruned between steps {begin:,} and {end:,}, every {config.every}. Per cent "
        "pruned are of the layers that are pruned; nonzeros and bytes are the whole network's, "
        f"float32 values with an index of that form. {task.about}",
        f"`python experiments/to_prune_or_not.py --task {config.task} --preset {config.preset} "
        f"--dataset {config.dataset} --seeds {config.seeds}`; "
        f"{hardware['device']} ({hardware['platform']}, {hardware['cores']} cores, "
        f"{hardware['devices']} devices), jax {hardware['jax']}.",
        f"Adam's peak rate is the one at which a width's dense network is best on validation "
        f"examples ({task.quality}, seed 0); sparse networks take the dense one's of their width:",
        rates_table(config, task, pieces),
        quality_table(found, task),
        "At equal nonzeros (dense networks interpolated between widths, in the logarithm), "
        "differences paired over seeds with 95 % intervals:",
        claim_table(found, task, lambda one: one.nonzeros(), "nonzeros"),
        "At equal bytes, the index counted, every network in its smallest form:",
        claim_table(found, task, lambda one: one.bytes("smallest"), "bytes"),
        f"Published (Zhu and Gupta 2017), {title}:",
        markdown(head, rows),
    ]
    return with_failed("\n\n".join(parts) + "\n", book.failed)


def show(config: Config, task: Task, book: ledger.Ledger, stem: Path) -> None:
    """Write the tables and the plot beside the JSON, and print the tables."""
    found = collect(config, task, book.pieces)
    draw_it = lambda path: draw(found, task, path)
    show_page(document(config, task, book), stem, book.path, draw_it)


def draw(found: list[Found], task: Task, path: Path) -> None:
    """Quality against nonzeros and against bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    costs: dict[str, Callable[[Found], float]] = {
        "nonzeros": lambda one: one.nonzeros(),
        "bytes with the index": lambda one: one.bytes("smallest"),
    }
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.5), sharey=True)
    for panel, (name, cost) in zip(axes, costs.items(), strict=True):
        for number, way in enumerate(dict.fromkeys(one.arm.way for one in found)):
            own = sorted((one for one in found if one.arm.way == way), key=cost)
            values = [mean_and_spread(one.test(task.quality)) for one in own]
            label = {DENSE: "small-dense", GRADUAL: "large-sparse"}.get(way, way)
            panel.errorbar(
                [cost(one) for one in own], [v.mean for v in values],
                yerr=[v.sd or 0.0 for v in values], label=label, marker="osv^Dx"[number],
                color=f"C{number}", capsize=3, linewidth=1,
            )  # fmt: skip
        panel.set_xscale("log")
        panel.set_xlabel(name)
        panel.grid(alpha=0.3)
    axes[0].set_ylabel(f"test {task.quality}, mean ± sd")
    if task.lower:
        axes[0].set_yscale("log")
    axes[0].legend()
    figure.suptitle(task.title)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
