"""Gradients beside the paper's and measures of them, through `gradalign_jax.evaluate`, against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradalign_jax
from gradalign_jax import Directions
from gradalign_jax.evaluation import directions, options
from gradalign_jax.experiment import config_rules
from gradalign_jax.measures import tangent

COUNT, SHAPE, CLASSES = 21, (4, 4, 1), 3
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(16, CLASSES)).astype(np.float32)
VECTORS = RNG.normal(size=(40, CLASSES, *SHAPE)).astype(np.float32)
SPACE = np.linalg.qr(RNG.normal(size=(16, 5)))[0].astype(np.float32)
INDEX = RNG.permutation(40)[:COUNT]


def linear(image):
    return image.reshape(len(image), -1) @ WEIGHTS


def own_images():
    image = np.random.default_rng(1).uniform(-1, 1, (COUNT, *SHAPE)).astype(np.float32)
    return image, np.asarray(linear(image)).argmax(-1).astype(np.int32)


def stored(image, label, target, index):
    return jnp.asarray(VECTORS)[index, target]


def opposite(image, label, target, index):
    return -stored(image, label, target, index)


def measured(chosen, delta_x=stored, **more):
    """Return the result of a linear classifier under no attack but one step of PGD."""
    attack = {"pgd": gradalign_jax.PGD(("linf",), steps=1), "square": None, "epsilons": (0.1,)}
    return gradalign_jax.evaluate(
        linear, *own_images(), delta_x=delta_x, index=INDEX, directions=chosen, block=4, **attack, **more
    )


@pytest.fixture(scope="module")
def whole():
    space = lambda label, index: jnp.broadcast_to(SPACE[None], (len(label), 16, 5))  # noqa: E731
    others = {"opposite": opposite}
    return measured(Directions(("plain", "smoothgrad"), others, options.MEASURES, space))


def closest(image, label):
    """Return c̃ and the difference of the weights for each image."""
    for x, y in zip(image.reshape(len(image), -1), label, strict=True):
        logits = x @ WEIGHTS
        gap = [
            np.inf if k == y else (logits[y] - logits[k]) / np.linalg.norm(WEIGHTS[:, k] - WEIGHTS[:, y])
            for k in range(CLASSES)
        ]
        yield x, int(np.argmin(gap)), WEIGHTS[:, np.argmin(gap)] - WEIGHTS[:, y]


def test_every_pair_of_a_gradient_and_a_delta_x_is_compared(whole):
    image, label = own_images()
    cosines = []
    for i, (_, target, g) in zip(INDEX, closest(image, label), strict=True):
        vector = VECTORS[i, target].ravel()
        cosines.append(vector @ g / np.linalg.norm(vector) / np.linalg.norm(g))
    found = whole["directions"]["alignment"]
    assert set(found) == {"plain", "smoothgrad"}
    assert all(set(row) == {"delta_x", "opposite"} for row in found.values())
    for name in ("plain", "smoothgrad"):  # equal, because the classifier is linear
        assert found[name]["delta_x"] == pytest.approx(np.mean(cosines), abs=1e-5)
        assert found[name]["opposite"] == pytest.approx(-np.mean(cosines), abs=1e-5)
    assert whole["alpha_delta_x"] == pytest.approx(found["plain"]["delta_x"], abs=1e-6)


def test_measures_equal_loops(whole):
    image, label = own_images()
    found, etmann, shares = whole["directions"], [], []
    right = np.zeros(len(directions.REMOVED))
    mean = image.mean()
    for (x, _, g), y in zip(closest(image, label), label, strict=True):
        etmann.append(abs(x @ WEIGHTS[:, y]) / np.linalg.norm(WEIGHTS[:, y]))
        shares.append(np.sum((SPACE.T @ g) ** 2) / np.sum(g**2))
        for s, share in enumerate(directions.REMOVED):
            kept = x.copy()
            kept[np.argsort(-np.abs(g), kind="stable")[: round(share * 16)]] = mean
            right[s] += (kept @ WEIGHTS).argmax() == y
    assert found["etmann"]["predicted"] == pytest.approx(np.mean(etmann), rel=1e-5)
    assert found["tangent_share"]["plain"] == pytest.approx(np.mean(shares), rel=1e-4)
    assert found["tangent_share"]["random"] == pytest.approx(5 / 16, rel=1e-5)
    np.testing.assert_allclose(found["removal"]["plain"], right / COUNT, atol=1e-6)
    assert len(found["removal"]["random"]) == len(found["removed"])
    assert len(found["noise"]["on"]) == len(found["radii"]) == len(found["noise"]["off"])
    assert found["noise"]["on"][0] < found["noise"]["on"][-1]


def test_only_what_is_chosen_is_measured():
    own = lambda logits_fn, key, image, label, target: jnp.ones_like(image)  # noqa: E731
    found = measured(Directions({"own": own}), delta_x=None)
    assert found["directions"] == {}  # a gradient alone, with neither Δx nor measure
    assert "directions" not in measured(None)
    ones = measured(Directions({"own": own}))["directions"]
    image, label = own_images()
    vectors = [VECTORS[i, t].ravel() for i, (_, t, _) in zip(INDEX, closest(image, label), strict=True)]
    expected = np.mean([v.sum() / np.linalg.norm(v) / 4 for v in vectors])
    assert ones == {"alignment": {"own": {"delta_x": pytest.approx(expected, abs=1e-6)}}}


def test_a_resumed_call_measures_directions_again(tmp_path):
    """Its functions may have changed, as those of Δx."""
    first = measured(Directions(("plain",)), workdir=tmp_path)
    second = measured(Directions(("plain",)), delta_x=opposite, workdir=tmp_path)
    one, other = (result["directions"]["alignment"]["plain"]["delta_x"] for result in (first, second))
    assert one == -other != 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradients": ("saliency",)}, "unknown gradient 'saliency': use one of"),
        ({"measures": ("roar",)}, "unknown measure 'roar': use some of etmann, removal, tangent, noise"),
        ({"measures": ("noise",)}, "measure 'noise' needs tangent_space"),
        ({"delta_x": {"a/b": stored}}, "name 'a/b' of a gradient or Δx has a slash"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Directions(**settings)


def test_a_further_delta_x_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="delta_x returns"):
        measured(Directions(delta_x={"flat": lambda image, *rest: image.reshape(len(image), -1)}))


def test_the_config_and_the_library_have_the_same_measures():
    assert config_rules.MEASURES == options.MEASURES


def test_a_value_that_is_not_finite_becomes_none():
    values = {"alignment/plain/exact": np.array([0.5, np.nan]), "removal/plain": np.array([[1, 0], [1, 1]])}
    found = directions.summarize(values)
    assert found["alignment"] == {"plain": {"exact": None}}
    assert found["removal"] == {"plain": [1.0, 0.5]}


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_mean_pixel_is_in_model_units(dtype):
    image = np.random.default_rng(2).integers(0, 256, (6, 3, 3, 2)).astype(np.uint8)
    expected = (image / 255 - 0.5) / 0.5
    given = image if dtype == "uint8" else expected.astype(np.float32)
    np.testing.assert_allclose(directions.mean_pixel(given), expected.mean((0, 1, 2)), atol=1e-6)


def test_a_basis_of_tangent_spaces_can_be_traced():
    """As the docstring of `Directions` proposes it: of a generator's Jacobian at stored latents."""
    matrix = np.random.default_rng(3).normal(size=(5, 16)).astype(np.float32)
    latents = np.random.default_rng(4).normal(size=(40, 5)).astype(np.float32)
    generate_fn = lambda z, label: (z @ matrix).reshape(-1, *SHAPE)  # noqa: E731

    def space(latents, label, index):
        return tangent.basis(tangent.jacobian(generate_fn, latents[index], label))

    found = measured(Directions(("plain",), {}, ("tangent",), jax.tree_util.Partial(space, latents)))["directions"]
    image, label = own_images()
    inside = np.linalg.qr(matrix.T)[0]
    shares = [np.sum((inside.T @ g) ** 2) / np.sum(g**2) for _, _, g in closest(image, label)]
    assert found["tangent_share"]["plain"] == pytest.approx(np.mean(shares), rel=1e-4)
