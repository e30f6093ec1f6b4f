"""Δx as the residual that a trained VR-GAN generator adds to an image (section 2.3.1, Eq. 10).

    Δ̂x = G(x, target, y)

The generator is trained by `training/vrgan.py` with the other class as the target. Cost: one forward pass of the
generator for each image.
"""

from collections.abc import Callable

from gradalign_jax.types import Array, DeltaX

# image [B, ...], desired class [B], actual class [B] -> residual [B, ...]
GenerateFn = Callable[[Array, Array, Array], Array]


def make(generate_fn: GenerateFn) -> DeltaX:
    """Return Δx of a generator in evaluation mode, `generate_fn(image, desired, actual) -> residual [B, ...]`."""

    def delta_x(image: Array, label: Array, target: Array, index: Array | None = None) -> Array:
        return generate_fn(image, target, label)

    return delta_x
