"""The same training steps in plain PyTorch: only the work that the method needs.

A fused optimizer, no metrics, an attack that computes the gradient of the image alone, and one double gradient for
alignment, with the K-row Jacobian (without a graph) only if there are more than two classes.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from launch.bench.torch_peer.authors import Attack, DeltaX, closest_class


def optimizer(model: nn.Module, name: str, **settings) -> torch.optim.Optimizer:
    """Return Adam or SGD, fused."""
    kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    return kinds[name](model.parameters(), fused=True, **settings)


def input_jacobian(logits: Tensor, image: Tensor) -> Tensor:
    """Return the input gradients of all K logits `[B, K, ...]`: K backward passes through one retained graph."""
    rows = [torch.autograd.grad(logits[:, k].sum(), image, retain_graph=True)[0] for k in range(logits.shape[1])]
    return torch.stack(rows, 1)


def make_attack(
    model: nn.Module,
    loss: str,
    epsilon: float,
    step_size: float,
    steps: int = 40,
    bounds=(-1.0, 1.0),
    forward: Callable[[Tensor], Tensor] | None = None,
) -> Attack:
    """Build PGD in L∞ with a random start.

    Args:
      model: the network.
      loss: "cross_entropy", or "margin" for a model with one score.
      epsilon: ε.
      step_size: size of a step.
      steps: number of steps.
      bounds: range of the images.
      forward: the compiled model. Its backward pass computes every gradient that is required, so the parameters
        require none during the attack.
    """
    compiled = forward is not None
    forward = forward if compiled else model

    def attack(image: Tensor, label: Tensor, start: Tensor | None = None) -> Tensor:
        training = model.training
        model.eval()
        if compiled:
            model.requires_grad_(False)
        low, high = (image - epsilon).clamp(*bounds), (image + epsilon).clamp(*bounds)
        x = (image + torch.empty_like(image).uniform_(-epsilon, epsilon)) if start is None else start.clone()
        x = x.clamp_(*bounds).requires_grad_(True)
        away = (1 - 2 * label).to(image.dtype)
        for _ in range(steps):
            output = forward(x)
            value = output @ away if loss == "margin" else F.cross_entropy(output, label, reduction="sum")
            (gradient,) = torch.autograd.grad(value, x)
            with torch.no_grad():
                x.add_(gradient.sign_(), alpha=step_size).clamp_(low, high)
        if compiled:
            model.requires_grad_(True)
        model.train(training)
        return x.detach()

    return attack


def make_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: str,
    *,
    delta_x: DeltaX | None = None,
    weight: float = 0.0,
    attack: Attack | None = None,
) -> Callable[..., Tensor]:
    """Build `step(image, label, start=None) -> loss`; method "baseline", "align" (λ_α = weight) or "pgd"."""

    def step(image: Tensor, label: Tensor, start: Tensor | None = None) -> Tensor:
        if method == "pgd":
            image = attack(image, label, start)
        if method == "align":
            image = image.detach().requires_grad_(True)
        output = model(image)
        if output.ndim == 1:
            loss = F.binary_cross_entropy_with_logits(output, label.to(output.dtype))
        else:
            loss = F.cross_entropy(output, label)
        if method == "align":
            loss = loss - weight * _alignment(output, image, label, delta_x)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _alignment(output: Tensor, image: Tensor, label: Tensor, delta_x: DeltaX) -> Tensor:
    """Return the mean cosine of Δx with the input gradient of logit_target - logit_label."""
    if output.ndim == 1:
        target = 1 - label
        value = output @ (1 - 2 * label).to(output.dtype)
    else:
        target = closest_class(output.detach(), input_jacobian(output, image), label)
        direction = F.one_hot(target, output.shape[1]) - F.one_hot(label, output.shape[1])
        value = (output * direction).sum()
    (gradient,) = torch.autograd.grad(value, image, create_graph=True)
    vector = delta_x(image, label, target).detach()
    return F.cosine_similarity(vector.flatten(1), gradient.flatten(1), eps=1e-30).mean()
