"""The estimators of Δx against NumPy loops and closed forms; a new one joins by a row of `MADE`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradalign_jax import alignment
from gradalign_jax.deltax import centroid, encoder, exact, nearest, patch, sample, score, teacher, transport, vrgan

SHAPE, CLASSES = (4, 3, 2), 3


def examples(count=61, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (count, *SHAPE)).astype(np.float32), rng.permutation(np.arange(count) % CLASSES)


def generate(image, desired, actual):
    """Stands for a generator that moves an image by the difference of its classes."""
    return image * 0.1 + jnp.float32(desired - actual)[:, None, None, None]


def decode(z, target):
    """Stands for a conditional generator: latents `[B, 5]`, classes `[B]` -> images."""
    weights = np.random.default_rng(3).normal(size=(5, 24)).astype(np.float32)
    return jnp.tanh(z @ weights + jnp.float32(target)[:, None]).reshape(-1, *SHAPE)


def linear(image):
    weights = np.random.default_rng(4).normal(size=(24, CLASSES)).astype(np.float32)
    return image.reshape(len(image), -1) @ weights


MADE = {
    "sample": lambda: sample.make(*examples()),
    "patch": lambda: patch.make(*examples(), k=4, block=9),
    "patch, affine": lambda: patch.make(*examples(), k=4, hull="affine"),
    "transport": lambda: transport.make(*examples(), count=8),
    "teacher": lambda: teacher.make(linear, 2.0, steps=3),
    "encoder": lambda: encoder.make(decode, *examples(), latent_dim=5, steps=3, polish=2, hidden=8),
    "score": lambda: score.make(*examples(), steps=3, hidden=8),
    "vrgan": lambda: vrgan.make(generate),
    "centroid": lambda: centroid.make(*examples()),
    "nearest": lambda: nearest.make(*examples()),
    "nearest of several": lambda: nearest.make(*examples(), k=4, block=9),
}


@pytest.fixture
def batch():
    image, label = examples(8, seed=1)
    return image, label, (label + 1 + np.arange(8) % 2) % CLASSES, np.arange(8)


@pytest.mark.parametrize("name", MADE)
def test_is_a_function_of_each_image_alone(name, batch):
    """In the images' shape and type, jitted or not, and as a function that measures."""
    delta_x = MADE[name]()
    vector = delta_x(*batch)
    chex.assert_shape(vector, batch[0].shape)
    assert vector.dtype == np.float32
    np.testing.assert_allclose(jax.jit(delta_x)(*batch), vector, atol=1e-5)
    np.testing.assert_allclose(delta_x(*(leaf[2:3] for leaf in batch))[0], vector[2], atol=1e-5)
    weights = np.random.default_rng(2).normal(size=(24, CLASSES)).astype(np.float32)
    measured = alignment.measure(lambda x: jnp.tanh(x.reshape(len(x), -1)) @ weights, delta_x, batch[0], batch[1])
    assert np.all(np.abs(measured["alpha_delta_x"]) <= 1 + 1e-6)


@pytest.mark.parametrize("name", [name for name in MADE if name not in ("vrgan", "teacher")])
def test_examples_are_arguments_not_constants(name, batch):
    """As an argument of a program, so that a data set is not compiled into it."""
    delta_x = MADE[name]()
    assert jax.tree.leaves(delta_x)
    np.testing.assert_allclose(jax.jit(lambda made, *rest: made(*rest))(delta_x, *batch), delta_x(*batch), atol=1e-5)


def test_vrgan_passes_the_target_as_the_desired_class(batch):
    image, label, target, _ = batch
    np.testing.assert_allclose(
        vrgan.make(generate)(*batch), 0.1 * image + (target - label)[:, None, None, None], atol=1e-6
    )


def test_centroid_equals_a_numpy_loop(batch):
    images, labels = examples()
    for x, target, found in zip(batch[0], batch[2], centroid.make(images, labels)(*batch), strict=True):
        members = [a.astype(float) for a, y in zip(images, labels, strict=True) if y == target]
        np.testing.assert_allclose(found, sum(members) / len(members) - x, atol=1e-6)


@pytest.mark.parametrize(("k", "block"), [(1, 4096), (1, 7), (3, 5), (5, 61), (20, 8)])
def test_nearest_equals_a_numpy_loop(k, block):
    """With several blocks of each class, and several tiles of the 50 images, the last of which overlaps another."""
    images, labels = examples()
    image, label = examples(50, seed=1)
    targets = np.minimum(label, np.arange(50) % 2)
    found = jax.jit(nearest.make(images, labels, k, block))(image, targets, targets, None)
    for x, target, vector in zip(image.astype(float), targets, found, strict=True):
        members = sorted(
            (float(((a - x) ** 2).sum()), i) for i, (a, y) in enumerate(zip(images, labels, strict=True)) if y == target
        )[:k]
        squared = np.array([d for d, _ in members])
        weight = np.exp(-squared / squared.mean())
        weight /= weight.sum()
        expected = sum(w * (images[i] - x) for w, (_, i) in zip(weight, members, strict=True))
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_nearest_of_copies_is_zero(batch):
    image = batch[0]
    images, labels = np.tile(image[:1], (6, 1, 1, 1)), np.array([0, 0, 1, 1, 2, 2])
    delta_x = nearest.make(images, labels, k=2)
    np.testing.assert_allclose(delta_x(image[:1], np.array([0]), np.array([1]), None), 0, atol=1e-6)


def spheres(count, dimension, seed):
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 2
    image = rng.normal(size=(count, dimension))
    image *= (np.array(exact.RADII)[label] / np.linalg.norm(image, axis=1))[:, None]
    return image.astype(np.float32), label


def test_nearest_tends_to_the_exact_vector_on_spheres():
    """In 3 dimensions, at the rate that geometry gives.

    The nearest of N points of a sphere of radius R lies at an angle θ with E θ² = 4 / N, a step of R θ across Δx of
    length 0.3: 1 - cos = R² θ² / (2 · 0.3²), with R the radius of the other sphere.
    """
    image, label = spheres(2000, 3, 1)
    expected = exact.spheres(image, label)
    for count in (2000, 20000):  # half of them on each sphere
        vector = jax.jit(nearest.make(*spheres(count, 3, 2)))(image, label, 1 - label, None)
        cosine = alignment.cosine_similarity(vector, expected)
        theory = (1.3**2 + 1) / 2 * 4 / (count / 2) / (2 * 0.3**2)
        assert 1 - float(cosine.mean()) == pytest.approx(theory, rel=0.15)
    several = jax.jit(nearest.make(*spheres(20000, 3, 2), k=5))(image, label, 1 - label, None)
    assert np.linalg.norm(several - expected, axis=1).mean() < 0.03


def test_centroid_on_spheres_points_to_the_center():
    """Both means are 0, so it is right on the outer sphere, and the opposite of Δx on the inner one."""
    image, label = spheres(40, 500, 3)
    images, labels = np.concatenate([image, -image]), np.concatenate([label, label])
    vector = centroid.make(images, labels)(image, label, 1 - label, None)
    np.testing.assert_allclose(vector, -image, atol=1e-7)
    cosine = alignment.cosine_similarity(vector, exact.spheres(image, label))
    np.testing.assert_allclose(cosine, np.where(label == 1, 1, -1), atol=1e-5)


def test_centroid_cosine_in_the_presence_of_noise():
    """Two classes at ±μ with noise of variance σ² in each of n dimensions: E cos ≈ 2|μ| / √(4|μ|² + n σ²)."""
    rng = np.random.default_rng(4)
    dimension, sigma = 400, 0.2
    mean = rng.normal(size=dimension) / 20  # length about 1
    label = np.arange(2000) % 2
    image = np.where(label == 1, 1, -1)[:, None] * mean + sigma * rng.normal(size=(2000, dimension))
    image = image.astype(np.float32)
    vector = centroid.make(image, label)(image, label, 1 - label, None)
    towards = np.where(label == 1, -1, 1)[:, None] * mean.astype(np.float32)
    length = np.linalg.norm(mean)
    expected = 2 * length / np.sqrt(4 * length**2 + dimension * sigma**2)
    assert float(alignment.cosine_similarity(vector, jnp.asarray(towards)).mean()) == pytest.approx(expected, abs=0.01)


def test_exact_is_made_by_the_name_of_a_data_set():
    image, label = spheres(4, 500, 0)
    np.testing.assert_array_equal(exact.make("spheres")(image, label), exact.spheres(image, label))
    blank = jnp.zeros((2, 32, 32, 1))
    made = exact.make("squares32")(blank, jnp.array([0, 1]), jnp.array([1, 0]), None)
    np.testing.assert_allclose(jnp.sum(made**2, (1, 2, 3)), 20**2 - 12**2)
    with pytest.raises(ValueError, match=r"'mnist'.* spheres, squares, squares32"):
        exact.make("mnist")


@pytest.mark.parametrize("make", [module.make for module in (centroid, nearest, sample, patch, transport, score)])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda x, y: (np.uint8(x > 0), y), "cast them to floats"),
        (lambda x, y: (x, y[1:]), "labels must be 61 integers"),
        (lambda x, y: (x, y.astype(float)), "integers"),
        (lambda x, y: (x, y - 1), "must be >= 0"),
        (lambda x, y: (x, np.where(y == 1, 0, y)), "class 1 has 0 images"),
    ],
)
def test_wrong_examples_are_named(make, change, named):
    with pytest.raises(ValueError, match=named):
        make(*change(*examples()))


@pytest.mark.parametrize(("options", "named"), [({"k": 0}, "k and block"), ({"k": 21}, "class 1 has 20 images")])
def test_wrong_numbers_of_neighbors_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        nearest.make(*examples(), **options)
