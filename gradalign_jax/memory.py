"""The block size of a program where the config does not give one, and the error when memory runs out."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from gradalign_jax import processes
from gradalign_jax.errors import OutOfMemoryError
from gradalign_jax.ops import platform

# Temporary bytes per image or pair of a program compiled for an H100 (launch/compile_report.py). Evaluation, by the
# number of pixels: the larger of PGD and all alignments (K gradients at once, float32). Projection: one step of Adam in
# TF32.
_EVALUATION = {32 * 32: 10.8e6, 28 * 28: 0.93e6, 224 * 224: 13.9e6}
_PROJECTION = 3.9e6
_CPU = {"evaluate": 100, "project": 16}  # the fastest measured: the arrays stay in the caches
_MOST = {"evaluate": 1000, "project": 2048}  # larger blocks are no faster on a GPU
_SHARE = 0.6  # of the memory; the rest is for data, weights and fragmentation


def block(kind: str, shape: tuple[int, ...], on: list[jax.Device]) -> int:
    """Return the number of images or pairs per program on each device, the same in every process of a run.

    Args:
      kind: "evaluate" (images) or "project" (pairs).
      shape: the shape of one image.
      on: the devices. CPUs and devices that do not report their memory get a fixed number.
    """
    limit = processes.least(capacity(on[0]) or 0)
    if platform.is_cpu() or not limit:
        return _CPU[kind] if platform.is_cpu() else _MOST[kind] // 10
    pixels = math.prod(shape[:2]) if len(shape) > 1 else shape[0]
    nearest = min(_EVALUATION, key=lambda measured: abs(math.log(measured / pixels)))
    each = _PROJECTION if kind == "project" else _EVALUATION[nearest] * max(pixels / nearest, 1)
    fitting = int(_SHARE * limit / each)
    return max(1, min(_MOST[kind], fitting))


def capacity(device: jax.Device) -> int | None:
    """Return the bytes that programs may use on a device; None if it does not report them.

    Another process's device cannot be asked; it counts as one like this process's first.
    """
    if device.process_index != jax.process_index():
        device = jax.local_devices()[0]
    return (device.memory_stats() or {}).get("bytes_limit")


@contextmanager
def limited_by(key: str, size: int, device: jax.Device, remedy: str = "") -> Iterator[None]:
    """Explain in one line that a program in the context needs more memory than the device has.

    Args:
      key: the config key that sets the size.
      size: images or pairs per program.
      device: the device.
      remedy: other remedies, appended to the message.

    Raises:
      OutOfMemoryError: if a program in the context runs out of memory.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise
        smaller = fitting(size, str(error), capacity(device))
        raise OutOfMemoryError(
            f"out of device memory with {key}={size}: try {key}={smaller}{remedy}"
            if smaller
            else f"out of device memory with {key}={size}: use a device with more memory{remedy}"
        ) from error


def fitting(size: int, message: str, limit: int | None) -> int:
    """Return the largest size that fits according to a failed allocation's message; 0 if even 1 does not.

    Memory is proportional to the size. Where the message or the device gives no bytes, return half of the size.

    Args:
      size: the size that failed.
      message: the message of the failed allocation.
      limit: the bytes that programs may use; None: unknown.
    """
    units = {"b": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    needed = [float(n) * units[unit] for n, unit in re.findall(r"allocat\D{1,20}([\d.]+) ?(b|B|[KMG]iB)", message)]
    half = size // 2
    if not needed or not limit:
        return half
    return min(half, int(size * _SHARE * limit / max(needed)))
