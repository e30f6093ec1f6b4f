"""The conditional GAN and its training in PyTorch, to compare ours with.

Written from a description of the authors' settings (BigGAN at 32 x 32 with a discriminator of K + 1 classes). Images
are NCHW. `load_flax` copies the weights of our networks, so that both sides compute the same function.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-8  # in the normalization of the power iteration


class _Spectral:
    """Mixin of a layer whose weight is divided by its largest singular value, estimated with `u` `[1, outputs]`."""

    def add_u(self) -> None:
        """Register the buffer; call it when the weight exists."""
        self.register_buffer("u", torch.randn(1, self.weight.shape[0]))

    def normalized(self) -> Tensor:
        """Return the normalized weight, and update the buffer in training mode."""
        matrix = self.weight.flatten(1)
        with torch.no_grad():
            v = F.normalize(self.u @ matrix, eps=EPSILON)
            u = F.normalize(v @ matrix.T, eps=EPSILON)
            if self.training:
                self.u.copy_(u)
        return self.weight / (v @ matrix.T @ u.T).squeeze()


class SpectralConv(_Spectral, nn.Conv2d):
    """A convolution that keeps the image's size."""

    def __init__(self, inputs: int, outputs: int, size: int = 3):
        super().__init__(inputs, outputs, size, padding=size // 2)
        self.add_u()

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, inputs, H, W]` to `[B, outputs, H, W]`."""
        return F.conv2d(x, self.normalized(), self.bias, padding=self.padding)


class SpectralLinear(_Spectral, nn.Linear):
    """A dense layer."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        self.add_u()

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, inputs]` to `[B, outputs]`."""
        return F.linear(x, self.normalized(), self.bias)


class ClassNorm(nn.Module):
    """Batch norm with a weight 1 + gain and a bias for each class."""

    def __init__(self, classes: int, channels: int):
        super().__init__()
        self.gain, self.bias = nn.Embedding(classes, channels), nn.Embedding(classes, channels)
        self.norm = nn.BatchNorm2d(channels, affine=False)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Map `[B, channels, H, W]` to the same."""
        return self.norm(x) * (1 + self.gain(label))[..., None, None] + self.bias(label)[..., None, None]


class GeneratorBlock(nn.Module):
    """A residual block that doubles the image."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.norm1, self.norm2 = ClassNorm(classes, width), ClassNorm(classes, width)
        self.conv1, self.conv2 = SpectralConv(width, width), SpectralConv(width, width)
        self.shortcut = SpectralConv(width, width, 1)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Map `[B, width, H, W]` to `[B, width, 2 H, 2 W]`."""
        h = self.conv1(F.interpolate(F.relu(self.norm1(x, label)), scale_factor=2))
        h = self.conv2(F.relu(self.norm2(h, label)))
        return h + self.shortcut(F.interpolate(x, scale_factor=2))


class Generator(nn.Module):
    """The generator."""

    def __init__(self, classes: int, channels: int, width: int = 256, latent: int = 128):
        super().__init__()
        self.linear = SpectralLinear(latent, 16 * width)
        self.blocks = nn.ModuleList(GeneratorBlock(classes, width) for _ in range(3))
        self.norm, self.conv = nn.BatchNorm2d(width), SpectralConv(width, channels)

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        """Map z `[B, latent]` and labels `[B]` to images `[B, channels, 32, 32]` in [-1, 1]."""
        x = self.linear(z).unflatten(1, (-1, 4, 4))
        for block in self.blocks:
            x = block(x, label)
        return torch.tanh(self.conv(F.relu(self.norm(x))))


class DiscriminatorBlock(nn.Module):
    """A residual block; the first starts without activation, the first two halve the image."""

    def __init__(self, inputs: int, width: int, first: bool, down: bool):
        super().__init__()
        self.first, self.down = first, down
        self.conv1, self.conv2 = SpectralConv(inputs, width), SpectralConv(width, width)
        self.shortcut = SpectralConv(inputs, width, 1) if down else None

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, inputs, H, W]` to `[B, width, ...]`."""
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if not self.down:
            return h + x
        short = self.shortcut(F.avg_pool2d(x, 2)) if self.first else F.avg_pool2d(self.shortcut(x), 2)
        return F.avg_pool2d(h, 2) + short


class Discriminator(nn.Module):
    """The discriminator."""

    def __init__(self, classes: int, channels: int, width: int = 256):
        super().__init__()
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(width if i else channels, width, first=i == 0, down=i < 2) for i in range(4)
        )
        self.linear = SpectralLinear(width, classes + 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images `[B, channels, 32, 32]` to scores `[B, classes + 1]` and features `[B, width]`."""
        for block in self.blocks:
            x = block(x)
        features = F.relu(x).sum((2, 3))
        return self.linear(features), features


def multi_hinge(scores: Tensor, label: Tensor) -> Tensor:
    """Return the batch mean of Crammer and Singer's hinge over K + 1 scores."""
    own = F.one_hot(label, scores.shape[1]).bool()
    wrong = scores.masked_fill(own, -torch.inf).amax(1)
    return F.relu(1 + wrong - scores[own]).mean()


class Training(NamedTuple):
    """Both networks and their optimizers."""

    generator: Generator
    discriminator: Discriminator
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer


def start(generator: Generator, discriminator: Discriminator) -> Training:
    """Return the state of training with the authors' optimizers."""
    optimizers = (torch.optim.Adam(m.parameters(), 2e-4, (0.0, 0.999), 1e-8) for m in (generator, discriminator))
    return Training(generator, discriminator, *optimizers)


def iteration(
    training: Training,
    latents: Sequence[tuple[Tensor, Tensor]],
    real: Sequence[tuple[Tensor, Tensor]],
    shared: bool = False,
) -> tuple[Tensor, Tensor]:
    """Make one step of the discriminator for each pair of latents and real images, then one of the generator.

    Args:
      training: networks and optimizers, updated in place.
      latents: pairs (z, y).
      real: pairs (image, label), as many.
      shared: whether both terms of the generator's loss come from one pass, as in ours; the authors make two.

    Returns:
      The last loss of the discriminator, and the generator's loss.
    """
    generator, discriminator, generator_optimizer, discriminator_optimizer = training
    fake_class = discriminator.linear.out_features - 1
    for (z, y), (x, t) in zip(latents, real, strict=True):
        with torch.no_grad():
            fake = generator(z, y)
        scores, _ = discriminator(torch.cat([fake, x]))
        d_loss = multi_hinge(scores[len(z) :], t) + multi_hinge(scores[: len(z)], torch.full_like(y, fake_class))
        discriminator_optimizer.zero_grad()
        d_loss.backward()
        discriminator_optimizer.step()
    discriminator.requires_grad_(False)
    generator_optimizer.zero_grad()
    scores, features = discriminator(torch.cat([generator(z, y), x]))
    matching = (features[: len(z)].mean(0) - features[len(z) :].mean(0)).abs().mean()
    if not shared:
        scores, _ = discriminator(generator(z, y))
    g_loss = matching + 0.05 * multi_hinge(scores[: len(z)], y)
    g_loss.backward()
    generator_optimizer.step()
    discriminator.requires_grad_(True)
    return d_loss.detach(), g_loss.detach()


def flax_to_torch(variables: dict[str, Any], generator: bool) -> dict[str, np.ndarray]:
    """Return our variables in PyTorch's flat dict of names."""
    named = {}
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
    for path, leaf in leaves:
        collection, *modules, name = (key.key for key in path)
        value = np.array(leaf)
        if generator and modules == ["linear"]:  # outputs in the order channels, rows, columns
            value = np.moveaxis(value.reshape(*value.shape[:-1], 4, 4, -1), -1, -3).reshape(value.shape)
        if name == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        if modules[0].startswith("block"):
            modules[0] = f"blocks.{modules[0].removeprefix('block')}"
        by_class = modules[-1] in ("norm1", "norm2")
        if by_class:
            name = f"norm.running_{name}" if collection == "batch_stats" else f"{name}.weight"
        elif collection == "batch_stats":
            name = f"running_{name}"
        name = {"kernel": "weight", "scale": "weight"}.get(name, name)
        named[".".join([*modules, name])] = np.ascontiguousarray(value[None] if name == "u" else value)
    return named


def load_flax(module: nn.Module, variables: dict[str, Any]) -> nn.Module:
    """Copy our variables into the module, in its own precision, and return it.

    Raises:
      ValueError: if the module has other parameters.
    """
    values = flax_to_torch(variables, isinstance(module, Generator))
    state = {name: torch.from_numpy(value) for name, value in values.items()}
    missing, unexpected = module.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"weights do not match: missing {missing}, unexpected {unexpected}")
    return module
