"""The ε-balls of the attacks: each norm is a random start, a direction of steepest ascent and a projection.

Vectors are `[B, ...]`, one per image; ε is a scalar or `[B]`. PGD needs only these three functions.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradalign_jax.types import Array


class Ball(NamedTuple):
    """The three functions of a norm.

    random_start(key, image) -> a uniform point of the unit ball, for one image without a batch axis.
    steepest_ascent(gradient) -> the step of length 1 that raises a linear function most.
    project(delta, epsilon) -> the closest point of the ball of radius ε.
    """

    random_start: Callable[[Array, Array], Array]
    steepest_ascent: Callable[[Array], Array]
    project: Callable[[Array, Array], Array]


def per_image(value: Array, like: Array) -> Array:
    """Return a scalar or `[B]` reshaped to broadcast against `[B, ...]`, in the type of `like`."""
    value = jnp.asarray(value, like.dtype)
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim)) if value.ndim else value


def check_epsilon(epsilon: Array) -> None:
    """Check ε, unless it is traced and has no value yet.

    Raises:
      ValueError: if ε is negative or NaN.
    """
    if not isinstance(epsilon, jax.core.Tracer) and not np.all(np.asarray(epsilon) >= 0):
        raise ValueError(f"epsilon={epsilon} must be >= 0, in the units of the images")


def _linf_ascent(gradient: Array) -> Array:
    # The sign, but 0 where the gradient is NaN: one such pixel would make all of the image NaN.
    return jnp.where(gradient > 0, 1, jnp.where(gradient < 0, -1, 0)).astype(gradient.dtype)


def _norm(vector: Array) -> Array:
    """Return the L2 norm of each image `[B, 1, ...]`, without underflow of the squares."""
    axes = tuple(range(1, vector.ndim))
    scale = jnp.max(jnp.abs(vector), axis=axes, keepdims=True)
    safe = jnp.where(scale > 0, scale, 1)
    return scale * jnp.sqrt(jnp.sum((vector / safe) ** 2, axis=axes, keepdims=True))


def _uniform_cube(key: Array, image: Array) -> Array:
    return jax.random.uniform(key, image.shape, image.dtype, -1.0, 1.0)


def _uniform_ball(key: Array, image: Array) -> Array:
    direction_key, radius_key = jax.random.split(key)
    direction = jax.random.normal(direction_key, image.shape, image.dtype)
    radius = jax.random.uniform(radius_key, (), image.dtype) ** (1.0 / image.size)
    return direction * radius / jnp.sqrt(jnp.sum(direction**2))


def _l2_ascent(gradient: Array) -> Array:
    norm = _norm(gradient)
    return jnp.where(norm > 0, gradient / jnp.where(norm > 0, norm, 1), 0)


def _l2_project(delta: Array, epsilon: Array) -> Array:
    norm = _norm(delta)
    epsilon = per_image(epsilon, delta)
    return jnp.where(norm > epsilon, delta * (epsilon / jnp.where(norm > 0, norm, 1)), delta)


def _linf_project(delta: Array, epsilon: Array) -> Array:
    epsilon = per_image(epsilon, delta)
    return jnp.clip(delta, -epsilon, epsilon)


BALLS = {
    "linf": Ball(_uniform_cube, _linf_ascent, _linf_project),
    "l2": Ball(_uniform_ball, _l2_ascent, _l2_project),
}
