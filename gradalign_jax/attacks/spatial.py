"""Spatial attacks: they move pixels without changing their values.

`make` rotates and shifts the whole image (Engstrom et al. 2019, "Exploring the landscape of spatial robustness").
`make_flow` moves each pixel separately (Xiao et al. 2018, "Spatially transformed adversarial examples"); it is the
spatial attack in later code of the paper's authors.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.ndimage import map_coordinates

from gradalign_jax.attacks.ball import check_epsilon, per_image
from gradalign_jax.attacks.losses import margin
from gradalign_jax.attacks.pgd import image_keys
from gradalign_jax.types import IMAGE_RANGE, Array, BlackBoxAttack, LogitsFn, predicted

_SMALL = 1e-10  # in the square root of the flow's smoothness, the authors' value


def _sample(image: Array, row: Array, column: Array, fill: float) -> Array:
    """Return an image `[H, W, C]` read at positions `[H, W]`, bilinearly; `fill` outside."""

    def channel(values):
        return map_coordinates(values - fill, [row, column], order=1, mode="constant") + fill

    return jax.vmap(channel, -1, -1)(image)


def _moved(image: Array, degrees: Array, down: Array, right: Array, fill: float) -> Array:
    """Return one image rotated about its center, then shifted by pixels."""
    height, width = image.shape[:2]
    angle, center = degrees * (math.pi / 180), ((height - 1) / 2, (width - 1) / 2)
    row, column = jnp.meshgrid(
        jnp.arange(height) - center[0] - down, jnp.arange(width) - center[1] - right, indexing="ij"
    )
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    return _sample(image, cosine * row + sine * column + center[0], cosine * column - sine * row + center[1], fill)


def make(
    rotation: float = 30.0,
    translation: float = 0.1,
    grid: tuple[int, int] = (31, 5),
    trials: int | None = None,
    bounds: tuple[float, float] = IMAGE_RANGE,
) -> BlackBoxAttack:
    """Build `attack(logits_fn, key, image, label, epsilon) -> image` for images `[B, H, W, C]`.

    The attack rotates and shifts by the points of a grid over angle and two shifts, or by random ones. It returns the
    first result that is misclassified, else the one of largest margin max_{j≠y} logit_j - logit_y, which may be the
    image itself; an image that is misclassified already is returned unchanged. ε is traced, a scalar or one per image:
    it scales the limits, with 1 for the limits themselves. Only random trials read `key` (one, or one per image
    `[B]`). The new border is `bounds[0]`, black. The defaults are those of Engstrom et al. 2019: 775 forward passes.

    Args:
      rotation: largest angle, in degrees.
      translation: largest shift, as a share of the side.
      grid: number of angles and number of shifts in each direction, both ends included; odd numbers contain 0.
      trials: number of uniformly random transformations instead of the grid ("worst of 10").
      bounds: smallest and largest value of an image.

    Raises:
      ValueError: if a limit is negative, a number of points is below 1 or `bounds` do not ascend; from the attack, if
        images are vectors, or if ε is negative or NaN and not traced.
    """
    if min(rotation, translation) < 0 or min(*grid, trials or 1) < 1 or not bounds[0] < bounds[1]:
        raise ValueError(
            f"rotation and translation must be >= 0, grid and trials >= 1, and bounds must ascend, got "
            f"rotation={rotation}, translation={translation}, grid={grid}, trials={trials}, bounds={tuple(bounds)}"
        )
    ticks = [np.linspace(-1, 1, count) if count > 1 else np.zeros(1) for count in (grid[0], grid[1], grid[1])]
    points = np.stack(np.meshgrid(*ticks, indexing="ij"), -1).reshape(-1, 3).astype(np.float32)

    def attack(logits_fn: LogitsFn, key: Array, image: Array, label: Array, epsilon) -> Array:
        check_epsilon(epsilon)
        _check_pictures(image)
        image, keys = jax.lax.stop_gradient(image), image_keys(key, len(image))
        limits = jnp.asarray([rotation, translation * image.shape[1], translation * image.shape[2]], image.dtype)
        scale = jnp.broadcast_to(jnp.asarray(epsilon, image.dtype), (len(image),))[:, None] * limits[None]

        def measure(x):
            logits = logits_fn(x)
            return margin(logits, label), predicted(logits) != label

        def unfinished(carry):
            i, _, _, fooled = carry
            return (i < (trials or len(points))) & ~jnp.all(fooled)

        def attempt(carry):
            i, best, best_margin, fooled = carry
            if trials is None:
                point = jnp.asarray(points)[i][None]
            else:
                point = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, i), (3,), minval=-1.0))(keys)
            x = jax.vmap(lambda image, by: _moved(image, by[0], by[1], by[2], bounds[0]))(image, point * scale)
            value, wrong = measure(x)
            take = ~fooled & (wrong | (value > best_margin))
            best = jnp.where(per_image(take, x) > 0, x, best)
            return i + 1, best, jnp.where(take, value, best_margin), fooled | wrong

        return jax.lax.stop_gradient(jax.lax.while_loop(unfinished, attempt, (0, image, *measure(image)))[1])

    return attack


def make_flow(iterations: int = 40, bounds: tuple[float, float] = IMAGE_RANGE) -> BlackBoxAttack:
    """Build `attack(logits_fn, key, image, label, tau) -> image`, a flow of the pixels of images `[B, H, W, C]`.

    With u the flow, in units of half the image, L-BFGS descends

        max(0, logit_y - max_{j≠y} logit_j) + τ (‖Δ_rows u‖ + ‖Δ_columns u‖)

    where Δ are the differences of neighbors, and pixels are read bilinearly within the image. It returns the last
    iterate that is misclassified, or the image itself. τ is traced, a scalar or one per image: the larger it is, the
    smoother the flow and the weaker the attack. `key` is not used. The authors' descent
    optimizes a whole batch and returns its last iterate; here each image has its own descent.

    Args:
      iterations: steps of L-BFGS.
      bounds: smallest and largest value of an image.

    Raises:
      ValueError: if `iterations` is below 1 or `bounds` do not ascend; from the attack, if images are vectors, or if τ
        is negative or NaN and not traced.
    """
    if iterations < 1 or not bounds[0] < bounds[1]:
        raise ValueError(f"iterations must be >= 1 and bounds must ascend, got {iterations}, {tuple(bounds)}")
    descent = optax.lbfgs()

    def attack(logits_fn: LogitsFn, key: Array, image: Array, label: Array, tau) -> Array:
        check_epsilon(tau)
        _check_pictures(image)
        image = jax.lax.stop_gradient(image)
        size = image.shape[1:3]
        identity = jnp.stack(jnp.meshgrid(*(jnp.linspace(-1, 1, n) for n in size), indexing="ij"), -1)

        def moved(flow, image):
            place = (jnp.clip(identity + flow, -1, 1) + 1) / 2 * (jnp.asarray(size) - 1)[None, None]
            return jnp.clip(_sample(image, place[..., 0], place[..., 1], 0.0), *bounds)

        def search(image, label, tau):
            """Return the last flow of one image that fools the classifier, else zeros."""

            def margin_of(flow):
                return margin(logits_fn(moved(flow, image)[None]), label[None])[0]

            def objective(flow):
                rough = sum(jnp.sqrt(jnp.sum((jnp.diff(flow, axis=axis) + _SMALL) ** 2)) for axis in (0, 1))
                return jnp.maximum(-margin_of(flow), 0) + tau * rough

            value_and_gradient = optax.value_and_grad_from_state(objective)

            def step(_, carry):
                flow, state, kept = carry
                value, gradient = value_and_gradient(flow, state=state)
                update, state = descent.update(gradient, state, flow, value=value, grad=gradient, value_fn=objective)
                flow = optax.apply_updates(flow, update)
                return flow, state, jnp.where(margin_of(flow) > 0, flow, kept)

            flow = jnp.zeros((*size, 2), image.dtype)
            return jax.lax.fori_loop(0, iterations, step, (flow, descent.init(flow), flow))[-1]

        tau = jnp.broadcast_to(jnp.asarray(tau, image.dtype), (len(image),))
        x = jax.vmap(moved)(jax.vmap(search)(image, label, tau), image)
        fooled = (predicted(logits_fn(x)) != label) & (predicted(logits_fn(image)) == label)
        return jax.lax.stop_gradient(jnp.where(per_image(fooled, x) > 0, x, image))

    return attack


def _check_pictures(image: Array) -> None:
    if image.ndim != 4:
        raise ValueError(f"spatial attacks need images [B, H, W, C], got shape {image.shape}")
