"""The item tangent_share: the share of a gradient in the tangent space of a generator's images, for one image.

The generator is that of MNIST at the width that two CPU cores train. "authors" makes one backward pass for each pixel
of each image, as published code does; "lean" one forward-mode pass for each latent, vectorized.
"""

from functools import partial

import numpy as np

from gradalign_jax.measures import tangent
from gradalign_jax.models import biggan_folded
from launch.bench import peers, projection
from launch.bench import program as bench_program
from launch.bench.interleaved import Item
from launch.bench.peers import torch
from launch.bench.program import Program

ITEMS = ["tangent_share"]
IMAGES, WIDTH, LATENTS = 4, 32, 128


def arguments() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return latents, classes and gradients."""
    rng = np.random.default_rng(2)
    z, label = rng.normal(size=(IMAGES, LATENTS)), rng.integers(0, projection.CLASSES, IMAGES)
    gradient = rng.normal(size=(IMAGES, 32, 32, 1))
    return z.astype(np.float32), label.astype(np.int32), gradient.astype(np.float32)


def program() -> Program:
    """Return ours: (constants, latents, classes, gradients) -> shares `[B]`."""

    def share(constants, z, label, gradient):
        jacobian = tangent.jacobian(partial(biggan_folded.generate, constants), z, label)
        return tangent.share(tangent.basis(jacobian), gradient)

    constants = projection.folded("float32", projection.variables(WIDTH, channels=1)[1], "float32")
    return Program(share, (constants, *arguments()))


def build() -> Item:
    """Build the item, without PyTorch's sides if it is not installed."""
    ours, seconds = bench_program.ready(program())
    sides, agreement = {"ours": ours}, None
    if torch:
        from launch.bench.torch_peer import biggan as peer
        from launch.bench.torch_peer import tangent as theirs

        network = peer.Generator(projection.CLASSES, 1, WIDTH, LATENTS)
        network = peer.load_flax(network, projection.variables(WIDTH, channels=1)[1])
        network = peers.place(network).eval().requires_grad_(False)
        z, label, gradient = map(peers.to_torch, arguments())
        sides["authors"] = lambda: theirs.by_pixel(network, z, label.long(), gradient)
        sides["lean"] = lambda: theirs.by_latent(network, z, label.long(), gradient)
        agreement = f"share {peers.relative_difference(ours(), sides['lean']().cpu()):.0e}"
    return Item(ITEMS[0], sides, seconds, agreement, None, IMAGES)
