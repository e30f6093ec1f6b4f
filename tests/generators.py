"""Generators that no run has trained, for tests."""

import jax
import numpy as np

from gradalign_jax.models import biggan


def lively(classes=3, channels=3, width=16, seed=0):
    """A generator whose statistics, gains and biases all matter, as a trained one's do."""
    rng = np.random.default_rng(seed)
    drawn = {
        **dict.fromkeys(("gain", "bias", "mean"), lambda shape: rng.normal(0, 0.2, shape)),
        "var": lambda shape: rng.uniform(0.5, 2, shape),
        "scale": lambda shape: rng.uniform(-1.5, 1.5, shape),
        **dict.fromkeys(("kernel", "u"), rng.standard_normal),
    }
    generator = biggan.create_generator(classes, channels, width=width)
    shapes = jax.eval_shape(generator.init, jax.random.key(0))
    draw = jax.tree_util.tree_map_with_path
    return generator, draw(lambda path, leaf: drawn[path[-1].key](leaf.shape).astype(np.float32), shapes)
