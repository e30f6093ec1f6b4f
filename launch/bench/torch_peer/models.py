"""The paper's classifiers in PyTorch, to compare ours with: the Spheres MLP and ResNet-18 with either stem.

Written from the paper, a description of the authors' settings and torchvision's layer shapes. Images are NCHW.
`load_flax` copies the weights of our models, so that both sides compute the same function.
"""

import re
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class FrozenNorm:
    """Mixin of a batch norm that stays in evaluation mode, with trained weight and bias (the authors' "off")."""

    def train(self, mode: bool = True) -> nn.Module:
        """Stay in evaluation mode, whatever the mode of the model."""
        return super().train(False)


class FrozenNorm1d(FrozenNorm, nn.BatchNorm1d):
    """`FrozenNorm` of features `[B, C]`."""


class FrozenNorm2d(FrozenNorm, nn.BatchNorm2d):
    """`FrozenNorm` of images `[B, C, H, W]`."""


class MLP(nn.Module):
    """The Spheres classifier: (linear, ReLU, frozen batch norm) twice, then one score `[B]`."""

    def __init__(self, inputs: int = 500, hidden: int = 1000):
        super().__init__()
        self.linear = nn.ModuleList([nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 1)])
        self.norm = nn.ModuleList([FrozenNorm1d(hidden), FrozenNorm1d(hidden)])

    def forward(self, image: Tensor) -> Tensor:
        """Map `[B, inputs]` to one score per image, `[B]`."""
        for linear, norm in zip(self.linear, self.norm, strict=False):
            image = norm(torch.relu(linear(image)))
        return self.linear[-1](image)[:, 0]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: type[nn.Module]):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = norm(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, inputs, H, W]` to `[B, outputs, H/stride, W/stride]`."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """ResNet-18 in torchvision's shapes; stem "imagenet" (7x7/2, max pool) or "cifar" (3x3, no pool)."""

    def __init__(self, outputs: int, stem: str = "imagenet", frozen_norm: bool = True):
        super().__init__()
        norm = FrozenNorm2d if frozen_norm else nn.BatchNorm2d
        imagenet = stem == "imagenet"
        self.conv1 = nn.Conv2d(3, 64, *((7, 2, 3) if imagenet else (3, 1, 1)), bias=False)
        self.bn1 = norm(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if imagenet else nn.Identity()
        widths = (64, 64, 128, 256, 512)
        for stage in range(1, 5):
            first = BasicBlock(widths[stage - 1], widths[stage], 1 if stage == 1 else 2, norm)
            second = BasicBlock(widths[stage], widths[stage], 1, norm)
            setattr(self, f"layer{stage}", nn.Sequential(first, second))
        self.fc = nn.Linear(512, outputs)
        # In float64, so that a model in double precision does not have constants rounded to float32.
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            constant = torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
            self.register_buffer(name, constant, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Map images `[B, 1 or 3, H, W]` in [-1, 1] to logits `[B, outputs]`."""
        image = image.expand(-1, 3, -1, -1)
        x = self.conv1((image / 2 + 0.5 - self.mean.to(image.dtype)) / self.std.to(image.dtype))
        x = self.maxpool(self.relu(self.bn1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


_LEAF_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def torch_name(path: tuple[str, ...]) -> str:
    """Return PyTorch's name, "layer1.0.conv1.weight", of our path ("layer1_0", "conv1", "kernel")."""
    *modules, leaf = path
    modules = [re.sub(r"(^layer\d|^downsample|^Linear|^BatchNorm)_(\d)$", r"\1.\2", name) for name in modules]
    name = ".".join([*modules, _LEAF_NAMES.get(leaf, leaf)])
    return name.replace("Linear.", "linear.").replace("BatchNorm.", "norm.")


def to_torch_layout(value: Any) -> np.ndarray:
    """Return a kernel in PyTorch's layout: HWIO -> OIHW, dense `[in, out]` -> `[out, in]`; vectors unchanged."""
    value = np.array(value)
    return np.ascontiguousarray(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T)


def flax_to_torch(tree: Any) -> dict[str, np.ndarray]:
    """Return parameters, statistics or gradients of ours in PyTorch's flat dict of names."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {torch_name(tuple(key.key for key in path)): to_torch_layout(leaf) for path, leaf in leaves}


def load_flax(module: nn.Module, variables: dict[str, Any]) -> nn.Module:
    """Copy our variables {"params", "batch_stats"} into the module, in its own precision, and return it.

    Raises:
      ValueError: if the module has other parameters.
    """
    values = {**flax_to_torch(variables["params"]), **flax_to_torch(variables["batch_stats"])}
    state = {name: torch.from_numpy(value) for name, value in values.items()}
    missing, unexpected = module.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"weights do not match: missing {missing}, unexpected {unexpected}")
    return module
