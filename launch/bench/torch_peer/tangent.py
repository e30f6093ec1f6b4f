"""The share of a gradient in the tangent space of a generator's images in PyTorch.

`by_pixel` is the way of published code: one image at a time, one backward pass for each pixel. `by_latent` does no more
than needed: one forward-mode pass for each latent, vectorized over latents and images.
"""

import torch
from torch import Tensor, nn


def by_pixel(generator: nn.Module, z: Tensor, label: Tensor, gradient: Tensor) -> Tensor:
    """Return |P g|² / |g|² `[B]` of gradients `[B, C, H, W]` at latents `[B, d]` of classes `[B]`."""
    shares = []
    for i in range(len(z)):
        latent = z[i : i + 1].clone().requires_grad_(True)
        pixels = generator(latent, label[i : i + 1]).flatten()
        rows = [torch.autograd.grad(pixel, latent, retain_graph=True)[0][0] for pixel in pixels]
        shares.append(_share(torch.stack(rows)[None], gradient[i : i + 1]))
    return torch.cat(shares)


def by_latent(generator: nn.Module, z: Tensor, label: Tensor, gradient: Tensor, chunk: int = 16) -> Tensor:
    """Return the same for the whole batch, `chunk` latents at a time."""

    def column(direction: Tensor) -> Tensor:
        return torch.func.jvp(lambda z: generator(z, label), (z,), (direction.expand_as(z),))[1].flatten(1)

    columns = torch.func.vmap(column, chunk_size=chunk)(torch.eye(z.shape[1], device=z.device))
    return _share(columns.permute(1, 2, 0), gradient)


def _share(jacobian: Tensor, gradient: Tensor) -> Tensor:
    flat = gradient.flatten(1)
    inside = torch.einsum("bnd,bn->bd", torch.linalg.qr(jacobian).Q, flat)
    return inside.square().sum(1) / flat.square().sum(1)
