"""The problem that units are removed from; a module with another has fixtures of its own."""

import pytest

from tests.transforms import residual_net


@pytest.fixture(scope="module")
def problem():
    return residual_net.problem()


@pytest.fixture(scope="module")
def light(problem):
    return residual_net.light(problem)
