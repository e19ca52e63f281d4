"""A real pretrained model, ported to JAX: 30 % of its units removed, its answers those of the mask.

The weights are those of the grapheme-to-phoneme GRU of the package g2p-en (Apache-2.0), fetched
with pip; without it the test is skipped.
"""

import io
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune import trees

LETTERS = "abcdefghijklmnopqrstuvwxyz"
END_OF_WORD, START, STOP, STEPS = 2, 2, 3, 12


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("g2p")
    command = [sys.executable, "-m", "pip", "download", "g2p-en==2.1.0", "--no-deps", "-q"]
    try:
        subprocess.run([*command, "-d", folder], check=True, capture_output=True, timeout=120)
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"the package with the weights cannot be fetched: {error}")
    [wheel] = folder.glob("*.whl")
    stored = np.load(io.BytesIO(zipfile.ZipFile(wheel).read("g2p_en/checkpoint20.npz")))
    return {name: jnp.asarray(stored[name]) for name in stored}


def cell(v, part, x, h):
    """A GRU with the reset gate after the recurrent product."""
    a = x @ v[f"{part}_w_ih"].T + v[f"{part}_b_ih"]
    b = h @ v[f"{part}_w_hh"].T + v[f"{part}_b_hh"]
    (r, z, n), (s, u, m) = jnp.split(a, 3, -1), jnp.split(b, 3, -1)
    r, z = jax.nn.sigmoid(r + s), jax.nn.sigmoid(z + u)
    return (1 - z) * jnp.tanh(n + r * m) + z * h


def apply(v, letters):
    """Logits [words, steps, phonemes] of greedy decoding, from letters [words, length]."""
    x = v["enc_emb"][letters]
    h = jnp.zeros((letters.shape[0], v["enc_w_hh"].shape[1]), x.dtype)
    for t in range(letters.shape[1]):  # a padded letter (0) leaves the state alone
        h = jnp.where(letters[:, t, None] > 0, cell(v, "enc", x[:, t], h), h)

    def step(carry, _):
        h, last = carry
        h = cell(v, "dec", v["dec_emb"][last], h)
        logits = h @ v["fc_w"].T + v["fc_b"]
        return (h, jnp.argmax(logits, -1)), logits

    start = jnp.full(letters.shape[:1], START)
    _, logits = jax.lax.scan(step, (h, start), None, STEPS)
    return logits.swapaxes(0, 1)


def spelled(words):
    length = max(map(len, words)) + 1
    rows = [[3 + LETTERS.index(c) for c in word] + [END_OF_WORD] for word in words]
    return jnp.array([row + [0] * (length - len(row)) for row in rows])


def phonemes(logits):
    found = []
    for row in np.asarray(jnp.argmax(logits, -1)):
        stop = np.flatnonzero(row == STOP)
        found.append(row[: stop[0] if len(stop) else None].tolist())
    return found


@pytest.mark.slow
def test_a_pretrained_model_without_30_percent_of_its_units(weights):
    words = spelled(["hello", "pruning", "surgeon", "brain", "nip", "bud"])
    dense = phonemes(apply(weights, words))
    assert len(dense[4]) == 3  # N IH1 P
    coupling = jp.couple(apply, weights, words)
    assert sorted(g.units for g in coupling.groups.values()) == [256, 256, 256]
    assert not coupling.unknown
    prune = jp.one_shot(jp.saliency.magnitude(), jp.select.lowest_units(coupling))
    pruned = prune(weights, sparsity=0.3)
    kept = coupling.kept(pruned.mask)
    small = jp.shrink(weights, pruned.mask, coupling)
    assert trees.count(small) == coupling.parameters(kept) < 0.8 * trees.count(weights)
    masked = jax.jit(apply)(pruned.params, words)
    shrunk = jax.jit(jp.shrunk_apply(coupling, kept))(small, words)
    assert float(jnp.max(jnp.abs(masked - shrunk))) < 1e-5 * float(jnp.max(jnp.abs(masked)))
    np.testing.assert_allclose(apply(small, words), shrunk, rtol=1e-4, atol=1e-4)  # widths are read
    assert phonemes(masked) == phonemes(shrunk)
