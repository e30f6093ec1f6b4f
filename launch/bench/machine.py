"""The machine that the bench runs on: processor, device, versions, and its rates of matrix products."""

import os
import platform
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp

from launch.bench.peers import torch

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "numpy")


def cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def describe() -> dict:
    """Return processor, device and versions."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "versions": versions,
    }


def cpu_name() -> str:
    """Return the processor's model name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def matmul_rates(clock: Callable[[], float], size: int = 2048) -> dict[str, float]:
    """Return each framework's GFLOP/s of a float32 matrix product of this size, the best of several."""
    ours = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    sides: dict[str, Callable] = {"jax": lambda: product(ours, ours).block_until_ready()}
    if torch is not None:
        theirs = torch.ones(size, size)
        sides["torch"] = lambda: theirs @ theirs
    rates = {}
    for name, run in sides.items():
        run()
        rates[name] = round(2e-9 * size**3 / min(seconds(run, 1, clock) for _ in range(8)), 1)
    return rates


def seconds(run: Callable, calls: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the time of one call, averaged over `calls`."""
    start = clock()
    for _ in range(calls):
        run()
    return (clock() - start) / calls
