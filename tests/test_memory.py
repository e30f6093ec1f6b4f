"""Block sizes, and the error when a device's memory runs out."""

import jax
import pytest

from gradalign_jax import main, memory, parallel
from gradalign_jax.errors import RunError
from gradalign_jax.ops import platform


class Device:
    """A device that reports its memory."""

    process_index = 0

    def __init__(self, gigabytes):
        self.gigabytes = gigabytes

    def memory_stats(self):
        return {"bytes_limit": int(self.gigabytes * 1e9)}


def test_a_cpu_gets_a_fixed_block():
    assert memory.block("evaluate", (32, 32, 3), jax.local_devices()) == 100
    assert memory.block("project", (32, 32, 3), jax.local_devices()) == 16


@pytest.mark.parametrize("kind", ["evaluate", "project"])
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (224, 224, 1), (500,), (512, 512, 1)])
def test_blocks_grow_with_the_memory(kind, shape):
    with platform.target("gpu"):
        sizes = [memory.block(kind, shape, [Device(gigabytes)]) for gigabytes in (0.001, 1, 16, 80)]
    assert sizes == sorted(sizes)
    assert sizes[0] >= 1
    assert sizes[-1] <= 2048


def test_large_images_get_smaller_blocks():
    with platform.target("gpu"):
        sizes = [memory.block("evaluate", (n, n, 1), [Device(16)]) for n in (28, 224, 448)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[2]


MESSAGES = [
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 160000000000 bytes.",
    "RESOURCE_EXHAUSTED: Failed to allocate request for 149.01GiB (160000000000B) on device ordinal 0",
]


@pytest.mark.parametrize("message", MESSAGES)
def test_the_suggested_size_follows_from_the_bytes(message):
    assert memory.fitting(1000, message, 80_000_000_000) == 300  # 0.6 of the half that fits
    assert memory.fitting(1000, message, None) == 500
    assert memory.fitting(1000, "no number", 80_000_000_000) == 500
    assert memory.fitting(1, message, 80_000_000_000) == 0


def test_the_error_names_the_key_and_a_value():
    error = jax.errors.JaxRuntimeError(MESSAGES[0])
    with (
        pytest.raises(memory.OutOfMemoryError, match=r"config.evaluate.block=100: try config.evaluate.block=30$"),
        memory.limited_by("config.evaluate.block", 100, Device(80)),
    ):
        raise error
    with (
        pytest.raises(memory.OutOfMemoryError, match="use a device with more memory"),
        memory.limited_by("config.project.block", 1, Device(80)),
    ):
        raise error


def test_other_errors_pass_through():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory.limited_by("key", 1, Device(80)):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_a_full_disk_is_not_reported_as_device_memory():
    disk = RunError("cannot write checkpoint 2: RESOURCE_EXHAUSTED: write failed")
    assert main._reason(disk) == str(disk)
    assert "device memory" not in main._reason(ValueError("RESOURCE_EXHAUSTED: ENOSPC"))
    assert main._reason(jax.errors.JaxRuntimeError(MESSAGES[0])).startswith("out of device memory")


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize backend 'cuda'\nno devices")])
def test_a_missing_platform_is_reported_in_one_line(error, monkeypatch):
    def no_devices():
        raise error

    monkeypatch.setattr(jax, "local_devices", no_devices)
    with pytest.raises(RunError, match=r"^JAX_PLATFORMS=cpu: JAX finds no such device.*; unset it, or set cpu$"):
        parallel.check_platform()
