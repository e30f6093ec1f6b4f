"""Four CPU devices for every test, and short compiles; set before JAX starts.

Compiling is most of what the tests do: machine code is left unoptimised, and a program that several tests or workers
need is compiled once.
"""

import os
import tempfile

_FLAGS = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers inherit the first process's
    _cache = tempfile.TemporaryDirectory(prefix="gradalign_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
