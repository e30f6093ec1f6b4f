"""Exact Δx against the geometry it comes from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradalign_jax.deltax import exact


def test_spheres_lead_to_the_other_sphere():
    rng = np.random.default_rng(0)
    label = np.array([0, 1, 1, 0, 1], np.int32)
    image = rng.normal(size=(5, 500))
    image *= (np.where(label == 0, 1.0, 1.3) / np.linalg.norm(image, axis=1))[:, None]
    image = jnp.asarray(image, jnp.float32)
    delta = jax.jit(exact.spheres)(image, label, 1 - label, np.arange(5))
    assert delta.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(delta, axis=1), 0.3, rtol=1e-5)
    landed = np.linalg.norm(image + delta, axis=1)
    np.testing.assert_allclose(landed, np.where(label == 0, 1.3, 1.0), rtol=1e-5)


@pytest.mark.parametrize(("sides", "size", "norm"), [((142, 88), 224, 111.4), ((20, 12), 32, 16.0)])
def test_squares_turn_one_clean_image_into_the_other(sides, size, norm):
    half = size // 2
    clean = np.full((2, size, size, 1), -0.5, np.float32)
    for label, scale in enumerate((0.8, 0.5)):  # the authors' drawing: half-side int(half * 0.8 * scale)
        reach = int(half * 0.8 * scale)
        clean[label, half - reach : half + reach, half - reach : half + reach] = 0.5
    label = np.array([0, 1], np.int32)
    delta = jax.jit(exact.squares(sides, size))(jnp.asarray(clean), label, 1 - label, label)
    np.testing.assert_array_equal(clean + delta, clean[::-1])
    np.testing.assert_allclose(np.linalg.norm(np.asarray(delta).reshape(2, -1), axis=1), norm, atol=0.05)


def test_squares_depend_on_the_label_alone():
    delta_x = exact.squares((20, 12), 32)
    noise = jax.random.normal(jax.random.key(0), (3, 32, 32, 1))
    label = jnp.array([1, 0, 1])
    np.testing.assert_array_equal(delta_x(noise, label), delta_x(jnp.zeros_like(noise), label))
