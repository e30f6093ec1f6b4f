"""VR-GAN in PyTorch: the U-Net, the Spheres generator, and a training step in two styles.

Written from the paper and a description of the authors' settings. Modules have the names of ours, so that
`models.load_flax` can copy weights.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """3x3 convolution with bias, batch norm, and ReLU (not in the last block)."""

    def __init__(self, inputs: int, outputs: int, activate: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.bn = nn.BatchNorm2d(outputs, momentum=0.01)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, inputs, H, W]` to `[B, outputs, H, W]`."""
        x = self.bn(self.conv(x))
        return torch.relu(x) if self.activate else x

    def _load_from_state_dict(self, state, prefix, *rest):
        for name in ("weight", "bias"):  # in ours the convolution's parameters and the norm are siblings
            if prefix + name in state:
                state[f"{prefix}conv.{name}"] = state.pop(prefix + name)
        super()._load_from_state_dict(state, prefix, *rest)


class UNet(nn.Module):
    """Encoder, three label maps in the bottleneck, decoder."""

    def __init__(self, channels: int = 1, width: int = 64, downsamplings: int = 2):
        super().__init__()
        self.levels = downsamplings
        widths = [width * 2**level for level in range(downsamplings + 1)]
        for level, features in enumerate(widths):
            inputs = channels if level == 0 else widths[level - 1]
            self.add_module(f"encode{level}_0", Block(inputs, features))
            self.add_module(f"encode{level}_1", Block(features, features))
        for level in reversed(range(downsamplings)):
            below = widths[level + 1] + (3 if level == downsamplings - 1 else 0)
            self.add_module(f"decode{level}_up", Block(below, widths[level]))
            self.add_module(f"decode{level}_0", Block(2 * widths[level], widths[level]))
            last = level == 0
            self.add_module(f"decode{level}_1", Block(widths[level], channels if last else widths[level], not last))

    def forward(self, image: Tensor, desired: Tensor, actual: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` and labels `[B]`, `[B]` to residuals `[B, C, H, W]`."""
        part = self._modules
        x, skips = image, []
        for level in range(self.levels + 1):
            if level:
                skips.append(x)
                x = F.max_pool2d(x, 2)
            x = part[f"encode{level}_1"](part[f"encode{level}_0"](x))
        wanted, given = ((label.to(x.dtype) - 0.7) / 0.2 for label in (desired, actual))
        maps = torch.stack([wanted, given, given - wanted], 1)[:, :, None, None]
        x = torch.cat([x, maps.expand(-1, -1, *x.shape[2:])], 1)
        for level in reversed(range(self.levels)):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = torch.cat([part[f"decode{level}_up"](x), skips[level]], 1)
            x = part[f"decode{level}_1"](part[f"decode{level}_0"](x))
        return x


class ResidualMLP(nn.Module):
    """The generator for Spheres."""

    def __init__(self, inputs: int = 500, hidden: int = 1000):
        super().__init__()
        self.linear = nn.ModuleList(
            [nn.Linear(inputs + 2, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, inputs)]
        )
        self.norm = nn.ModuleList([nn.BatchNorm1d(hidden), nn.BatchNorm1d(hidden)])

    def forward(self, point: Tensor, desired: Tensor, actual: Tensor) -> Tensor:
        """Map points `[B, n]` and labels `[B]`, `[B]` to residuals `[B, n]`."""
        x = torch.cat([point, desired[:, None].to(point.dtype), actual[:, None].to(point.dtype)], 1)
        for linear, norm in zip(self.linear, self.norm, strict=False):
            x = norm(torch.relu(linear(x)))
        return self.linear[-1](x)


def optimizers(generator: nn.Module, critic: nn.Module, fused: bool) -> tuple[torch.optim.Adam, torch.optim.Adam]:
    """Return Adam(1e-4, 0, 0.9) for each network."""
    settings = {"lr": 1e-4, "betas": (0.0, 0.9), "fused": fused}
    return torch.optim.Adam(generator.parameters(), **settings), torch.optim.Adam(critic.parameters(), **settings)


def _losses(critic: nn.Module, score: Tensor, moved: Tensor, residual: Tensor, label: Tensor) -> tuple[Tensor, ...]:
    label = label.to(score.dtype)
    bce = F.binary_cross_entropy_with_logits
    small = (residual.flatten(1).norm(dim=1) / residual[0].numel() ** 0.5).mean()
    return bce(score, label), bce(moved, label), bce(moved, 1 - label), small


def make_step(generator: nn.Module, critic: nn.Module, style: str, fused: bool = True) -> Callable[..., Tensor]:
    """Build `step(image, label) -> loss` with the authors' weights 1, 0.01, 0.3, 0.5; one forward pass, two updates.

    In style "authors" the critic's loss is also backpropagated through the generator, and metrics are read after every
    step, as in their loop. "lean" computes no unused gradient.
    """
    of_generator, of_critic = optimizers(generator, critic, fused and style == "lean")
    parameters = [list(network.parameters()) for network in (generator, critic)]

    def step(image: Tensor, label: Tensor) -> Tensor:
        residual = generator(image, 1 - label, label)
        moved, score = critic(image + residual).flatten(), critic(image).flatten()
        real, generated, fool, small = _losses(critic, score, moved, residual, label)
        critic_loss, generator_loss = real + 0.01 * generated, 0.3 * fool + 0.5 * small
        if style == "lean":
            critic_gradient = torch.autograd.grad(critic_loss, parameters[1], retain_graph=True)
            generator_gradient = torch.autograd.grad(generator_loss, parameters[0])
        else:
            everything = parameters[0] + parameters[1]
            gradient = torch.autograd.grad(critic_loss, everything, retain_graph=True)
            critic_gradient = gradient[len(parameters[0]) :]
            gradient = torch.autograd.grad(generator_loss, everything)
            generator_gradient = gradient[: len(parameters[0])]
            for value in (real, generated, fool, small):
                value.item()
        for values, gradients in zip(parameters, (generator_gradient, critic_gradient), strict=True):
            for value, gradient in zip(values, gradients, strict=True):
                value.grad = gradient
        of_critic.step()
        of_generator.step()
        return (critic_loss + generator_loss).detach()

    return step
