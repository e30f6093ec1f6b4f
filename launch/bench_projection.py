"""The projection's items of bench.py: milliseconds for one image, one class and one step of Adam, at full width.

    projection_unfolded    our trained network as it is, in our loop (it doubles no images either)
    projection_constants   spectral norm, batch norm and biases folded; but images are doubled, then convolved
    projection_subpixel    and no image is doubled: four 2x2 convolutions at low resolution
    projection_float32     and kernels are prepared for the CPU's forms: what a run does
    projection_bfloat16    the same in that precision

"authors" is their loop, in which weights get unread gradients and spectral norms are estimated anew in every step;
"lean" the same loop with the generator frozen. The share of the matmul rate counts the products of the sub-pixel form.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from gradalign_jax.deltax import projection
from gradalign_jax.models import biggan, biggan_folded, frozen, resampling
from gradalign_jax.models.conv import conv
from gradalign_jax.models.spectral import power_iteration

FORMS = ("unfolded", "constants", "subpixel", "float32", "bfloat16")
BATCH, STEPS, CLASSES, CHANNELS = 16, 2, 10, 3
FLOPS = 2 * 2.349e9  # forward, and the same for the gradient of z


def variables() -> tuple[biggan.Generator, Any]:
    """A generator of CIFAR-10's size with statistics that a trained one might have."""
    rng = np.random.default_rng(0)
    drawn = {"mean": lambda shape: rng.normal(0, 0.2, shape), "var": lambda shape: rng.uniform(0.5, 1.5, shape)}

    def draw(path, leaf):
        return jnp.asarray(drawn[path[-1].key](leaf.shape), jnp.float32)

    generator = biggan.create_generator(CLASSES, CHANNELS)
    values = generator.init(jax.random.key(0))
    return generator, {**values, "batch_stats": jax.tree_util.tree_map_with_path(draw, values["batch_stats"])}


def our_side(form: str) -> tuple[Callable[[], np.ndarray], float]:
    """Our compiled loop, and the seconds it took to trace and compile."""
    generator, values = variables()
    if form == "unfolded":
        constants, generate = values, lambda v, z, c: generator.apply(v, z, c)[0]
    else:
        precision = form if form == "bfloat16" else "float32"
        backend = "none" if form in ("constants", "subpixel") else None
        constants, generate = biggan_folded.fold(values, precision, backend), biggan_folded.generate
        if form == "constants":
            constants = at_high_resolution(constants, values)
    find = projection.make((STEPS, 0), eps=1e-8 * BATCH)  # the authors' mean over the batch

    def project(constants, image, target):
        return find(partial(generate, constants), image, target)

    arguments = constants, *batch()
    start = time.perf_counter()
    compiled = jax.jit(project).lower(*arguments).compile()
    return lambda: np.asarray(compiled(*arguments)), time.perf_counter() - start


def batch() -> tuple[jax.Array, jax.Array]:
    """Images, and one class for all, as the authors take them."""
    image = np.random.default_rng(1).uniform(-1, 1, (BATCH, 32, 32, CHANNELS))
    return jnp.asarray(image, jnp.float32), jnp.full(BATCH, 3, jnp.int32)


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


def peer_side(frozen: bool, channels_last: bool = False) -> Callable[[], np.ndarray]:
    """PyTorch's loop with our weights."""
    import torch

    from launch.torch_peer import biggan as peer
    from launch.torch_peer.projection import project

    image, target = batch()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = peer.load_flax(peer.Generator(CLASSES, CHANNELS), variables()[1]).to(memory_format=layout)
    tensor = torch.from_numpy(np.array(image)).permute(0, 3, 1, 2).contiguous(memory_format=layout)
    label = torch.from_numpy(np.array(target)).long()
    return lambda: project(network, tensor, label, (STEPS, 0), frozen=frozen).numpy()
