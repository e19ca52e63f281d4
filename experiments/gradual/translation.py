"""Sequence to sequence: letters to phonemes, or verses to verses."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import data
from experiments.data import PairSplit
from experiments.gradual.task import Config, Network, Task
from experiments.models import Seq2Seq, Translator, seq2seq
from experiments.orders import Orders

AT_ONCE = 250
MEASURED = 2000
"""Validation and test examples that are decoded, at most, in equal distances: cmudict is sorted."""


def task(config: Config, data_dir: Path | None = None) -> Task:
    """GNMT's shape, two layers; LSTM kernels, embeddings and softmax are pruned.

    Trained on pairs of at most `length` tokens a side. Letters to phonemes are measured as the
    share of words that are right as a whole and by phoneme errors, verses by lower-cased BLEU,
    which words outside of the vocabulary bound (at 10,000 words a side well below 100).
    """
    pairs = data.load_pairs(config.dataset, data_dir=data_dir)
    train = data.shorten(pairs.train, config.length) if config.length else pairs.train
    inputs, targets = train.inputs[: config.examples], train.targets[: config.examples]
    quality = "BLEU" if config.dataset == "verses" else "word accuracy"
    parts = {
        "validation": data.spaced(pairs.validation, MEASURED),
        "test": data.spaced(pairs.test, MEASURED),
    }

    @cache  # one object a width, so that jit compiles once
    def network(width: float) -> Network:
        module = Seq2Seq(
            len(pairs.input_vocabulary), len(pairs.target_vocabulary), int(width),
            dropout=config.dropout,
        )  # fmt: skip
        model = Translator(module)

        def loss(params: Any, rest: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
            source, target = batch
            logits = model.apply(params, source, target[:, :-1], key if config.dropout else None)
            return model.loss(logits, target[:, 1:]), rest

        def measure(params: Any, rest: Any, part: str) -> dict[str, float]:
            del rest
            split = parts[part]
            longest = split.targets.shape[1] - 1
            answers = []
            for at in range(0, len(split.inputs), AT_ONCE):
                found = np.asarray(model.greedy(params, split.inputs[at : at + AT_ONCE], longest))
                answers += [pairs.target_vocabulary.sentence(row) for row in found]
            return measured(quality, answers, split, pairs.to_text)

        return Network(lambda key: (model.init(key), {}), loss, measure)

    def batches(seed: int) -> Any:
        orders = Orders(len(inputs), config.batch, seed)
        return lambda step: (inputs[orders.at(step)], targets[orders.at(step)])

    title = (
        f"LSTM encoder and decoder with attention on {config.dataset}, "
        f"{len(parts['test'].inputs):,} of {len(pairs.test.inputs):,} test examples"
    )
    about = (
        f"Trained on the {len(inputs):,} pairs of at most {config.length} tokens a side; tested on "
        "all lengths. "
        if config.length
        else ""
    ) + "Seeds differ in first weights, the order of the pairs, and dropout."
    return Task(title, about, quality, False, seq2seq.prunable, network, batches)


def measured(
    quality: str, answers: list[list[str]], split: PairSplit, to_text: Any
) -> dict[str, float]:
    """BLEU of the texts; or words that are right and phoneme errors, in per cent."""
    references = split.references
    if quality == "BLEU":
        import sacrebleu

        texts = [to_text(answer) for answer in answers]
        firsts = [own[0] for own in references]
        score = sacrebleu.corpus_bleu(texts, [firsts], lowercase=True)  # tokens have no capitals
        return {"BLEU": float(score.score)}
    written = [to_text(answer) for answer in answers]
    right = [text in own for text, own in zip(written, references, strict=True)]
    errors = length = 0
    for answer, own in zip(answers, references, strict=True):
        apart = {reference: distance(answer, reference.split()) for reference in own}
        nearest = min(apart, key=lambda reference: apart[reference])
        errors, length = errors + apart[nearest], length + len(nearest.split())
    return {"word accuracy": 100 * float(np.mean(right)), "phoneme error": 100 * errors / length}


def distance(a: list[str], b: list[str]) -> int:
    """Insertions, deletions and substitutions from one sequence to the other.

    Example:
      >>> distance(list("kitten"), list("sitting"))
      3
    """
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]
