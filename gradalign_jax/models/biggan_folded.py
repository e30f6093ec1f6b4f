"""The trained generator of models/biggan.py in evaluation mode, with its constants folded for many passes.

    spectral norm            each kernel divided by its σ, once
    class-conditional norm   statistics, gain and bias of a class as one scale and shift: tables [K, C]
    biases                   moved through the linear layers that follow into the next norm's shifts
    doubling and 3x3         one layer at low resolution (ops/frozen.py)

Only images and latents get gradients. Folding is done in float64; the result differs from the unfolded generator's by
float32 rounding.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradalign_jax.ops import frozen, platform, precision
from gradalign_jax.ops.frozen import Frozen
from gradalign_jax.ops.relu import relu
from gradalign_jax.ops.resampling import double
from gradalign_jax.types import Array, Variables


class Affine(NamedTuple):
    """A norm in evaluation mode: scale and shift, `[K, C]` by class or `[C]`."""

    scale: Array
    shift: Array


class Block(NamedTuple):
    """A generator block's layers."""

    norm1: Affine
    conv1: Frozen
    norm2: Affine
    conv2: Frozen
    shortcut: Frozen


class Folded(NamedTuple):
    """A generator's constants, a tree of arrays."""

    linear: Frozen
    start: Array
    blocks: tuple[Block, ...]
    norm: Affine
    conv: Frozen
    bias: Array


def fold(variables: Variables, factors: jnp.dtype = jnp.float32) -> Folded:
    """Fold the variables of `biggan.create_generator`.

    Args:
      variables: {"params", "batch_stats", "spectral"}.
      factors: type of the factors in all products but the first layer's and, on a CPU, the last layer's; on a GPU or
        TPU also the type of the activations between convolutions. Everything else is float32.
    """
    tree = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), jax.device_get(dict(variables)))
    params, stats, spectral = tree["params"], tree["batch_stats"], tree["spectral"]
    kernel, start = _linear(params["linear"], spectral["linear"])
    width = kernel.shape[1] // 16
    blocks, offset = [], np.zeros(width)  # the sum of the biases so far, at every pixel
    for name in sorted(name for name in params if name.startswith("block")):
        layer = {part: _linear(params[name][part], u) for part, u in spectral[name].items()}
        norms = [_norm(params[name][part], stats[name][part]) for part in ("norm1", "norm2")]
        blocks.append(
            Block(
                _shifted(norms[0], offset),
                frozen.doubling_conv3x3(layer["conv1"][0], factors),
                _shifted(norms[1], layer["conv1"][1]),
                frozen.conv3x3(layer["conv2"][0], factors),
                frozen.dense(layer["shortcut"][0][0, 0], factors),
            )
        )
        offset = offset @ layer["shortcut"][0][0, 0] + layer["shortcut"][1] + layer["conv2"][1]
    norm = _shifted(_norm(params["norm"], stats["norm"]), offset)
    last, bias = _linear(params["conv"], spectral["conv"])
    start = jnp.asarray(start.reshape(4, 4, width), jnp.float32)
    conv = frozen.conv3x3(last, jnp.float32 if platform.is_cpu() else factors)
    return Folded(frozen.dense(kernel), start, tuple(blocks), norm, conv, jnp.asarray(bias, jnp.float32))


def generate(folded: Folded, z: Array, label: Array) -> Array:
    """Return G(z, c), images `[B, 32, 32, C]` in [-1, 1], of latents `[B, latent_dim]` and classes int `[B]`."""
    x = frozen.apply(folded.linear, z)
    x = x.reshape(-1, *folded.start.shape) + folded.start[None]
    x = x.astype(precision.activations(jax.tree.leaves(folded.blocks[0].shortcut)[0].dtype))
    for block in folded.blocks:
        h = frozen.apply(block.conv1, _activate(x, *(table[label][:, None, None] for table in block.norm1)))
        h = frozen.apply(block.conv2, _activate(h, *(table[label][:, None, None] for table in block.norm2)))
        x = h + double(frozen.apply(block.shortcut, x))
    x = frozen.apply(folded.conv, _activate(x, *folded.norm))
    return jnp.tanh(x.astype(jnp.float32) + folded.bias[None, None, None])


def _activate(x: Array, scale: Array, shift: Array) -> Array:
    """Return the norm and the ReLU, computed in float32, in the type of x."""
    per_channel = partial(jax.lax.broadcast_to_rank, rank=x.ndim)
    return relu(x * per_channel(scale) + per_channel(shift)).astype(x.dtype)


def _linear(params: dict[str, Any], spectral: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return kernel / σ and bias, σ as the layer estimates it: by one power iteration from the stored u."""
    kernel = params["kernel"]
    matrix = kernel.reshape(-1, kernel.shape[-1])
    v = _unit(matrix @ spectral["u"])
    return kernel / (v @ matrix @ _unit(v @ matrix)), params["bias"]


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(np.linalg.norm(vector), 1e-8)


def _norm(params: dict[str, Any], stats: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and shift of a norm, plain or by class."""
    weight = 1 + params["gain"] if "gain" in params else params["scale"]
    scale = weight / np.sqrt(stats["var"] + 1e-5)
    return scale, params["bias"] - stats["mean"] * scale


def _shifted(norm: tuple[np.ndarray, np.ndarray], offset: np.ndarray) -> Affine:
    """Return the norm of an input from which a constant `[C]` was left out."""
    scale, shift = norm
    return Affine(jnp.asarray(scale, jnp.float32), jnp.asarray(shift + scale * offset, jnp.float32))
