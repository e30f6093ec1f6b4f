"""The bench's item for the conditional GAN: one training iteration, ours and PyTorch's, from equal weights."""

import jax
import jax.numpy as jnp
import numpy as np

from gradalign_jax import gan, training
from gradalign_jax.models import biggan
from gradalign_jax.types import Batch
from launch import bench_items
from launch.bench_items import torch

ITEMS = ["gan_iteration"]
CLASSES, CHANNELS, LATENT, BATCH, D_STEPS = 10, 3, 128, 50, 4
STEPS = 4  # iterations of ours in one program


def build(width: int) -> bench_items.Item:
    """An iteration of CIFAR-10's GAN: four discriminator steps of 50 + 50 images and a generator step of 50.

    The authors' way runs both networks twice in the generator's step; the lean one takes both losses from one pass,
    as ours does.
    """
    generator = biggan.create_generator(CLASSES, CHANNELS, width, LATENT)
    discriminator = biggan.create_discriminator(CLASSES, CHANNELS, width)
    optimizer = training.adam(2e-4, b1=0.0, b2=0.999)
    state = gan.create_state(generator, discriminator, optimizer, jax.random.key(0))
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (D_STEPS, BATCH, 32, 32, CHANNELS)).astype(np.float32)
    label = rng.integers(CLASSES, size=(D_STEPS, BATCH)).astype(np.int32)
    batch, keys = Batch(image, label, label), jax.random.split(jax.random.key(1), BATCH)
    latents = [jax.device_get(gan.draw_latents(keys, draw, CLASSES, LATENT)) for draw in range(D_STEPS)]
    agreement, sides = None, {}
    if torch:
        from launch.torch_peer import biggan as peer

        def networks():
            made = peer.Generator(CLASSES, CHANNELS, width, LATENT), peer.Discriminator(CLASSES, CHANNELS, width)
            weights = state.generator, state.discriminator
            return [peer.load_flax(network, values) for network, values in zip(made, weights, strict=True)]

        def their_side(shared: bool, channels_last: bool):
            layout = torch.channels_last if channels_last else torch.contiguous_format
            pair = peer.start(*(network.to(memory_format=layout) for network in networks()))
            drawn = [(torch.from_numpy(np.array(z)), torch.from_numpy(np.array(y)).long()) for z, y in latents]
            real = [
                (bench_items.to_torch(x, channels_last), torch.from_numpy(t).long())
                for x, t in zip(image, label, strict=True)
            ]
            return lambda: peer.iteration(pair, drawn, real, shared)

        agreement = check_agreement(generator, discriminator, state, networks(), latents[0], image[0])
        sides = {
            "authors": their_side(shared=False, channels_last=False),
            "lean": bench_items.faster_layout(lambda channels_last: their_side(True, channels_last)),
        }
    step = gan.make_step(generator, discriminator, optimizer, num_classes=CLASSES, latent_dim=LATENT)
    run, seconds = bench_items.our_program(step, state, (batch, keys), STEPS)
    name = f"gan_iteration (width {width})"
    return bench_items.Item(name, {"ours": run, **sides}, seconds, agreement, None, steps=STEPS)


def check_agreement(generator, discriminator, state, peers, latent, image) -> str:
    """Largest differences of images and scores in evaluation mode, relative to the largest value."""
    z, label = latent
    theirs = peers[0].eval()(torch.from_numpy(np.array(z)), torch.from_numpy(np.array(label)).long())
    ours, _ = jax.jit(generator.apply)(state.generator, jnp.asarray(z), jnp.asarray(label))
    scores, _, _ = jax.jit(discriminator.apply)(state.discriminator, jnp.asarray(image))
    their_scores, _ = peers[1].eval()(bench_items.to_torch(image))
    differences = (
        bench_items.relative_difference(bench_items.to_torch(ours), theirs.detach()),
        bench_items.relative_difference(scores, their_scores.detach()),
    )
    return "images {:.0e}, scores {:.0e}".format(*differences)
