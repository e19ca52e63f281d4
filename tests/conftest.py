"""One CPU device unless told otherwise, and 64 bits only where a test asks for them."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile(
    "jaxprune",
    deadline=None,  # the first example of a shape compiles
    derandomize=True,  # a red test stays red until it is mended
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("jaxprune")


@pytest.fixture
def x64():
    """64-bit types inside this test, and nowhere else."""
    with jax.enable_x64(True):
        yield
