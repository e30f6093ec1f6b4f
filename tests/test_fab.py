"""FAB-T: the projection against SciPy and by enumeration, distances to hyperplanes, and adv-lib in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog, minimize

import peers
from gradalign_jax.attacks import fab, targets

SHAPE = (3, 2, 2)
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(12, 5)).astype(np.float32)
SECOND = RNG.normal(size=(5, 4)).astype(np.float32)


def curved(image):
    return jnp.tanh(image.reshape(image.shape[0], -1) @ WEIGHTS) @ SECOND


def images(count=12):
    image = np.random.default_rng(2).uniform(-1, 1, (count, *SHAPE)).astype(np.float32)
    return image, np.asarray(curved(image)).argmax(-1)


def norm_of(delta, norm):
    return np.linalg.norm(np.asarray(delta).reshape(len(delta), -1), np.inf if norm == "linf" else 2, axis=1)


def smallest_change(norm, point, normal, value, low, high):
    """One point, by linear and by quadratic programming: the distance."""
    if norm == "linf":
        cost = np.append(np.zeros(len(point)), 1)
        within = np.block(
            [[np.eye(len(point)), -np.ones((len(point), 1))], [-np.eye(len(point)), -np.ones((len(point), 1))]]
        )
        room = [*zip(low - point, high - point, strict=True), (0, None)]
        solved = linprog(cost, within, np.zeros(2 * len(point)), np.append(normal, 0)[None], [-value], room)
        return solved.fun if solved.success else None
    onto = {"type": "eq", "fun": lambda d: value + normal @ d, "jac": lambda d: normal}
    solved = minimize(
        lambda d: d @ d,
        np.zeros(len(point)),
        jac=lambda d: 2 * d,
        bounds=[*zip(low - point, high - point, strict=True)],
        constraints=onto,
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    return np.sqrt(solved.fun) if solved.success else None


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_is_the_smallest_change_within_the_range(norm):
    rng = np.random.default_rng(3)
    point = rng.uniform(-1, 1, (40, 10)).astype(np.float32)
    normal = rng.normal(size=(40, 10)).astype(np.float32) * 10.0 ** rng.integers(-6, 3, (40, 1))
    normal[:, 0] = 0
    most = np.where(normal > 0, 1 + point, 1 - point)  # room against the coefficients
    reach = np.sum(np.abs(normal) * most, 1)  # the largest value that the range can undo
    value = (reach * rng.uniform(0, 1.2, 40)).astype(np.float32)
    change = np.asarray(fab.project(norm, jnp.asarray(point), jnp.asarray(normal, jnp.float32), value, (-1.0, 1.0)))
    assert np.all(np.abs(point + change) <= 1 + 1e-6)
    possible = value < reach
    assert 20 < possible.sum() < 40
    missed = value + np.sum(normal * change, 1)
    np.testing.assert_allclose(missed[possible] / reach[possible], 0, atol=1e-5)
    corner = point + change
    np.testing.assert_allclose(corner[~possible][:, 1:], -np.sign(normal[~possible])[:, 1:], atol=1e-6)
    for i in np.flatnonzero(possible):
        scale = np.abs(normal[i]).max()
        expected = smallest_change(norm, point[i].astype(float), normal[i] / scale, value[i] / scale, -1, 1)
        np.testing.assert_allclose(norm_of(change[i : i + 1], norm)[0], expected, rtol=1e-3, atol=1e-5)
    # From the other side of the hyperplane: the same change, mirrored.
    mirrored = fab.project(norm, -jnp.asarray(point), jnp.asarray(normal, jnp.float32), -value, (-1.0, 1.0))
    np.testing.assert_allclose(mirrored, -change, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_without_a_gradient_stays(norm):
    point = jnp.full((2, 3), 0.5)
    assert np.all(fab.project(norm, point, jnp.zeros((2, 3)), jnp.array([1.0, 0.0]), (-1.0, 1.0)) == 0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("bounds", [(-9.0, 9.0), (-1.0, 1.0)], ids=["free", "box"])
def test_finds_the_distance_to_a_hyperplane(norm, bounds):
    """Within 1 %, where the range cuts the way and where it does not."""
    direction = np.random.default_rng(3).normal(size=12).astype(np.float32)
    image = np.random.default_rng(4).uniform(-1, 1, (8, *SHAPE)).astype(np.float32)
    flat = image.reshape(8, -1)
    room = np.where(direction > 0, 1 + flat, 1 - flat)
    value = 0.6 * np.sum(np.abs(direction) * room, 1)  # more than half of what the range [-1, 1] can undo

    def logits_fn(x):
        score = (x - image).reshape(8, -1) @ direction + value
        return jnp.stack([score / 2, -score / 2], -1)

    run = fab.search_targeted(norm, bounds=bounds)
    found = run(logits_fn, jax.random.key(0), image, jnp.zeros(8, int), 1.0)
    expected = [smallest_change(norm, x.astype(float), direction, v, *bounds) for x, v in zip(flat, value, strict=True)]
    np.testing.assert_allclose(found.distance, expected, rtol=0.01)
    np.testing.assert_allclose(found.distance, norm_of(found.image - image, norm), rtol=1e-5)
    assert np.all(np.asarray(logits_fn(found.image)).argmax(-1) == 1)
    dual = np.abs(direction).sum() if norm == "linf" else np.linalg.norm(direction)
    if bounds[1] == 9:
        np.testing.assert_allclose(expected, value / dual, rtol=1e-3)
    else:
        assert np.max(expected / (value / dual)) > 1.1  # the range makes some ways longer


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_last_steps_only_shorten(norm):
    image, label = images(30)
    found = [
        jax.jit(fab.search_targeted(norm, 5, last_steps=last), static_argnums=0)(
            curved, jax.random.key(0), image, label, 1.0
        )
        for last in (0, 3)
    ]
    assert np.all(found[1].distance <= found[0].distance)
    assert np.mean(found[1].distance < found[0].distance) > 0.5
    for each in found:
        assert np.all((np.asarray(curved(each.image)).argmax(-1) != label) | np.isinf(each.distance))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_stays_in_ball_and_range_and_reverts_failures(norm):
    image, label = images(40)
    label[:3] = (label[:3] + 1) % 4  # misclassified already
    epsilon = np.linspace(0, {"linf": 0.4, "l2": 1}[norm], 40).astype(np.float32)
    attacked = np.asarray(
        jax.jit(fab.make_targeted(norm, 20), static_argnums=0)(curved, jax.random.key(1), image, label, epsilon)
    )
    assert np.all(norm_of(attacked - image, norm) <= epsilon)
    assert np.all(np.abs(attacked) <= 1)
    moved = np.any(attacked != image, axis=(1, 2, 3))
    before, after = (np.asarray(curved(x)).argmax(-1) != label for x in (image, attacked))
    np.testing.assert_array_equal(moved, after & ~before)
    assert 5 < moved.sum() < 37


def test_restarts_and_targets_only_shorten():
    image, label = images(30)
    target = targets.likeliest(curved(image), label, 3)
    found = {
        (restarts, count): jax.jit(fab.search_targeted("l2", 10, restarts, count, last_steps=0), static_argnums=0)(
            curved, jax.random.key(0), image, label, 0.5
        )
        for restarts, count in ((1, 1), (3, 1), (1, 9))
    }
    for case in ((3, 1), (1, 9)):
        assert np.all(found[case].distance <= found[1, 1].distance * (1 + 1e-5))
        assert np.any(found[case].distance < found[1, 1].distance * 0.999)
    np.testing.assert_array_equal(found[3, 1].gradients, 30)
    np.testing.assert_array_equal(found[1, 9].gradients, 30)  # 10 steps to each of three other classes
    run = jax.jit(fab.search("l2", 10, last_steps=0), static_argnums=0)
    parts = [run(curved, jax.random.key(0), image, label, 0.5, target[:, t]).distance for t in range(3)]
    np.testing.assert_allclose(found[1, 9].distance, np.min(parts, 0), rtol=1e-4)


def test_keys_per_image_make_the_batch_irrelevant():
    image, label = images()
    keys = jax.random.split(jax.random.key(0), len(image))
    attack = jax.jit(fab.make_targeted("linf", 10, 2), static_argnums=0)
    together = attack(curved, keys, image, label, 0.2)
    np.testing.assert_allclose(together[2:4], attack(curved, keys[2:4], image[2:4], label[2:4], 0.2), atol=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [{"norm": "l1"}, {"targets": 0}, {"steps": 0}, {"beta": 2}, {"eta": 0.9}, {"bounds": (1.0, -1.0)}],
    ids=str,
)
def test_wrong_arguments_are_named(arguments):
    with pytest.raises(ValueError, match=r"l1|targets|steps|beta|eta|bounds"):
        fab.make_targeted(**arguments)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_adv_lib_image_by_image(norm, dtype, monkeypatch):
    theirs = peers.adv_lib("attacks.fast_adaptive_boundary.fast_adaptive_boundary")
    import torch

    if dtype == np.float64:
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # adv-lib casts masks to single precision
    with peers.precision(dtype):
        image, label = peers.images(200, dtype)
        target = np.array(targets.likeliest(peers.logits_fn(image), label, 1), np.int64)[:, 0]
        nearest, fooled, distance = theirs._fab(
            peers.torch_logits_fn,
            torch.as_tensor(image),
            torch.as_tensor(label),
            {"linf": np.inf, "l2": 2}[norm],
            u=torch.full((200,), np.inf),
            targets=torch.as_tensor(target),
        )
        run = jax.jit(fab.search(norm, last_steps=0, bounds=(0.0, 1.0)), static_argnums=0)
        found = run(peers.logits_fn, jax.random.key(0), image, label, 1.0, target)
        np.testing.assert_array_equal(np.isfinite(found.distance), fooled)
        reached = fooled.numpy()
        assert reached.sum() > 150
        tolerance = 1e-3 if dtype == np.float32 else 1e-8
        np.testing.assert_allclose(found.distance[reached], distance[reached], rtol=tolerance, atol=1e-6)
        if dtype == np.float64:
            np.testing.assert_allclose(found.image[reached], nearest[reached], atol=1e-6)
