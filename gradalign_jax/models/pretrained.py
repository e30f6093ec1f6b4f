"""Weights of ResNets under PyTorch's names: read into a model, and written from one.

The models are `resnet` (torchvision's and timm's ResNet-18), `preact_resnet` and `wide_resnet` (RobustBench's). A file
is a safetensors file, one of a run included, or a PyTorch checkpoint, whose tensors are read without unpickling code.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from gradalign_jax.errors import first_line
from gradalign_jax.types import Array, Variables

HUB = "hf:"
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
MODELS = "resnet, preact_resnet or wide_resnet"
_HEADS = ("fc", "linear", "logits")  # names of the last layer
_CHECKPOINTS = (".pt", ".pth", ".tar", ".ckpt")
_ENTRIES = ("state_dict", "model_state_dict", "net", "model")  # where checkpoints keep their weights
_PREFIX = re.compile(r"^((module|model|_orig_mod)\.)+")
# Mean and deviation of the images: RobustBench's buffers, and the names of its separate layer.
_BUFFERS = {"mu": "mu", "sigma": "sigma", "normalize.mean": "mu", "normalize.std": "sigma"}
# Counters, and a block of RobustBench's WideResNet that its forward pass does not read.
_UNREAD = re.compile(r"num_batches_tracked$|^sub_block1\.")


def load(source: str | Path, variables: Variables) -> Variables:
    """Return a ResNet's variables with the weights and statistics of a file.

    The last layer is loaded only if its shape fits, and otherwise keeps its value in `variables`, like the mean and
    deviation of the images if the file has none. Tensors that no forward pass reads are ignored, and so are the
    prefixes `module.` and `model.`. Reference: torchvision.models.resnet18(weights="IMAGENET1K_V1").

    Args:
      source: a file (a run's classifier.safetensors is one), or "hf:owner/name" for `model.safetensors` of a Hugging
        Face repository.
      variables: of the model, {"params", "batch_stats"}.

    Raises:
      ValueError: if the model is not a ResNet, the file is missing or damaged, or a tensor is missing, unknown or has
        another shape; the message names the file, the first tensor at fault and the remedy.
      ImportError: if the file needs an extra that is not installed.
    """
    path = _fetch(str(source)) if str(source).startswith(HUB) else Path(source)
    head = _head(variables)
    if head is None:
        raise ValueError(f"{path}: only models {MODELS} start from weights: leave config.model.pretrained out")
    tensors, kernel = read(path), f"{head}.weight"
    if kernel not in tensors or tensors[kernel].shape != variables["params"][head]["kernel"].shape:
        own = jax.tree.map(np.asarray, variables["params"][head])
        tensors |= {name_of(["params", head, leaf]): value for leaf, value in own.items()}
    return assign(path, tensors, variables)


def assign(path: Path, tensors: Mapping[str, np.ndarray], variables: Variables) -> Variables:
    """Return `variables` with the tensors that `read` returned of a file, all of them in their places.

    Raises:
      ValueError: as `check` does.
    """
    check(path, tensors, variables)

    def replace(keys: tuple, value: Array) -> Array:
        return jnp.asarray(tensors.get(_name(keys), value), value.dtype)

    return jax.tree_util.tree_map_with_path(replace, variables)


def check(path: Path, tensors: Mapping[str, np.ndarray], variables: Any) -> None:
    """Compare the tensors of a file with a model's variables, or with their shapes.

    Raises:
      ValueError: if a tensor is missing, unknown or has another shape.
    """
    shapes = {_name(keys): leaf.shape for keys, leaf in jax.tree_util.tree_leaves_with_path(variables)}
    unknown = [name for name in tensors if name not in shapes]
    missing = [name for name in shapes if name not in tensors and name not in _BUFFERS]
    remedy = "give the weights of this network, or the model and options of these weights"
    if missing:
        others = f", but {unknown[0]}" if unknown else ""
        raise ValueError(f"{path}: no tensor {missing[0]}{others} ({len(missing)} are missing): {remedy}")
    if unknown:
        raise ValueError(f"{path}: the model has no tensor {unknown[0]} ({len(unknown)} are unknown): {remedy}")
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            raise ValueError(
                f"{path}: {name} has shape {tensor.shape} in the model's layout, the model's own has {shapes[name]}: "
                "give weights of this size, or the model's options for these (stem, depth, width)"
            )


def read(path: Path, entry: str = "") -> dict[str, np.ndarray]:
    """Return the tensors of a file by PyTorch's names, in the model's layout (`[kh, kw, I, O]`, `[I, O]`).

    Args:
      path: a safetensors file, or a PyTorch checkpoint (.pt, .pth, .tar, .ckpt), which needs PyTorch.
      entry: the key of a checkpoint that holds the weights; "": a usual one, or the checkpoint itself.

    Raises:
      ValueError: if the file is missing or damaged, or holds two networks.
      ImportError: if it is a checkpoint and PyTorch is not installed.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file: give a safetensors file or hf:owner/name")
    raw = _read_checkpoint(path, entry) if path.suffix in _CHECKPOINTS else _read_safetensors(path)
    tensors: dict[str, np.ndarray] = {}
    for full, value in raw.items():
        name = name_of(full.split("/")) if "/" in full else _PREFIX.sub("", full)
        if _UNREAD.search(name):
            continue
        if name in tensors:
            raise ValueError(f"{path}: two tensors are called {name} but for a prefix: save one network alone")
        tensors[_BUFFERS.get(name, name)] = value if "/" in full else _to_flax(name, value)
    return tensors


def to_torch(variables: Variables) -> dict[str, np.ndarray]:
    """Return a ResNet's weights and statistics by PyTorch's names, in PyTorch's layout.

    One output s becomes the logits (-s/2, s/2) that the model returns. A mean and deviation of the images other than 0
    and 1 become RobustBench's buffers `mu` and `sigma`.

    Raises:
      ValueError: if the model is not a ResNet.
    """
    head = _head(variables)
    if head is None:
        raise ValueError(f"only the weights of models {MODELS} have names in PyTorch")
    own = {_name(keys): np.asarray(value) for keys, value in jax.tree_util.tree_leaves_with_path(variables)}
    for leaf in ("weight", "bias"):
        value = own[f"{head}.{leaf}"]
        if value.shape[-1] == 1:
            own[f"{head}.{leaf}"] = np.concatenate([-value / 2, value / 2], axis=-1)
    if "mu" in own and not own["mu"].any() and (own["sigma"] == 1).all():
        del own["mu"], own["sigma"]
    return {name: np.ascontiguousarray(_to_torch(name, value)) for name, value in own.items()}


def classes(path: Path, tensors: Mapping[str, np.ndarray]) -> int:
    """Return the number of outputs of the only dense layer.

    Raises:
      ValueError: if there is none, or more than one.
    """
    dense = [value for value in tensors.values() if value.ndim == 2]
    if len(dense) != 1:
        raise ValueError(f"{path}: a ResNet has one dense layer, this file has {len(dense)}: give a ResNet's weights")
    return dense[0].shape[1]


def name_of(parts: Sequence[str]) -> str:
    """Return PyTorch's name, layer2.0.downsample.1.weight of ("params", "layer2_0", "downsample_1", "scale")."""
    modules = [re.sub(r"^(layer\d|downsample)_(\d)$", r"\1.\2", part) for part in parts[1:-1]]
    return ".".join([*modules, LEAVES.get(parts[-1], parts[-1])])


def _name(keys: tuple) -> str:
    return name_of([key.key for key in keys])


def _head(variables: Variables) -> str | None:
    return next((name for name in _HEADS if name in variables["params"]), None)


def _to_flax(name: str, value: np.ndarray) -> np.ndarray:
    if name in _BUFFERS:
        return value.reshape(-1)
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def _to_torch(name: str, value: np.ndarray) -> np.ndarray:
    if name in _BUFFERS:
        return value.reshape(1, -1, 1, 1)
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: not a complete safetensors file ({error}): download it again, or convert it with safetensors"
        ) from error


def _read_checkpoint(path: Path, entry: str) -> dict[str, np.ndarray]:
    """Read the tensors of a PyTorch checkpoint; nothing else in it is unpickled."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(f'{path} needs PyTorch to be read: pip install torch, or "gradalign_jax[peers]"') from error
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds
        raise ValueError(
            f"{path}: not a checkpoint of tensors alone ({first_line(error)}): save model.state_dict() by torch.save"
        ) from error

    def is_state(value: Any) -> bool:
        return isinstance(value, Mapping) and all(isinstance(each, torch.Tensor) for each in value.values())

    inside = checkpoint if isinstance(checkpoint, Mapping) else {}
    states = [inside.get(key) for key in ([entry] if entry else _ENTRIES)] + ([] if entry else [checkpoint])
    state = next((value for value in states if value and is_state(value)), None)
    if state is None:
        raise ValueError(
            f"{path}: the weights are none of its entries {', '.join(map(str, [entry] if entry else _ENTRIES))}: give "
            f"--entry=NAME, one of {', '.join(map(str, inside))}"
        )
    return {name: value.float().numpy() for name, value in state.items()}


def _fetch(source: str) -> Path:
    """Return the path of a Hugging Face repository's file, downloaded unless it is in the cache."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ImportError(f'{source} needs huggingface_hub: pip install "gradalign_jax[hub]"') from error
    return Path(hf_hub_download(source.removeprefix(HUB), "model.safetensors"))
