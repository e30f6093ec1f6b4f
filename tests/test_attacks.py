"""PGD against closed forms and a plain NumPy loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradalign_jax.attacks import ball, pgd

SHAPE = (3, 2, 2)
WEIGHTS = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)


def linear(image):
    return image.reshape(image.shape[0], -1) @ WEIGHTS


def curved(image):
    return jnp.tanh(linear(image) / 4) @ np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)


def images(count=6, scale=0.5):
    rng = np.random.default_rng(2)
    return rng.uniform(-scale, scale, (count, *SHAPE)).astype(np.float32), rng.integers(0, 4, count)


def norm_of(delta, norm):
    flat = np.asarray(delta).reshape(len(delta), -1)
    return np.abs(flat).max(1) if norm == "linf" else np.linalg.norm(flat, axis=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("random_start", [True, False])
def test_linear_model_reaches_the_optimum(norm, random_start):
    direction = np.random.default_rng(3).normal(size=12).astype(np.float32)
    image, _ = images(5)
    label = jnp.zeros(5, int)

    def logits_fn(x):
        score = x.reshape(5, -1) @ direction
        return jnp.stack([score, -score], -1)

    epsilon = 0.3
    attack = pgd.make(norm, steps=100, random_start=random_start, loss="margin")
    attacked = attack(logits_fn, jax.random.key(0), image, label, epsilon, epsilon / 10)
    unit = np.sign(direction) if norm == "linf" else direction / np.linalg.norm(direction)
    best = image - epsilon * unit.reshape(SHAPE)
    value = np.asarray(attacked).reshape(5, -1) @ direction
    np.testing.assert_allclose(value, best.reshape(5, -1) @ direction, rtol=0, atol=1e-4)
    if norm == "linf":
        np.testing.assert_allclose(attacked, best, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["margin", "cross_entropy"])
def test_stays_in_ball_and_range(norm, loss):
    image, label = images(scale=1.0)
    epsilon = np.linspace(0, 1, len(image)).astype(np.float32)
    attack = pgd.make(norm, steps=7, loss=loss)
    attacked = attack(curved, jax.random.key(1), image, label, epsilon, 0.5)
    assert np.all(norm_of(attacked - image, norm) <= epsilon * (1 + 1e-5) + 1e-7)
    assert np.all(np.abs(attacked) <= 1)
    np.testing.assert_array_equal(attacked[0], image[0])  # its ε is 0
    assert norm_of(attacked - image, norm)[-1] > 0.1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_zero_epsilon_is_the_identity(norm):
    image, label = images(scale=1.0)
    attacked = pgd.make(norm)(curved, jax.random.key(1), image, label, 0.0, 0.1)
    np.testing.assert_array_equal(attacked, image)


def numpy_pgd(gradient, start, image, epsilon, step_size, steps, norm):
    """One image, written out."""
    x = start.copy()
    for _ in range(steps):
        g = gradient(x)
        if norm == "linf":
            delta = np.clip(x + step_size * np.sign(g) - image, -epsilon, epsilon)
        else:
            delta = x + step_size * g / np.linalg.norm(g) - image
            delta *= min(1, epsilon / np.linalg.norm(delta))
        x = np.clip(image + delta, -1, 1)
    return x


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_equals_a_numpy_loop_from_the_same_start(norm):
    image, label = images(scale=1.0)
    epsilon, step_size, steps, key = 0.6, 0.13, 12, jax.random.key(4)
    attack = pgd.make(norm, steps=steps, loss="cross_entropy")
    keys = pgd.image_keys(key, len(image))
    noise = jax.vmap(ball.BALLS[norm].random_start)(keys, jnp.asarray(image))
    starts = np.clip(image + epsilon * np.asarray(noise), -1, 1).astype(np.float64)
    attacked = attack(curved, key, image, label, epsilon, step_size)
    second = np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32).astype(float)
    for i, y in enumerate(label):

        def gradient(x, y=y):
            hidden = np.tanh(x.reshape(-1) @ WEIGHTS.astype(float) / 4)
            logits = hidden @ second
            probability = np.exp(logits - logits.max())
            probability /= probability.sum()
            back = second @ (probability - np.eye(4)[y])
            return (WEIGHTS @ ((1 - hidden**2) * back) / 4).reshape(SHAPE)

        expected = numpy_pgd(gradient, starts[i], image[i].astype(float), epsilon, step_size, steps, norm)
        np.testing.assert_allclose(attacked[i], expected, atol=2e-4)


def test_one_trace_for_three_epsilons():
    image, label = images()
    traces = []

    @jax.jit
    def attacked(epsilon, step_size):
        traces.append(1)
        return pgd.make("linf", steps=2)(curved, jax.random.key(0), image, label, epsilon, step_size)

    for epsilon in (0.1, 0.2, 0.3):
        attacked(epsilon, epsilon / 4)
    assert len(traces) == 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_zero_gradient_gives_no_nan(norm):
    image, label = images()
    flat = lambda x: jnp.zeros((x.shape[0], 4)) + 0 * x.sum()  # noqa: E731
    for random_start in (True, False):
        attacked = pgd.make(norm, random_start=random_start)(flat, jax.random.key(0), image, label, 0.3, 0.1)
        assert np.all(np.isfinite(attacked))
        assert np.all(norm_of(attacked - image, norm) <= 0.3 * (1 + 1e-5))


def test_l2_step_survives_gradients_whose_square_underflows():
    gradient = jnp.full((1, 4), 1e-30)
    np.testing.assert_allclose(ball.BALLS["l2"].steepest_ascent(gradient), 0.5, rtol=1e-6)


def test_starts_are_uniform_in_the_ball():
    point = jnp.zeros((4,))
    keys = jax.random.split(jax.random.key(0), 4000)
    radius = np.linalg.norm(jax.vmap(lambda k: ball.BALLS["l2"].random_start(k, point))(keys), axis=1)
    np.testing.assert_allclose((radius < 0.5 ** (1 / 4)).mean(), 0.5, atol=0.03)  # half the volume
    cube = np.asarray(jax.vmap(lambda k: ball.BALLS["linf"].random_start(k, point))(keys))
    assert np.abs(cube).max() <= 1
    np.testing.assert_allclose(cube.var(0), 1 / 3, atol=0.03)


def test_keys_per_image_make_the_batch_irrelevant():
    image, label = images()
    keys = jax.random.split(jax.random.key(0), len(image))
    attack = pgd.make("linf", steps=3)
    together = attack(curved, keys, image, label, 0.2, 0.1)
    alone = attack(curved, keys[2:3], image[2:3], label[2:3], 0.2, 0.1)
    np.testing.assert_allclose(together[2:3], alone, atol=1e-6)


@pytest.mark.parametrize(
    "arguments", [{"norm": "l1"}, {"loss": "hinge"}, {"steps": -1}, {"bounds": (1.0, -1.0)}], ids=str
)
def test_wrong_arguments_are_named(arguments):
    with pytest.raises(ValueError, match=r"l1|hinge|steps|bounds"):
        pgd.make(**arguments)


@pytest.mark.parametrize("epsilon", [-0.25, np.nan, np.array([0.1, -0.1])], ids=str)
def test_wrong_epsilons_are_named(epsilon):
    image, label = images()
    for attack in (pgd.make("l2", steps=1), pgd.make("linf", steps=1)):
        with pytest.raises(ValueError, match=r"epsilon=.* must be >= 0"):
            attack(curved, jax.random.key(0), image, label, epsilon, 0.1)
