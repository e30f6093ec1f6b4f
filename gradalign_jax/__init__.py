"""The preferential direction of the input gradients of robust classifiers, measured and trained for."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradalign_jax.evaluation.api import evaluate
    from gradalign_jax.evaluation.options import CW, PGD, Directions, Square, Suite

__version__ = "0.1.0"
__all__ = ["CW", "PGD", "Directions", "Square", "Suite", "__version__", "evaluate"]


def __getattr__(name: str) -> Any:
    """Import `evaluate` and its options, and JAX with them, when they are first used."""
    if name == "evaluate":
        from gradalign_jax.evaluation.api import evaluate

        return evaluate
    if name in ("CW", "PGD", "Directions", "Square", "Suite"):
        from gradalign_jax.evaluation import options

        return getattr(options, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
