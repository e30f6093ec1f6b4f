"""Auto-PGD against closed forms, a plain NumPy loop, and adv-lib in PyTorch."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peers
from gradalign_jax.attacks import apgd, losses, targets

SHAPE = (3, 2, 2)
WEIGHTS = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
SECOND = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)


def curved(image):
    return jnp.tanh(image.reshape(image.shape[0], -1) @ WEIGHTS) @ SECOND


def images(count=12, scale=1.0):
    image = np.random.default_rng(2).uniform(-scale, scale, (count, *SHAPE)).astype(np.float32)
    return image, np.asarray(curved(image)).argmax(-1)


def norm_of(delta, norm):
    flat = np.asarray(delta).reshape(len(delta), -1)
    return np.abs(flat).max(1) if norm == "linf" else np.linalg.norm(flat, axis=1)


def test_losses_by_hand():
    logits = jnp.array([[3.0, 1.0, 2.0, -1.0, 0.5]])
    label, target = jnp.array([0]), jnp.array([3])
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    expected = {"dlr": (2 - 3) / (3 - 1), "pma": p[2] - p[0], "margin": -1.0, "cross_entropy": -np.log(p[0])}
    for name, value in expected.items():
        np.testing.assert_allclose(losses.LOSSES[name](logits, label), [value], rtol=1e-6)
    expected = {
        "dlr": (-1 - 3) / (3 - (1 + 0.5) / 2),
        "pma": p[3] - p[0],
        "margin": -4.0,
        "cross_entropy": np.log(p[3]),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(losses.TARGETED[name](logits, label, target), [value], rtol=1e-6)
    assert losses.dlr(logits, jnp.array([1])) > 0  # misclassified
    np.testing.assert_allclose(losses.dlr(7 * logits, label), losses.dlr(logits, label), rtol=1e-6)


@pytest.mark.parametrize(("loss", "classes"), [(losses.dlr, 2), (losses.targeted_dlr, 3)])
def test_dlr_names_its_remedy(loss, classes):
    with pytest.raises(
        ValueError, match=rf"dlr needs {classes + 1} classes, got {classes}: use cross_entropy or margin"
    ):
        loss(jnp.zeros((2, classes)), *[jnp.zeros(2, int)] * (loss.__code__.co_argcount - 1))


def test_checkpoints_are_the_published_ones():
    ends = apgd.periods(100)
    np.testing.assert_array_equal(np.flatnonzero(ends) + 1, [22, 41, 57, 70, 80, 87, 93, 99])
    np.testing.assert_array_equal(ends[ends > 0], [22, 19, 16, 13, 10, 7, 6, 6])
    assert apgd.periods(1).tolist() == [1]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["margin", "cross_entropy"])
def test_linear_model_reaches_the_optimum(norm, loss):
    """The gain is ε times the dual norm, inside the range and where it cuts the ball."""
    direction = np.random.default_rng(3).normal(size=12).astype(np.float32)
    epsilon = np.float32([0.05, 0.1, 0.2, 0.3])
    image = np.random.default_rng(4).uniform(-0.5, 0.5, (4, *SHAPE)).astype(np.float32)
    label = jnp.zeros(4, int)

    def logits_fn(x):
        score = (x.reshape(len(x), -1) @ direction + 9) / 8
        return jnp.stack([score, -score], -1)

    attacked = apgd.make(norm, loss=loss)(logits_fn, jax.random.key(0), image, label, epsilon)
    dual = np.abs(direction).sum() if norm == "linf" else np.linalg.norm(direction)
    gain = (image - attacked).reshape(4, -1) @ direction
    np.testing.assert_allclose(gain, epsilon * dual, rtol=2e-3 if norm == "l2" else 1e-5)
    if norm == "linf":
        tight = (-0.4, 0.4)
        attacked = apgd.make(norm, loss=loss, bounds=tight)(logits_fn, jax.random.key(0), image, label, 0.2)
        np.testing.assert_allclose(
            attacked, np.clip(image - 0.2 * np.sign(direction).reshape(SHAPE), *tight), atol=1e-6
        )


def numpy_apgd(value_and_gradient, wrong, image, epsilon, steps, norm, rho=0.75):
    """One image, from the image itself, written out with the history of all losses."""

    def into_range(x):
        delta = x - image
        if norm == "linf":
            delta = np.clip(delta, -epsilon, epsilon)
        elif np.linalg.norm(delta) > epsilon:
            delta = delta * epsilon / np.linalg.norm(delta)
        return np.clip(image + delta, -1, 1)

    marks, period = [], max(int(0.22 * steps), 1)
    while sum(marks) + period <= steps:
        marks.append(period)
        period = max(period - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    marks = np.cumsum(marks)

    x = before = image
    value, gradient = value_and_gradient(x)
    history, best, eta, since, halvings = [], (value, x, gradient), 2 * epsilon, 0, 0
    checked, halved, first = value, False, None
    for k in range(steps):
        ascent = np.sign(gradient) if norm == "linf" else gradient / np.linalg.norm(gradient)
        ahead = into_range(x + eta * ascent)
        x, before = (into_range(x + 0.75 * (ahead - x) + 0.25 * (x - before)) if k else ahead), x
        value, gradient = value_and_gradient(x)
        history.append(value)
        first = x if first is None and wrong(x) else first
        if value > best[0]:
            best = (value, x, gradient)
        if k + 1 in marks:
            window = [0, *history] if since == 0 else history[since - 1 :]
            rises = sum(later > earlier for earlier, later in pairwise(window))
            unchanged = not halved and best[0] <= checked
            halved = rises <= rho * (k + 1 - since) or unchanged
            if halved:
                halvings += 1
                eta, (_, x, gradient) = eta / 2, best
            checked, since = best[0], k + 1
    return (best[1] if first is None else first), first is not None, halvings


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_equals_a_numpy_loop(norm):
    image, label = images(12)
    epsilon, steps = {"linf": 0.12, "l2": 0.3}[norm], 40
    run = jax.jit(apgd.search(norm, steps, random_start=False), static_argnums=0)
    found = run(curved, jax.random.key(0), image, label, epsilon)
    weights, second, halvings = WEIGHTS.astype(float), SECOND.astype(float), []
    for i, y in enumerate(label):

        def value_and_gradient(x, y=y):
            hidden = np.tanh(x.reshape(-1) @ weights)
            logits = hidden @ second
            probability = np.exp(logits - logits.max())
            probability /= probability.sum()
            back = second @ (probability - np.eye(4)[y])
            return -np.log(probability[y]), (weights @ ((1 - hidden**2) * back)).reshape(SHAPE)

        def wrong(x, y=y):
            return (np.tanh(x.reshape(-1) @ weights) @ second).argmax() != y

        expected, fooled, halved = numpy_apgd(value_and_gradient, wrong, image[i].astype(float), epsilon, steps, norm)
        halvings.append(halved)
        assert found.fooled[i] == fooled
        np.testing.assert_allclose(found.image[i], expected, atol=3e-3)  # float32 against float64
    assert 0 < found.fooled.sum() < 12
    assert max(halvings) >= 3


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["cross_entropy", "dlr", "pma", "margin"])
def test_stays_in_ball_and_range(norm, loss):
    image, label = images()
    epsilon = np.linspace(0, 0.5, len(image)).astype(np.float32)
    bounds = (-0.9, 0.8)
    image = image.clip(*bounds)
    label = np.asarray(curved(image)).argmax(-1)
    attack = jax.jit(apgd.make(norm, 10, 2, loss, bounds=bounds), static_argnums=0)
    attacked = np.asarray(attack(curved, jax.random.key(1), image, label, epsilon))
    assert np.all(norm_of(attacked - image, norm) <= epsilon * (1 + 1e-5) + 1e-7)
    assert attacked.min() >= np.float32(bounds[0])
    assert attacked.max() <= np.float32(bounds[1])
    np.testing.assert_array_equal(attacked[0], image[0])  # its ε is 0
    assert (np.asarray(curved(attacked)).argmax(-1) != label).sum() > 2


def test_returns_what_fooled_and_counts_gradients():
    image, label = images(40)
    label[:3] = (label[:3] + 1) % 4  # misclassified already
    run = jax.jit(apgd.search("linf", 10, 2), static_argnums=0)
    found = run(curved, jax.random.key(0), image, label, 0.15)
    np.testing.assert_array_equal(found.fooled, np.asarray(curved(found.image)).argmax(-1) != label)
    np.testing.assert_array_equal(found.image[:3], image[:3])
    assert 5 < found.fooled.sum() < 35
    assert np.all(found.gradients[:3] == 0)
    assert np.all((found.gradients == 2 * 11) | found.fooled)
    assert np.all(found.gradients[3:] >= 1)
    once = jax.jit(apgd.search("linf", 10), static_argnums=0)(curved, jax.random.key(0), image, label, 0.15)
    assert np.all(found.fooled | ~once.fooled)  # the first restart is that of one
    assert np.all(found.loss >= once.loss)


def test_logits_that_are_nan_count_as_fooled():
    image, label = images(3)
    found = apgd.search(steps=2)(lambda x: curved(x) * jnp.nan, jax.random.key(0), image, label, 0.1)
    assert np.all(found.fooled)
    np.testing.assert_array_equal(found.image, image)
    flat = lambda x: jnp.zeros((len(x), 4)) + 0 * x.sum()  # noqa: E731
    found = apgd.search("l2", steps=5)(flat, jax.random.key(0), image, jnp.zeros(3, int), 0.1)
    assert np.all(np.isfinite(found.image))
    assert not np.any(found.fooled)


@pytest.mark.parametrize("make", [apgd.make, apgd.make_targeted])
def test_keys_per_image_make_the_batch_irrelevant(make):
    image, label = images()
    keys = jax.random.split(jax.random.key(0), len(image))
    attack = jax.jit(make("linf", 10), static_argnums=0)
    together = attack(curved, keys, image, label, 0.1)
    np.testing.assert_allclose(together[2:4], attack(curved, keys[2:4], image[2:4], label[2:4], 0.1), atol=1e-5)


def test_targeted_attack_is_the_best_of_one_search_per_target():
    image, label = images(30)
    keys = jax.random.split(jax.random.key(0), len(image))
    target = targets.likeliest(curved(image), label, 9)
    logits = np.asarray(curved(image)).copy()
    logits[np.arange(30), label] = -np.inf
    np.testing.assert_array_equal(target, np.argsort(-logits, 1)[:, :3])
    found = jax.jit(apgd.search_targeted("linf", 10), static_argnums=0)(curved, keys, image, label, 0.1)
    run = jax.jit(apgd.search("linf", 10, loss="dlr"), static_argnums=0)
    parts = [run(curved, targets.keys(keys, target)[:, t], image, label, 0.1, target[:, t]) for t in range(3)]
    np.testing.assert_array_equal(found.fooled, np.any([part.fooled for part in parts], 0))
    np.testing.assert_array_equal(found.gradients, sum(part.gradients for part in parts))
    for i in range(30):
        score = [np.inf if part.fooled[i] else part.loss[i] for part in parts]
        np.testing.assert_allclose(found.image[i], parts[int(np.argmax(score))].image[i], atol=1e-5)
    chosen = apgd.search_targeted("linf", 10)(curved, keys, image, label, 0.1, target[:, 1:2])
    np.testing.assert_allclose(chosen.image, parts[1].image, atol=1e-5)
    assert 3 < found.fooled.sum() < 27


@pytest.mark.parametrize(
    "arguments",
    [
        {"norm": "l1"},
        {"loss": "hinge"},
        {"steps": 0},
        {"rho": 2},
        {"bounds": (1.0, -1.0)},
        {"restarts": 2, "random_start": False},
    ],
    ids=str,
)
def test_wrong_arguments_are_named(arguments):
    with pytest.raises(ValueError, match=r"l1|hinge|steps|rho|bounds|would repeat one ascent: use restarts=1"):
        apgd.make(**arguments)
    with pytest.raises(ValueError, match="targets must be >= 1"):
        apgd.make_targeted(targets=0)
    with pytest.raises(ValueError, match=r"epsilon=-1 must be >= 0"):
        apgd.make()(curved, jax.random.key(0), *images(), -1)


@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_adv_lib_image_by_image(norm, target, dtype):
    """In double precision all iterates agree; in single precision, all decisions.

    adv-lib 0.2.8 does not copy the best loss at a checkpoint, as the authors do, and so never sees it improve. With a
    target, it calls an image fooled where the target wins, and here any wrong class counts.
    """
    theirs = peers.adv_lib("attacks.auto_pgd", loss_best_last_check="loss_best.clone()")
    import torch

    epsilon = {"linf": 0.03, "l2": 0.15}[norm]
    with peers.precision(dtype):
        image, label = peers.images(200, dtype)
        towards = np.array(targets.likeliest(peers.logits_fn(image), label, 1), np.int64)[:, 0]
        for name, loss in (("dlr", "dlr"), ("ce", "cross_entropy")):
            best, fooled, value, _ = theirs._apgd(
                peers.torch_logits_fn,
                torch.as_tensor(image),
                torch.as_tensor(towards if target else label),
                torch.full((200,), epsilon),
                {"linf": np.inf, "l2": 2}[norm],
                x_init=torch.as_tensor(image),
                targeted=target,
                loss_function=name,
            )
            run = jax.jit(apgd.search(norm, loss=loss, random_start=False, bounds=(0.0, 1.0)), static_argnums=0)
            found = run(peers.logits_fn, jax.random.key(0), image, label, epsilon, towards if target else None)
            kept = ~np.asarray(found.fooled)
            assert not np.any(kept & fooled.numpy())
            if not target:
                np.testing.assert_array_equal(found.fooled, fooled)
            assert 40 < kept.sum() < 160
            tolerance = 2e-3 if dtype == np.float32 else 1e-7  # their ratio has 1e-8 in it
            np.testing.assert_allclose(found.loss[kept], value[kept], rtol=tolerance, atol=tolerance)
            if dtype == np.float64:
                np.testing.assert_allclose(found.image[kept], best[kept], atol=1e-6)


@pytest.mark.parametrize("targeted", [False, True])
def test_robust_accuracy_is_that_of_adv_lib(targeted):
    """From random starts, within one image in a hundred.

    The targeted attack of adv-lib discards images in which a class other than the target wins: it may fool fewer.
    """
    theirs = peers.adv_lib("attacks.auto_pgd")
    import torch

    torch.manual_seed(0)
    image, label = peers.images(500)
    attack = theirs.apgd_targeted if targeted else theirs.apgd
    attacked = attack(peers.torch_logits_fn, torch.as_tensor(image), torch.as_tensor(label), 0.03, np.inf).numpy()
    make = apgd.make_targeted if targeted else apgd.make
    attack = jax.jit(make(loss="dlr", bounds=(0.0, 1.0)), static_argnums=0)
    ours = attack(peers.logits_fn, jax.random.key(0), image, label, 0.03)
    robust = [np.mean(np.asarray(peers.logits_fn(x)).argmax(-1) == label) for x in (attacked, ours)]
    assert -0.0101 <= robust[0] - robust[1] <= (0.02 if targeted else 0.0101)
    assert 0.1 < robust[0] < 0.9
