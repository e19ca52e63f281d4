"""g2p-en 2.1.0: spelling to phonemes by one GRU each way (Park and Kim, Apache-2.0).

One layer of 256 units reads the letters, one of 256 writes phonemes from its last state; embeddings
of 256, 834,890 parameters. The weights' names and layouts are the package's: kernels `[out, in]`,
the gates reset, update, new one after the other.

Words are CMUdict's (`experiments.data.cmudict`), on which the network was trained: which words its
authors held out is not published. So the test words are held out from pruning and fine-tuning, not
from the network. A word is right if what greedy decoding says is one of the dictionary's
pronunciations; phoneme errors are edits to the nearest of them, over its length. Dense, of all
12,534 test words: 68.58 % right and 9.96 % phoneme errors (67.98 and 10.20 with the first
pronunciation alone); of the training words no more.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.data import cmudict
from experiments.data.packages import PipPackage
from experiments.data.text_dataset import PairSplit, TextPair
from experiments.gradual import translation
from experiments.pretrained.model import Pretrained
from experiments.pretrained.published import published
from jaxprune.types import Params

PACKAGE = PipPackage("g2p-en", "2.1.0", folder="g2p_en", seconds=60)
FILE = "checkpoint20.npz"
SHA256 = "b8af35e4596d8dd5836dfd3fe9b2ba4f97b9c311efe8879544cbcfcbd566d8c6"

GRAPHEMES = ("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz")
_VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
_CONSONANTS = (
    *("B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG", "P", "R", "S", "SH"),
    *("T", "TH", "V", "W", "Y", "Z", "ZH"),
)
_STRESSED = tuple(f"{vowel}{stress}" for vowel in _VOWELS for stress in "012")
# The package's order is alphabetical; of all vowels UW alone is there without stress too.
PHONEMES = ("<pad>", "<unk>", "<s>", "</s>", *sorted((*_STRESSED, *_CONSONANTS, "UW")))
PAD, BEGIN, END = 0, PHONEMES.index("<s>"), PHONEMES.index("</s>")

LETTERS, SOUNDS = 16, 16
"""Of a calibration word at most, with the mark of its end."""
LONGEST = 20
"""Phonemes that decoding stops at, as the package does."""
KERNELS = ("enc_w_ih", "enc_w_hh", "dec_w_ih", "dec_w_hh", "fc_w")
BATCH = 512  # test words decoded at once

Decoding = tuple[jax.Array, jax.Array, jax.Array]
"""The state [N, H], the last phoneme [N], and whether the word has ended, bool [N]."""


class Words(NamedTuple):
    """What the network reads.

    Attributes:
      graphemes: int32 [N, S], each word ended by `</s>`, padding behind it.
      phonemes: int32 [N, T], `<s>` and the pronunciation, padding behind it.
    """

    graphemes: jax.Array
    phonemes: jax.Array


def gru(
    params: Params, layer: str, read: jax.Array, state: jax.Array, real: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """One layer over time: the last state [N, H], and all of them [T, N, H].

    Args:
      params: with `LAYER_w_ih` [3H, E], `LAYER_w_hh` [3H, H] and their biases.
      layer: "enc" or "dec".
      read: [T, N, E].
      state: [N, H], what it begins with.
      real: bool [T, N]; where False the state stays. None: real everywhere.
    """
    given = read @ params[f"{layer}_w_ih"].T + params[f"{layer}_b_ih"]
    shown = jnp.ones(read.shape[:2], bool) if real is None else real

    def step(state: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        sums, here = now
        following = jnp.where(here[:, None], advance(params, layer, sums, state), state)
        return following, following

    return lax.scan(step, state, (given, shown))


def advance(params: Params, layer: str, given: jax.Array, state: jax.Array) -> jax.Array:
    """The next state [N, H] from what the input gives to the gates [N, 3H]."""
    own = state @ params[f"{layer}_w_hh"].T + params[f"{layer}_b_hh"]
    (reset, update, new), (r, z, n) = jnp.split(given, 3, -1), jnp.split(own, 3, -1)
    share = jax.nn.sigmoid(update + z)
    new = jnp.tanh(new + jax.nn.sigmoid(reset + r) * n)
    return (1 - share) * new + share * state


def encode(params: Params, graphemes: jax.Array) -> jax.Array:
    """The state [N, H] after the last letter of each word [N, S]."""
    letters = graphemes.T
    read = jnp.take(params["enc_emb"], letters, axis=0)
    rest = jnp.zeros((len(graphemes), params["enc_w_hh"].shape[1]), read.dtype)
    return gru(params, "enc", read, rest, letters != PAD)[0]


def apply(params: Params, words: Words) -> jax.Array:
    """Logits of every next phoneme [N, T, 74], under teacher forcing; 0 at padding."""
    real = words.phonemes != PAD
    read = jnp.take(params["dec_emb"], words.phonemes.T, axis=0)
    _, states = gru(params, "dec", read, encode(params, words.graphemes))
    logits = jnp.swapaxes(states @ params["fc_w"].T + params["fc_b"], 0, 1)
    return jnp.where(real[..., None], logits, 0)


def loss(logits: jax.Array, following: jax.Array) -> jax.Array:
    """The mean cross-entropy [N] over a word's real phonemes [N, T] and their end."""
    real = following != PAD
    likely = jax.nn.log_softmax(logits)
    each = -jnp.take_along_axis(likely, following[..., None], -1)[..., 0]
    return jnp.sum(jnp.where(real, each, 0), 1) / jnp.sum(real, 1)


def distill(logits: jax.Array, dense: jax.Array) -> jax.Array:
    """The sum over places [N] of KL(dense | pruned), over T; padding, 0 in both, adds nothing."""
    wanted = jax.nn.log_softmax(dense)
    gap = jnp.exp(wanted) * (wanted - jax.nn.log_softmax(logits))
    return jnp.mean(jnp.sum(gap, -1), -1)


def prunable(name: str, leaf: jax.Array) -> bool:
    """The GRUs' four kernels and the last layer's; not the embeddings."""
    return name in KERNELS


@partial(jax.jit, static_argnums=2)
def greedy(params: Params, graphemes: jax.Array, longest: int = LONGEST) -> jax.Array:
    """The most likely next phoneme, again and again: int [N, longest], padding after the end."""
    state = encode(params, graphemes)
    table = params["dec_emb"] @ params["dec_w_ih"].T + params["dec_b_ih"]
    count = len(graphemes)

    def step(carry: Decoding, _: None) -> tuple[Decoding, jax.Array]:
        state, token, done = carry
        state = advance(params, "dec", table[token], state)
        token = jnp.argmax(state @ params["fc_w"].T + params["fc_b"], -1)
        done = done | (token == END)
        return (state, token, done), jnp.where(done, PAD, token)

    start = (state, jnp.full(count, BEGIN), jnp.zeros(count, bool))
    return lax.scan(step, start, None, longest)[1].T


def spelled(words: Sequence[str], length: int) -> np.ndarray:
    """Letters as int32 [N, length]; what the network has no letter for is `<unk>`."""
    numbers = {letter: i for i, letter in enumerate(GRAPHEMES)}
    unknown, end = numbers["<unk>"], numbers["</s>"]
    return _padded([[*(numbers.get(c, unknown) for c in word), end] for word in words], length)


def spoken(pronunciations: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """What the decoder reads and what follows it, int32 [N, length] each."""
    numbers = {phoneme: i for i, phoneme in enumerate(PHONEMES)}
    rows = [[numbers[p] for p in line.split()] for line in pronunciations]
    ahead = _padded([[BEGIN, *row] for row in rows], length)
    return ahead, _padded([[*row, END] for row in rows], length)


def _padded(rows: Sequence[Sequence[int]], length: int) -> np.ndarray:
    table = np.full((len(rows), length), PAD, np.int32)
    for own, row in zip(table, rows, strict=True):
        own[: len(row)] = row
    return table


class Test:
    """Words that a network is measured on: `test(params) -> {"words": %, "phonemes": %}`.

    Percentages of words that are right, and of phonemes less their errors.
    """

    def __init__(self, pairs: Sequence[TextPair]):
        self.texts = tuple(pair.text for pair in pairs)
        self.references = tuple(pair.references for pair in pairs)
        self.rows = spelled(self.texts, max(map(len, self.texts)) + 1)

    def __call__(self, params: Params) -> dict[str, float]:
        empty = np.empty((len(self.rows), 0), int)
        split = PairSplit(self.rows, empty, self.texts, self.references)
        found = translation.measured("word accuracy", self.said(params), split, " ".join)
        return {"words": found["word accuracy"], "phonemes": 100 - found["phoneme error"]}

    def said(self, params: Params) -> list[list[str]]:
        """The phonemes of every word."""
        count, size = len(self.rows), min(BATCH, len(self.rows))
        # The last batch is filled up: one size, one compilation.
        whole = np.concatenate([self.rows, np.repeat(self.rows[:1], -count % size, 0)])
        parts = [greedy(params, whole[i : i + size]) for i in range(0, len(whole), size)]
        tokens = np.concatenate([np.asarray(part) for part in parts])[:count]
        return [[PHONEMES[i] for i in row if i != PAD] for row in tokens]


def weights(data_dir: Path | None = None) -> dict[str, jax.Array]:
    """The published arrays.

    Raises:
      DataUnavailable: they are neither kept nor can they be fetched.
    """
    content = published("g2p-en-2.1.0", PACKAGE, {FILE: SHA256}, data_dir)[FILE]
    with np.load(io.BytesIO(content)) as stored:
        return {name: jnp.asarray(stored[name]) for name in stored}


def load(calibration: int, test: int, seed: int, data_dir: Path | None) -> Pretrained:
    """The network, training words drawn by the seed, and test words, the same for every seed."""
    parts = cmudict.read(data_dir).parts
    fits = lambda p: len(p.text) < LETTERS and len(p.references[0].split()) < SOUNDS
    drawn = _drawn([pair for pair in parts["train"] if fits(pair)], calibration, seed)
    ahead, following = spoken([pair.references[0] for pair in drawn], SOUNDS)
    graphemes = spelled([pair.text for pair in drawn], LETTERS)
    return Pretrained(
        name="g2p-en",
        source="g2p-en 2.1.0 (Apache-2.0), checkpoint20.npz; words of cmudict 1.1.3",
        params=weights(data_dir),
        apply=apply,
        inputs=Words(jnp.asarray(graphemes), jnp.asarray(ahead)),
        targets=jnp.asarray(following),
        loss=loss,
        distill=distill,
        prunable=prunable,
        quality=Test(_drawn(parts["test"], test, 0)),
    )


def _drawn(pairs: Sequence[TextPair], count: int, seed: int) -> list[TextPair]:
    return [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))[:count]]
