"""What surgeons of a local model are not given, they say when they are made, or when called."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.surgeon import Effort, LocalModel, joint_surgeon, multi_stage_surgeon
from tests.problems import softmax_loss


def apply(params, x):
    return jnp.tanh(x @ params["first"]) @ params["second"]


PARAMS = {"first": jnp.arange(1.0, 65).reshape(8, 8) / 64, "second": jnp.ones((8, 4))}
BATCH = (jnp.eye(8), jnp.arange(8) % 4)


@pytest.fixture
def model():
    return LocalModel(apply, softmax_loss, damping=1e-3, examples=60)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: joint_surgeon(m, dampings=(0.0,)), "must be > 0"),
        (lambda m: joint_surgeon(replace(m, damping=0.0)), "must be > 0"),
        (lambda m: joint_surgeon(m, scales=()), "scales"),
        (lambda m: Effort(rounds=0), "rounds"),
        (lambda m: replace(m, damping=-1.0), "damping"),
        (lambda m: replace(m, damping=True), "damping"),
        (lambda m: replace(m, examples=0), "examples"),
        (lambda m: replace(m, examples=32.0), "`examples` is .* integer"),
        (lambda m: replace(m, examples="all"), "`examples` is .* integer"),
        (lambda m: joint_surgeon(m, dampings=0.1), "`dampings` are several numbers"),
        (lambda m: joint_surgeon(m, scales=0.5), "`scales` are several numbers"),
        (lambda m: joint_surgeon(m, share_tries=2.5), "share_tries"),
        (lambda m: joint_surgeon(m, share_tries=-3), "share_tries"),
        (lambda m: multi_stage_surgeon(m, dampings=0.1), "`dampings` are several numbers"),
        (lambda m: multi_stage_surgeon(m, probes=0), "probes"),
        (lambda m: multi_stage_surgeon(m, probes=2.5), "probes"),
        (lambda m: multi_stage_surgeon(m, stages=0), "stages"),
        (lambda m: multi_stage_surgeon(m, tuning=-1), "tuning"),
        (lambda m: multi_stage_surgeon(m, schedule=lambda s: 0.5), "rise to 1"),
    ],
)
def test_bad_options_are_refused_when_given(make, words, model):
    with pytest.raises(ValueError, match=words):
        make(model)


@pytest.mark.parametrize("make", [joint_surgeon, multi_stage_surgeon, jp.surgeon.woodfisher,
                                  jp.surgeon.optimal_brain_surgeon,
                                  jp.surgeon.combinatorial_brain_surgeon])  # fmt: skip
def test_other_models_and_selections_are_refused_when_given(make, model):
    with pytest.raises(TypeError, match=r"LocalModel\(apply, loss\)`; got function"):
        make(apply)
    with pytest.raises(TypeError, match=r"`select` is a selection.*got 'layer'"):
        make(model, "layer")
    assert replace(model, damping=np.float32(1e-3)).damping > 0


def test_a_start_by_itself_and_a_call_without_data_are_refused(model):
    with pytest.raises(TypeError, match="starts=\\(prune,\\)"):
        joint_surgeon(model, starts=joint_surgeon(model))
    with pytest.raises(ValueError, match=r"surgeon needs data.*got no batch"):
        joint_surgeon(model)(PARAMS, sparsity=0.5)


def test_few_weights_without_a_finite_objective_are_named():
    loss = lambda y, t: 0.5 * (y - t) ** 2
    local = LocalModel(lambda w, x: x @ w[:, 0], loss)
    x = jnp.ones((8, 4)).at[0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match="Pass a larger `damping`, or check the parameters"):
        joint_surgeon(local)(jnp.arange(4.0)[:, None], (x, jnp.zeros(8)), sparsity=0.5)


def test_calls_inside_jit_and_weights_that_are_not_numbers_are_refused(model):
    prune = joint_surgeon(model, effort=Effort(rounds=2))
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda p: prune(p, BATCH, sparsity=0.5).params)(PARAMS)
    bad = {**PARAMS, "first": PARAMS["first"].at[0, 0].set(jnp.nan)}
    with pytest.raises(ValueError, match="NaN"):
        prune(bad, BATCH, sparsity=0.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"search": "greedy"}, '"exchange", "paper"'), ({"draws": 0}, "`draws`"),
     ({"range": -1}, "`range`"), ({"scales": ()}, "`scales`"), ({"dampings": (-1.0,)}, "dampings"),
     ({"epsilon": -1.0}, "`epsilon`"), ({"buckets": 0}, "`buckets`"),
     ({"scales": 0.5}, "`scales` are several"), ({"dampings": 0.1}, "`dampings` are several")],
)  # fmt: skip
def test_bad_options_of_the_combinatorial_surgeon_are_refused(options, words, model):
    with pytest.raises(ValueError, match=words):
        jp.surgeon.combinatorial_brain_surgeon(model, **options)
