"""Input gradients of a logit difference, plain or averaged, one per file.

    plain        ∇(logit_target - logit_label) at x                           make()
    smoothgrad   its mean over x plus noise                                   make(samples, noise)
    integrated   its mean over the line from a baseline to x                  make(steps, baseline)

Each `make(...)` returns `gradient(logits_fn, key, image, label, target) -> [B, ...]` (`types.Gradient`), which should
point along Δx to class `target`. `config.evaluate.gradients` selects them by file name. To add one, add a file with
such a `make`, whose options have defaults; each image of the batch must be treated on its own.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the config's checks read the names before JAX is imported
    from gradalign_jax.types import Gradient


def names() -> list[str]:
    """Return the names of all gradients, the files of this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def create(name: str) -> "Gradient":
    """Build the gradient of this name with its default options.

    Raises:
      ValueError: if there is none.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> logits_fn = lambda x: jnp.stack([x[:, 0], 3 * x[:, 1]], -1)
      >>> create("plain")(logits_fn, None, jnp.ones((1, 2)), jnp.array([0]), jnp.array([1]))
      Array([[-1.,  3.]], dtype=float32)
    """
    if name not in names():
        raise ValueError(f"unknown gradient {name!r}: use one of {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}").make()
