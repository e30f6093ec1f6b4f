"""The environment of every test: four CPU devices, short compiles, no implicit broadcasting. Set before JAX starts.

Compiling is most of what the tests do, so machine code is left unoptimized, and a program that several tests or
workers need is compiled once. Programs that tests start (`python -m gradalign_jax.main`) inherit the environment.
"""

import os
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

_FLAGS = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# An array of another rank is broadcast only where the code says so: a [B] beside a [B, 1] is [B, B] otherwise.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers inherit the first process's
    _cache = tempfile.TemporaryDirectory(prefix="gradalign_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=20, help="how often tests/test_kills.py kills a run, over all tasks")


@pytest.fixture(scope="module", autouse=True)
def few_mappings():
    """Free compiled programs after a module: they have memory mappings, and Linux allows a process 65,530."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and len(mappings.read_bytes().splitlines()) > 15_000:
        import jax  # after the environment is set

        jax.clear_caches()


@pytest.fixture
def refused(caplog):
    """A context in which an error is raised: in one line, within 3 seconds, before anything is compiled."""
    import jax  # after the environment is set

    @contextmanager
    def context(error, match):
        started, before = time.monotonic(), len(caplog.records)
        with jax.log_compiles(), pytest.raises(error, match=match) as raised:
            yield raised
        assert time.monotonic() - started < 3
        assert "\n" not in str(raised.value)
        assert not [record for record in caplog.records[before:] if "ompil" in record.getMessage()]

    return context
