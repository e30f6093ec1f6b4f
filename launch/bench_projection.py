"""The projection's items of bench.py: milliseconds for one image, one class and one step of Adam, at full width.

    projection_unfolded    our trained network as it is, in our loop (it doubles no images either)
    projection_constants   spectral norm, batch norm and biases folded; but images are doubled, then convolved
    projection_subpixel    and no image is doubled: four 2x2 convolutions at low resolution
    projection_float32     and kernels are prepared for the CPU's forms: what a run does
    projection_bfloat16    the same in that precision

"authors" is their loop, in which weights get unread gradients and spectral norms are estimated anew in every step;
"lean" the same loop with the generator frozen. The share of the matmul rate counts the products of the sub-pixel form.
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
from launch import bench_peers, bench_program
from launch.bench_program import Program

FORMS = ("unfolded", "constants", "subpixel", "float32", "bfloat16")
BATCH, STEPS, CLASSES, CHANNELS = 16, 2, 10, 3
FLOPS = 2 * 2.349e9  # forward, and the same for the gradient of z


def variables(width: int = 256) -> tuple[biggan.Generator, Any]:
    """A generator, by default of CIFAR-10's size, with statistics that a trained one might have."""
    rng = np.random.default_rng(0)
    drawn = {"mean": lambda shape: rng.normal(0, 0.2, shape), "var": lambda shape: rng.uniform(0.5, 1.5, shape)}

    def statistics(path, leaf):
        return drawn[path[-1].key](leaf.shape).astype(np.float32)

    generator = biggan.create_generator(CLASSES, CHANNELS, width)
    values = bench_program.draw(generator.init)
    return generator, {**values, "batch_stats": jax.tree_util.tree_map_with_path(statistics, values["batch_stats"])}


def program(form: str, pairs: int = BATCH, steps: int = STEPS, width: int = 256) -> Program:
    """Our loop: (constants, images, classes) -> z."""
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
    """The generator's constants in one form, made on the host."""
    plain = platform.target("gpu") if form in ("constants", "subpixel") else nullcontext()
    with bench_program.on_host(), plain:
        constants = biggan_folded.fold(values, precision.factors(name))
        constants = at_high_resolution(constants, values) if form == "constants" else constants
    return jax.device_get(constants)


def batch(pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Images, and one class for all, as the authors take them."""
    image = np.random.default_rng(1).uniform(-1, 1, (pairs, 32, 32, CHANNELS))
    return image.astype(np.float32), np.full(pairs, 3, np.int32)


def at_high_resolution(folded: biggan_folded.Folded, values: Any) -> biggan_folded.Folded:
    """The folded generator with the doubling left outside its convolutions."""
    blocks = []
    for number, block in enumerate(folded.blocks):
        kernel = values["params"][f"block{number}"]["conv1"]["kernel"]
        sigma, _ = power_iteration(kernel, values["spectral"][f"block{number}"]["conv1"]["u"])
        kernel = kernel / sigma
        turned = kernel[::-1, ::-1].swapaxes(2, 3)
        blocks.append(block._replace(conv1=frozen.Frozen(Partial(_double, kernel), Partial(_halve, turned))))
    return folded._replace(blocks=tuple(blocks))


def _double(kernel: jax.Array, x: jax.Array) -> jax.Array:
    return conv(resampling.double(x), kernel, padding=1)


def _halve(kernel: jax.Array, g: jax.Array) -> jax.Array:
    return 4 * resampling.halve(conv(g, kernel, padding=1))


def peer_side(
    frozen: bool, channels_last: bool = False, pairs: int = BATCH, steps: int = STEPS, width: int = 256
) -> Callable[[], Any]:
    """PyTorch's loop with our weights."""
    from launch.torch_peer import biggan as peer
    from launch.torch_peer.projection import project

    image, target = batch(pairs)
    network = peer.load_flax(peer.Generator(CLASSES, CHANNELS, width), variables(width)[1])
    network = bench_peers.place(network, channels_last)
    tensor, label = bench_peers.to_torch(image, channels_last), bench_peers.to_torch(target).long()
    return lambda: project(network, tensor, label, (steps, 0), frozen=frozen)
