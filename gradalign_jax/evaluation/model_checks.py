"""Properties of a classifier that make attacks on it weak or its numbers doubtful (after the checks of AutoAttack)."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params

from gradalign_jax.types import Array, LogitsFn

_ROUNDING = 1e-4  # tolerance for the sum of probabilities, and for two calls of one function


def collect(logits_fn: LogitsFn, image: Array) -> list[str]:
    """Return warnings about a classifier, a line each, from its logits of a few images `[B, ...]`."""
    # Compiled, because op by op a large model would compile for minutes on a GPU; in a function of our own, because a
    # callable need not be hashable or allow weak references.
    call = jax.jit(lambda image: logits_fn(image))
    logits = np.asarray(call(image), np.float64)
    return _random(logits, np.asarray(call(image), np.float64)) + _normalized(logits) + _inner(logits_fn, image)


def _random(first: np.ndarray, second: np.ndarray) -> list[str]:
    """Warn of logits that differ between two calls."""
    scale = np.abs(first[np.isfinite(first)]).max(initial=0)
    if np.allclose(first, second, rtol=_ROUNDING, atol=_ROUNDING * scale, equal_nan=True):
        return []
    return [
        "logits_fn returns different logits for the same images: a random or stateful model needs attacks on its "
        "expectation, and these numbers hold for one draw"
    ]


def _normalized(logits: np.ndarray) -> list[str]:
    """Warn of outputs that are probabilities or their logarithms."""
    if not np.isfinite(logits).all():
        return []
    of = None
    if logits.min() >= 0 and np.allclose(logits.sum(-1), 1, atol=_ROUNDING):
        of = "probabilities (softmax outputs): attacks on them see gradients that vanish"
    elif logits.max() <= 0 and np.allclose(np.exp(logits).sum(-1), 1, atol=_ROUNDING):
        of = "log-probabilities: the alignments of a single logit's gradient (alpha_x) are then another quantity"
    return [f"logits_fn seems to return {of}; give the logits before the softmax"] if of else []


def _inner(logits_fn: LogitsFn, image: Array) -> list[str]:
    """Warn of gradients inside the forward pass, such as those of a defense that optimizes its input."""
    jaxpr = jax.make_jaxpr(logits_fn)(jnp.asarray(image))
    if not any("transpose(jvp" in str(equation.source_info.name_stack) for equation in _equations(jaxpr.jaxpr)):
        return []
    return [
        "logits_fn computes gradients inside its forward pass: attacks differentiate through that optimization, which "
        "often hides the useful gradient; attack the model without it as well"
    ]


def _equations(jaxpr):
    """Yield the equations of a jaxpr and of the jaxprs inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _equations(inner)
