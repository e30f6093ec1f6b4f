"""Δx of the synthetic data sets, in closed form (paper 3.2 and Figure 1).

With two classes the target is the other class, so no function here reads `target` or `index`.
"""

import jax.numpy as jnp
import numpy as np

from gradalign_jax.types import Array, DeltaX

RADII = (1.0, 1.3)  # Spheres: of class 0 and of class 1
SQUARES = {"squares": ((142, 88), 224), "squares32": ((20, 12), 32)}  # sides of class 0 and of class 1, and image size


def make(data_set: str) -> DeltaX:
    """Return Δx of "spheres", "squares" or "squares32".

    Raises:
      ValueError: for any other data set.
    """
    if data_set == "spheres":
        return spheres
    if data_set in SQUARES:
        return squares(*SQUARES[data_set])
    raise ValueError(f"no exact Δx is known for {data_set!r}: use one of {', '.join(['spheres', *SQUARES])}")


def spheres(image: Array, label: Array, target: Array | None = None, index: Array | None = None) -> Array:
    """Return the vector `[B, n]` from each point to the nearest point of the other sphere.

    +0.3 x from the inner sphere (class 0), -0.3 x / 1.3 from the outer one (class 1).
    """
    inner, outer = RADII
    scale = jnp.where(label == 0, (outer - inner) / inner, (inner - outer) / outer)
    return scale[:, None].astype(image.dtype) * image


def squares(sides: tuple[int, int], size: int) -> DeltaX:
    """Return Δx of centered squares of two sides on a background 1.0 darker.

    Args:
      sides: side in pixels of class 0 (large) and of class 1 (small): (142, 88), or (20, 12).
      size: height and width of the image in pixels.

    Returns:
      delta_x(image, label, target, index) -> `[B, size, size, 1]`: on the ring between the squares -1 for
      class 0, which shrinks the square, and +1 for class 1; 0 elsewhere.
    """
    large, small = (centred_square(size, side) for side in sides)
    ring = large & ~small

    def delta_x(image: Array, label: Array, target: Array | None = None, index: Array | None = None) -> Array:
        sign = jnp.where(label == 1, 1, -1).astype(image.dtype)
        return sign[:, None, None, None] * jnp.asarray(ring, image.dtype)[None, :, :, None]

    return delta_x


def centred_square(size: int, side: int) -> np.ndarray:
    """Return a mask `[size, size]`, True on the square of that (even) side around the center."""
    distance = np.arange(size) - size // 2
    inside = (distance >= -(side // 2)) & (distance < side // 2)
    return inside[:, None] & inside[None, :]
