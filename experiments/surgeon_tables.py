"""The tables and the plot of the surgeons' comparison: ours, published numbers beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.ledger import Ledger, write_atomically
from experiments.surgeon_methods import METHODS, PUBLISHED
from experiments.tables import markdown, percent, spread, with_failed
from jaxprune.reporting import accuracy_plot

TITLES = {"mlpnet": "MLPNet/MNIST", "resnet20": "ResNet-20/CIFAR-10"}


def name_of(method: str, sparsity: float, seed: int) -> str:
    """The name of a run in the ledger."""
    return f"{method} {sparsity} seed {seed}"


def show(book: Ledger, stem: Path, hardware: dict[str, Any]) -> None:
    """Print the tables; write them as Markdown, and accuracies as a plot, beside the JSON."""
    text = document(book, hardware)
    print(text)
    write_atomically(stem.with_name(stem.name + ".md"), text)
    print(f"Results: {book.path}")
    if found := runs(book):  # of a comparison that failed as a whole there is nothing to draw
        picture = stem.with_name(stem.name + ".png")
        accuracy_plot(found, picture, value="accuracy", title=title_of(book))
        print(f"Plot:    {picture}")


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
    methods = [m for m in config["methods"] if any(run["method"] == m for run in runs(book))]
    head = ["pruned", *methods]
    body = [[percent(s), *(_cell(book, m, s, "accuracy") for m in methods)]
            for s in config["sparsities"]]  # fmt: skip
    said = f"{dense:.2f}"
    if published:
        said += f" (published {published[0.0]['dense']:.2f})"
    lines = [f"{title}, % of test examples correct, no fine-tuning; dense {said}.", ""]
    lines += [markdown(head, body), ""]
    for name, numbers in PUBLISHED.items():
        if name == title or title == "MLPNet/MNIST":
            lines += [f"Published (Yu et al. 2022), {name}, dense {numbers[0.0]['dense']:.2f}:", ""]
            lines += [_published(numbers), ""]
    seconds = [[percent(s), *(_cell(book, m, s, "seconds", 1) for m in methods)]
               for s in config["sparsities"]]  # fmt: skip
    lines += ["Seconds of one call, compilation included:", "", markdown(head, seconds), ""]
    lines += [f"- {m}: {METHODS[m]}" for m in methods]
    lines += ["", _caption(book, hardware)]
    return with_failed("\n".join(lines) + "\n", book.failed)


def _published(numbers: dict[float, dict[str, float]]) -> str:
    names = ["MP", "WF-S", "CBS-S", "WF", "CBS"]
    rows = [[percent(s), *(f"{row[m]:.2f}" for m in names)] for s, row in numbers.items() if s > 0]
    return markdown(["pruned", *names], rows)


def _cell(book: Ledger, method: str, sparsity: float, what: str, digits: int = 2) -> str:
    names = (name_of(method, sparsity, seed) for seed in range(book.config["seeds"]))
    values = [book.pieces[name][what] for name in names if name in book.pieces]
    return spread(values, digits)


def _unfinished(book: Ledger) -> str:
    """What to say of methods that have not run with every seed yet."""
    config = book.config
    wanted = (
        name_of(method, sparsity, seed)
        for method in config["methods"]
        for sparsity in config["sparsities"]
        for seed in range(1 if method == "MP" else config["seeds"])
    )
    return "" if all(name in book.pieces for name in wanted) else "; a cell without ± has run once"


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
        f"seeds (the draw of examples; MP has none{_unfinished(book)}); "
        f"{config['settings']['examples']} examples in each Fisher, drawn from "
        f"{config['batch']:,} training examples. {hardware['device']} "
        f"({hardware['platform']}, {hardware['cores']} cores), jax {hardware['jax']}."
    )
