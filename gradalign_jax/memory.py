"""How many images a program takes at a time where the config leaves it open, and what to do when memory runs out."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from gradalign_jax.errors import OutOfMemoryError
from gradalign_jax.ops import platform

# Temporary bytes that a program takes for one image or pair, by the size of the images, from the H100 programs that
# launch/compile_report.py compiles: of an evaluation the larger of PGD's and of all alignments' (K gradients at once,
# float32), of a projection one step of Adam with TF32.
_EVALUATION = {32 * 32: 10.8e6, 28 * 28: 0.93e6, 224 * 224: 13.9e6}
_PROJECTION = 3.9e6
_CPU = {"evaluate": 100, "project": 16}  # measured fastest: what is worked on stays in the caches
_MOST = {"evaluate": 1000, "project": 2048}  # more does not fill a GPU better
_SHARE = 0.6  # of the memory; data, weights and fragmentation take the rest


def block(kind: str, shape: tuple[int, ...], on: list[jax.Device]) -> int:
    """Return how many images ("evaluate") or pairs ("project") a program takes at a time on each device.

    shape: of one image. A device that does not report its memory (a CPU) gets what is fastest there.
    """
    limit = capacity(on[0])
    if platform.is_cpu() or limit is None:
        return _CPU[kind] if platform.is_cpu() else _MOST[kind] // 10
    pixels = math.prod(shape[:2]) if len(shape) > 1 else shape[0]
    nearest = min(_EVALUATION, key=lambda known: abs(math.log(known / pixels)))
    each = _PROJECTION if kind == "project" else _EVALUATION[nearest] * max(pixels / nearest, 1)
    fitting = int(_SHARE * limit / each)
    return max(1, min(_MOST[kind], fitting))


def capacity(device: jax.Device) -> int | None:
    """Return the bytes that programs may take on a device; None where it does not report them."""
    return (device.memory_stats() or {}).get("bytes_limit")


@contextmanager
def limited_by(key: str, size: int, device: jax.Device, remedy: str = "") -> Iterator[None]:
    """Turn a device's lack of memory for a program of `size` images or pairs into one line.

    key: the config key that sets the size. remedy: what else helps.

    Raises:
      OutOfMemoryError: where a program inside takes more memory than the device has.
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
    """Return the largest size that fits by a failed allocation's message; 0 if not even 1 does.

    What a program takes grows with its size, so a share of it fits into the same share of the bytes. Where message or
    device do not tell bytes, half of the size.
    """
    units = {"b": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    asked = [float(n) * units[unit] for n, unit in re.findall(r"allocat\D{1,20}([\d.]+) ?(b|B|[KMG]iB)", message)]
    half = size // 2
    if not asked or not limit:
        return half
    return min(half, int(size * _SHARE * limit / max(asked)))
