"""Arrays that take days to make, on disk: written shard by shard, never trusted when read back.

    identity.json        what the arrays are a function of
    00000.safetensors    shard 0, the rows 0 ... size - 1 of every array, with its hash; and so on

A shard is a function of the identity and its number. Work that is killed and started again makes the shards that are
missing or damaged, and ends in the same bytes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from gradalign_jax.errors import RunError
from gradalign_jax.storage import weights
from gradalign_jax.storage.workdir import write_atomically


class Store:
    """The shards in a folder.

    folder: where they are. identity: what they are a function of, with "rows", their number in all, and "shard", the
    rows of each (the last may have fewer).
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self.folder, self.identity = folder, identity

    @property
    def shards(self) -> int:
        """How many shards there are when it is whole."""
        return -(-self.identity["rows"] // self.identity["shard"])

    def missing(self) -> list[int]:
        """The numbers of the shards that are to be made; a damaged one is named, and among them."""
        return [number for number in range(self.shards) if self._shard(number) is None]

    def write(self, number: int, **arrays: np.ndarray) -> None:
        """Writes one shard: arrays with a row for each of its rows."""
        weights.write(self._file(number), arrays)

    def read(self) -> dict[str, np.ndarray]:
        """Every array, whole.

        Raises:
          RunError: if a shard is missing or damaged.
        """
        shards = [self._shard(number) for number in range(self.shards)]
        missing = [number for number, shard in enumerate(shards) if shard is None]
        if missing:
            raise RunError(
                f"{self.folder} lacks {len(missing)} of its {self.shards} shards, the first is {missing[0]}: type the "
                "command that makes it again, it goes on where it was"
            )
        return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"

    def _shard(self, number: int) -> dict[str, np.ndarray] | None:
        file = self._file(number)
        if not file.exists():
            return None
        try:
            return weights.read(file)[0]
        except RunError:
            logging.warning("%s is damaged: the project run makes it again", file)
            return None


def claim(folder: Path, identity: Mapping[str, Any]) -> Store:
    """The store in `folder`, made if there is none.

    Raises:
      RunError: if the folder holds what is a function of something else (the fields that differ are named), or cannot
        be written.
    """
    identity = json.loads(json.dumps(dict(identity)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror}; choose another --workdir") from error
    if not (folder / "identity.json").exists():
        write_atomically(folder / "identity.json", json.dumps(identity, indent=1, sort_keys=True))
    found = find(folder)
    changed = [
        f"{key} ({found.identity.get(key)!r} -> {identity.get(key)!r})"
        for key in sorted(found.identity.keys() | identity.keys())
        if found.identity.get(key) != identity.get(key)
    ]
    if changed:
        raise RunError(f"{folder} was made with another {', '.join(changed)}: choose another --workdir")
    return found


def find(folder: Path) -> Store:
    """The store that is in `folder`, finished or not.

    Raises:
      RunError: if there is none, or its identity is damaged.
    """
    file = folder / "identity.json"
    try:
        identity = json.loads(file.read_text())
        if not identity["rows"] >= 0 < identity["shard"]:
            raise ValueError("no size")
    except FileNotFoundError as error:
        raise RunError(f"{file} is missing: give the directory of a project run") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file} is damaged: remove {folder}, and make it again") from error
    return Store(folder, identity)
