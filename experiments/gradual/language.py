"""A stacked LSTM language model on running text."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import data
from experiments.gradual.task import Config, Network, Task
from experiments.models import LSTMLM, LanguageModel, lstm_lm

MEASURED = 20
"""Streams that validation and test text are cut into."""


def task(config: Config, data_dir: Path | None = None) -> Task:
    """Two LSTM layers of one width; kernels, embedding and softmax are pruned.

    The softmax's bias starts at the logarithms of the words' frequencies: without, Adam spends its
    first steps on them, saturates the LSTMs, and dense networks stay at the words' frequencies for
    a thousand steps and more. Training reads `batch` streams in windows of `length` tokens, each
    from the state after the one before; at the start of an epoch the state is 0 again.
    """
    words = data.load_words(config.dataset, data_dir=data_dir)
    text = words.train[: config.examples]
    inputs, targets = windows(text, config.batch, config.length)
    counts = 1 + np.bincount(text, minlength=len(words.vocabulary))
    frequencies = np.log(counts / counts.sum()).astype(np.float32)
    parts = {part: getattr(words, part) for part in ("validation", "test")}
    measured = {
        part: windows(text, MEASURED, min(config.length, (len(text) - 1) // MEASURED))
        for part, text in parts.items()
    }

    @cache  # one object a width, so that jit compiles once
    def network(width: float) -> Network:
        module = LSTMLM(len(words.vocabulary), int(width), dropout=config.dropout)
        model = LanguageModel(module)

        def loss(params: Any, carry: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
            tokens, following, first = batch
            carry = jax.tree.map(lambda leaf: jnp.where(first[:, None], 0, leaf), carry)
            logits, carry = model.apply(params, tokens, carry, key if config.dropout else None)
            each = optax.softmax_cross_entropy_with_integer_labels(logits, following)
            return jnp.mean(each), jax.lax.stop_gradient(carry)

        @jax.jit
        def total(params: Any, carry: Any, tokens: jax.Array, following: jax.Array) -> Any:
            logits, carry = model.apply(params, tokens, carry)
            each = optax.softmax_cross_entropy_with_integer_labels(logits, following)
            return jnp.sum(each), carry

        def measure(params: Any, carry: Any, part: str) -> dict[str, float]:
            del carry
            state, whole, count = model.start(MEASURED), 0.0, 0
            for tokens, following in zip(*measured[part], strict=True):
                one, state = total(params, state, tokens, following)
                whole, count = whole + float(one), count + tokens.size
            return {"perplexity": math.exp(whole / count)}

        def init(key: jax.Array) -> tuple[Any, Any]:
            params = model.init(key)
            softmax = {**params["softmax"], "bias": jnp.array(frequencies)}  # steps take it over
            return {**params, "softmax": softmax}, model.start(config.batch)

        return Network(init, loss, measure)

    def batches(seed: int) -> Any:
        del seed  # a text has one order

        def at(step: int) -> Any:
            place = step % len(inputs)
            return inputs[place], targets[place], np.full(config.batch, place == 0)

        return at

    title = f"LSTM language model on {config.dataset}"
    seen = config.steps / len(inputs)
    about = (
        f"WEB perplexity: of the {len(words.vocabulary):,} commonest words of the World English "
        "Bible, not to be held against Penn Treebank's. "
        if config.dataset == "web_words"
        else ""
    ) + (
        f"An example is {config.length} words; training reads the text {seen:.2f} times, in its "
        "order: seeds differ in first weights (and dropout, and what SET and RigL draw)."
    )
    return Task(title, about, "perplexity", True, lstm_lm.prunable, network, batches)


def windows(text: np.ndarray, streams: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Text as windows of parallel streams: tokens and the ones that follow, [W, streams, length].

    Stream s of window w + 1 goes on where stream s of window w ended. What fills no window is left.

    Example:
      >>> inputs, targets = windows(np.arange(9), streams=2, length=2)
      >>> inputs.tolist()
      [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
      >>> targets[0].tolist()
      [[1, 2], [5, 6]]
    """
    count = (len(text) - 1) // (streams * length)
    if count < 1:
        raise ValueError(
            f"{len(text)} tokens fill no window of {streams} streams of {length} tokens. Choose a "
            "smaller batch or length."
        )
    used = count * streams * length
    cut = lambda x: x.reshape(streams, count, length).swapaxes(0, 1)
    return cut(text[:used]), cut(text[1 : used + 1])
