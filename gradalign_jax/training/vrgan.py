"""VR-GAN: a generator learns the residual that moves an image to the other class (section 2.3.1, Eqs. 10-13).

The critic is a classifier. It learns to give the moved image x' = x + Δ̂x the label of x. The generator learns a small
residual with which the critic gives x' the other label.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradalign_jax.ops import precision
from gradalign_jax.types import Array, Batch, Classifier, ResidualGenerator, Step, Variables


class Weights(NamedTuple):
    """The authors' weights of the four losses."""

    real: float = 1.0  # L_Dx
    generated: float = 0.01  # L_Dx'
    fool: float = 0.3  # L_G
    small: float = 0.5  # L_RegG


class VRGANState(NamedTuple):
    """Everything that training changes; `loss` is the sum of both objectives since the start of the epoch."""

    generator: Variables
    critic: Variables
    generator_optimizer: optax.OptState
    critic_optimizer: optax.OptState
    step: Array
    loss: Array


def create_state(
    generator: ResidualGenerator, critic: Classifier, optimizer: optax.GradientTransformation, key: Array
) -> VRGANState:
    """Return the initial state: random variables of both networks, fresh optimizers, step 0."""
    keys = jax.random.split(key)
    drawn = generator.init(keys[0]), critic.init(keys[1])
    moments = optimizer.init(drawn[0]["params"]), optimizer.init(drawn[1]["params"])
    return VRGANState(*drawn, *moments, jnp.zeros((), jnp.int32), jnp.zeros(()))


def relative_norm(residual: Array) -> Array:
    """Return |Δ̂x|₂ / √n of each residual `[B]`; where a residual is 0, so is the gradient, not NaN."""
    flat = residual.reshape(len(residual), -1)
    return jnp.sqrt(jnp.mean(flat * flat, axis=-1) + 1e-30)


def _cross_entropy(logits: Array, label: Array) -> Array:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, label))


class Forward(NamedTuple):
    """The forward pass that both updates share: Δ̂x, the critic's logits of x + Δ̂x, and the pull-back of each."""

    residual: Array
    statistics: Any  # the generator's, updated
    pull_generator: Callable  # cotangent of the residual -> (gradient of the generator's parameters,)
    logits: Array
    pull_critic: Callable  # cotangent of the logits -> (gradients of the critic's parameters, of x + Δ̂x)


def forward(
    generator: ResidualGenerator,
    critic: Classifier,
    generator_variables: Variables,
    critic_variables: Variables,
    batch: Batch,
) -> Forward:
    """Compute Δ̂x = G(x, 1 - y, y) and the critic's logits of x + Δ̂x, in training mode."""

    def generate(params):
        variables = {**generator_variables, "params": params}
        return generator.apply(variables, batch.image, 1 - batch.label, batch.label, train=True)

    def judge(params, image):
        return critic.apply({**critic_variables, "params": params}, image, train=True)[0]

    residual, pull_generator, statistics = jax.vjp(generate, generator_variables["params"], has_aux=True)
    logits, pull_critic = jax.vjp(judge, critic_variables["params"], batch.image + residual)
    return Forward(residual, statistics, pull_generator, logits, pull_critic)


def critic_gradient(
    critic: Classifier, variables: Variables, batch: Batch, passed: Forward, weights: Weights
) -> tuple[Any, dict[str, Array]]:
    """Return the gradient of L_Dx and L_Dx' in the critic's parameters (Eqs. 11 and 13), and both losses."""

    def real_loss(params):
        return _cross_entropy(critic.apply({**variables, "params": params}, batch.image, train=True)[0], batch.label)

    real, real_gradient = jax.value_and_grad(real_loss)(variables["params"])
    generated, cotangent = jax.value_and_grad(_cross_entropy)(passed.logits, batch.label)
    generated_gradient = passed.pull_critic(cotangent)[0]
    gradient = jax.tree.map(lambda a, b: weights.real * a + weights.generated * b, real_gradient, generated_gradient)
    return gradient, {"critic_real": real, "critic_generated": generated}


def generator_gradient(batch: Batch, passed: Forward, weights: Weights) -> tuple[Any, dict[str, Array]]:
    """Return the gradient of L_G and L_RegG in the generator's parameters (Eqs. 11-13), and both losses."""
    fool, cotangent = jax.value_and_grad(_cross_entropy)(passed.logits, 1 - batch.label)
    small, small_cotangent = jax.value_and_grad(lambda r: jnp.mean(relative_norm(r)))(passed.residual)
    towards = weights.fool * passed.pull_critic(cotangent)[1] + weights.small * small_cotangent
    return passed.pull_generator(towards)[0], {"generator_fool": fool, "generator_small": small}


def make_step(
    generator: ResidualGenerator,
    critic: Classifier,
    optimizer: optax.GradientTransformation,
    weights: Weights = Weights(),  # noqa: B008 (a tuple)
    mean: Callable[[Any], Any] = lambda tree: tree,
    products: str = "float32",
) -> Step[VRGANState]:
    """Build `step(state, batch, keys, settings) -> (state, metrics)`: one update of each network.

    Both updates use one forward pass with the parameters from before the step. (The authors' code updates the critic in
    between and mixes its new weights with old activations; the difference is of the order of the learning rate.) The
    step does not read `keys` and `settings`. Metrics: the four losses, unweighted, and `loss`, their weighted sum.

    Args:
      generator: the network G(x, ¬y, y).
      critic: the network D, with two classes.
      optimizer: the optimizer of both networks, each with its own state.
      weights: weights of the losses.
      mean: averages gradients and metrics over devices; identity on one device. Batch statistics of the generator are
        those of the whole batch if it was created with the devices' axis.
      products: precision of the products, float32 or tf32.
    """

    def update(gradient, moments, variables: Variables, statistics):
        updates, moments = optimizer.update(gradient, moments, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), "batch_stats": statistics}, moments

    def step(state: VRGANState, batch: Batch, keys: Any = None, settings: Any = None):
        with precision.scope(products):
            passed = forward(generator, critic, state.generator, state.critic, batch)
            of_critic, critic_losses = critic_gradient(critic, state.critic, batch, passed, weights)
            of_generator, generator_losses = generator_gradient(batch, passed, weights)
        losses = critic_losses | generator_losses
        weighted = [weight * loss for weight, loss in zip(weights, losses.values(), strict=True)]
        losses["loss"] = sum(weighted)  # type: ignore[assignment]  # sum starts at 0
        of_critic, of_generator, statistics, losses = mean((of_critic, of_generator, passed.statistics, losses))
        critic_variables, critic_moments = update(
            of_critic, state.critic_optimizer, state.critic, state.critic["batch_stats"]
        )
        variables, moments = update(of_generator, state.generator_optimizer, state.generator, statistics)
        return (
            VRGANState(
                variables, critic_variables, moments, critic_moments, state.step + 1, state.loss + losses["loss"]
            ),
            losses,
        )

    return step
