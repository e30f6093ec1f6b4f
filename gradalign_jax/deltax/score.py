"""Δx as the difference of two classes' denoised images: a step along the score of p(target | x) / p(label | x).

    Δ̂x = mean over noises n of  D(x + σ n, target) - D(x + σ n, label),    D(x̃, c) = E[x | x̃, c]

D is a class-conditional denoiser at one level of noise σ. By Tweedie's formula D(x̃, c) = x̃ + σ² ∇ log p_σ(x̃ | c), so
Δ̂x is σ² times the input gradient of log p_σ(target | x̃) - log p_σ(label | x̃), the gradient that a Bayes classifier
of noisy images has (Srinivas and Fleuret 2021; Ganz, Kawar and Elad 2023, who train classifiers to have it). D is a
perceptron of two hidden layers, trained when the estimator is made. Cost: 2 passes of D for each noise.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gradalign_jax.deltax.centroid import check_examples
from gradalign_jax.deltax.encoder import BATCH, Params, fit, perceptron
from gradalign_jax.types import Array, DeltaX

TRAINED = True  # `make` trains a network, which a run keeps


def make(
    images: np.ndarray | Array,
    labels: np.ndarray | Array,
    sigma: float | None = None,
    steps: int = 2000,
    noises: int = 4,
    hidden: int = 1024,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> DeltaX:
    """Train a class-conditional denoiser, and return the difference of its outputs for two classes.

    Args:
      images: float `[N, ...]`, to train on, in the range of the images that Δx is taken of.
      labels: int `[N]`, with at least one image of every class 0 .. K - 1.
      sigma: standard deviation of the noise, in the units of the images; None: 1.5 times that of their pixels.
      steps: number of training steps, with Adam and a learning rate that falls to 0 as a cosine.
      noises: number of noises that Δx averages over, the same ones for all images.
      hidden: units of each hidden layer.
      learning_rate: Adam's.
      seed: of the weights, batches and noises.

    Raises:
      ValueError: if a number is not above 0, and as `check_examples`.
    """
    if sigma is None:
        sigma = 1.5 * float(np.std(images))
    if not min(sigma, steps, noises) > 0:
        raise ValueError(f"sigma, steps and noises must be > 0, got sigma={sigma}, steps={steps}, noises={noises}")
    classes = len(check_examples(images, labels))
    images, labels = jnp.asarray(images, jnp.float32).reshape(len(images), -1), jnp.asarray(labels, jnp.int32)
    size = images.shape[1]
    key = jax.random.key(seed)

    def objective(params: Params, key: Array, images: Array, labels: Array) -> Array:
        row_key, noise_key = jax.random.split(key)
        row = jax.random.randint(row_key, (BATCH,), 0, len(labels))
        noisy = images[row] + sigma * jax.random.normal(noise_key, (BATCH, size))
        return jnp.mean((perceptron(params, noisy, labels[row]) - images[row]) ** 2)

    params = fit(objective, (size, hidden, hidden, size), classes, steps, learning_rate, key, images, labels)
    noise = sigma * jax.random.normal(jax.random.fold_in(key, steps + 1), (noises, size))
    return jax.tree_util.Partial(_delta_x, params, noise)


def _delta_x(
    params: Params, noise: Array, image: Array, label: Array, target: Array, index: Array | None = None
) -> Array:
    flat = image.reshape(len(image), -1)

    def difference(noise: Array) -> Array:
        noisy = flat + noise[None]
        return perceptron(params, noisy, jnp.asarray(target)) - perceptron(params, noisy, jnp.asarray(label))

    return jax.lax.map(difference, noise).mean(0).reshape(image.shape).astype(image.dtype)
