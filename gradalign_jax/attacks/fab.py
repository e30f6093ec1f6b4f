"""Fast Adaptive Boundary attack with targets (Croce & Hein 2020, "Minimally distorted adversarial examples"): FAB-T.

It looks for the nearest misclassified image. With x₀ the image, each step linearizes f = logit_t - logit_y at the
iterate x and projects x and x₀ onto the hyperplane f = 0 within the range, exactly. With d(x) the step of the
projection and C the clamp to the range (Eq. 7 and 8),

    α = min(‖d(x)‖ / (‖d(x)‖ + ‖d(x₀)‖), α_max)
    x ← C((1 - α) (x + η d(x)) + α (x₀ + η d(x₀))).

A misclassified x is a result, and moves back: x ← x₀ + β (x - x₀). Finally, a few secant steps on
the line from x₀ to the result look for a nearer one (section 3.3).

The settings are those of the authors' AutoAttack, which leaves out the secant steps.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradalign_jax.attacks import targets as classes
from gradalign_jax.attacks.ball import BALLS, check_epsilon, per_image
from gradalign_jax.attacks.losses import margin, targeted_margin
from gradalign_jax.attacks.pgd import image_keys
from gradalign_jax.types import IMAGE_RANGE, Array, LogitsFn, predicted

_LEAST = 1e-8  # keeps α defined where both steps are zero
# The secant steps aim this share of the image's margin beyond the boundary: on it, rounding would decide the class.
_BEYOND = 1e-3


class Found(NamedTuple):
    """The result of the attack for each image.

    image: `[B, ...]`, the nearest misclassified image; the image itself where none was found.
    distance: `[B]`, the norm of its change; 0 if misclassified without an attack, +inf where none was found.
    gradients: int32 `[B]`, gradients computed.
    """

    image: Array
    distance: Array
    gradients: Array


def _level(weight: Array, cap: Array, total: Array) -> Array:
    """Return λ `[B]` with Σ weight min(λ, cap) = total, `[B, n]` each; +inf if even λ = ∞ gives less.

    The sum is concave and piecewise linear in λ: Newton's method from below rises to the solution and reaches it after
    finitely many steps, few in practice. No sort is needed.
    """

    def newton(level):
        free = cap > level[:, None]
        left = total - jnp.sum(jnp.where(free, 0, weight * cap), -1)
        slope = jnp.sum(jnp.where(free, weight, 0), -1)
        return jnp.where(slope > 0, jnp.maximum(left, 0) / jnp.where(slope > 0, slope, 1), jnp.inf)

    def rising(carry):
        before, level = carry
        return jnp.any(level > before)

    def rise(carry):
        level = carry[1]
        return level, jnp.maximum(newton(level), level)

    zero = jnp.zeros_like(total)
    return jax.lax.while_loop(rising, rise, (zero - 1, zero))[1]


def project(norm: str, point: Array, normal: Array, value: Array, bounds: tuple[float, float]) -> Array:
    """Return the smallest change of points `[B, n]` with value + normal · change = 0 that stays within bounds.

    Each pixel moves against its own coefficient, by λ in L∞ and by λ |normal| in L2 (the conditions of optimality), but
    no further than the range allows; λ makes the sum right. Where the range has no such point, pixels move to its end.

    Args:
      norm: "linf" or "l2".
      point: `[B, n]`, within bounds.
      normal: `[B, n]`.
      value: `[B]`.
      bounds: smallest and largest value of a pixel.
    """
    scale = jnp.max(jnp.abs(normal), -1)
    scale = jnp.where(scale > 0, scale, 1)
    away = jnp.where(value > 0, -1, 1)[:, None] * normal / scale[:, None]
    slope, room = jnp.abs(away), jnp.where(away > 0, bounds[1] - point, point - bounds[0])
    if norm == "linf":
        level = _level(slope, room, jnp.abs(value) / scale)
        return jnp.sign(away) * jnp.minimum(level[:, None], room)
    steep = slope > 0
    level = _level(slope**2, jnp.where(steep, room / jnp.where(steep, slope, 1), 0), jnp.abs(value) / scale)
    return jnp.sign(away) * jnp.where(steep, jnp.minimum(level[:, None] * slope, room), 0)


def search(
    norm: str = "linf",
    steps: int = 100,
    restarts: int = 1,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    last_steps: int = 3,
    bounds: tuple[float, float] = IMAGE_RANGE,
) -> Callable[..., Found]:
    """Build `search(logits_fn, key, image, label, epsilon, target) -> Found` with one target int `[B]` per image.

    ε only limits how far from the image a restart begins, so one search serves every ε. The arguments, and the
    errors, are those of `make_targeted`.
    """
    if norm not in BALLS:
        raise ValueError(f"unknown norm {norm!r}: use one of {sorted(BALLS)}")
    if min(steps, restarts) < 1 or last_steps < 0 or not bounds[0] < bounds[1]:
        raise ValueError(
            f"steps and restarts must be >= 1, last_steps >= 0, and bounds must ascend, got steps={steps}, "
            f"restarts={restarts}, last_steps={last_steps}, bounds={tuple(bounds)}"
        )
    if not (0 <= alpha_max <= 1 <= eta and 0 < beta < 1):
        raise ValueError(
            f"alpha_max must lie in [0, 1], beta in (0, 1), and eta must be >= 1, got alpha_max={alpha_max}, "
            f"beta={beta}, eta={eta}"
        )
    ball, order = BALLS[norm], {"linf": jnp.inf, "l2": 2}[norm]

    def attack(logits_fn: LogitsFn, key: Array, image: Array, label: Array, epsilon, target: Array) -> Found:
        check_epsilon(epsilon)
        image, keys = jax.lax.stop_gradient(image), image_keys(key, len(image))
        inside = jnp.clip(image, *bounds)

        def flat(x):
            return x.reshape(len(x), -1)

        def size(change):
            return jnp.linalg.norm(flat(change), order, axis=-1)

        def gap(x):
            value = targeted_margin(logits_fn(x), label, target)
            return value.sum(), value

        def to_boundary(x, normal, value):
            return project(norm, flat(x), flat(normal), value, bounds).reshape(x.shape)

        def nearer(found: Found, x, wrong) -> Found:
            distance = size(x - image)
            take = wrong & (distance < found.distance)
            kept = jnp.where(per_image(take, x) > 0, x, found.image)
            return found._replace(image=kept, distance=jnp.where(take, distance, found.distance))

        def step(_, carry):
            x, found = carry
            normal, value = jax.grad(gap, has_aux=True)(x)
            change = to_boundary(x, normal, value)
            origin = to_boundary(inside, normal, value + jnp.sum(flat(normal) * flat(inside - x), -1))
            here, there = jnp.maximum(size(change), _LEAST), jnp.maximum(size(origin), _LEAST)
            alpha = per_image(jnp.minimum(here / (here + there), alpha_max), x)
            x = jnp.clip((1 - alpha) * (x + eta * change) + alpha * (inside + eta * origin), *bounds)
            wrong = predicted(logits_fn(x)) != label
            return jnp.where(per_image(wrong, x) > 0, inside + beta * (x - inside), x), nearer(found, x, wrong)

        def attempt(restart, found: Found) -> Found:
            fresh = jax.vmap(lambda key: jax.random.fold_in(key, restart))(keys)
            radius = jnp.where(restart > 0, jnp.minimum(found.distance, epsilon) / 2, 0)
            x = jnp.clip(inside + per_image(radius, image) * jax.vmap(ball.random_start)(fresh, image), *bounds)
            return jax.lax.fori_loop(0, steps, step, (x, found))[1]

        def secant(_, carry):
            near, far, near_margin, far_margin, aim, found = carry
            place = (aim - near_margin) / jnp.where(near_margin < far_margin, far_margin - near_margin, 1)
            x = near + per_image(jnp.clip(place, 0, 1), image) * (far - near)
            logits = logits_fn(x)
            value = margin(logits, label)
            wrong = (predicted(logits) != label) & (value >= aim / 2)
            choose = lambda new, old, where: jnp.where(per_image(where, old) > 0, new, old)  # noqa: E731
            return (
                choose(x, near, ~wrong),
                choose(x, far, wrong),
                choose(value, near_margin, ~wrong),
                choose(value, far_margin, wrong),
                aim,
                nearer(found, x, wrong),
            )

        wrong = predicted(logits_fn(image)) != label
        distance = jnp.where(wrong, 0, jnp.inf).astype(image.dtype)
        found = Found(image, distance, jnp.where(wrong, 0, steps * restarts))
        found = jax.lax.fori_loop(0, restarts, attempt, found)
        if last_steps:
            ends = [margin(logits_fn(x), label) for x in (inside, found.image)]
            state = (inside, found.image, *ends, -_BEYOND * ends[0], found)
            found = jax.lax.fori_loop(0, last_steps, secant, state)[-1]
        return jax.lax.stop_gradient(found)

    return attack


def search_targeted(
    norm: str = "linf",
    steps: int = 100,
    restarts: int = 1,
    targets: int = 9,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    last_steps: int = 3,
    bounds: tuple[float, float] = IMAGE_RANGE,
) -> Callable[..., Found]:
    """Build `search(logits_fn, key, image, label, epsilon, target=None) -> Found`: the nearest of all targets.

    The arguments, and the errors, are those of `make_targeted`; `Found.gradients` is the sum over targets.
    """
    if targets < 1:
        raise ValueError(f"targets must be >= 1, got {targets}")
    run = search(norm, steps, restarts, alpha_max, eta, beta, last_steps, bounds)

    def attack(logits_fn: LogitsFn, key: Array, image: Array, label: Array, epsilon, target: Array | None = None):
        if target is None:
            target = classes.likeliest(logits_fn(image), label, targets)
        found = classes.each(lambda keys, to: run(logits_fn, keys, image, label, epsilon, to), key, target)
        return classes.best(found, -found.distance)._replace(gradients=found.gradients.sum(1))

    return attack


def make_targeted(
    norm: str = "linf",
    steps: int = 100,
    restarts: int = 1,
    targets: int = 9,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    last_steps: int = 3,
    bounds: tuple[float, float] = IMAGE_RANGE,
) -> Callable[..., Array]:
    """Build `attack(logits_fn, key, image, label, epsilon, target=None) -> image`.

    The result is the nearest misclassified image found if it lies within ε, otherwise the image itself. All
    targets are searched at once, in a batch T times as large. `target` int `[B, T]` names them; by default they are the
    `targets` wrong classes with the largest logits on the unattacked image, or all K - 1 where there are fewer. The
    first search from an image is deterministic; `key` (one, or one per image `[B]`) and ε matter to restarts. ε is
    traced: a scalar or one per image, in the units of the images.

    Args:
      norm: "linf" or "l2".
      steps: projections of each search.
      restarts: searches per target; from the second on, from a point within half of ε or of the distance found so far.
      targets: number of wrong classes.
      alpha_max: largest weight of the projection of the image itself.
      eta: how far beyond the hyperplane a projection leads; 1 is onto it.
      beta: share of the distance from the image that is kept after a success.
      last_steps: number of secant steps at the end.
      bounds: smallest and largest value of an attacked image.

    Raises:
      ValueError: if the norm is unknown, a count is too small, `alpha_max` or `beta` is outside [0, 1], `eta` is below
        1 or `bounds` do not ascend; from the attack, if ε is negative or NaN and not traced.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> logits_fn = lambda x: jnp.stack([x.sum(-1) + 1, -x.sum(-1) - 1], -1)  # the boundary: x_1 + x_2 = -1
      >>> found = search_targeted("linf")(logits_fn, jax.random.key(0), jnp.zeros((1, 2)), jnp.array([0]), 1.0)
      >>> round(float(found.distance[0]), 2)
      0.5
    """
    run = search_targeted(norm, steps, restarts, targets, alpha_max, eta, beta, last_steps, bounds)

    def attack(logits_fn: LogitsFn, key: Array, image: Array, label: Array, epsilon, target: Array | None = None):
        found = run(logits_fn, key, image, label, epsilon, target)
        return jnp.where(per_image(found.distance <= epsilon, image) > 0, found.image, image)

    return attack
