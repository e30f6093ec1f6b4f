"""JSON records that carry a digest of their values, so that damage is noticed. Imports no JAX."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradalign_jax.errors import RunError

SEAL = "seal"  # of whole files; their own keys may include "digest"


def seal(record: Mapping[str, Any], key: str = "digest") -> dict[str, Any]:
    """Return the record as JSON would read it back, with a digest of its values under `key`."""
    values = json.loads(json.dumps(dict(record)))
    return {**values, key: _digest(values)}


def unseal(record: Any, key: str = "digest") -> dict[str, Any] | None:
    """Return a sealed record without its digest; None if it was not sealed, or changed since."""
    if not isinstance(record, dict) or key not in record:
        return None
    values = {name: value for name, value in record.items() if name != key}
    return values if _digest(values) == record[key] else None


def parse(content: bytes, key: str = SEAL) -> dict[str, Any]:
    """Return the record in the content of a file, without its digest. Older versions wrote none, which is accepted.

    Raises:
      ValueError: if it is damaged; the message says how, without the file's name.
    """
    try:
        record = json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    if key not in record:
        return record
    values = unseal(record, key)
    if values is None:
        raise ValueError("its digest differs: it was changed after it was written")
    return values


def read(path: Path, remedy: str, key: str = SEAL) -> dict[str, Any]:
    """Return the record in a file, as `parse`.

    Raises:
      RunError: if the file is missing or damaged; the message ends with the remedy.
    """
    try:
        return parse(path.read_bytes(), key)
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing: {remedy}") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}): {remedy}") from error


def digest(content: bytes) -> str:
    """Return the digest of a file's content."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()
