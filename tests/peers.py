"""Another implementation of the attacks, adv-lib in PyTorch, and a small classifier with equal weights in both."""

import contextlib
import types
from importlib.machinery import PathFinder

import jax
import jax.numpy as jnp
import numpy as np
import pytest

CLASSES, PIXELS, HIDDEN = 6, 40, 32
_RNG = np.random.default_rng(0)
FIRST = _RNG.normal(size=(PIXELS, HIDDEN)) / 3
SECOND = _RNG.normal(size=(HIDDEN, CLASSES)) / 2


def _module(package: str, distribution: str, module: str) -> types.ModuleType:
    """Import `PACKAGE.MODULE` and no other module of the package, or skip the test."""
    pytest.importorskip("torch")
    if PathFinder.find_spec(package) is None:
        pytest.skip(f"{distribution} is not installed: pip install --no-deps {distribution}")
    from launch.bench.torch_peer import adversarial

    return adversarial.import_alone(package, module)


def robustbench(module: str) -> types.ModuleType:
    """Import an architecture of RobustBench, without the model zoo: it needs fifteen packages."""
    return _module("robustbench", "robustbench", f"model_zoo.architectures.{module}")


def adv_lib(module: str, **corrections: str) -> types.ModuleType:
    """Import `adv_lib.MODULE` with `corrections` of its source (`adversarial.adv_lib`), or skip the test."""
    _module("adv_lib", "adv-lib", module)
    from launch.bench.torch_peer import adversarial

    return adversarial.adv_lib(module, **corrections)


def logits_fn(x):
    return jnp.tanh((x - 0.5) @ FIRST.astype(x.dtype)) @ SECOND.astype(x.dtype)


def torch_logits_fn(x):
    import torch

    return torch.tanh((x - 0.5) @ torch.as_tensor(FIRST, dtype=x.dtype)) @ torch.as_tensor(SECOND, dtype=x.dtype)


@contextlib.contextmanager
def precision(dtype):
    """Compute in this type: JAX, and the tensors that adv-lib creates."""
    import torch

    torch.set_default_dtype(getattr(torch, np.dtype(dtype).name))
    try:
        with jax.enable_x64(dtype == np.float64):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def images(count: int, dtype=np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Return images in [0, 1], some pixels at its ends, with the predicted labels, a few of them wrong."""
    rng = np.random.default_rng(1)
    image = rng.uniform(-0.1, 1.1, (count, PIXELS)).clip(0, 1).astype(dtype)
    label = np.asarray(logits_fn(image)).argmax(-1)
    label[::20] = (label[::20] + 1) % CLASSES
    return image, label
