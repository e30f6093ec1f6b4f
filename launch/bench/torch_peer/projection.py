"""The projection onto a generator's images in PyTorch: the authors' loop, written from a description of that code."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def project(
    generator: nn.Module,
    image: Tensor,
    label: Tensor,
    steps: tuple[int, int] = (600, 150),
    learning_rate: tuple[float, float] = (0.1, 0.1),
    penalty: float = 0.03,
    latent: int = 128,
    frozen: bool = False,
) -> Tensor:
    """Return z `[B, latent]` for images `[B, C, 32, 32]` and classes `[B]`.

    The authors' loop leaves `requires_grad` on in the generator, so each step also computes and accumulates unused
    gradients of the weights; `frozen` is the same loop without them. Both estimate spectral norms again in every pass.
    The loss is the mean over the batch. The authors project to one class at a time: pass equal labels.
    """
    generator.eval().requires_grad_(not frozen)
    z = torch.zeros(len(image), latent, dtype=image.dtype, device=image.device)
    for phase, weight in enumerate((0.0, penalty)):
        z = z.detach().requires_grad_(True)
        adam = torch.optim.Adam([z], lr=learning_rate[phase])
        for _ in range(steps[phase]):
            adam.zero_grad()
            loss = F.mse_loss(generator(z, label), image) + weight * z.square().mean()
            loss.backward()
            adam.step()
    return z.detach()
