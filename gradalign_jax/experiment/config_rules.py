"""The values that each key of a config may have, by task, as tables of rules."""

import pkgutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from gradalign_jax import deltax, gradients
from gradalign_jax.paper import METHODS

Rule = tuple[str, Callable[[Any], bool]]  # in words, and whether a value keeps it

_POSITIVE: Rule = ("must be > 0", lambda v: v > 0)
_ZERO_OR_MORE: Rule = ("must be >= 0", lambda v: v >= 0)
_FRACTION: Rule = ("must lie in [0, 1)", lambda v: 0 <= v < 1)


def estimators() -> list[str]:
    """Return the names of the Δx estimators: the files of gradalign_jax/deltax."""
    return sorted(module.name for module in pkgutil.iter_modules(deltax.__path__))


def _count(least: int, most: int = 10**9) -> Rule:
    return f"must lie in {least} to {most}", lambda v: least <= v <= most and not isinstance(v, bool | float)


_COUNT, _SIZE = _count(1), _count(0)
_WIDTH = _count(1, 100_000)  # of layers, and of what is held in memory at once


def one_of(*values: Any) -> Rule:
    """Return the rule that a value is one of these."""
    return f"must be one of {', '.join(map(str, values))}", lambda v: v in values


_GRID: Rule = (
    "must be a tuple of ascending numbers > 0",
    lambda v: len(v) > 0 and v[0] > 0 and all(a < b for a, b in pairwise(v)),
)


def _some_of(values: Sequence[str]) -> tuple[str, Callable[[Any], bool]]:
    return (
        f"must be a tuple of some of {', '.join(values)}, each once",
        lambda v: isinstance(v, tuple) and len(v) == len(set(v)) and set(v) <= set(values),
    )


MEASURES = ("etmann", "removal", "tangent", "noise")
_SEARCHED = one_of("float32", "tf32", "bfloat16", "auto")
_TRAINED = one_of("float32", "tf32")
EXACT_DELTA_X = ("spheres", "squares", "squares32")

# Rules for keys that every task has; those of each task follow.
SHARED = {
    "devices": _SIZE,
    "matmul_precision": one_of("policy", "highest"),
    "data.limit": _SIZE,
}
# Rules for measuring a classifier.
_TEST = {
    "precision.evaluation": _SEARCHED,
    "precision.square": _SEARCHED,
    "attack.step_size": _POSITIVE,
    "attack.steps": _COUNT,
    "attack.loss": one_of("margin", "cross_entropy"),
    "attack.clip": one_of("range", "data"),
    "evaluate.neighbors": _SIZE,
    "evaluate.penalty": _ZERO_OR_MORE,
    "evaluate.teacher_epsilon": _ZERO_OR_MORE,
    "evaluate.images": _SIZE,
    "evaluate.block": _SIZE,
    "evaluate.linf_epsilons": _GRID,
    "evaluate.l2_epsilons": _GRID,
    "evaluate.l2_step_size": _POSITIVE,
    "evaluate.square_queries": _count(0, 200_000),
    "evaluate.square_images": _SIZE,
    "evaluate.cw_images": _SIZE,
    "evaluate.suite": one_of("paper", "autoattack", "malt"),
    "evaluate.norm": one_of("linf", "l2"),
    "evaluate.suite_steps": _COUNT,
    "evaluate.suite_queries": _count(1, 200_000),
    "evaluate.cw_iterations": _COUNT,
    "evaluate.cw_learning_rate": _POSITIVE,
    "evaluate.gradients": _some_of(gradients.names()),
    "evaluate.estimators": _some_of(estimators()),
    "evaluate.measures": _some_of(MEASURES),
}
_TRAINING = {
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.b1": _FRACTION,
    "optimizer.b2": _FRACTION,
    "train.batch_size": _COUNT,
    "train.epochs": _COUNT,
    "train.steps_per_epoch": _SIZE,
    "train.log_every": _COUNT,
    "train.checkpoint_minutes": _POSITIVE,
    "validate.every_epochs": _COUNT,
    "validate.images": _SIZE,
    "evaluate.images": _SIZE,
    "evaluate.block": _SIZE,
}
_CLASSIFIER = (
    _TRAINING
    | _TEST
    | {
        "method": one_of(*METHODS),
        "precision.training": _TRAINED,
        "precision.attack": _SEARCHED,
        "optimizer.name": one_of("adam", "sgd"),
        "optimizer.momentum": _FRACTION,
        "align.weight": _ZERO_OR_MORE,
        "align.targets": one_of("closest", "all"),
        "delta_x.neighbors": _ZERO_OR_MORE,
        "delta_x.penalty": _ZERO_OR_MORE,
        "delta_x.teacher_epsilon": _ZERO_OR_MORE,
        "attack.epsilon": _ZERO_OR_MORE,
        "validate.first_epoch": _SIZE,
        "validate.epsilons": _GRID,
    }
)
_GAN = {
    "precision.training": one_of("float32", "tf32", "bfloat16"),
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.b1": _FRACTION,
    "optimizer.b2": _FRACTION,
    "train.batch_size": _COUNT,
    "train.log_every": _COUNT,
    "train.checkpoint_minutes": _POSITIVE,
    "gan.width": _WIDTH,
    "gan.latent_dim": _WIDTH,
    "gan.iterations": _COUNT,
    "gan.d_steps": _COUNT,
    "gan.feature_matching": _ZERO_OR_MORE,
    "gan.hinge": _ZERO_OR_MORE,
    "gan.ema_decay": _FRACTION,
    "gan.ema_start": _SIZE,
    "gan.sample_every": _COUNT,
    "gan.sample_columns": _WIDTH,
    "gan.check_images": _count(2, 100_000),
}
_SPLITS = ("train", "validation", "test")
_PROJECT = {
    "precision.projection": _SEARCHED,
    "project.splits": (
        f"must be a tuple of some of {', '.join(_SPLITS)}, each once",
        lambda v: 0 < len(v) == len(set(v)) and set(v) <= set(_SPLITS),
    ),
    "project.images": _SIZE,
    "project.solver": one_of("paper", "fast"),
    "project.classes": one_of("all", "closest"),
    "project.steps": ("must be two integers in 0 to 1000000000", lambda v: len(v) == 2 and all(map(_SIZE[1], v))),
    "project.learning_rate": ("must be two numbers > 0", lambda v: len(v) == 2 and min(v) > 0),
    "project.penalty": _ZERO_OR_MORE,
    "project.eps": _POSITIVE,
    "project.block": _SIZE,
}
_VRGAN = (
    _TRAINING
    | {"precision.training": _TRAINED}
    | {f"vrgan.{loss}": _ZERO_OR_MORE for loss in ("real", "generated", "fool", "small")}
)
_SEED = {"seed": _count(0, 2**32 - 1)}
# Rules for the options of the package's models, where a config has them.
MODEL_OPTIONS = {
    "binary": one_of(True, False),
    "frozen_norm": one_of(True, False),
    "hidden": ("must be a tuple of integers in 1 to 100000", lambda v: all(map(_WIDTH[1], v))),
    "input_size": _count(1, 10_000_000),
    "channels": one_of(1, 3),
    "stem": one_of("imagenet", "cifar"),
    "input_mapping": one_of("unit", "raw"),
    "width": _WIDTH,
    "downsamplings": _count(1, 16),
}
TASKS = {
    "classifier": _SEED | _CLASSIFIER,
    "evaluate": _TEST,  # its seed is the classifier's
    "vrgan": _SEED | _VRGAN,
    "gan": _SEED | _GAN,
    "project": _SEED | _PROJECT,
}
