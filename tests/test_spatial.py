"""Rotation, translation and flow against SciPy, exact moves, and classifiers that a known move fools."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from gradalign_jax.attacks import spatial

KEY = jax.random.key(0)


def blob(count=4, size=12):
    """Dark images with a bright blob near the center."""
    place = np.arange(size) - (size - 1) / 2
    image = 2 * np.exp(-(place[:, None] ** 2 + place**2) / 8) - 1
    return np.repeat(image[None, ..., None], count, 0).astype(np.float32)


def right_wins(by):
    """Label 1 where the center of brightness is more than `by` pixels right of the middle."""

    def logits_fn(x):
        weight = x[..., 0] + 1
        place = (jnp.arange(x.shape[2]) - (x.shape[2] - 1) / 2)[None, None]
        column = jnp.sum(weight * place, (1, 2)) / jnp.sum(weight, (1, 2))
        return jnp.stack([by - column, column - by], -1)

    return logits_fn


@pytest.mark.parametrize(("degrees", "down", "right"), [(0, 2, -1), (90, 0, 0), (17, 0.5, 1.25), (-30, 1, 0)])
def test_moves_like_scipy(degrees, down, right):
    image = np.random.default_rng(0).uniform(-1, 1, (9, 11, 2)).astype(np.float32)
    moved = spatial._moved(jnp.asarray(image), degrees, down, right, -1.0)
    angle, center = np.deg2rad(degrees), np.array([4.0, 5.0])
    shift = np.array([down, right])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    offset = center - turn @ (center + shift)
    for c in range(2):
        # SciPy has no pixels beyond the last one; `fill` is mixed in where a neighbor is outside, as in PyTorch.
        padded = np.pad(image[..., c], 9, constant_values=-1)
        expected = ndimage.affine_transform(padded, turn, offset + 9 - turn @ [9, 9], order=1, cval=-1)[9:-9, 9:-9]
        np.testing.assert_allclose(moved[..., c], expected, atol=1e-4)
    if degrees == 0:
        np.testing.assert_allclose(moved[2:, :-1], image[:-2, 1:], atol=1e-6)
        assert np.all(moved[:2] == -1)


@pytest.mark.parametrize("trials", [None, 60])
def test_finds_a_shift_within_its_limits(trials):
    """A shift of 1.2 of 12 pixels is allowed at ε = 1: boundaries at .5 fall, those at 2 do not, ε scales the limit."""
    image, label = blob(), jnp.zeros(4, int)
    attack = jax.jit(spatial.make(grid=(1, 5), trials=trials), static_argnums=0)
    for by, epsilon, fooled in ((0.5, 1.0, True), (2.0, 1.0, False), (0.5, 0.2, False), (0.5, [0.2, 0.2, 1, 1], None)):
        found = attack(right_wins(by), KEY, image, label, jnp.asarray(epsilon))
        wrong = np.asarray(right_wins(by)(found)).argmax(-1) == 1
        np.testing.assert_array_equal(wrong, [False, False, True, True] if fooled is None else [fooled] * 4)
        if fooled is False:  # the largest margin so far
            assert np.all(right_wins(by)(found)[:, 1] > right_wins(by)(image)[:, 1])
        assert np.all((found >= -1) & (found <= 1))


def test_grid_contains_rotations():
    """A horizontal bar is lost to a rotation and to no shift."""
    image = -np.ones((1, 15, 15, 1), np.float32)
    image[0, 7, 2:13] = 1

    def logits_fn(x):
        column = x[:, :, 7, 0].sum(1)
        spread = (x[..., 0].max(2) > 0).sum(1)  # rows that the bar touches
        return jnp.stack([2.5 - spread, spread - 2.5], -1) + 0 * column[:, None]

    label = jnp.zeros(1, int)
    for rotation, fooled in ((30.0, True), (0.0, False)):
        found = spatial.make(rotation, grid=(5, 3))(logits_fn, KEY, image, label, 1.0)
        assert (logits_fn(found).argmax(-1) == 1).item() == fooled


def test_misclassified_images_and_zero_epsilon_stay():
    image = blob()
    label = jnp.array([0, 1, 0, 1])
    for attack in (spatial.make(grid=(3, 3)), spatial.make_flow(2)):
        found = np.asarray(attack(right_wins(0.5), KEY, image, label, 1.0))
        np.testing.assert_array_equal(found[1::2], image[1::2])
    found = spatial.make(grid=(3, 3))(right_wins(0.5), KEY, image, label, 0.0)
    np.testing.assert_allclose(found, image, atol=1e-5)


def test_keys_per_image_make_the_batch_irrelevant():
    image = np.random.default_rng(0).uniform(-1, 1, (6, 12, 12, 1)).astype(np.float32)
    keys, label = jax.random.split(KEY, 6), jnp.zeros(6, int)
    attack = spatial.make(trials=5)
    together = attack(right_wins(3.0), keys, image, label, 1.0)
    np.testing.assert_allclose(
        together[2:4], attack(right_wins(3.0), keys[2:4], image[2:4], label[2:4], 1.0), atol=1e-5
    )
    assert np.any(together != attack(right_wins(3.0), jax.random.split(jax.random.key(1), 6), image, label, 1.0))


def test_flow_fools_unless_smoothness_weighs_more():
    """The blob moves as a whole, which costs no smoothness; τ decides only how much it may be bent."""
    image, label = blob(3), jnp.zeros(3, int)
    attack = jax.jit(spatial.make_flow(), static_argnums=0)

    def wide(x):
        """Label 1 where the blob is wider than it is high by a fifth: no shift does that."""
        weight, place = x[..., 0] + 1, jnp.square(jnp.arange(12) - 5.5)
        wide = jnp.sum(weight * place[None, None], (1, 2))
        high = jnp.sum(weight * place[None, :, None], (1, 2))
        return jnp.stack([1.2 - wide / high, wide / high - 1.2], -1)

    found = attack(wide, KEY, image, label, jnp.array([0.001, 0.003, 100.0]))
    np.testing.assert_array_equal(np.asarray(wide(found)).argmax(-1), [1, 1, 0])
    np.testing.assert_array_equal(found[2], image[2])
    assert np.all((found >= -1) & (found <= 1))
    alone = attack(wide, KEY, image[:1], label[:1], 0.001)
    np.testing.assert_allclose(found[:1], alone, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (spatial.make, {"rotation": -1}),
        (spatial.make, {"grid": (0, 5)}),
        (spatial.make, {"bounds": (1.0, 0.0)}),
        (spatial.make_flow, {"iterations": 0}),
    ],
)
def test_wrong_arguments_are_named(make, arguments):
    with pytest.raises(ValueError, match="must be >= "):
        make(**arguments)
    with pytest.raises(ValueError, match=r"need images \[B, H, W, C\], got shape \(2, 500\)"):
        make()(lambda x: x[:, :2], KEY, jnp.zeros((2, 500)), jnp.zeros(2, int), 1.0)
