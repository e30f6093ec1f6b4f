"""The VR-GAN items: one step of generator and critic, ours and PyTorch's, with equal weights."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from gradalign_jax import training
from gradalign_jax.models import resnet, unet
from gradalign_jax.training import vrgan
from gradalign_jax.types import Batch, ResidualGenerator
from launch.bench import peers
from launch.bench import program as bench_program
from launch.bench.classifiers import TRAINING
from launch.bench.interleaved import Item
from launch.bench.peers import to_torch, torch
from launch.bench.program import Program

if torch:
    from launch.bench.torch_peer import models
    from launch.bench.torch_peer import vrgan as peer

# Pixels of a side, downsamplings, images a batch, and steps of ours in one program. At 224 pixels the paper's batch is
# 12; 2 keep a CPU's run short.
SHAPES = {"vrgan_28": (28, 2, 12, 10), "vrgan_224": (224, 4, 2, 2)}
ITEMS = list(SHAPES)


class _RawInput(torch.nn.Module if torch else object):
    """Undoes the input mapping of the peer's ResNet, which the VR-GAN's critic does not have."""

    def __init__(self, critic):
        super().__init__()
        self.critic = critic

    def forward(self, image):
        return self.critic(2 * image - 1)


class Case:
    """Networks, state and batch of one size: `width` is that of the U-Net."""

    def __init__(self, side: int, downsamplings: int, count: int, width: int = 64):
        self.shape = (1, width, downsamplings)
        self.generator: ResidualGenerator = unet.create(1, width, downsamplings)
        self.critic = resnet.create(2, binary=True, channels=1, input_mapping="raw")
        self.optimizer = training.adam(1e-4, 0.0, 0.9)
        drawn = bench_program.draw(self.generator.init, 0), bench_program.draw(self.critic.init, 1)
        moments = (bench_program.zeros(self.optimizer.init, values["params"]) for values in drawn)
        self.state = vrgan.VRGANState(*drawn, *moments, np.zeros((), np.int32), np.zeros((), np.float32))
        image = np.random.default_rng(0).uniform(-1, 1, (count, side, side, 1))
        self.batch: Batch = bench_program.batch_of(image, np.arange(count) % 2)

    def program(self, steps: int) -> Program:
        """Return our steps."""
        step = vrgan.make_step(self.generator, self.critic, self.optimizer, products=TRAINING)
        return bench_program.repeated(step, self.state, (self.batch,), steps)

    def peers(self, channels_last: bool) -> tuple[Any, Any]:
        """Return PyTorch's networks with our weights."""
        generator = models.load_flax(peer.UNet(*self.shape), self.state.generator).train()
        critic = _RawInput(models.load_flax(models.ResNet18(1), self.state.critic).train())
        return peers.place(generator, channels_last), peers.place(critic, channels_last)

    def peer_side(self, style: str, channels_last: bool = False) -> Callable[[], Any]:
        """Return PyTorch's step in a style, "authors" or "lean"."""
        step = peer.make_step(*self.peers(channels_last), style)
        image, label = to_torch(self.batch.image, channels_last), to_torch(self.batch.label).long()
        return lambda: step(image, label)

    def agreement(self) -> str:
        """Return the largest difference of the residuals in evaluation mode, relative to the largest value."""
        theirs, _ = self.peers(channels_last=False)
        image, label = self.batch.image, self.batch.label
        with torch.no_grad():
            tensor = to_torch(label).long()
            expected = theirs.eval()(to_torch(image), 1 - tensor, tensor).permute(0, 2, 3, 1)
        got = jax.jit(self.generator.apply)(self.state.generator, image, 1 - label, label)[0]
        return f"residual {peers.relative_difference(got, expected.numpy()):.0e}"


def build(name: str) -> Item:
    """Build one of ITEMS, without PyTorch's sides if it is not installed."""
    *shape, steps = SHAPES[name]
    case = Case(*shape)
    ours, seconds = bench_program.ready(case.program(steps))
    sides, agreement = {"ours": ours}, None
    if torch:
        agreement = case.agreement()
        sides["authors"] = case.peer_side("authors")
        sides["lean"] = peers.faster_layout(partial(case.peer_side, "lean"))
    return Item(name, sides, seconds, agreement, None, steps=steps)
