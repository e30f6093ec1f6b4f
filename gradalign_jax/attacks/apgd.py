"""Auto-PGD (Croce & Hein 2020): projected gradient ascent with momentum that chooses its own step sizes.

With P the projection onto the ball around the image and onto the range, and η the step size, a step is (Eq. 2 and 3)

    z⁽ᵏ⁺¹⁾ = P(x⁽ᵏ⁾ + η ascent(∇f(x⁽ᵏ⁾)))
    x⁽ᵏ⁺¹⁾ = P(x⁽ᵏ⁾ + ¾ (z⁽ᵏ⁺¹⁾ - x⁽ᵏ⁾) + ¼ (x⁽ᵏ⁾ - x⁽ᵏ⁻¹⁾)).

η is 2ε at first. It is halved, and the search resumes at the best iterate so far, at a checkpoint w_j where

    1. the loss rose in at most ρ (w_j - w_{j-1}) of the steps since the last checkpoint, or
    2. η was not halved at the last checkpoint, and the best loss has not improved since.

The first checkpoint comes after 22 % of the steps. Each further one follows sooner by 3 %, but by no less than 6 %.

The settings are those of the authors' AutoAttack. As there, the first step counts as a rise if its loss exceeds 0, not
the loss at the start, and a tie in condition 1 counts as too few rises. At the first checkpoint condition 2 applies as
in the paper; in their code only condition 1 does. Here each image has its own key, and its search ends at its first
misclassified iterate.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradalign_jax.attacks import targets as classes
from gradalign_jax.attacks.ball import BALLS, check_epsilon, per_image
from gradalign_jax.attacks.losses import LOSSES, TARGETED
from gradalign_jax.attacks.pgd import image_keys
from gradalign_jax.types import IMAGE_RANGE, Array, BlackBoxAttack, LogitsFn, predicted


class Found(NamedTuple):
    """The result of the attack for each image.

    image: `[B, ...]`, the first iterate that is misclassified, else the one of largest loss.
    fooled: bool `[B]`, whether `image` is misclassified.
    loss: `[B]`, the largest loss; +inf where the image was misclassified without an attack.
    gradients: int32 `[B]`, gradients computed until the image was fooled.
    """

    image: Array
    fooled: Array
    loss: Array
    gradients: Array


class _Run(NamedTuple):
    """One ascent: `[B, ...]`, and `[B]` from `best_loss` on."""

    x: Array
    previous: Array  # the iterate before x
    gradient: Array
    best: Array  # the iterate of largest loss
    best_gradient: Array
    best_loss: Array
    loss: Array
    step_size: Array
    rises: Array  # steps since the last checkpoint that raised the loss
    checked_loss: Array  # best_loss at the last checkpoint
    halved: Array  # whether the last checkpoint halved the step size
    found: Found


def periods(steps: int) -> np.ndarray:
    """Return the number of steps since the last checkpoint for each step before a checkpoint, else 0, int `[steps]`."""
    period, shorter, shortest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    ends, last = np.zeros(steps, np.int32), -1
    while last + period < steps:
        last += period
        ends[last] = period
        period = max(period - shorter, shortest)
    return ends


def search(
    norm: str = "linf",
    steps: int = 100,
    restarts: int = 1,
    loss: str = "cross_entropy",
    rho: float = 0.75,
    random_start: bool = True,
    bounds: tuple[float, float] = IMAGE_RANGE,
) -> Callable[..., Found]:
    """Build `search(logits_fn, key, image, label, epsilon, target=None) -> Found`.

    With `target` int `[B]` the loss leads to that class; any wrong class ends the search. The other arguments, and the
    errors, are those of `make`. A driver that drops fooled images between attacks, or attacks one target after the
    other, calls this with the keys of `targets.keys`.
    """
    if norm not in BALLS:
        raise ValueError(f"unknown norm {norm!r}: use one of {sorted(BALLS)}")
    if loss not in LOSSES:
        raise ValueError(f"unknown attack loss {loss!r}: use one of {sorted(LOSSES)}")
    if min(steps, restarts) < 1 or not 0 <= rho <= 1 or not bounds[0] < bounds[1]:
        raise ValueError(
            f"steps and restarts must be >= 1, rho in [0, 1], and bounds must ascend, got steps={steps}, "
            f"restarts={restarts}, rho={rho}, bounds={tuple(bounds)}"
        )
    if restarts > 1 and not random_start:
        raise ValueError(f"restarts={restarts} without a random start would repeat one ascent: use restarts=1")
    ball, ends = BALLS[norm], periods(steps)

    def attack(logits_fn: LogitsFn, key: Array, image: Array, label: Array, epsilon, target: Array | None = None):
        check_epsilon(epsilon)
        image, keys = jax.lax.stop_gradient(image), image_keys(key, len(image))
        epsilon = jnp.broadcast_to(jnp.asarray(epsilon, image.dtype), (len(image),))

        def total(x):
            logits = logits_fn(x)
            value = LOSSES[loss](logits, label) if target is None else TARGETED[loss](logits, label, target)
            return value.sum(), (value, predicted(logits) != label)

        def ascend(x, found: Found):
            """Return the gradient and the loss at x, and the result updated with x."""
            gradient, (value, wrong) = jax.grad(total, has_aux=True)(x)
            value = jnp.where(jnp.isnan(value), -jnp.inf, value)
            return gradient, value, _update(found, x, value, wrong)

        def into_range(x):
            return jnp.clip(image + ball.project(x - image, epsilon), *bounds)

        def step(i, run: _Run) -> _Run:
            ahead = into_range(run.x + per_image(run.step_size, image) * ball.steepest_ascent(run.gradient))
            momentum = jnp.where(i > 0, 0.25, 0)
            x = into_range(run.x + (1 - momentum) * (ahead - run.x) + momentum * (run.x - run.previous))
            gradient, value, found = ascend(x, run.found)
            better = value > run.best_loss
            best, best_gradient = _where(better, x, run.best), _where(better, gradient, run.best_gradient)
            best_loss, rises = jnp.maximum(run.best_loss, value), run.rises + (value > run.loss)

            period = jnp.asarray(ends)[i]
            check, stuck = period > 0, ~run.halved & (run.checked_loss >= best_loss)
            halve = check & ((rises <= rho * period) | stuck)
            return _Run(
                x=_where(halve, best, x),
                previous=run.x,
                gradient=_where(halve, best_gradient, gradient),
                best=best,
                best_gradient=best_gradient,
                best_loss=best_loss,
                loss=value,
                step_size=jnp.where(halve, run.step_size / 2, run.step_size),
                rises=jnp.where(check, 0, rises),
                checked_loss=jnp.where(check, best_loss, run.checked_loss),
                halved=jnp.where(check, halve, run.halved),
                found=found,
            )

        def attempt(restart, found: Found) -> Found:
            x = image
            if random_start:
                fresh = jax.vmap(lambda key: jax.random.fold_in(key, restart))(keys)
                x = image + per_image(epsilon, image) * jax.vmap(ball.random_start)(fresh, image)
            x = jnp.clip(x, *bounds)
            gradient, value, found = ascend(x, found)
            nothing = jnp.zeros_like(value)
            run = _Run(x, x, gradient, x, gradient, value, nothing, 2 * epsilon, nothing, value, nothing > 0, found)
            return _repeat(steps, step, run, lambda run: ~run.found.fooled).found

        wrong = predicted(logits_fn(image)) != label
        unfooled = jnp.where(wrong, jnp.inf, -jnp.inf).astype(image.dtype)
        found = Found(image, wrong, unfooled, jnp.zeros(len(image), jnp.int32))
        return jax.lax.stop_gradient(jax.lax.fori_loop(0, restarts, attempt, found))

    return attack


def make(
    norm: str = "linf",
    steps: int = 100,
    restarts: int = 1,
    loss: str = "cross_entropy",
    rho: float = 0.75,
    random_start: bool = True,
    bounds: tuple[float, float] = IMAGE_RANGE,
) -> BlackBoxAttack:
    """Build `attack(logits_fn, key, image, label, epsilon) -> image`.

    For each image the attack returns the first iterate that is misclassified, of any restart, else the iterate of
    largest loss; an image that is misclassified already is returned unchanged. No gradient passes through the result. ε
    is traced: a scalar or one per image, in the units of the images. `key` is one key, or one per image `[B]`; in the
    latter case the result for an image does not depend on the rest of its batch. An image costs at most
    (steps + 1) · restarts gradients.

    Args:
      norm: "linf" or "l2".
      steps: number of gradient steps; the checkpoints scale with it.
      restarts: number of ascents, each from its own random start.
      loss: "cross_entropy", "dlr" (from three classes), "pma" or "margin" (the choice for two classes).
      rho: share of steps that must raise the loss, in condition 1.
      random_start: whether to start at a uniform point of the ball, or at the image.
      bounds: smallest and largest value of an attacked image.

    Raises:
      ValueError: if the norm or loss is unknown, `steps` or `restarts` is below 1, several restarts have no random
        start, `rho` is outside [0, 1] or `bounds` do not ascend; from the attack, if `loss` needs more classes, or if
        ε is negative or NaN and not traced.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attack = make("linf", steps=10, loss="margin")
      >>> logits_fn = lambda x: jnp.stack([x.sum(-1) + 9, -x.sum(-1)], -1)
      >>> attack(logits_fn, jax.random.key(0), jnp.zeros((1, 2)), jnp.array([0]), 0.25)
      Array([[-0.25, -0.25]], dtype=float32)
    """
    run = search(norm, steps, restarts, loss, rho, random_start, bounds)
    return lambda logits_fn, key, image, label, epsilon: run(logits_fn, key, image, label, epsilon).image


def search_targeted(
    norm: str = "linf",
    steps: int = 100,
    restarts: int = 1,
    targets: int = 9,
    loss: str = "dlr",
    rho: float = 0.75,
    random_start: bool = True,
    bounds: tuple[float, float] = IMAGE_RANGE,
) -> Callable[..., Found]:
    """Build `search(logits_fn, key, image, label, epsilon, target=None) -> Found`; see `make_targeted`.

    `Found.gradients` is the sum over targets.
    """
    if targets < 1:
        raise ValueError(f"targets must be >= 1, got {targets}")
    run = search(norm, steps, restarts, loss, rho, random_start, bounds)

    def attack(logits_fn: LogitsFn, key: Array, image: Array, label: Array, epsilon, target: Array | None = None):
        if target is None:
            target = classes.likeliest(logits_fn(image), label, targets)
        towards = lambda keys, target: run(logits_fn, keys, image, label, epsilon, target)  # noqa: E731
        found = classes.each(towards, key, target)
        best = classes.best(found, jnp.where(found.fooled, jnp.inf, found.loss))
        return best._replace(gradients=found.gradients.sum(1))

    return attack


def make_targeted(
    norm: str = "linf",
    steps: int = 100,
    restarts: int = 1,
    targets: int = 9,
    loss: str = "dlr",
    rho: float = 0.75,
    random_start: bool = True,
    bounds: tuple[float, float] = IMAGE_RANGE,
) -> Callable[..., Array]:
    """Build `attack(logits_fn, key, image, label, epsilon, target=None) -> image`: `make`, once per wrong class.

    All targets are searched at once, in a batch T times as large. The result is the first success in the order of the
    targets, else the image of largest loss. `target` int `[B, T]` names them; by default they are the `targets` wrong
    classes with the largest logits on the unattacked image, or all K - 1 where there are fewer.

    Args:
      norm, steps, restarts, rho, random_start, bounds: as in `make`; all restarts are made for each target.
      targets: number of wrong classes.
      loss: "dlr" (from four classes), "pma", "margin" or "cross_entropy", in their targeted forms.

    Raises:
      ValueError: as `make`, or if `targets` is below 1.
    """
    run = search_targeted(norm, steps, restarts, targets, loss, rho, random_start, bounds)
    return lambda *arguments: run(*arguments).image


def _where(condition: Array, yes: Array, no: Array) -> Array:
    """Return `yes` or `no` for each image, by a condition `[B]`."""
    return jnp.where(per_image(condition, yes) > 0, yes, no)


def _update(found: Found, image: Array, loss: Array, wrong: Array) -> Found:
    """Return the result updated with one more iterate; an image that is already fooled keeps its iterate."""
    take = ~found.fooled & (wrong | (loss > found.loss))
    return Found(
        _where(take, image, found.image),
        found.fooled | wrong,
        jnp.where(found.fooled, found.loss, jnp.maximum(loss, found.loss)),
        found.gradients + ~found.fooled,
    )


def _repeat(steps: int, step: Callable, state, unfinished: Callable):
    """Return the state after `steps` of step(i, state), or earlier once no image is unfinished."""
    return jax.lax.while_loop(
        lambda carry: (carry[0] < steps) & jnp.any(unfinished(carry[1])),
        lambda carry: (carry[0] + 1, step(*carry)),
        (0, state),
    )[1]
