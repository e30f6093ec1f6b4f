"""Configs as flat mappings from dotted keys, and how two configs differ; needs no JAX."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

# Keys added since the first runs were made, with the value, as in JSON, that describes what runs did before the key
# existed.
BEFORE = {
    **dict.fromkeys(("delta_x.generator", "delta_x.store", "evaluate.generator", "evaluate.store"), ""),
    **dict.fromkeys(("evaluate.square_queries", "evaluate.square_images", "evaluate.cw_images"), 0),
    "evaluate.same_generator": False,
    "evaluate.cw_iterations": 10_000,
    "evaluate.cw_learning_rate": 0.02,
    **{"delta_x.name": "", "evaluate.delta_x": "", "align.targets": "closest"},
    **{f"evaluate.{key}": [] for key in ("gradients", "estimators", "measures")},
    **dict.fromkeys(("delta_x.neighbors", "evaluate.neighbors"), 0),
    **dict.fromkeys(("delta_x.teacher", "evaluate.teacher"), ""),
    **{f"{section}.{key}": 0.0 for section in ("delta_x", "evaluate") for key in ("penalty", "teacher_epsilon")},
    **{"evaluate.suite": "paper", "evaluate.norm": "linf", "evaluate.suite_steps": 100, "evaluate.suite_queries": 5000},
    **{"project.classes": "all", "project.classifier": "", "project.solver": "paper", "project.shared": ""},
    **{f"precision.{part}": "float32" for part in ("training", "attack", "evaluation", "square", "projection")},
}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings with their dotted keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def changes(
    before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ, each with its old and its new value (None: absent).

    A key that `before` lacks counts as its value in `BEFORE`. Keys in `free` may differ.
    """
    old, new = dict(flatten(before)), dict(flatten(now))
    old = {key: BEFORE[key] for key in BEFORE.keys() & new.keys()} | old
    return {
        key: (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if key not in free and (old.get(key) != new.get(key) or (key in old) != (key in new))
    }


def described(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Return the changes as text: `seed (0 -> 1), train.epochs (30 -> 60)`."""
    return ", ".join(f"{key} ({old!r} -> {new!r})" for key, (old, new) in changed.items())
