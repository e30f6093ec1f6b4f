"""Initial weights of the ResNet-18: a safetensors file with the names of torchvision, timm or a run."""

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
    """Return the variables of a ResNet-18 with the weights and statistics of a safetensors file.

    The last layer, fc, is loaded only if its shape fits, and otherwise keeps its value in `variables`;
    `num_batches_tracked` is ignored. Reference: torchvision.models.resnet18(weights="IMAGENET1K_V1").

    Args:
      source: a file (a run's classifier.safetensors is one), or "hf:owner/name" for `model.safetensors` of a Hugging
        Face repository.
      variables: of the model, {"params", "batch_stats"}.

    Raises:
      ValueError: if the model is not a ResNet-18, the file is missing or damaged, or a tensor is missing or has another
        shape; the message names the file, the first tensor at fault and the remedy.
      ImportError: if a repository is given and the extra `hub` is not installed.
    """
    path = _fetch(str(source)) if str(source).startswith(HUB) else Path(source)
    if "fc" not in variables["params"]:
        raise ValueError(
            f"{path}: the weights of a ResNet-18 fit only model 'resnet': leave config.model.pretrained out"
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
    """Return torchvision's name, layer2.0.downsample.1.weight of ("params", "layer2_0", "downsample_1", "scale")."""
    return ".".join([*(part.replace("_", ".") for part in parts[1:-1]), LEAVES[parts[-1]]])


def _find(tensors: Mapping[str, np.ndarray], parts: Sequence[str]) -> np.ndarray | None:
    """Return a tensor in Flax's layout, `[kh, kw, I, O]` or `[I, O]`, under a run's name or torchvision's."""
    own, theirs = tensors.get("/".join(parts)), tensors.get(_name(parts))
    if own is not None or theirs is None:
        return own
    return theirs.transpose(2, 3, 1, 0) if theirs.ndim == 4 else theirs.T


def _tensor(path: Path, tensors: Mapping[str, np.ndarray], parts: Sequence[str], shape: tuple[int, ...]) -> np.ndarray:
    """Return one tensor of exactly this shape."""
    tensor, name = _find(tensors, parts), _name(parts)
    if tensor is None:
        raise ValueError(f"{path}: no tensor {name}: give the weights of a ResNet-18 in torchvision's naming")
    if tensor.shape != shape:
        raise ValueError(
            f"{path}: {name} has shape {tensor.shape} in the model's layout, the model's own has {shape}: "
            "give the weights of a ResNet-18 with the model's stem"
        )
    return tensor


def _read(path: Path) -> dict[str, np.ndarray]:
    """Read all tensors of a safetensors file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file: give a safetensors file or hf:owner/name")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: not a complete safetensors file ({error}): download it again, or convert it with safetensors"
        ) from error


def _fetch(source: str) -> Path:
    """Return the path of a Hugging Face repository's file, downloaded unless it is in the cache."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ImportError(f'{source} needs huggingface_hub: pip install "gradalign_jax[hub]"') from error
    return Path(hf_hub_download(source.removeprefix(HUB), "model.safetensors"))
