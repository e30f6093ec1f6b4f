"""The conditional GAN's item: one training iteration, ours and PyTorch's, from equal weights."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from gradalign_jax import training
from gradalign_jax.models import biggan
from gradalign_jax.ops import precision
from gradalign_jax.training import gan
from gradalign_jax.types import Batch
from launch.bench import peers
from launch.bench import program as bench_program
from launch.bench.classifiers import TRAINING
from launch.bench.interleaved import Item
from launch.bench.peers import to_torch, torch
from launch.bench.program import Program

if torch:
    from launch.bench.torch_peer import biggan as peer

ITEMS = ["gan_iteration"]
CLASSES, CHANNELS, LATENT, BATCH, D_STEPS = 10, 3, 128, 50, 4
STEPS = 4  # iterations of ours in one program


class Case:
    """Networks, state and batches of an iteration of CIFAR-10's GAN.

    Four discriminator steps of 50 + 50 images and a generator step of 50; `products` is the precision of ours.
    """

    def __init__(self, width: int, count: int = BATCH, products: str = TRAINING):
        self.width, self.products = width, products
        dtype = precision.factors(products)
        self.generator = biggan.create_generator(CLASSES, CHANNELS, width, LATENT, dtype=dtype)
        self.discriminator = biggan.create_discriminator(CLASSES, CHANNELS, width, dtype)
        self.optimizer = training.adam(2e-4, b1=0.0, b2=0.999)
        g, d = (bench_program.draw(network.init, seed) for seed, network in enumerate(self.networks))
        moments = (bench_program.zeros(self.optimizer.init, values["params"]) for values in (g, d))
        self.state = gan.GanState(g, d, g, *moments, np.zeros((), np.int32))
        rng = np.random.default_rng(0)
        self.image = rng.uniform(-1, 1, (D_STEPS, count, 32, 32, CHANNELS)).astype(np.float32)
        self.label = rng.integers(CLASSES, size=(D_STEPS, count)).astype(np.int32)
        self.z = rng.normal(size=(D_STEPS, count, LATENT)).astype(np.float32)  # PyTorch's; our steps draw their own
        self.drawn = rng.integers(CLASSES, size=(D_STEPS, count)).astype(np.int32)

    @property
    def networks(self) -> tuple[biggan.Generator, biggan.Discriminator]:
        """Generator and discriminator."""
        return self.generator, self.discriminator

    def program(self, steps: int = STEPS) -> Program:
        """Return our iterations."""
        options = {"num_classes": CLASSES, "latent_dim": LATENT, "products": self.products}
        step = gan.make_step(*self.networks, self.optimizer, **options)
        batch, keys = Batch(self.image, self.label, self.label), bench_program.keys(self.image.shape[1])
        return bench_program.repeated(step, self.state, (batch, keys), steps)

    def peers(self, channels_last: bool = False) -> list:
        """Return PyTorch's networks with our weights."""
        made = peer.Generator(CLASSES, CHANNELS, self.width, LATENT), peer.Discriminator(CLASSES, CHANNELS, self.width)
        loaded = zip(made, (self.state.generator, self.state.discriminator), strict=True)
        return [peers.place(peer.load_flax(network, values), channels_last) for network, values in loaded]

    def peer_side(self, style: str, channels_last: bool = False) -> Callable[[], Any]:
        """Return PyTorch's iteration: in the generator's step "authors" runs both networks twice, "lean" once."""
        pair = peer.start(*self.peers(channels_last))
        drawn = [(to_torch(z), to_torch(y).long()) for z, y in zip(self.z, self.drawn, strict=True)]
        pictures = zip(self.image, self.label, strict=True)
        real = [(to_torch(x, channels_last), to_torch(t).long()) for x, t in pictures]
        return lambda: peer.iteration(pair, drawn, real, shared=style == "lean")

    def agreement(self) -> str:
        """Return the largest differences of images and scores in evaluation mode, relative to the largest value."""
        theirs, z, label = self.peers(), self.z[0], self.drawn[0]
        expected = theirs[0].eval()(to_torch(z), to_torch(label).long())
        ours, _ = jax.jit(self.generator.apply)(self.state.generator, z, label)
        scores, _, _ = jax.jit(self.discriminator.apply)(self.state.discriminator, self.image[0])
        their_scores, _ = theirs[1].eval()(to_torch(self.image[0]))
        differences = (
            peers.relative_difference(to_torch(ours), expected.detach()),
            peers.relative_difference(scores, their_scores.detach()),
        )
        return "images {:.0e}, scores {:.0e}".format(*differences)


def build(width: int) -> Item:
    """Build the item at a width, without PyTorch's sides if it is not installed."""
    case, sides, agreement = Case(width), {}, None
    if torch:
        agreement = case.agreement()
        lean = peers.faster_layout(partial(case.peer_side, "lean"))
        sides = {"authors": case.peer_side("authors"), "lean": lean}
    ours, seconds = bench_program.ready(case.program())
    sides = {"ours": ours, **sides}
    return Item(f"gan_iteration (width {width})", sides, seconds, agreement, None, steps=STEPS)
