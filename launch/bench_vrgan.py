"""The VR-GAN items of bench.py: one step of generator and critic, ours and PyTorch's, with equal weights."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gradalign_jax import training
from gradalign_jax.deltax import vrgan
from gradalign_jax.models import resnet, unet
from gradalign_jax.types import Batch
from launch.bench_items import Item, faster_layout, our_program, relative_difference, to_torch

try:
    import torch

    from launch.torch_peer import models
    from launch.torch_peer import vrgan as peer
except ImportError:
    torch = None

# Pixels of a side, downsamplings, images a batch, and steps of ours in one program; the films' batch of 12 is cut for a
# CPU's patience.
SHAPES = {"vrgan_28": (28, 2, 12, 10), "vrgan_224": (224, 4, 2, 2)}
ITEMS = list(SHAPES)


class _ModelsInput(torch.nn.Module if torch else object):
    """The peer's ResNet reads images in [0, 1]; the VR-GAN's critic reads them as they are."""

    def __init__(self, critic):
        super().__init__()
        self.critic = critic

    def forward(self, image):
        return self.critic(2 * image - 1)


def build(name: str) -> Item:
    """Builds one of ITEMS. Without PyTorch only our side is there."""
    side, downsamplings, count, steps = SHAPES[name]
    generator = unet.create(width=64, downsamplings=downsamplings)
    critic = resnet.create(2, binary=True, channels=1, input_mapping="raw")
    optimizer = training.adam(1e-4, 0.0, 0.9)
    state = jax.device_get(vrgan.create_state(generator, critic, optimizer, jax.random.key(0)))
    image = np.random.default_rng(0).uniform(-1, 1, (count, side, side, 1)).astype(np.float32)
    batch = Batch(jnp.asarray(image), jnp.arange(count) % 2, jnp.arange(count))
    ours, seconds = _our_side(generator, critic, optimizer, state, batch, steps)
    if not torch:
        return Item(name, {"ours": ours}, seconds, None, None, steps=steps)
    agreement = _agreement(generator, state, batch, downsamplings)
    sides = {"ours": ours, "authors": _peer_side(state, batch, downsamplings, "authors")}
    sides["lean"] = faster_layout(partial(_peer_side, state, batch, downsamplings, "lean"))
    return Item(name, sides, seconds, agreement, None, steps=steps)


def _our_side(generator, critic, optimizer, state, batch, steps: int):
    step = vrgan.make_step(generator, critic, optimizer)
    return our_program(step, jax.tree.map(jnp.asarray, state), (batch,), steps)


def _peers(state, downsamplings: int, channels_last: bool):
    generator = models.load_flax(peer.UNet(1, 64, downsamplings), state.generator).train()
    critic = _ModelsInput(models.load_flax(models.ResNet18(1), state.critic).train())
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return generator.to(memory_format=layout), critic.to(memory_format=layout)


def _peer_side(state, batch, downsamplings: int, style: str, channels_last: bool = False):
    generator, critic = _peers(state, downsamplings, channels_last)
    step = peer.make_step(generator, critic, style)
    image, label = to_torch(batch.image, channels_last), to_torch(batch.label).long()
    return lambda: step(image, label)


def _agreement(generator, state, batch, downsamplings: int) -> str:
    """Largest difference of the residuals in evaluation mode, relative to the largest value."""
    theirs, _ = _peers(state, downsamplings, channels_last=False)
    label = to_torch(batch.label).long()
    with torch.no_grad():
        expected = theirs.eval()(to_torch(batch.image), 1 - label, label).permute(0, 2, 3, 1)
    got = jax.jit(generator.apply)(state.generator, batch.image, 1 - batch.label, batch.label)[0]
    return f"residual {relative_difference(got, expected.numpy()):.0e}"
