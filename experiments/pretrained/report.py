"""Tables and a plot of a comparison, from the ledger alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.ledger import Ledger
from experiments.presenting import show_page
from experiments.pretrained.arms import Arm, Config, arms
from experiments.pretrained.measuring import MASKED, chosen, rates
from experiments.tables import difference, markdown, percent, spread, with_failed
from jaxprune.reporting import mean_and_spread

Pieces = dict[str, Any]
LEVELS = ("raw", "tuned")


def seeds_of(config: Config, pieces: Pieces, arm: Arm) -> dict[int, Any]:
    """The finished seeds of an arm."""
    found = {seed: pieces.get(f"{arm.name} seed {seed}") for seed in range(config.seeds)}
    return {seed: piece for seed, piece in found.items() if piece is not None}


def values(config: Config, pieces: Pieces, arm: Arm, level: str, what: str) -> list[float]:
    """A measure of an arm, a value a finished seed."""
    return [piece[level][what] for piece in seeds_of(config, pieces, arm).values()]


def against_first(config: Config, pieces: Pieces, arm: Arm) -> str:
    """How much better an arm is, tuned, than the first way of its family at its size, paired."""
    first = next(a for a in arms(config) if (a.family, a.size) == (arm.family, arm.size))
    what = next(iter(pieces["dense"]["test"]))
    ours, theirs = (seeds_of(config, pieces, a) for a in (arm, first))
    both = [seed for seed in ours if seed in theirs]
    if first == arm or not both:
        return "-"
    pair = [[own[seed]["tuned"][what] for seed in both] for own in (ours, theirs)]
    return difference(pair[0], pair[1])[0]


def costs(piece: Any) -> list[str]:
    """Parameters, KiB and MFLOP of a network."""
    return [
        f"{piece['parameters']:,}",
        f"{piece['bytes']['smallest'] / 1024:.0f}",
        f"{piece['flops'] / 1e6:.2f}",
    ]


def row(config: Config, pieces: Pieces, arm: Arm) -> list[str]:
    """Qualities, what is told against the first way, and costs of an arm's first finished seed."""
    qualities = [
        spread(values(config, pieces, arm, level, what))
        for what in pieces["dense"]["test"]
        for level in LEVELS
    ]
    piece = next(iter(seeds_of(config, pieces, arm).values()))
    return [*qualities, against_first(config, pieces, arm), rate(pieces, arm), *costs(piece)]


def dense_row(pieces: Pieces) -> list[str]:
    """The same of the dense network."""
    qualities = [text for v in pieces["dense"]["test"].values() for text in (f"{v:.2f}", "-")]
    return [*qualities, "-", "-", *costs(pieces["dense"])]


def table(config: Config, pieces: Pieces, family: str) -> str:
    """All arms of a family, the dense network first; of units with their milliseconds."""
    measures = [f"{what} {level}" for what in pieces["dense"]["test"] for level in LEVELS]
    units = family == "units"
    share = "parameters left" if units else "pruned"
    count = "parameters" if units else "weights and biases left"
    way, first = "way", config.units[0] if units else config.weights[0]
    head = [share, way, *measures, f"tuned, minus {first}", "rate", count, "KiB", "MFLOP"]
    clock = pieces.get("milliseconds", {}) if units else {}
    sizes = [str(size) for size in config.timed] if clock else []
    head += [f"ms, {size} at once" for size in sizes]
    begin = percent(1.0 if units else 0.0)
    rows = [[begin, "dense", *dense_row(pieces), *(_ms(clock["dense"][size]) for size in sizes)]]
    for arm in arms(config):
        if arm.family == family and seeds_of(config, pieces, arm):
            told = clock.get(arm.name, {})
            times = [_ms(told[size]) if told else "-" for size in sizes]
            rows.append([percent(arm.size), arm.way, *row(config, pieces, arm), *times])
    return markdown(head, rows)


def _ms(quartiles: list[float]) -> str:
    median, low, high = quartiles
    return f"{median:.2f} ({low:.2f} .. {high:.2f})"


def clock_table(config: Config, pieces: Pieces) -> str:
    """Milliseconds of the masked network and the shrunk ones beside the dense one's."""
    clock, sizes = pieces["milliseconds"], [str(size) for size in config.timed]
    rows: list[list[str]] = []
    for name, own in clock.items():
        rows.append([name])
        for size in sizes:
            faster = clock["dense"][size][0] / own[size][0]
            rows[-1] += [_ms(own[size]), f"{faster:.2f}"]
    head = ["network"]
    for size in sizes:
        head += [f"ms, {size} at once", "times as fast as dense"]
    return markdown(head, rows)


def rate(pieces: Pieces, arm: Arm) -> str:
    """The rate that an arm was tuned at."""
    return f"{chosen(pieces[rates(arm)]):g}"


def document(config: Config, book: Ledger) -> str:
    """Everything as Markdown."""
    pieces, hardware = book.pieces, book.made_on
    if "dense" not in pieces:
        return with_failed("Nothing is finished yet.\n", book.failed)
    tried = ", ".join(f"{rate:g}" for rate in config.rates)
    most = percent(max(config.sparsities))
    parts = [
        f"## {config.model} ({config.preset})",
        f"{pieces['dense']['source']}. {config.seeds} draws of {config.calibration:,} calibration "
        f"examples, the first {config.scored:,} of them for scores and surgeons: mean ± sample "
        f"standard deviation on the same {config.test:,} test examples, in per cent. Tuned: "
        f"{config.steps:,} steps of Adam on {config.batch} examples towards the dense outputs, "
        f"without labels, at the rate of {tried} that came nearest to them in trials on the first "
        "draw, on a quarter of it that trials do not train on.",
        f"`python experiments/pretrained_models.py --model {config.model} --preset "
        f"{config.preset} --seeds {config.seeds}`; {hardware['device']} ({hardware['platform']}, "
        f"{hardware['cores']} cores), jax {hardware['jax']}, float32.",
        "Weights pruned, the network masked. KiB are those of the smallest of a dense, a bit-mask, "
        "a CSR and a gap-coded file, leaf by leaf; MFLOP of one example, pruned weights not "
        "counted, which no dense kernel skips; minus the first way: paired over draws, 95 % "
        "intervals. Deviations and intervals are of the draws alone: the test examples are the "
        "same throughout, and what another sample of them would change is not in them.",
        table(config, pieces, "weights"),
        "Units removed, the arrays really smaller. Costs are the first draw's.",
        table(config, pieces, "units"),
    ]
    if "milliseconds" in pieces:
        parts += [
            f"Milliseconds of jitted forward passes, medians with quartiles, all networks in "
            f"turns. {MASKED.capitalize()}: {most} of the weights are 0 and are multiplied all "
            "the same.",
            clock_table(config, pieces),
        ]
    return with_failed("\n\n".join(parts) + "\n", book.failed)


def show(config: Config, book: Ledger, stem: Path) -> None:
    """Write the tables and the plot beside the JSON, and print the tables."""
    text = document(config, book)
    show_page(text, stem, book.path, lambda path: draw(config, book.pieces, path))


def draw(config: Config, pieces: Pieces, path: Path) -> None:
    """Quality against bytes; a panel each for weights and units, raw and tuned."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    dense = pieces["dense"]
    what = next(iter(dense["test"]))
    figure, axes = pyplot.subplots(1, 4, figsize=(18, 4.5), sharey=True)
    panels = [(family, level) for family in ("weights", "units") for level in LEVELS]
    for panel, (family, level) in zip(axes, panels, strict=True):
        ways = dict.fromkeys(arm.way for arm in arms(config) if arm.family == family)
        for number, way in enumerate(ways):
            points = []
            for arm in arms(config):
                if (arm.family, arm.way) == (family, way) and seeds_of(config, pieces, arm):
                    mean, sd, _ = mean_and_spread(values(config, pieces, arm, level, what))
                    piece = next(iter(seeds_of(config, pieces, arm).values()))
                    points.append((piece["bytes"]["smallest"] / 1024, mean, sd or 0.0))
            if points:
                x, y, spreads = zip(*sorted(points), strict=True)
                panel.errorbar(x, y, yerr=spreads, label=way, capsize=3, color=f"C{number}",
                               marker="osv^Dx*+"[number % 8])  # fmt: skip
        panel.axhline(dense["test"][what], color="black", linewidth=0.8, linestyle=":")
        panel.set_title(f"{family}, {level}")
        panel.set_xlabel("KiB")
        panel.grid(alpha=0.3)
        if level == LEVELS[-1]:
            panel.legend(fontsize=8)
    axes[0].set_ylabel(f"{what} %, mean ± sd; dotted: dense")
    figure.suptitle(config.model)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
