"""The environment of every test: four CPU devices, short compiles, no implicit broadcasting. Set before JAX starts.

Compiling is most of what the tests do, so machine code is left unoptimized, and a program that several tests or
workers need is compiled once. Programs that tests start (`python -m gradalign_jax.main`) inherit the environment.
"""

import os
import tempfile

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
