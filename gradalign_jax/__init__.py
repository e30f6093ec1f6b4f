"""gradalign_jax: in which direction do the input gradients of robust classifiers point?"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradalign_jax.evaluation.api import evaluate

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate"]


def __getattr__(name: str) -> Any:
    """Import `evaluate`, and JAX with it, when it is first used."""
    if name == "evaluate":
        from gradalign_jax.evaluation.api import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
