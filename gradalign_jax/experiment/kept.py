"""A network that a start of a run trains for itself, kept in the run's directory: later starts use the same one."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from gradalign_jax.storage import weights


def once(folder: Path | None, described: Mapping[str, Any], make: Callable[[], Partial]) -> Partial:
    """Return `make()`, or what an earlier start made and kept.

    Training again would cost its time at every start, and give other weights on another kind of device.

    Args:
      folder: the run's directory; None: nothing is kept.
      described: what the result depends on, JSON values; its "source" begins the file's name.
      make: trains, and returns a function with its arrays. Its structure must not depend on their values.

    Raises:
      RunError: if the file is damaged, or cannot be written.
    """
    if folder is None:
        return make()
    key = hashlib.blake2b(json.dumps(described, sort_keys=True).encode(), digest_size=4).hexdigest()
    file = folder / f"{described['source']}_{key}.safetensors"
    if not file.exists():
        made = make()
        weights.write(file, {str(n): leaf for n, leaf in enumerate(jax.tree.leaves(made))}, made=dict(described))
        return made
    arrays, _ = weights.read(file)
    structure = jax.tree.structure(jax.eval_shape(make))  # traces the training, and runs none of it
    return jax.tree.unflatten(structure, [jnp.asarray(arrays[str(n)]) for n in range(len(arrays))])
