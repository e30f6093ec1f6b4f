"""The projection's items: one image, one class and one step of Adam, at full width.

    projection_unfolded    our trained network in our loop, nothing folded (it doubles no images either)
    projection_constants   spectral norm, batch norm and biases folded; images are doubled, then convolved
    projection_subpixel    no image is doubled either: four 2x2 convolutions at low resolution
    projection_float32     kernels are also prepared in the CPU's layouts, as in a run
    projection_bfloat16    the same in bfloat16

"authors" is their loop, which computes unused weight gradients and estimates spectral norms again in every step; "lean"
is the same loop with the generator frozen. The share of the matmul rate counts the products of the sub-pixel form.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from gradalign_jax.deltax import projection
from gradalign_jax.models import biggan, biggan_folded
from gradalign_jax.models.spectral_norm import power_iteration
from gradalign_jax.ops import frozen, platform, precision, resampling
from gradalign_jax.ops.convolution import conv
from launch.bench import peers
from launch.bench import program as bench_program
from launch.bench.interleaved import Item
from launch.bench.peers import torch
from launch.bench.program import Program

FORMS = ("unfolded", "constants", "subpixel", "float32", "bfloat16")
ITEMS = [f"projection_{form}" for form in FORMS]
BATCH, STEPS, CLASSES, CHANNELS = 16, 2, 10, 3
FLOPS = 2 * 2.349e9  # of a pair and step: forward, and the same for the gradient of z


def variables(width: int = 256, channels: int = CHANNELS) -> tuple[biggan.Generator, Any]:
    """Return a generator, by default of CIFAR-10's size, with plausible statistics of a trained one."""
    rng = np.random.default_rng(0)
    drawn = {"mean": lambda shape: rng.normal(0, 0.2, shape), "var": lambda shape: rng.uniform(0.5, 1.5, shape)}

    def statistics(path, leaf):
        return drawn[path[-1].key](leaf.shape).astype(np.float32)

    generator = biggan.create_generator(CLASSES, channels, width)
    values = bench_program.draw(generator.init)
    return generator, {**values, "batch_stats": jax.tree_util.tree_map_with_path(statistics, values["batch_stats"])}


def program(form: str, pairs: int = BATCH, steps: int = STEPS, width: int = 256) -> Program:
    """Return our loop: (constants, images, classes) -> z."""
    generator, values = variables(width)
    name = form if form == "bfloat16" else "float32"
    if form == "unfolded":
        constants, generate = values, lambda v, z, c: generator.apply(v, z, c)[0]
    else:
        constants, generate = folded(form, values, name), biggan_folded.generate
    find = projection.make((steps, 0), eps=1e-8 * pairs)  # the authors' mean over the batch

    def project(constants, image, target):
        with precision.scope(name):
            return find(partial(generate, constants), image, target)

    return Program(project, (constants, *batch(pairs)))


def folded(form: str, values: Any, name: str) -> biggan_folded.Folded:
    """Fold the generator in one of FORMS, on the host."""
    plain = platform.target("gpu") if form in ("constants", "subpixel") else nullcontext()
    with bench_program.on_host(), plain:
        constants = biggan_folded.fold(values, precision.factors(name))
        constants = at_high_resolution(constants, values) if form == "constants" else constants
    return jax.device_get(constants)


def batch(pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images, and one class for all of them, as in the authors' code."""
    image = np.random.default_rng(1).uniform(-1, 1, (pairs, 32, 32, CHANNELS))
    return image.astype(np.float32), np.full(pairs, 3, np.int32)


def at_high_resolution(folded: biggan_folded.Folded, values: Any) -> biggan_folded.Folded:
    """Return the folded generator with images doubled before its convolutions."""
    blocks = []
    for number, block in enumerate(folded.blocks):
        kernel = values["params"][f"block{number}"]["conv1"]["kernel"]
        sigma, _ = power_iteration(kernel, values["spectral"][f"block{number}"]["conv1"]["u"])
        kernel = kernel / sigma
        flipped = kernel[::-1, ::-1].swapaxes(2, 3)
        blocks.append(block._replace(conv1=frozen.Frozen(Partial(_double, kernel), Partial(_halve, flipped))))
    return folded._replace(blocks=tuple(blocks))


def _double(kernel: jax.Array, x: jax.Array) -> jax.Array:
    return conv(resampling.double(x), kernel, padding=1)


def _halve(kernel: jax.Array, g: jax.Array) -> jax.Array:
    return 4 * resampling.halve(conv(g, kernel, padding=1))


def peer_side(
    frozen: bool, channels_last: bool = False, pairs: int = BATCH, steps: int = STEPS, width: int = 256
) -> Callable[[], Any]:
    """Return PyTorch's loop with our weights."""
    from launch.bench.torch_peer import biggan as peer
    from launch.bench.torch_peer.projection import project

    image, target = batch(pairs)
    network = peer.load_flax(peer.Generator(CLASSES, CHANNELS, width), variables(width)[1])
    network = peers.place(network, channels_last)
    tensor, label = peers.to_torch(image, channels_last), peers.to_torch(target).long()
    return lambda: project(network, tensor, label, (steps, 0), frozen=frozen)


def build(name: str) -> Item:
    """Build one of ITEMS, without PyTorch's sides if it is not installed."""
    ours, seconds = bench_program.ready(program(name.removeprefix("projection_")))
    sides, agreement = {"ours": ours}, None
    if torch:
        sides["authors"] = peer_side(frozen=False)
        sides["lean"] = peers.faster_layout(partial(peer_side, frozen=True))
        agreement = f"z {peers.relative_difference(ours(), sides['authors']().cpu()):.0e}"
    parts = BATCH * STEPS
    return Item(name, sides, seconds, agreement, FLOPS, parts)
