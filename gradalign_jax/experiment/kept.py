"""A network that a start of a run trains for itself, kept in the run's directory: later starts use the same one."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from gradalign_jax import processes
from gradalign_jax.errors import RunError
from gradalign_jax.storage import weights


def once(folder: Path | None, described: Mapping[str, Any], make: Callable[[], Partial]) -> Partial:
    """Return `make()`, or what an earlier start made and kept; in every process that of the first one.

    Training again would cost its time at every start, and give other weights on another kind of device.

    Args:
      folder: the run's directory; None: nothing is kept.
      described: what the result depends on, JSON values; its "source" begins the file's name.
      make: trains, and returns a function with its arrays, all of it in JAX: it is also traced without being run.

    Raises:
      RunError: if the file is damaged or holds other arrays, or cannot be written.
    """
    if folder is None:
        return make()
    key = hashlib.blake2b(json.dumps(described, sort_keys=True).encode(), digest_size=4).hexdigest()
    file = folder / f"{described['source']}_{key}.safetensors"
    shapes, structure = jax.tree.flatten(jax.eval_shape(make))
    if not file.exists():
        leaves = processes.of_first(jax.tree.leaves(make()))
        weights.write(file, {str(n): leaf for n, leaf in enumerate(leaves)}, made=dict(described))
    arrays, _ = weights.read(file)
    if len(arrays) != len(shapes) or any(arrays[str(n)].size != leaf.size for n, leaf in enumerate(shapes)):
        raise RunError(f"{file} holds another estimator's arrays: remove it, and it is trained again")
    # Scalars come back as arrays of one number.
    return structure.unflatten(
        jnp.asarray(arrays[str(n)], leaf.dtype).reshape(leaf.shape) for n, leaf in enumerate(shapes)
    )
