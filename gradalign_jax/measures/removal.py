"""Images without the pixels that a gradient ranks highest.

If the gradient finds the pixels that the classifier uses, accuracy falls on these images. ROAR (Hooker et al. 2019)
retrains the classifier on such images. Here it is not retrained, so accuracy also falls because the images differ from
the training images: compare with the removal of random pixels.
"""

import jax.numpy as jnp
import numpy as np

from gradalign_jax.types import Array


def remove(image: Array, gradient: Array, share: float | Array, fill: float | Array | np.ndarray) -> Array:
    """Return the images with a share of their pixels replaced by `fill`.

    The pixels with the largest |gradient|, summed over channels, go first; of equal ones the earlier pixel.

    Args:
      image: `[B, H, W, C]`, or `[B, n]` of n pixels.
      gradient: in the shape of the images.
      share: of the pixels, 0 to 1, rounded to the nearest count; may be traced.
      fill: a value, or one per channel `[C]`: ROAR takes the mean of the training images.
    """
    size = jnp.abs(gradient).reshape(len(image), -1) if image.ndim == 2 else jnp.abs(gradient).sum(-1)
    flat = size.reshape(len(image), -1)
    rank = jnp.argsort(jnp.argsort(-flat, axis=-1, stable=True), axis=-1)  # 0: the largest
    removed = rank < jnp.round(share * flat.shape[-1])
    removed = removed if image.ndim == 2 else removed.reshape(*image.shape[:-1], 1)
    fill = jnp.asarray(fill, image.dtype)
    return jnp.where(removed, fill.reshape((1,) * (image.ndim - fill.ndim) + fill.shape), image)
