"""JSON records that carry a digest of their values, so that damage is noticed. Imports no JAX."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


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


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()
