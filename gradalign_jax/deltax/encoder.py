"""Δx to a generator's image of a class, with a latent that a small network predicts: the projection, amortized.

    Δ̂x = G(z, target) - x,    z = E(x, target)

E is a perceptron of two hidden layers with a bias per class in each layer, trained on L_proj (Eq. 15) over images and
other classes, in one compiled scan when the estimator is made: 1,000 steps of 64 pairs by default, about as much as
projecting 85 images by 750 steps each. `polish` steps of Adam on z, from E's, keep the z of the smallest L_proj with
its penalty, so it never rises. Cost: one pass of E and G for each image, and `polish` forward and backward passes of G.
Source: the projection of section 2.3.2, by an encoder as in Zhu et al. 2016 (Generative visual manipulation).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradalign_jax.deltax import projection
from gradalign_jax.deltax.centroid import check_examples
from gradalign_jax.deltax.projection import GenerateFn
from gradalign_jax.types import Array, DeltaX

Params = Any  # of `perceptron`
BATCH = 64  # images of a training step


def make(
    generate_fn: GenerateFn,
    images: np.ndarray | Array,
    labels: np.ndarray | Array,
    latent_dim: int = 128,
    steps: int = 1000,
    polish: int = 0,
    penalty: float = 0.03,
    hidden: int = 512,
    learning_rate: float = 1e-3,
    polish_rate: float = 0.03,
    seed: int = 0,
) -> DeltaX:
    """Train an encoder of images for a trained generator, and return its Δx.

    Args:
      generate_fn: (z `[B, latent_dim]`, classes `[B]`) -> images `[B, ...]`; as a `jax.tree_util.Partial` of a function
        and its weights, the weights are arguments of the programs that use Δx.
      images: float `[N, ...]`, to train on, in the range of the generator's images.
      labels: int `[N]`, with at least one image of every class 0 .. K - 1.
      latent_dim: size of z.
      steps: number of training steps, with Adam and a learning rate that falls to 0 as a cosine.
      polish: number of Adam steps on z for each image.
      penalty: λ of Eq. 15, as for the projection onto this generator (MNIST 1.5); too small a one lets z imitate x.
      hidden: units of each hidden layer.
      learning_rate, polish_rate: Adam's, of the training and on z.
      seed: of the weights and batches.

    Raises:
      ValueError: if there is one class only, `steps` or `polish` is negative, and as `check_examples`.
    """
    classes = len(check_examples(images, labels))
    if classes < 2 or min(steps, polish) < 0:
        raise ValueError(f"an encoder needs 2 classes, steps and polish >= 0, got {classes}, {steps} and {polish}")
    generate_fn = jax.tree_util.Partial(generate_fn)
    images, labels = jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32)
    sizes = (images[0].size, hidden, hidden, latent_dim)

    def objective(params: Params, key: Array, generate_fn: GenerateFn, images: Array, labels: Array) -> Array:
        image, target = pairs(key, images, labels, classes)
        return projection.loss(generate_fn, image, target, perceptron(params, image, target), penalty).mean()

    params = fit(objective, sizes, classes, steps, learning_rate, jax.random.key(seed), generate_fn, images, labels)
    return _made(params, generate_fn, polish, penalty, polish_rate)


def polished(
    delta_x: jax.tree_util.Partial, polish: int, penalty: float = 0.03, polish_rate: float = 0.03
) -> jax.tree_util.Partial:
    """Return the Δx that `make` returned with another number of steps on z; the numbers are those of `make`."""
    params, generate_fn = delta_x.args
    return _made(params, generate_fn, polish, penalty, polish_rate)


def _made(params: Params, generate_fn: GenerateFn, polish: int, penalty: float, polish_rate: float):
    improve = partial(_polish, steps=polish, learning_rate=polish_rate, penalty=penalty)
    return jax.tree_util.Partial(partial(_delta_x, improve), params, generate_fn)


def pairs(key: Array, images: Array, labels: Array, classes: int) -> tuple[Array, Array]:
    """Return a random batch of images, and for each another class."""
    row_key, class_key = jax.random.split(key)
    row = jax.random.randint(row_key, (BATCH,), 0, len(labels))
    return images[row], (labels[row] + jax.random.randint(class_key, (BATCH,), 1, classes)) % classes


def fit(
    objective: Callable[..., Array],
    sizes: tuple[int, ...],
    classes: int,
    steps: int,
    learning_rate: float,
    key: Array,
    *arguments: Any,
) -> Params:
    """Train a perceptron on `objective(params, key, *arguments)` by Adam, all steps in one compiled scan."""
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, max(steps, 1)))

    @jax.jit
    def train(key: Array, *arguments: Any) -> Params:
        def step(carry: tuple[Params, Any], number: Array) -> tuple[tuple[Params, Any], None]:
            params, state = carry
            gradient = jax.grad(objective)(params, jax.random.fold_in(key, number), *arguments)
            updates, state = adam.update(gradient, state)
            return (optax.apply_updates(params, updates), state), None

        params = initial(jax.random.fold_in(key, steps), sizes, classes)
        return jax.lax.scan(step, (params, adam.init(params)), jnp.arange(steps))[0][0]

    return train(key, *arguments)


def initial(key: Array, sizes: tuple[int, ...], classes: int) -> Params:
    """Return a perceptron's first parameters: a kernel `[n, m]` and a bias per class `[K, m]` for each layer."""
    keys = jax.random.split(key, len(sizes) - 1)
    kernels = [jax.random.normal(k, (n, m)) * (2 / n) ** 0.5 for k, n, m in zip(keys, sizes, sizes[1:], strict=False)]
    return [{"kernel": kernel, "bias": jnp.zeros((classes, kernel.shape[1]))} for kernel in kernels]


def perceptron(params: Params, image: Array, target: Array) -> Array:
    """Return the outputs `[B, m]` for images `[B, ...]` and classes `[B]`."""
    *hidden, last = params
    x = image.reshape(len(image), -1)
    for layer in hidden:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"][target])
    return x @ last["kernel"] + last["bias"][target]


def _polish(
    generate_fn: GenerateFn, image: Array, target: Array, z: Array, *, steps: int, learning_rate: float, penalty: float
) -> Array:
    """Return the z `[B, d]` of the smallest L_proj among `steps` Adam steps from z, the start included."""
    adam = optax.adam(learning_rate)

    def loss(z: Array) -> tuple[Array, Array]:
        each = projection.loss(generate_fn, image, target, z, penalty)
        return each.sum(), each

    def step(_, carry):
        z, state, best, least = carry
        gradient, each = jax.grad(loss, has_aux=True)(z)
        best, least = jnp.where((each < least)[:, None], z, best), jnp.minimum(each, least)
        updates, state = adam.update(gradient, state)
        return optax.apply_updates(z, updates), state, best, least

    if not steps:
        return z
    start = z, adam.init(z), z, jnp.full(len(z), jnp.inf, z.dtype)
    z, _, best, least = jax.lax.fori_loop(0, steps, step, start)
    return jnp.where((loss(z)[1] < least)[:, None], z, best)


def _delta_x(
    improve: Callable[..., Array],
    params: Params,
    generate_fn: GenerateFn,
    image: Array,
    label: Array,
    target: Array,
    index: Array | None = None,
) -> Array:
    target = jnp.asarray(target)
    z = improve(generate_fn, image, target, perceptron(params, image, target))
    return projection.delta_x(generate_fn, image, target, z)
