"""Gradients and their measures against closed forms on linear models, NumPy loops and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg

from generators import lively
from gradalign_jax import gradients
from gradalign_jax.alignment import cosine_similarity
from gradalign_jax.gradients import integrated, plain, smoothgrad
from gradalign_jax.measures import etmann, noise, removal, tangent
from gradalign_jax.models import biggan_folded
from gradalign_jax.ops import platform

KEY = jax.random.key(0)
SHAPE, CLASSES = (4, 4, 2), 3


def network(rng, hidden=8):
    """A small smooth network of images."""
    w1 = jnp.asarray(rng.normal(size=(np.prod(SHAPE), hidden)), jnp.float32) / 4
    w2 = jnp.asarray(rng.normal(size=(hidden, CLASSES)), jnp.float32)
    return lambda x: jnp.tanh(x.reshape(len(x), -1) @ w1) @ w2


def batch(rng, count=5):
    image = jnp.asarray(rng.uniform(-1, 1, (count, *SHAPE)), jnp.float32)
    label = jnp.asarray(rng.integers(0, CLASSES, count), jnp.int32)
    return image, label, (label + 1) % CLASSES


@pytest.mark.parametrize("name", gradients.names())
def test_every_gradient_of_a_linear_model_is_the_difference_of_its_weights(name):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(np.prod(SHAPE), CLASSES)).astype(np.float32)
    image, label, target = batch(rng)
    logits_fn = lambda x: x.reshape(len(x), -1) @ weights  # noqa: E731
    found = jax.jit(lambda *rest: gradients.create(name)(logits_fn, *rest))(KEY, image, label, target)
    expected = (weights[:, target] - weights[:, label]).T.reshape(image.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_an_unknown_gradient_is_refused_with_the_names():
    with pytest.raises(ValueError, match="'saliency': use one of integrated, plain, smoothgrad"):
        gradients.create("saliency")


def test_plain_equals_finite_differences():
    rng = np.random.default_rng(1)
    logits_fn, (image, label, target) = network(rng), batch(rng, 1)
    with jax.enable_x64(True):
        image = image.astype(jnp.float64)
        found = plain.make()(logits_fn, None, image, label, target)
        loss = jax.jit(lambda x: logits_fn(x)[0, target[0]] - logits_fn(x)[0, label[0]])
        for place in np.ndindex(SHAPE):
            step = jnp.zeros_like(image).at[(0, *place)].set(1e-5)
            np.testing.assert_allclose(found[0][place], (loss(image + step) - loss(image - step)) / 2e-5, atol=1e-8)


def test_integrated_gradients_are_complete():
    rng = np.random.default_rng(2)
    logits_fn, (image, label, target) = network(rng), batch(rng)
    for baseline in (0.0, jnp.asarray(rng.uniform(-1, 1, SHAPE), jnp.float32)):
        found = integrated.make(steps=200, baseline=baseline, times_input=True)(logits_fn, None, image, label, target)
        ends = [logits_fn(x) for x in (image, jnp.broadcast_to(jnp.asarray(baseline), image.shape))]
        rows = jnp.arange(len(image))
        change = [logits[rows, target] - logits[rows, label] for logits in ends]
        np.testing.assert_allclose(found.sum((1, 2, 3)), change[0] - change[1], atol=1e-4)


def test_smoothgrad_of_a_quadratic_has_the_variance_of_its_noise():
    """∇ of |x|² / 2 at x + σu is x + σu: the mean is x, and its error has the deviation σ / √n."""
    image = jnp.asarray(np.random.default_rng(3).uniform(-1, 1, (4, 4000)), jnp.float32)
    logits_fn = lambda x: jnp.stack([jnp.zeros(len(x)), (x**2).sum(-1) / 2], -1)  # noqa: E731
    label = jnp.zeros(4, jnp.int32)
    error = smoothgrad.make(samples=25, noise=0.1)(logits_fn, KEY, image, label, label + 1) - image
    assert np.std(error) == pytest.approx(0.1 * 2 / 5, rel=0.05)
    assert abs(np.corrcoef(error)[0, 1]) < 0.1  # images have different noise


def test_smoothgrad_depends_on_the_image_and_its_key_alone():
    rng = np.random.default_rng(4)
    logits_fn, (image, label, target) = network(rng), batch(rng)
    make, keys = smoothgrad.make(samples=3), jax.random.split(KEY, 5)
    whole = make(logits_fn, keys, image, label, target)
    np.testing.assert_allclose(
        make(logits_fn, keys[3:], image[3:], label[3:], target[3:]), whole[3:], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("options", [{"samples": 0}, {"noise": -1.0}])
def test_smoothgrad_refuses_bad_options(options):
    with pytest.raises(ValueError, match="samples must be >= 1 and noise >= 0"):
        smoothgrad.make(**options)


def test_smoothgrad_without_a_key_is_refused():
    with pytest.raises(ValueError, match="needs a random key"):
        smoothgrad.make()(lambda x: x, None, jnp.ones((1, 2)), jnp.array([0]), jnp.array([1]))


def test_etmanns_alignment_equals_a_loop_and_alpha_x_times_the_norm():
    rng = np.random.default_rng(5)
    logits_fn, (image, _, _) = network(rng), batch(rng)
    gradient = etmann.predicted_gradient(logits_fn, image)
    found = etmann.alignment(image, gradient)
    for x, value in zip(image, found, strict=True):
        m = int(logits_fn(x[None])[0].argmax())
        g = np.asarray(jax.grad(lambda x, m=m: logits_fn(x[None])[0, m])(x), np.float64).ravel()
        np.testing.assert_allclose(value, abs(g @ np.asarray(x).ravel()) / np.sqrt(g @ g), rtol=1e-4)
    norm = jnp.linalg.norm(image.reshape(5, -1), axis=-1)
    np.testing.assert_allclose(found, norm * jnp.abs(cosine_similarity(image, gradient)), rtol=1e-4)
    np.testing.assert_allclose(etmann.alignment(image, 1e-30 * gradient), found, rtol=1e-4)
    np.testing.assert_array_equal(etmann.alignment(image, jnp.zeros_like(image)), 0)


# ---- tangent space


@pytest.mark.parametrize("name", ["cpu", "gpu"])
@pytest.mark.parametrize("rank", [6, 4])
def test_the_tangent_share_of_a_linear_generator_is_exact(name, rank):
    rng = np.random.default_rng(6)
    matrix = (rng.normal(size=(32, rank)) @ rng.normal(size=(rank, 6))).astype(np.float32)
    generate_fn = lambda z, label: (z @ matrix.T).reshape(-1, *SHAPE)  # noqa: E731
    z, gradient = rng.normal(size=(3, 6)), rng.normal(size=(3, *SHAPE)).astype(np.float32)
    with platform.target(name):
        jacobian = tangent.jacobian(generate_fn, jnp.asarray(z, jnp.float32), jnp.zeros(3, int))
    np.testing.assert_allclose(jacobian, np.broadcast_to(matrix, (3, 32, 6)), rtol=1e-5, atol=1e-6)
    basis = jax.jit(tangent.basis)(jacobian)
    assert (np.linalg.norm(basis, axis=1) > 0.5).sum(-1).tolist() == [rank] * 3
    space = linalg.orth(matrix.astype(float), rcond=1e-5)
    assert space.shape[1] == rank
    inside = gradient.reshape(3, -1) @ space
    expected = (inside**2).sum(-1) / (gradient.reshape(3, -1) ** 2).sum(-1)
    np.testing.assert_allclose(tangent.share(basis, gradient), expected, rtol=1e-5)
    np.testing.assert_allclose(tangent.share(basis, 1e-30 * gradient), expected, rtol=1e-4)
    np.testing.assert_allclose(tangent.project(basis, gradient).reshape(3, -1), inside @ space.T, atol=1e-5)


def test_a_tangent_space_needs_more_pixels_than_latents():
    with pytest.raises(ValueError, match="9 latents for images of 4 values"):
        tangent.basis(jnp.zeros((1, 4, 9)))


@pytest.mark.parametrize("form", ["folded", "folded for a GPU", "unfolded"])
def test_the_jacobian_of_a_gan_equals_finite_differences(form):
    with platform.target("gpu" if form == "folded for a GPU" else "cpu"):
        generator, variables = lively(channels=1, width=8)
        arrays, constants = jax.tree.map(jnp.asarray, variables), biggan_folded.fold(variables)

        def generate_fn(z, label):
            if form == "unfolded":
                return generator.apply(arrays, z, label)[0]
            return biggan_folded.generate(constants, z, label)

        z, label = jax.random.normal(KEY, (2, 128)), jnp.array([0, 2])
        jacobian = jax.jit(lambda z: tangent.jacobian(generate_fn, z, label))(z)
        generate, size = jax.jit(generate_fn), 1e-2
        scale = float(jnp.abs(jacobian).max())
        for i in range(0, 128, 30):
            step = size * jnp.eye(128)[i][None]
            difference = (generate(z + step, label) - generate(z - step, label)) / (2 * size)
            # A ReLU that changes side within the step leaves a difference.
            error = jnp.abs(jacobian[..., i] - difference.reshape(2, -1)) / scale
            assert float(jnp.median(error)) < 1e-3
            assert float(error.max()) < 0.1


def test_noise_on_and_off_the_manifold_of_a_linear_classifier():
    """A classifier whose weights lie in the tangent space does not react to noise orthogonal to it, and vice versa."""
    rng = np.random.default_rng(7)
    space = np.linalg.qr(rng.normal(size=(32, 32)))[0].astype(np.float32)
    basis = jnp.broadcast_to(space[None, :, :6], (40, 32, 6))
    image = jnp.asarray(rng.uniform(-1, 1, (40, *SHAPE)), jnp.float32)
    for columns, quiet in ((slice(0, 6), 1), (slice(6, 32), 0)):
        weights = space[:, columns] @ rng.normal(0, 0.3, (space[:, columns].shape[1], CLASSES)).astype(np.float32)
        logits_fn = lambda x, w=weights: x.reshape(len(x), -1) @ w  # noqa: E731
        changes = noise.change(logits_fn, KEY, image, basis, 0.5)
        np.testing.assert_allclose(changes[quiet], 0, atol=1e-4)
        assert changes[1 - quiet].mean() > 0.01
        longer = noise.change(logits_fn, KEY, image, basis, 1.0)
        assert longer[1 - quiet].mean() > changes[1 - quiet].mean()


def test_noise_has_the_length_of_its_radius():
    seen = []

    def logits_fn(x):
        seen.append(x)
        return jnp.zeros((len(x), 2))

    basis = jnp.broadcast_to(jnp.eye(32)[None, :, :6], (3, 32, 6))
    noise.change(logits_fn, KEY, jnp.zeros((3, *SHAPE)), basis, 0.7)
    before, on, off = (np.asarray(x).reshape(3, 32) for x in seen)
    np.testing.assert_array_equal(before, 0)
    np.testing.assert_allclose(np.linalg.norm(on, axis=1), 0.7, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(off, axis=1), 0.7, rtol=1e-5)
    np.testing.assert_allclose(on[:, 6:], 0, atol=1e-6)
    np.testing.assert_allclose(off[:, :6], 0, atol=1e-6)


# ---- removal


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_removal_equals_a_loop(share):
    rng = np.random.default_rng(8)
    image = rng.uniform(-1, 1, (3, *SHAPE)).astype(np.float32)
    gradient = np.round(rng.normal(size=(3, *SHAPE)), 1).astype(np.float32)  # with ties
    fill = np.array([0.25, -0.5], np.float32)
    found = jax.jit(removal.remove)(image, gradient, share, fill)
    for x, g, result in zip(image, gradient, found, strict=True):
        size = np.abs(g).sum(-1).ravel()
        order = sorted(range(size.size), key=lambda i: (-size[i], i))
        expected = x.reshape(-1, 2).copy()
        expected[order[: round(share * size.size)]] = fill
        np.testing.assert_array_equal(result, expected.reshape(SHAPE))


def test_removal_from_vectors_of_coordinates():
    image, gradient = jnp.arange(1.0, 9.0).reshape(2, 4), jnp.array([[1.0, -3.0, 2.0, 0.0], [0.0, 0.0, 0.0, -1.0]])
    found = removal.remove(image, gradient, 0.5, 0.0)
    np.testing.assert_array_equal(found, [[1, 0, 0, 4], [0, 6, 7, 0]])
