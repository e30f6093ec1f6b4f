"""Trained weights as one safetensors file, readable by other runs and programs; no pickle."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from gradalign_jax.errors import RunError
from gradalign_jax.paths import as_path, local_copy
from gradalign_jax.records import seal, unseal
from gradalign_jax.storage.atomic import write_atomically

_SEAL = "seal"  # the digest of the description; "digest" is that of the arrays


def digest(tree: Mapping[str, Any]) -> str:
    """Return a hash of the names, shapes, types and values of a nested dict of arrays."""
    hashed = hashlib.blake2b(digest_size=16)
    for name, value in sorted(traverse_util.flatten_dict(tree, sep="/").items()):
        array = np.ascontiguousarray(value)
        hashed.update(f"{name} {array.shape} {array.dtype}\n".encode())
        hashed.update(array.tobytes())
    return hashed.hexdigest()


def write(path: Path, tree: Mapping[str, Any], **described: Any) -> str:
    """Write a nested dict of arrays and its description atomically; return the digest of the arrays.

    Args:
      path: the file.
      tree: arrays, on the host or on a device.
      described: the description, JSON values.

    Raises:
      RunError: if the file cannot be written.
    """
    tree = jax.tree.map(np.ascontiguousarray, jax.device_get(tree))
    name = digest(tree)
    flat = traverse_util.flatten_dict(tree, sep="/")
    # One entry: the order of several is random, and equal contents should be equal bytes.
    about = seal({**described, "digest": name}, _SEAL)
    write_atomically(path, save(flat, metadata={"described": json.dumps(about)}))
    return name


def read(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arrays that `write` wrote, and their description with their "digest".

    Raises:
      RunError: if the file is missing, damaged, or was not written by `write`.
    """
    path = as_path(path)
    try:
        if not path.is_file():
            raise FileNotFoundError
        with local_copy(path) as local, safe_open(local, "numpy") as file:
            metadata = file.metadata() or {}
            described = {"digest": metadata.get("digest")} | json.loads(metadata.get("described", "{}"))
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing: let the run that trains it finish, or correct the directory") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(f"{path} is damaged ({error}): train it again, or restore the file") from error
    tree = traverse_util.unflatten_dict(flat, sep="/")
    if _SEAL in described:  # files of older runs have none
        described = unseal(described, _SEAL) or {"digest": None}
    if described["digest"] != digest(tree):
        raise RunError(f"{path} is damaged or was not written by gradalign_jax: its hash differs; train it again")
    return tree, described
