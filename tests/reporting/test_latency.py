"""Latency: compiled once, warmed up, waited for, in turns."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.reporting import latencies, latency


def sleeper(seconds, log, name):
    """A traceable function that takes `seconds` and logs every run."""

    def host(x):
        log.append(name)
        time.sleep(seconds)
        return x

    def call(x):
        log.append("trace")
        return jax.pure_callback(host, jax.ShapeDtypeStruct((), jnp.float32), x)

    return call


def test_a_call_is_waited_for():
    def heavy(x):  # dispatched in about 0.1 ms, computed in tens
        return jax.lax.fori_loop(0, 40, lambda _, c: jnp.tanh(c @ c), x)

    x, compiled, by_hand = jnp.full((300, 300), 0.01), jax.jit(heavy), []
    for _ in range(4):
        start = time.perf_counter()
        np.asarray(compiled(x))
        by_hand.append(1e3 * (time.perf_counter() - start))
    assert latency(heavy, x, repeats=3, warmup=1).lower_ms > 0.3 * min(by_hand)


def test_it_is_traced_once_and_runs_warm_up_and_repeats():
    log = []
    measured = latency(sleeper(0, log, "run"), jnp.float32(1), repeats=4, warmup=2)
    assert log.count("trace") == 1
    assert log.count("run") == 4 + 2
    assert measured.repeats == 4


def test_compilation_is_not_counted():
    def slow_to_trace(x):
        time.sleep(0.3)
        return x + 1

    assert latency(slow_to_trace, 1.0, repeats=3, warmup=1).lower_ms < 300


def test_calls_take_turns():
    log = []
    calls = [(sleeper(0, log, name), (jnp.float32(1),)) for name in "ab"]
    latencies(calls, repeats=3, warmup=1)
    assert [name for name in log if name != "trace"] == ["a", "b"] * 4


def test_two_calls_of_one_function_share_its_compilation():
    log = []
    function = sleeper(0, log, "run")
    latencies([(function, (jnp.float32(1),)), (function, (jnp.float32(2),))], repeats=1)
    assert log.count("trace") == 1


def test_each_call_gets_its_own_time():
    calls = [(sleeper(seconds, [], ""), (jnp.float32(1),)) for seconds in (0.001, 0.02)]
    fast, slow = latencies(calls, repeats=3, warmup=1)
    assert slow.lower_ms >= 20
    assert fast.lower_ms < slow.lower_ms


def test_quartiles_surround_the_median_and_the_device_is_named():
    measured = latency(lambda p: p["a"] @ p["a"], {"a": jnp.ones((8, 8))}, repeats=9)
    assert 0 < measured.lower_ms <= measured.median_ms <= measured.upper_ms
    assert measured.device == jax.devices()[0].device_kind


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"warmup": 0}])
def test_no_repeats_or_no_warm_up_is_an_error(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"`{name}` is 0; at least 1"):
        latency(jnp.sin, 1.0, **wrong)


def test_abstract_arguments_are_an_error_that_says_what_to_do():
    with pytest.raises(TypeError, match=r"ShapeDtypeStruct of shape \(3,\).*concrete arrays"):
        latency(jnp.sin, jax.ShapeDtypeStruct((3,), jnp.float32))
