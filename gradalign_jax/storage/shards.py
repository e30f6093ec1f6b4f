"""Arrays that take days to compute, on disk: written shard by shard and verified when read.

    identity.json        everything that the arrays depend on
    000000.safetensors   shard 0: rows 0 to size - 1 of every array, with their hash; and so on

A shard may lack rows, and a later run may add them. Its rows are a function of the identity and their numbers: a run
that is killed and started again computes the rows of missing and damaged shards, and ends in the same bytes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from gradalign_jax import config_keys, lease, paths, records
from gradalign_jax.errors import RunError
from gradalign_jax.storage import weights
from gradalign_jax.storage.atomic import create, remove_temporary_files, write_atomically

_ABANDONED = 86_400.0  # seconds without a change after which a temporary file of a shared store has lost its writer


class Store:
    """The shards in a folder.

    Args:
      folder: where they are.
      identity: everything they depend on, with "rows", the number of rows of the complete store, and "shard", the
        number of rows in a complete shard (the last may have fewer).
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self.folder, self.identity = folder, identity

    @property
    def shards(self) -> int:
        """The number of shards of the complete store."""
        return -(-self.identity["rows"] // self.identity["shard"])

    def write(self, number: int, **arrays: np.ndarray) -> None:
        """Write one shard, its rows of every array, in place of the one that is there.

        Raises:
          RunError: if it cannot be written.
        """
        weights.write(self._file(number), arrays, shard=number)

    def read(self) -> dict[str, np.ndarray]:
        """Return the rows of every array that the store has; damaged shards are logged and left out.

        Raises:
          RunError: if it has none.
        """
        shards = [shard for number in range(self.shards) if (shard := self.shard(number)) is not None]
        if not shards:
            raise RunError(f"{self.folder} holds nothing yet: type the command of that project run again to resume it")
        return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}

    def lease(self, number: int, expiry: float) -> lease.Lease | None:
        """Claim one shard of a shared store; None if a live process has it.

        Args:
          number: the shard's.
          expiry: seconds after which a lease that was not renewed has lost its holder.
        """
        return lease.claim(self.folder / f"{number:06d}.lease", expiry)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"

    def shard(self, number: int) -> dict[str, np.ndarray] | None:
        """Return the rows of one shard, None if it is missing or damaged; a damaged one is logged."""
        file = self._file(number)
        if not file.exists():
            return None
        try:
            arrays, about = weights.read(file)
            if about.get("shard", number) != number:
                raise RunError(f"{file} holds shard {about['shard']}")
            return arrays
        except RunError:
            logging.warning("%s is damaged: the project run computes it again", file)
            return None


def claim(folder: Path, identity: Mapping[str, Any], shared: bool = False) -> Store:
    """Return the store in `folder`, created if there is none.

    Args:
      folder: where it is.
      identity: as in `Store`.
      shared: whether others may be writing it.

    Raises:
      RunError: if the folder holds a store of another identity (the differing fields are named), or cannot be written.
    """
    identity = json.loads(json.dumps(dict(identity)))
    try:
        paths.make_folder(folder)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror}; choose another --workdir") from error
    remove_temporary_files(folder, _ABANDONED if shared else 0.0)
    file = folder / "identity.json"
    if not file.exists():
        write = create if shared else write_atomically
        write(file, json.dumps(records.seal(identity), indent=1, sort_keys=True))
    found = find(folder)
    if shared:  # the first process chose the size of a shard
        identity["shard"] = found.identity["shard"]
    changed = config_keys.changes(found.identity, identity)
    if changed:
        raise RunError(f"{folder} was made with another {config_keys.described(changed)}: choose another --workdir")
    return found


def find(folder: Path) -> Store:
    """Return the store in `folder`, complete or not.

    Raises:
      RunError: if there is none, or its identity is damaged.
    """
    file = folder / "identity.json"
    if not file.exists():
        raise RunError(f"{file} is missing: give the directory of a project run")
    again = f"remove {folder}, and type the command of that project run again"
    identity = records.read(file, again, key="digest")
    if not (_is_count(identity.get("rows")) and _is_count(identity.get("shard")) and identity["shard"] > 0):
        raise RunError(f"{file} is damaged (no sizes): {again}")
    return Store(folder, identity)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0
