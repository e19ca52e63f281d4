"""One CPU device unless told otherwise, and 64 bits only where a test asks for them."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Most of the suite's time is XLA compiling what another test, or the other worker, has compiled:
# all processes of one run share a cache, which goes when the run ends.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.mkdtemp(prefix="jaxprune-tests-")
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

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


def pytest_configure(config):
    """What runs once and on a few numbers is not worth LLVM's time; `-m slow` has the defaults."""
    if "XLA_FLAGS" not in os.environ and config.option.markexpr == "not slow":
        os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items):
    """Of a test marked `every(n)`, one combination of its parameters in n is fast.

    The fast ones lie as diagonals of a board: of two long tables every value is among them.
    """
    for item in items:
        if mark := item.get_closest_marker("every"):
            tables = [mark.args[0] for mark in item.iter_markers("parametrize")]
            named = [
                [n.strip() for n in (t.split(",") if isinstance(t, str) else t)] for t in tables
            ]
            fixtures = item.callspec.indices.keys() - {n for names in named for n in names}
            places = [item.callspec.indices[n] for n in (*(names[0] for names in named), *fixtures)]
            if sum(places) % mark.args[0]:
                item.add_marker("slow")


@pytest.fixture
def x64():
    """64-bit types inside this test, and nowhere else."""
    with jax.enable_x64(True):
        yield
