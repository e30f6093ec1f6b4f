"""Weights that the ResNet-18 starts from: a safetensors file named as in torchvision or timm, or of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from gradalign_jax.types import Array, Variables

HUB = "hf:"
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def load(source: str | Path, variables: Variables) -> Variables:
    """Returns the variables of a ResNet-18 with the weights and statistics of a safetensors file.

    source: a file, a run's own classifier.safetensors included, or "hf:owner/name" for `model.safetensors` of a
    Hugging Face repository.
    The last layer, fc, is taken only where its shape fits, and otherwise stays as it is in `variables`;
    `num_batches_tracked` is ignored.
    Raises ValueError, naming the file, the first tensor at fault and the remedy, where the file is none, or
    lacks a tensor, or has one of another shape; ImportError where a repository is asked for without the
    extra `hub`.
    Reference: torchvision.models.resnet18(weights="IMAGENET1K_V1").
    """
    path = _fetch(str(source)) if str(source).startswith(HUB) else Path(source)
    if "fc" not in variables["params"]:
        raise ValueError(
            f"{path}: the weights of a ResNet-18 fit model 'resnet' alone; leave config.model.pretrained out"
        )
    tensors = _read(path)
    head = _find(tensors, ["params", "fc", "kernel"])
    keep_head = head is None or head.shape != variables["params"]["fc"]["kernel"].shape

    def replace(keys: tuple, value: Array) -> Array:
        parts = [key.key for key in keys]
        if "fc" in parts and keep_head:
            return value
        return jnp.asarray(_tensor(path, tensors, parts, value.shape), value.dtype)

    return jax.tree_util.tree_map_with_path(replace, variables)


def _name(parts: Sequence[str]) -> str:
    """Turns ("params", "layer2_0", "downsample_1", "scale") into layer2.0.downsample.1.weight."""
    return ".".join([*(part.replace("_", ".") for part in parts[1:-1]), LEAVES[parts[-1]]])


def _find(tensors: Mapping[str, np.ndarray], parts: Sequence[str]) -> np.ndarray | None:
    """Returns a tensor in Flax's layout, HWIO or [in, out], under a run's own name or torchvision's."""
    own, theirs = tensors.get("/".join(parts)), tensors.get(_name(parts))
    if own is not None or theirs is None:
        return own
    return theirs.transpose(2, 3, 1, 0) if theirs.ndim == 4 else theirs.T


def _tensor(path: Path, tensors: Mapping[str, np.ndarray], parts: Sequence[str], shape: tuple[int, ...]) -> np.ndarray:
    """Returns one tensor of exactly this shape."""
    tensor, name = _find(tensors, parts), _name(parts)
    if tensor is None:
        raise ValueError(f"{path}: no tensor {name}; give the weights of a ResNet-18 in torchvision's naming")
    if tensor.shape != shape:
        raise ValueError(
            f"{path}: {name} has shape {tensor.shape} in the model's layout, where the model has {shape}; "
            "give the weights of a ResNet-18 with the stem that the model has"
        )
    return tensor


def _read(path: Path) -> dict[str, np.ndarray]:
    """Reads all the tensors of a safetensors file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give a safetensors file or hf:owner/name")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: not a whole safetensors file ({error}); fetch it again, or convert it with safetensors"
        ) from error


def _fetch(source: str) -> Path:
    """Downloads, or finds in the cache, the file of a Hugging Face repository."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ImportError(f'{source} needs huggingface_hub: pip install "gradalign_jax[hub]"') from error
    return Path(hf_hub_download(source.removeprefix(HUB), "model.safetensors"))
