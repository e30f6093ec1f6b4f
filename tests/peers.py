"""Another implementation of the attacks, adv-lib in PyTorch, and a small classifier with equal weights in both."""

import contextlib
import importlib
import sys
import types
from importlib.machinery import PathFinder
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

CLASSES, PIXELS, HIDDEN = 6, 40, 32
_RNG = np.random.default_rng(0)
FIRST = _RNG.normal(size=(PIXELS, HIDDEN)) / 3
SECOND = _RNG.normal(size=(HIDDEN, CLASSES)) / 2


def _module(package: str, distribution: str, module: str) -> types.ModuleType:
    """Import `PACKAGE.MODULE` and no other module of the package, whose dependencies may be missing."""
    pytest.importorskip("torch")
    found = PathFinder.find_spec(package)  # also finds a package whose parent below stands in for it
    if found is None:
        pytest.skip(f"{distribution} is not installed: pip install --no-deps {distribution}")
    parts = module.split(".")
    for end in range(len(parts)):
        name = ".".join([package, *parts[:end]])
        if name not in sys.modules:
            parent = types.ModuleType(name)
            parent.__path__ = [str(Path(found.submodule_search_locations[0]).joinpath(*parts[:end]))]
            sys.modules[name] = parent
    return importlib.import_module(f"{package}.{module}")


def robustbench(module: str) -> types.ModuleType:
    """Import an architecture of RobustBench, without the model zoo: it needs fifteen packages."""
    return _module("robustbench", "robustbench", f"model_zoo.architectures.{module}")


def adv_lib(module: str, **corrections: str):
    """Import `adv_lib.MODULE`, without the package's other attacks: they need torchvision and visdom.

    `corrections` are assignments in its source: variable="right-hand side" replaces the last one of that variable.
    """
    loaded = _module("adv_lib", "adv-lib", module)
    if not corrections:
        return loaded
    source = Path(loaded.__file__).read_text()
    for variable, value in corrections.items():
        before, after = source.rsplit(f" {variable} = ", 1)
        source = f"{before} {variable} = {value}\n{after.split(chr(10), 1)[1]}"
    corrected = types.ModuleType(f"{loaded.__name__}_corrected")
    exec(compile(source, loaded.__file__, "exec"), corrected.__dict__)
    return corrected


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
