"""Training of the conditional GAN, one iteration as a pure function (paper A.3; the authors' code).

An iteration is several steps of the discriminator, each on new latents and real images, then one of the generator:

    discriminator  hinge(real, its class) + hinge(fake, K)
    generator      1.0 · |mean features of fake images - of real ones| + 0.05 · hinge(fake, its class)

with the hinge of Crammer and Singer over K + 1 classes. The generator's step uses the latents and real images of the
discriminator's last step. The authors run both networks twice in it, once for each term; here the terms share one pass.
This leaves out one update of the running statistics and one power iteration of the spectral norm (5 per iteration with
four discriminator steps, where theirs makes 6), which changes σ only by rounding once training is under way.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradalign_jax.models.biggan import Discriminator, Generator, multi_hinge
from gradalign_jax.ops import precision
from gradalign_jax.types import Array, Batch, Step, Variables


class GanState(NamedTuple):
    """Everything that training changes. `step` counts finished iterations; keys and the data order derive from it."""

    generator: Variables
    discriminator: Variables
    ema: Variables  # the generator's, averaged over iterations
    generator_optimizer: optax.OptState
    discriminator_optimizer: optax.OptState
    step: Array


class Loss(NamedTuple):
    """Weights of the two terms of the generator's loss."""

    feature_matching: float = 1.0
    hinge: float = 0.05


class Average(NamedTuple):
    """The moving average of the generator: a copy until iteration `start` (counted from 1), then with this decay."""

    decay: float = 0.9999
    start: int = 1000


def create_state(
    generator: Generator, discriminator: Discriminator, optimizer: optax.GradientTransformation, key: Array
) -> GanState:
    """Return the initial state: random variables of both networks, fresh optimizers, step 0."""
    keys = jax.random.split(key)
    g, d = generator.init(keys[0]), discriminator.init(keys[1])
    optimizers = optimizer.init(g["params"]), optimizer.init(d["params"])
    return GanState(g, d, jax.tree.map(jnp.copy, g), *optimizers, jnp.zeros((), jnp.int32))


def draw_latents(keys: Array, draw: Array, num_classes: int, latent_dim: int) -> tuple[Array, Array]:
    """Return z ~ N(0, I) `[B, latent_dim]` and uniform classes `[B]`, from one key per image and the draw's number."""

    def one(key: Array) -> tuple[Array, Array]:
        latent_key, label_key = jax.random.split(jax.random.fold_in(key, draw))
        return jax.random.normal(latent_key, (latent_dim,)), jax.random.randint(label_key, (), 0, num_classes)

    return jax.vmap(one)(keys)


def average(ema: Variables, variables: Variables, iteration: Array, settings: Average) -> Variables:
    """Return the moving average after `iteration` (counted from 1), of parameters, statistics and u alike."""

    def one(old: Array, new: Array) -> Array:
        return jnp.where(iteration < settings.start, new, old + (1 - settings.decay) * (new - old))

    return jax.tree.map(one, ema, variables)


def make_step(
    generator: Generator,
    discriminator: Discriminator,
    optimizer: optax.GradientTransformation,
    *,
    num_classes: int,
    latent_dim: int,
    loss: Loss = Loss(),  # noqa: B008 (a constant)
    ema: Average = Average(),  # noqa: B008
    mean: Callable[[Any], Any] = lambda tree: tree,
    products: str = "float32",
) -> Step[GanState]:
    """Build `step(state, batch, keys, settings) -> (state, metrics)`, one iteration.

    The step takes real images `[D, B, ...]`, B for each of D discriminator steps, and B keys; it does not read
    `settings`. Metrics: `real` and `fake` (the two hinges of the discriminator, means over its steps), `error` (the
    share of real images that it misclassifies), `feature_matching` and `hinge` (the terms of the generator).

    Args:
      generator, discriminator: the networks of models/biggan.py.
      optimizer: the optimizer of both networks, each with its own state.
      num_classes: number of classes K.
      latent_dim: size of a latent.
      loss: weights of the generator's loss.
      ema: the moving average of the generator.
      mean: averages over devices; identity on one device.
      products: precision of the products, one of `precision.NAMES`; the networks are created with its factors.
    """

    def d_loss(params: Any, state: GanState, fake: Array, real: Array, label: Array):
        variables = {**state.discriminator, "params": params}
        scores, _, spectral = discriminator.apply(variables, jnp.concatenate([fake, real]), train=True)
        of_fake, of_real = jnp.split(scores, [len(fake)])
        metrics = {
            "real": multi_hinge(of_real, label),
            "fake": multi_hinge(of_fake, jnp.full(len(fake), num_classes)),
            "error": jnp.mean(of_real.argmax(-1) != label),
        }
        return metrics["real"] + metrics["fake"], (metrics, spectral)

    def d_step(state: GanState, draw: Array, real: Batch, keys: Array):
        z, label = draw_latents(keys, draw, num_classes, latent_dim)
        fake, moved = generator.apply(state.generator, z, label, train=True)
        params = state.discriminator["params"]
        gradients, (metrics, spectral) = jax.grad(d_loss, has_aux=True)(params, state, fake, real.image, real.label)
        gradients, metrics = mean((gradients, metrics))
        updates, optimizer_state = optimizer.update(gradients, state.discriminator_optimizer, params)
        discriminator_variables = {"params": optax.apply_updates(params, updates), **spectral}
        state = state._replace(
            generator={**state.generator, **moved},
            discriminator=discriminator_variables,
            discriminator_optimizer=optimizer_state,
        )
        return state, metrics

    def g_loss(params: Any, state: GanState, z: Array, label: Array, real: Array):
        fake, moved = generator.apply({**state.generator, "params": params}, z, label, train=True)
        scores, features, spectral = discriminator.apply(state.discriminator, fake, train=True)
        # Both passes start from the same u and so use the same σ, as one pass would; real images need no backward pass.
        _, wanted, _ = discriminator.apply(state.discriminator, real, train=True)
        difference = mean(features.mean(0)) - mean(wanted.mean(0))
        metrics = {"feature_matching": jnp.abs(difference).mean(), "hinge": multi_hinge(scores, label)}
        total = loss.feature_matching * metrics["feature_matching"] + loss.hinge * metrics["hinge"]
        return total, (metrics, moved, spectral)

    def g_step(state: GanState, draw: Array, real: Batch, keys: Array):
        z, label = draw_latents(keys, draw, num_classes, latent_dim)
        params = state.generator["params"]
        gradients, aux = jax.grad(g_loss, has_aux=True)(params, state, z, label, real.image)
        gradients, metrics = mean((gradients, aux[0]))
        updates, optimizer_state = optimizer.update(gradients, state.generator_optimizer, params)
        variables = {"params": optax.apply_updates(params, updates), **aux[1]}
        state = state._replace(
            generator=variables,
            discriminator={**state.discriminator, **aux[2]},
            generator_optimizer=optimizer_state,
            ema=average(state.ema, variables, state.step + 1, ema),
            step=state.step + 1,
        )
        return state, metrics

    def step(state: GanState, batch: Batch, keys: Array, settings: Any = None):
        del settings
        draws = jnp.arange(len(batch.label))

        def body(state, inputs):
            draw, real = inputs
            return d_step(state, draw, real, keys)

        with precision.scope(products):
            state, metrics = jax.lax.scan(body, state, (draws, batch))
            draw, real = jax.tree.map(lambda rows: rows[-1], (draws, batch))
            state, generator_metrics = g_step(state, draw, real, keys)
        return state, {**jax.tree.map(jnp.mean, metrics), **generator_metrics}

    return step
