"""Refuses a config that cannot mean what was typed, before anything expensive is imported or run."""

import math
import os
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from ml_collections import ConfigDict

_POSITIVE: tuple[str, Callable[[Any], bool]] = ("must be > 0", lambda v: v > 0)
_COUNT: tuple[str, Callable[[Any], bool]] = ("must be >= 1", lambda v: v >= 1)
_ZERO_OR_MORE: tuple[str, Callable[[Any], bool]] = ("must be >= 0", lambda v: v >= 0)


def _one_of(*values: str) -> tuple[str, Callable[[Any], bool]]:
    return f"must be one of {', '.join(values)}", lambda v: v in values


_GRID: tuple[str, Callable[[Any], bool]] = (
    "must be a tuple of ascending numbers > 0",
    lambda v: len(v) > 0 and v[0] > 0 and all(a < b for a, b in pairwise(v)),
)

EXACT_DELTA_X = ("spheres", "squares", "squares32")

RULES = {
    "task": _one_of("classifier"),
    "method": _one_of("baseline", "align", "pgd"),
    "devices": _ZERO_OR_MORE,
    "matmul_precision": _one_of("highest", "high", "default"),
    "data.limit": _ZERO_OR_MORE,
    "optimizer.name": _one_of("adam", "sgd"),
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.b1": ("must lie in [0, 1)", lambda v: 0 <= v < 1),
    "optimizer.b2": ("must lie in [0, 1)", lambda v: 0 <= v < 1),
    "optimizer.momentum": ("must lie in [0, 1)", lambda v: 0 <= v < 1),
    "train.batch_size": _COUNT,
    "train.epochs": _COUNT,
    "train.steps_per_epoch": _ZERO_OR_MORE,
    "train.log_every": _COUNT,
    "train.checkpoint_minutes": _POSITIVE,
    "align.weight": _ZERO_OR_MORE,
    "attack.epsilon": _ZERO_OR_MORE,
    "attack.step_size": _POSITIVE,
    "attack.steps": _COUNT,
    "attack.loss": _one_of("margin", "cross_entropy"),
    "attack.training_dtype": _one_of("float32", "bfloat16"),
    "attack.clip": _one_of("range", "data"),
    "validate.every_epochs": _COUNT,
    "validate.images": _ZERO_OR_MORE,
    "validate.first_epoch": _ZERO_OR_MORE,
    "validate.epsilons": _GRID,
    "evaluate.images": _ZERO_OR_MORE,
    "evaluate.block": _COUNT,
    "evaluate.linf_epsilons": _GRID,
    "evaluate.l2_epsilons": _GRID,
    "evaluate.l2_step_size": _POSITIVE,
}


def _look_up(config: ConfigDict, dotted: str) -> Any:
    for key in dotted.split("."):
        config = config[key]
    return config


def check(config: ConfigDict) -> None:
    """Checks every value that can be checked without data or devices.

    Raises:
      ValueError: one line that names the key, its value and what it must be.
    """
    for key, (rule, holds) in RULES.items():
        try:
            value = _look_up(config, key)
        except KeyError as error:
            raise ValueError(f"config.{key} is missing: see configs/common.py") from error
        numbers = [v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, float)]
        if not all(map(math.isfinite, numbers)) or not holds(value):
            raise ValueError(f"config.{key}={value!r} {rule}")
    if config.method == "align" and config.data.name not in EXACT_DELTA_X:
        raise ValueError(
            f"no exact Δx is known for {config.data.name}: align trains on {', '.join(EXACT_DELTA_X)} so far"
        )
    pretrained = config.model.pretrained
    if pretrained and not pretrained.startswith("hf:") and not os.path.isfile(pretrained):
        raise ValueError(
            f"config.model.pretrained={pretrained!r}: no such file; give a safetensors file or hf:owner/name"
        )
    if config.devices and config.train.batch_size % config.devices:
        raise ValueError(
            f"config.train.batch_size={config.train.batch_size} is no multiple of config.devices={config.devices}: "
            "change one of them"
        )
    if config.validate.first_epoch >= config.train.epochs:
        raise ValueError(
            f"config.validate.first_epoch={config.validate.first_epoch} leaves none of the "
            f"{config.train.epochs} epochs to select from: lower it or raise config.train.epochs"
        )
