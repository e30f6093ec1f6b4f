"""Trained weights as one safetensors file, for other runs and other programs to read; no pickle."""

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
from gradalign_jax.storage.workdir import write_atomically


def digest(tree: Mapping[str, Any]) -> str:
    """A hash of names, shapes, types and values of a nested dict of arrays."""
    hashed = hashlib.blake2b(digest_size=16)
    for name, value in sorted(traverse_util.flatten_dict(tree, sep="/").items()):
        array = np.ascontiguousarray(value)
        hashed.update(f"{name} {array.shape} {array.dtype}\n".encode())
        hashed.update(array.tobytes())
    return hashed.hexdigest()


def write(path: Path, tree: Mapping[str, Any], **described: Any) -> str:
    """Writes a nested dict of arrays, and what describes it (JSON values), atomically; returns its digest.

    Raises:
      RunError: if the file cannot be written.
    """
    tree = jax.tree.map(np.ascontiguousarray, jax.device_get(tree))
    name = digest(tree)
    flat = traverse_util.flatten_dict(tree, sep="/")
    # One entry: the order of several is random, and equal contents should be equal bytes.
    write_atomically(path, save(flat, metadata={"described": json.dumps({**described, "digest": name})}))
    return name


def read(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """The nested dict of arrays of `write`, and what describes it, its "digest" included.

    Raises:
      RunError: if the file is missing, damaged, or none of `write`'s.
    """
    if not os.path.isfile(path):
        raise RunError(f"{path} is missing: let the run that trains it finish, or correct the directory")
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            described = {"digest": metadata.get("digest")} | json.loads(metadata.get("described", "{}"))
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(f"{path} is damaged ({error}): train it again, or restore the file") from error
    tree = traverse_util.unflatten_dict(flat, sep="/")
    if described["digest"] != digest(tree):
        raise RunError(f"{path} is damaged or was not written by gradalign_jax: its hash differs; train it again")
    return tree, described
