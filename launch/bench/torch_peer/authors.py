"""Training steps with the work of the authors' PyTorch loops, written from a description of that code.

Their work beyond the method itself is kept on purpose: K separate backward passes that record a graph in every step of
a multi-class run; 4 more full gradients for the alignment metrics; metrics in a Python loop over images with `.item()`;
an attack that draws its noise with NumPy and clears the parameters' gradients twice per iteration; an optimizer that is
not fused. A model with one output (scores `[B]`) takes the binary path, which in alignment runs computes Δx
and cosines again for the log, image by image.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attack = Callable[..., Tensor]  # (image, label, start=None) -> adversarial image
DeltaX = Callable[[Tensor, Tensor, Tensor], Tensor]  # (image, label, target) -> vector to class `target`


def optimizer(model: nn.Module, name: str, **settings) -> torch.optim.Optimizer:
    """Return Adam or SGD with PyTorch's defaults."""
    return {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[name](model.parameters(), **settings)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine of each pair of rows, with every entry moved 1e-15 away from zero."""

    def flat(v):
        sign = torch.where(v < 0, -1.0, 1.0).to(v.dtype)
        return (v + 1e-15 * sign).flatten(1)

    a, b = flat(a), flat(b)
    return (a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)


def input_jacobian(logits: Tensor, image: Tensor) -> Tensor:
    """Return the input gradients of all K logits `[B, K, ...]`: K backward passes, each recording an unused graph."""
    rows = []
    for k in range(logits.shape[1]):
        rows += torch.autograd.grad(logits[:, k].sum(), image, create_graph=True, retain_graph=True)
    return torch.stack(rows, 1).detach()


def closest_class(logits: Tensor, jacobian: Tensor, reference: Tensor) -> Tensor:
    """Return the class with the closest linearized boundary to `reference`, by signed distance."""
    rows = torch.arange(len(logits), device=logits.device)
    difference = (jacobian[rows, reference][:, None] - jacobian).flatten(2).norm(dim=2)
    distance = (logits[rows, reference][:, None] - logits) / difference
    distance[rows, reference] = torch.inf
    return distance.argmin(1)


def make_attack(
    model: nn.Module, loss: str, epsilon: float, step_size: float, steps: int = 40, bounds=(-1.0, 1.0)
) -> Attack:
    """Build PGD in L∞ with a random start; loss "cross_entropy", or "margin" for a model with one score."""

    def objective(output, label):
        if loss == "margin":
            return ((1 - 2 * label.to(output.dtype)) * output).sum()
        return F.cross_entropy(output, label, reduction="sum")

    def attack(image: Tensor, label: Tensor, start: Tensor | None = None) -> Tensor:
        training = model.training
        model.eval()
        if start is None:
            noise = np.random.uniform(-epsilon, epsilon, tuple(image.shape))
            start = (image + torch.from_numpy(noise).to(image)).clamp(*bounds)
        x = start
        for _ in range(steps):
            x = x.detach().requires_grad_(True)
            model.zero_grad()
            (gradient,) = torch.autograd.grad(objective(model(x), label), x)
            model.zero_grad()
            x = x.detach() + step_size * gradient.sign()
            x = torch.max(torch.min(x, image + epsilon), image - epsilon).clamp(*bounds)
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
) -> Callable[..., dict[str, float]]:
    """Build `step(image, label, start=None) -> metrics` for "baseline", "align" (λ_α = weight) or "pgd"."""

    def step(image: Tensor, label: Tensor, start: Tensor | None = None) -> dict[str, float]:
        if method == "pgd":
            image = attack(image, label, start)
        image = image.detach().requires_grad_(True)
        output = model(image)
        path = _binary_loss if output.ndim == 1 else _multiclass_loss
        loss, metrics = path(output, image, label, delta_x, weight if method == "align" else None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return metrics | {"loss": loss.item()}

    return step


def _binary_loss(score: Tensor, image: Tensor, label: Tensor, delta_x, weight: float | None):
    loss = torch.where(label == 1, F.softplus(-score), F.softplus(score)).mean()
    metrics = {"error": [((score[i] > 0) != (label[i] > 0)).item() for i in range(len(label))]}
    if weight is not None:
        (gradient,) = torch.autograd.grad(loss, image, create_graph=True)
        loss = loss - weight * cosine(gradient, delta_x(image, label, 1 - label).detach()).mean()
        # For the log: Δx and the cosine again, image by image.
        alignment = []
        for i in range(len(label)):
            one = slice(i, i + 1)
            vector = delta_x(image[one], label[one], 1 - label[one])
            alignment.append(cosine(gradient[one].detach(), vector.detach()).cpu().item())
        metrics["alignment"] = alignment
    return loss, {name: float(np.mean(values)) for name, values in metrics.items()}


def _multiclass_loss(logits: Tensor, image: Tensor, label: Tensor, delta_x, weight: float | None):
    loss = F.cross_entropy(logits, label)
    jacobian = input_jacobian(logits, image)
    target = closest_class(logits.detach(), jacobian, label)
    if weight is not None:
        gradient = _class_gradient(logits, image, target, label)
        loss = loss - weight * cosine(gradient, delta_x(image, label, target).detach()).mean()
    metrics = _alignment_metrics(logits, image, label, target, jacobian, delta_x)
    error = [(logits[i].argmax() != label[i]).cpu().item() for i in range(len(label))]
    return loss, metrics | {"error": float(np.mean(error))}


def _class_gradient(logits: Tensor, image: Tensor, plus: Tensor, minus: Tensor | None = None) -> Tensor:
    """Return the input gradient of Σ (logit_plus - logit_minus), with a graph."""
    rows = torch.arange(len(logits), device=logits.device)
    value = logits[rows, plus] - (logits[rows, minus] if minus is not None else 0)
    return torch.autograd.grad(value.sum(), image, create_graph=True, retain_graph=True)[0]


def _alignment_metrics(logits, image, label, target, jacobian, delta_x) -> dict[str, float]:
    """Return all eight alignments of the batch: 4 more gradients, then 8 cosines for each image separately."""
    predicted = logits.argmax(1)
    closest = closest_class(logits.detach(), jacobian, predicted)
    gradients = {
        "predicted": _class_gradient(logits, image, predicted),
        "label": _class_gradient(logits, image, label),
        "target_label": _class_gradient(logits, image, target, label),
        "closest_predicted": _class_gradient(logits, image, closest, predicted),
    }
    vector = delta_x(image, label, target).detach() if delta_x is not None else image.detach()
    metrics = {}
    for name, gradient in gradients.items():
        gradient, x = gradient.detach(), image.detach()
        alpha_x, alpha_delta_x = [], []
        for i in range(len(label)):
            one = slice(i, i + 1)
            alpha_x.append(cosine(gradient[one], x[one]).abs().cpu().item())
            alpha_delta_x.append(cosine(gradient[one], vector[one]).cpu().item())
        metrics[f"alpha_x_{name}"] = float(np.mean(alpha_x))
        metrics[f"alpha_delta_x_{name}"] = float(np.mean(alpha_delta_x))
    return metrics
