"""Projection of images onto the manifold of a conditional generator: z* = argmin_z L_proj(x, z, c) (paper 2.3.2, A.3).

    L_proj(x, z, c) = |x - G(z, c)|² / n + λ |z|² / d                                       (Eq. 15)

where n is the size of an image and d that of a latent, as in the authors' code; the paper's formula has n twice, but
its λ are those of the code. z starts at 0 and takes Adam steps without the penalty, then, with a fresh Adam state,
steps with the penalty. The last iterate is kept. x' = G(z*, c) is the closest image of class c, and Δx = x' - x
(Eq. 16). That is `make`; `make_fast` finds an equally low loss in a third of the steps.

The loss is summed, not averaged, over the pairs (image, class) of a batch, so the z of a pair does not depend on the
other pairs. The authors average over a batch of B, which makes gradients B times smaller and Adam's ε count B times as
much: `eps` = 1e-8 · B gives their arithmetic up to rounding, in batches of any size.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from gradalign_jax.types import Array

GenerateFn = Callable[[Array, Array], Array]  # latents [B, d], classes [B] -> images [B, ...]
Project = Callable[[GenerateFn, Array, Array], Array]  # generate_fn, images [B, ...], one class or [B] -> z [B, d]


def make(
    steps: tuple[int, int] = (600, 150),
    learning_rate: tuple[float, float] = (0.1, 0.1),
    penalty: float = 0.03,
    latent_dim: int = 128,
    eps: float = 1e-8,
) -> Project:
    """Build `project(generate_fn, image [B, ...], target) -> z [B, latent_dim]`; target is one class, or int `[B]`.

    Both phases run in one compiled loop on the device, and only z is differentiated. `onto_classes` maps `project` over
    classes, and all numbers except `latent_dim` may be traced.

    Args:
      steps: number of Adam steps without the penalty, and with it.
      learning_rate: Adam's, in each phase.
      penalty: λ of the second phase.
      latent_dim: size of z.
      eps: Adam's ε.
    """
    phases = jnp.asarray(steps), jnp.asarray(learning_rate, jnp.float32), jnp.asarray((0.0, penalty), jnp.float32)

    def project(generate_fn: GenerateFn, image: Array, target: Array) -> Array:
        def descend(z: Array, phase: tuple[Array, Array, Array]) -> tuple[Array, None]:
            count, rate, weight = phase
            objective = partial(_objective, generate_fn, image, target, weight)
            return _descend(objective, z, count, optax.adam(rate, eps=eps)), None

        z = jnp.zeros((image.shape[0], latent_dim), jnp.float32)
        return jax.lax.scan(descend, z, phases)[0]

    return project


def make_fast(
    steps: int | Array = 250,
    learning_rate: float | Array = 0.5,
    penalty: float = 0.03,
    latent_dim: int = 128,
    eps: float = 1e-8,
) -> Project:
    """Build a `project` as `make` does, of one phase: Adam with the penalty, its rate falling to 0 along a cosine.

    With 2.5 times the paper's learning rate and short averages (b1 = .8, b2 = .95), a third of its steps were enough
    (launch/projection.md).
    """

    def project(generate_fn: GenerateFn, image: Array, target: Array) -> Array:
        adam = optax.adam(lambda step: learning_rate * (1 + jnp.cos(jnp.pi * step / steps)) / 2, 0.8, 0.95, eps)
        z = jnp.zeros((image.shape[0], latent_dim), jnp.float32)
        return _descend(partial(_objective, generate_fn, image, target, penalty), z, steps, adam)

    return project


def _objective(generate_fn: GenerateFn, image: Array, target: Array, penalty: float | Array, z: Array) -> Array:
    return loss(generate_fn, image, target, z, penalty).sum()


def _descend(
    objective: Callable[[Array], Array], z: Array, count: int | Array, adam: optax.GradientTransformation
) -> Array:
    """Return z after `count` steps of Adam."""

    def step(_, carry):
        z, state = carry
        updates, state = adam.update(jax.grad(objective)(z), state)
        return optax.apply_updates(z, updates), state

    return jax.lax.fori_loop(0, count, step, (z, adam.init(z)))[0]


def loss(generate_fn: GenerateFn, image: Array, target: Array, z: Array, penalty: float | Array = 0.0) -> Array:
    """Return L_proj `[B]` of images and one class, or a class each (Eq. 15), by default without the penalty."""
    difference = generate_fn(z, jnp.broadcast_to(target, image.shape[:1])) - image
    error = jnp.mean(difference**2, axis=tuple(range(1, image.ndim)))
    return error + penalty * jnp.mean(z**2, axis=1)


def onto_classes(project: Project, generate_fn: GenerateFn, image: Array, targets: Array) -> Array:
    """Return z* `[B, D, d]` of images `[B, ...]` for D classes each: `targets`, int `[D]` or `[B, D]`."""
    return jax.vmap(lambda target: project(generate_fn, image, target), in_axes=-1, out_axes=1)(targets)


def delta_x(generate_fn: GenerateFn, image: Array, target: Array, z: Array) -> Array:
    """Return Δx = G(z, target) - x `[B, ...]` (Eq. 16)."""
    return generate_fn(z, target) - image
