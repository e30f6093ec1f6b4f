"""Models, found by file name: `create("resnet", num_classes=10)` calls `create` of models/resnet.py."""

import difflib
import importlib
import inspect
import pkgutil
from typing import Any

from gradalign_jax.types import Classifier


def create(name: str, **options: Any) -> Classifier:
    """Returns `create(**options)` of the module of this package called `name`.

    Raises ValueError, naming what there is, if there is no such module, it creates nothing, or lacks an option.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name in names:
        module = importlib.import_module(f"{__name__}.{name}")
        if hasattr(module, "create"):
            known = inspect.signature(module.create).parameters
            for option in options:
                if option not in known:
                    raise ValueError(f"model {name!r} has no option {option!r}; it has {', '.join(known)}")
            return module.create(**options)
    models = [other for other in names if hasattr(importlib.import_module(f"{__name__}.{other}"), "create")]
    nearest = difflib.get_close_matches(name, models, cutoff=0.0)
    raise ValueError(f"no model called {name!r}; the nearest are: {', '.join(nearest)}")
