"""The tables and the plot of the surgeons' comparison: ours, published numbers beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.ledger import Ledger, write_atomically
from experiments.surgeon_methods import METHODS, PUBLISHED
from jaxprune.reporting import accuracy_plot, mean_and_spread

TITLES = {"mlpnet": "MLPNet/MNIST", "resnet20": "ResNet-20/CIFAR-10"}


def name_of(method: str, sparsity: float, seed: int) -> str:
    """The name of a run in the ledger."""
    return f"{method} {sparsity} seed {seed}"


def show(book: Ledger, stem: Path, hardware: dict[str, Any]) -> None:
    """Print the tables; write them as Markdown, and accuracies as a plot, beside the JSON."""
    text = document(book, hardware)
    print(text)
    write_atomically(stem.with_name(stem.name + ".md"), text)
    picture = stem.with_name(stem.name + ".png")
    accuracy_plot(runs(book), picture, value="accuracy", title=title_of(book))
    print(f"Results: {book.path}\nPlot:    {picture}")


def title_of(book: Ledger) -> str:
    """Network and data set."""
    if book.config["dataset"] == "digits":
        return "MLPNet/digits"
    return TITLES[book.config["network"]]


def runs(book: Ledger) -> list[dict[str, Any]]:
    """One dictionary a run: method, sparsity, seed, accuracy, seconds."""
    found = []
    for method in book.config["methods"]:
        for sparsity in book.config["sparsities"]:
            for seed in range(book.config["seeds"]):
                piece = book.pieces.get(name_of(method, sparsity, seed))
                if piece is not None:
                    own = {"method": method, "sparsity": sparsity, "seed": seed}
                    found.append({**own, **{k: piece[k] for k in ("accuracy", "seconds")}})
    return found


def document(book: Ledger, hardware: dict[str, Any]) -> str:
    """Markdown: ours, published, seconds, and what it was measured with."""
    config, title = book.config, title_of(book)
    published = PUBLISHED.get(title, {})
    dense = book.pieces["dense"]["accuracy"]
    methods = list(config["methods"])
    head = ["pruned", *methods]
    body = [[_percent(s), *(_cell(book, m, s, "accuracy") for m in methods)]
            for s in config["sparsities"]]  # fmt: skip
    said = f"{dense:.2f}"
    if published:
        said += f" (published {published[0.0]['dense']:.2f})"
    lines = [f"{title}, % of test examples correct, no fine-tuning; dense {said}.", ""]
    lines += [*_table(head, body), ""]
    for name, numbers in PUBLISHED.items():
        if name == title or title == "MLPNet/MNIST":
            lines += [f"Published (Yu et al. 2022), {name}, dense {numbers[0.0]['dense']:.2f}:", ""]
            lines += [*_published(numbers), ""]
    seconds = [[_percent(s), *(_cell(book, m, s, "seconds", 1) for m in methods)]
               for s in config["sparsities"]]  # fmt: skip
    lines += ["Seconds of one call, compilation included:", "", *_table(head, seconds), ""]
    lines += [f"- {m}: {METHODS[m]}" for m in methods]
    lines += ["", _caption(book, hardware)]
    return "\n".join(lines) + "\n"


def _published(numbers: dict[float, dict[str, float]]) -> list[str]:
    names = ["MP", "WF-S", "CBS-S", "WF", "CBS"]
    rows = [[_percent(s), *(f"{row[m]:.2f}" for m in names)] for s, row in numbers.items() if s > 0]
    return _table(["pruned", *names], rows)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _percent(sparsity: float) -> str:
    return f"{100 * sparsity:g} %"


def _cell(book: Ledger, method: str, sparsity: float, what: str, digits: int = 2) -> str:
    names = (name_of(method, sparsity, seed) for seed in range(book.config["seeds"]))
    values = [book.pieces[name][what] for name in names if name in book.pieces]
    if not values:
        return "-"
    mean, sd, _ = mean_and_spread(values)
    return f"{mean:.{digits}f}" if sd is None else f"{mean:.{digits}f} ± {sd:.{digits}f}"


def _caption(book: Ledger, hardware: dict[str, Any]) -> str:
    config = book.config
    weights = "our own" if config["weights"] == "trained" else f"outside ({config['weights']})"
    command = f"python experiments/combinatorial_brain_surgeon.py --preset {config['preset']}"
    if config["network"] != "mlpnet":
        command += f" --network {config['network']}"
    if config["weights"] != "trained":
        command += " --weights FILE.npz"
    return (
        f"`{command}`; weights {weights}; mean ± sample standard deviation over {config['seeds']} "
        f"seeds (the draw of examples; MP has none); {config['settings']['examples']} examples in "
        f"each Fisher, drawn from {config['batch']:,} training examples. {hardware['device']} "
        f"({hardware['platform']}, {hardware['cores']} cores), jax {hardware['jax']}."
    )
