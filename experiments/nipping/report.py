"""What networks cost and take, tables in the paper's form, and plots, from the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from experiments import ledger
from experiments.nipping import arms
from experiments.nipping.arms import as_shape, tuned
from experiments.nipping.task import Config, Problem, Shape
from experiments.presenting import show_page
from experiments.tables import difference, markdown, percent, spread, with_failed
from jaxprune.reporting import mean_and_spread

Pieces = dict[str, Any]


def names(config: Config) -> list[str]:
    """The pieces of a seed, in the order of the tables."""
    found = ["dense"]
    for signal in config.signals:
        for mark in config.marks:
            found.append(tuned(signal, mark))
            if signal in config.scratch:
                found += [arms.scratch(signal, mark), arms.scratch_long(signal, mark)]
    found += [arms.by_hand(shape) for shape in arms.reduced(config)]
    copied = arms.smaller_marks(config) if config.copies else []
    return [*found, *map(arms.copy, copied)]


def measure(config: Config, problem: Problem, book: ledger.Ledger) -> None:
    """Record what networks cost and take on this device, of every arm the first finished seed's."""
    shapes: dict[str, Shape] = {}
    for name in names(config):
        shape = shape_of(config, book.pieces, name)
        if shape is not None:
            shapes[f"cost {shape.label}"] = shape
    if not shapes.keys() <= book.pieces.keys():  # ratios are of times taken side by side
        milliseconds = taken(problem, list(shapes.values()))
        for (name, shape), ms in zip(shapes.items(), milliseconds, strict=True):
            book.record(name, {**problem.costs(shape)._asdict(), "ms": ms})


def taken(problem: Problem, shapes: list[Shape]) -> list[dict[str, list[float]]]:
    """Median milliseconds of forward passes with lower and upper quartile, by batch size.

    All networks in turns, so that a busy machine slows all of them alike.
    """
    ready = [(problem.model(s).apply, problem.init(s, jax.random.key(0))) for s in shapes]
    found: list[dict[str, list[float]]] = [{} for _ in shapes]
    for batch in problem.config.batches:
        images = jnp.zeros((batch, *problem.image.shape[1:]))
        calls = [(apply, (variables, images)) for apply, variables in ready]
        for own, one in zip(found, jp.reporting.latencies(calls, repeats=20), strict=True):
            own[str(batch)] = [one.median_ms, one.lower_ms, one.upper_ms]
    return found


def by_seed(config: Config, pieces: Pieces, name: str) -> dict[int, Any]:
    """The finished seeds of an arm."""
    found = {seed: pieces.get(f"{name} seed {seed}") for seed in range(config.seeds)}
    return {seed: piece for seed, piece in found.items() if piece is not None}


def shape_of(config: Config, pieces: Pieces, name: str) -> Shape | None:
    """The architecture of an arm, its first finished seed's."""
    found = list(by_seed(config, pieces, name).values())
    return as_shape(found[0]["shape"]) if found else None


def errors(config: Config, pieces: Pieces, name: str) -> list[float]:
    """Test errors, a value a finished seed."""
    return [piece["test"] for piece in by_seed(config, pieces, name).values()]


def network_table(config: Config, pieces: Pieces) -> str:
    """Every network: costs, milliseconds, GFLOP/s reached, error."""
    rows, most = [], str(max(config.batches))
    whole = pieces[f"cost {config.shape.label}"]
    for name in names(config):
        shape = shape_of(config, pieces, name)
        if shape is None:
            continue
        cost, found = pieces[f"cost {shape.label}"], errors(config, pieces, name)
        ms = cost["ms"][most][0]
        rows.append(
            [
                name, f"{cost['parameters']:,}", f"{cost['flops'] / 1e6:.2f}",
                f"{cost['activations'] / 1024:.0f}",
                *(_quartiles(cost["ms"][str(batch)]) for batch in config.batches),
                f"{1e3 * int(most) / ms:,.0f}", f"{cost['flops'] * int(most) / ms / 1e6:.1f}",
                f"{whole['flops'] / cost['flops']:.2f}", f"{whole['ms'][most][0] / ms:.2f}",
                spread(found),
            ]
        )  # fmt: skip
    times = [f"ms, batch {batch}" for batch in config.batches]
    head = ["network", "parameters", "MFLOP", "activations, KiB", *times, "images/s",
            "GFLOP/s", "times fewer FLOPs", "times faster", "error %"]  # fmt: skip
    return markdown(head, rows)


def _quartiles(ms: list[float]) -> str:
    median, low, high = ms
    return f"{median:.2f} ({low:.2f} .. {high:.2f})"


def finding_table(config: Config, pieces: Pieces) -> str:
    """Errors paired over seeds: the same architecture from scratch, minus pruned and tuned."""
    rows = []
    for signal in config.scratch:
        for mark in config.marks:
            ours = by_seed(config, pieces, tuned(signal, mark))
            cells: list[str] = []
            for name in (arms.scratch(signal, mark), arms.scratch_long(signal, mark)):
                other = by_seed(config, pieces, name)
                both = [(other[seed]["test"], ours[seed]["test"]) for seed in ours if seed in other]
                pair = [list(values) for values in zip(*both, strict=True)]
                cells += difference(pair[0], pair[1], ("better", "worse")) if both else ("-", "-")
            rows.append([signal, percent(mark), *cells])
    head = ["signal", "units gone", "scratch minus tuned", "scratch is", "scratch long minus tuned",
            "scratch long is"]  # fmt: skip
    return markdown(head, rows)


def profile_table(config: Config, pieces: Pieces, problem: Problem) -> str:
    """Units kept in every block, of all, mean over seeds."""
    whole = [problem.coupling.groups[name].units for name in problem.inner]
    rows = []
    for signal in config.signals:
        for mark in config.marks:
            found = by_seed(config, pieces, tuned(signal, mark)).values()
            left = [as_shape(piece["shape"]).middles for piece in found]
            if left:
                means = np.mean(np.asarray(left, float), axis=0)
                rows.append([f"{signal} {percent(mark)}", *(f"{mean:.1f}" for mean in means)])
    head = ["units gone", *(f"block {n}, of {w}" for n, w in enumerate(whole))]
    return markdown(head, rows)


def budget_table(config: Config, pieces: Pieces) -> str:
    """Steps and FLOPs of every training, a backward pass taken as two forward passes."""
    rows = []
    for name in names(config):
        shape = shape_of(config, pieces, name)
        if shape is None:
            continue
        piece = next(iter(by_seed(config, pieces, name).values()))
        steps, each = piece["steps"], pieces[f"cost {shape.label}"]["flops"]
        flops = piece.get("flops", steps * each)  # a path tells its own
        rows.append([name, f"{steps:,}", f"{3 * flops * config.batch / 1e9:,.0f}"])
    return markdown(["training", "steps", "GFLOP"], rows)


def document(config: Config, problem: Problem, book: ledger.Ledger) -> str:
    """Everything as Markdown."""
    pieces, hardware, shape = book.pieces, book.made_on, config.shape
    seeds = list(by_seed(config, pieces, "dense"))
    if not seeds:
        return with_failed("Nothing is finished yet.\n", book.failed)
    command = "python experiments/nip_it_in_the_bud.py"
    options = f"--network {config.network} --preset {config.preset} --dataset {config.dataset}"
    options += f" --cost {config.cost}" if config.cost else ""
    options += f" --shrink-every {config.shrink_every}" if config.shrink_every else ""
    parts = [
        f"## {shape.label} on {config.dataset} ({config.preset})",
        f"Seeds {', '.join(map(str, seeds))}: mean ± sample standard deviation of the test error. "
        f"{config.each} of {problem.units:,} units between the convolutions of blocks go every "
        f"{config.every} steps of {config.batch} examples{_how(config)}; a network is measured "
        "before the next ones go. Costs are those of one image and of the first seed's network; "
        "milliseconds medians with quartiles of a jitted forward pass; "
        f"images/s, GFLOP/s and how many times faster at batch {max(config.batches)}; activations "
        "are the results of all products and convolutions.",
        f"`{command} {options}`; {hardware['device']} ({hardware['platform']}, "
        f"{hardware['cores']} cores, {hardware['devices']} devices), jax {hardware['jax']}, "
        f"{config.dtype}.",
        network_table(config, pieces),
        "The same architecture from new weights against pruned and tuned, errors paired over seeds "
        "with 95 % intervals:",
        finding_table(config, pieces),
        "Units kept in every block:",
        profile_table(config, pieces, problem),
        *rate_lines(config, pieces),
        "Budgets (fine-tuning comes after dense training; masked units are computed):",
        budget_table(config, pieces),
    ]
    return with_failed("\n\n".join(parts) + "\n", book.failed)


def rate_lines(config: Config, pieces: Pieces) -> list[str]:
    """How the rate of fine-tuning was chosen, if it was."""
    tried = pieces.get(arms.TRIALS, {})
    if all(value is None for value in tried.values()):
        return []
    chosen = arms.best_rate(config.tune_rates, tried)
    say = lambda value: "not finite" if value is None else f"{value:.2f}"
    told = ", ".join(f"{rate}: {say(value)}" for rate, value in tried.items())
    seed = min(by_seed(config, pieces, arms.trial(chosen, max(config.marks))))
    return [
        f"Fine-tuned at {chosen:g}: mean validation error at the marks of the path by "
        f"{config.signals[0]}, seed {seed}, by rate: {told}."
    ]


def _how(config: Config) -> str:
    """What is not the paper's own way of removing."""
    cost = f", by their signal over their {config.cost}" if config.cost else ""
    often = f"the network is really made smaller every {config.shrink_every} removals"
    return cost + (f"; {often}" if config.shrink_every else "")


def show(config: Config, problem: Problem, book: ledger.Ledger, stem: Path) -> None:
    """Write the tables and the plot beside the JSON, and print the tables."""
    text = document(config, problem, book)
    show_page(text, stem, book.path, lambda path: draw(config, book.pieces, path))


def draw(config: Config, pieces: Pieces, path: Path) -> None:
    """Error against parameters, FLOPs and milliseconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.5), sharey=True)
    most = max(config.batches)
    costs = {
        "parameters": lambda cost: cost["parameters"],
        "MFLOP": lambda cost: cost["flops"] / 1e6,
        f"ms at batch {most}": lambda cost: cost["ms"][str(most)][0],
    }
    for panel, (title, read) in zip(axes, costs.items(), strict=True):
        for number, (family, own) in enumerate(families(config).items()):
            points = []
            for name in own:
                shape = shape_of(config, pieces, name)
                if shape is not None:
                    mean, sd, _ = mean_and_spread(errors(config, pieces, name))
                    points.append((read(pieces[f"cost {shape.label}"]), mean, sd))
            if points:
                x, y, spreads = zip(*sorted(points), strict=True)
                panel.errorbar(x, y, yerr=[sd or 0 for sd in spreads], label=family, capsize=3,
                               marker="osv^Dx*+"[number % 8], color=f"C{number}")  # fmt: skip
        panel.set_xscale("log")
        panel.set_xlabel(title)
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("test error %, mean ± sd")
    axes[0].legend()
    figure.suptitle(f"{config.shape.label} on {config.dataset}")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def families(config: Config) -> dict[str, list[str]]:
    """Pieces by what a line of the plot shows."""
    found: dict[str, list[str]] = {}
    for name in names(config):
        words = name.split()
        if name == "dense":
            family = "dense"
        elif words[0] in ("reduced", "copy"):
            family = words[0]
        else:
            family = " ".join([words[0], *words[2:]])
        found.setdefault(family, []).append(name)
    return found
