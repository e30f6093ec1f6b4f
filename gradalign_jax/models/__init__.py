"""Models by file name: `create("resnet", num_classes=10)` calls `create` of models/resnet.py."""

import difflib
import importlib
import inspect
import pkgutil
from typing import Any

from gradalign_jax.types import Classifier


def create(name: str, **options: Any) -> Classifier:
    """Build a classifier with `create(**options)` of the module of this package called `name`.

    Raises:
      ValueError: if no such module has a `create`, or it has no such option; the message lists the valid names.

    Example:
      >>> import jax
      >>> model = create("mlp", num_classes=2, hidden=(8,), input_size=4)
      >>> variables = model.init(jax.random.key(0))
      >>> logits, _ = model.apply(variables, jax.numpy.ones((3, 4)))
      >>> logits.shape
      (3, 2)
    """
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name in names:
        module = importlib.import_module(f"{__name__}.{name}")
        if hasattr(module, "create"):
            valid = inspect.signature(module.create).parameters
            for option in options:
                if option not in valid:
                    raise ValueError(f"model {name!r} has no option {option!r}: use {', '.join(valid)}")
            return module.create(**options)
    models = [other for other in names if hasattr(importlib.import_module(f"{__name__}.{other}"), "create")]
    nearest = difflib.get_close_matches(name, models, cutoff=0.0)
    raise ValueError(f"no model called {name!r}: the nearest are: {', '.join(nearest)}")
