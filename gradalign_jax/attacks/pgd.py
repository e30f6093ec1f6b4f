"""Projected gradient descent (Madry et al. 2018), the attack of the paper in training and test (3.1, Eq. 17)."""

import jax
import jax.numpy as jnp

from gradalign_jax.attacks.ball import BALLS, check_epsilon, per_image
from gradalign_jax.attacks.losses import LOSSES
from gradalign_jax.types import IMAGE_RANGE, Array, Attack, LogitsFn


def vanishing(logits_fn: LogitsFn, image: Array, label: Array, loss: str = "cross_entropy") -> Array:
    """Return for which images PGD has no direction, bool `[B]`: no pixel of the gradient is finite and not zero."""
    gradient = jax.grad(lambda x: jnp.sum(LOSSES[loss](logits_fn(x), label)))(image)
    return ~jnp.any(jnp.isfinite(gradient) & (gradient != 0), axis=tuple(range(1, gradient.ndim)))


def image_keys(key: Array, count: int) -> Array:
    """Return one key per image: `key` itself if it is a batch of keys, else `key` folded with each position."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if key.ndim == (1 if typed else 2):
        return key
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))


def make(
    norm: str = "linf",
    steps: int = 40,
    random_start: bool = True,
    loss: str = "cross_entropy",
    bounds: tuple[float, float] = IMAGE_RANGE,
    targeted: bool = False,
) -> Attack:
    """Build `attack(logits_fn, key, image, label, epsilon, step_size) -> image`.

    The attack starts at a uniform point of the ε-ball around the image, or at the image. It takes `steps` steps of
    `step_size` in the direction of steepest ascent of the loss, and projects each onto the ball around the original
    image, then onto `bounds`. The last iterate is returned, without a gradient. ε and step size are traced: a scalar or
    one per image, in the units of the images, so a new value never recompiles. `key` is one key, or one per image
    `[B]`; in the latter case an image's start does not depend on the rest of its batch.

    Args:
      norm: "linf" or "l2".
      steps: number of gradient steps.
      random_start: whether to start at a uniform point of the ball.
      loss: "cross_entropy", or "margin" (max_{j≠y} logit_j - logit_y; the choice for two classes).
      bounds: smallest and largest value of an attacked image. Pixels outside are clamped even at ε = 0.
      targeted: whether `label` is the class to reach, so that the loss is minimized.

    Raises:
      ValueError: if the norm or loss is unknown, `steps` is negative or `bounds` do not ascend; from the attack, if ε
        is negative or NaN and not traced.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attack = make("linf", steps=3, random_start=False)
      >>> logits_fn = lambda x: jnp.stack([x.sum(-1), -x.sum(-1)], -1)
      >>> attack(logits_fn, jax.random.key(0), jnp.zeros((1, 2)), jnp.array([0]), 0.25, 0.1)
      Array([[-0.25, -0.25]], dtype=float32)
    """
    if norm not in BALLS:
        raise ValueError(f"unknown norm {norm!r}: use one of {sorted(BALLS)}")
    if loss not in LOSSES:
        raise ValueError(f"unknown attack loss {loss!r}: use one of {sorted(LOSSES)}")
    if steps < 0 or not bounds[0] < bounds[1]:
        raise ValueError(f"steps must be >= 0 and bounds must ascend, got steps={steps}, bounds={tuple(bounds)}")
    ball, loss_fn, sign = BALLS[norm], LOSSES[loss], -1 if targeted else 1

    def attack(logits_fn: LogitsFn, key: Array, image: Array, label: Array, epsilon, step_size) -> Array:
        check_epsilon(epsilon)
        image = jax.lax.stop_gradient(image)
        ascend = jax.grad(lambda x: sign * jnp.sum(loss_fn(logits_fn(x), label)))

        def into_range(delta):
            return jnp.clip(image + ball.project(delta, epsilon), *bounds)

        def step(_, x):
            return into_range(x + per_image(step_size, x) * ball.steepest_ascent(ascend(x)) - image)

        start = image
        if random_start:
            noise = jax.vmap(ball.random_start)(image_keys(key, image.shape[0]), image)
            start = jnp.clip(image + per_image(epsilon, image) * noise, *bounds)
        return jax.lax.stop_gradient(jax.lax.fori_loop(0, steps, step, start))

    return attack
