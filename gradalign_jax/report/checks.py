"""Checks the content of a result file, so that a damaged or edited one is named and never stops a report.

Absent and null entries are allowed everywhere but for the data set's name; they count as not measured.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from gradalign_jax import paper
from gradalign_jax.config_keys import flatten


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e100
    )  # NaN is not; squares stay finite


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and _is_number(value)


def _is_count(value: Any) -> bool:
    return _is_integer(value) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _list_of(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(accepts, value))


def _table_of(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Mapping) and all(map(accepts, value.values()))


def _or_null(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or accepts(value)


def _is_class(name: Any) -> bool:
    return isinstance(name, str) and name.isascii() and name.isdecimal() and len(name) < 4


def _is_score(row: Any) -> bool:
    """Return whether a row names an estimator and holds numbers."""
    numbers = _table_of(_or_null(_is_number))
    return isinstance(row, Mapping) and _is_text(row.get("estimator")) and numbers({**row, "estimator": None})


_MAYBE_NUMBER, _NUMBERS_BY_NAME = _or_null(_is_number), _table_of(_or_null(_is_number))
_EVERY_LIST = _list_of(lambda value: True)

# What an entry must be, in words, and its check.
_ENTRIES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("method", "task", "evaluated"), ("not a string", _is_text)),
    **dict.fromkeys(("accuracy", "seconds", "alpha_delta_x", *paper.S2_COLUMNS), ("not a number", _is_number)),
    **dict.fromkeys(("moved", "similarity_sd", "pairs"), ("not a number", _is_number)),
    "seed": ("not an integer", _is_integer),
    "shape": ("not a list of integers", _list_of(_is_count)),
    **dict.fromkeys(("notes", "warnings", "devices"), ("not a list", _EVERY_LIST)),
    **dict.fromkeys(("versions", "config", "evaluated_config"), ("not a table", lambda v: isinstance(v, Mapping))),
    **dict.fromkeys(("precision", "files"), ("not a table of names", _table_of(_is_text))),
    **dict.fromkeys(("epsilon_half", "similarity_by_class"), ("not a table of numbers", _NUMBERS_BY_NAME)),
    "moved_by_destination": ("not a table of numbers", _NUMBERS_BY_NAME),
    "similarity": ("not a number", lambda value: _is_number(value) or _NUMBERS_BY_NAME(value)),
    "norms": ("not a table of tables of numbers", _table_of(_NUMBERS_BY_NAME)),
    "splits": ("not a table of tables of numbers", _table_of(_NUMBERS_BY_NAME)),
    "curves": ("not a table of tables", _table_of(lambda curve: isinstance(curve, Mapping))),
    "linearity": ("not a table", lambda value: isinstance(value, Mapping)),
    "theory": ("not a table of numbers", _NUMBERS_BY_NAME),
    "accuracy_by_class": ("not a table of numbers by class", lambda v: _NUMBERS_BY_NAME(v) and all(map(_is_class, v))),
    **dict.fromkeys(("suite", "directions"), ("not a table", lambda value: isinstance(value, Mapping))),
    "images": ("not a count", _is_count),
    "estimators": ("not a list of named rows of numbers", _list_of(_is_score)),
}
_SUITE: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "name": ("not a string", _is_text),
    "norm": ("neither linf nor l2", lambda value: value in ("linf", "l2")),
    "curves": ("not a table of tables", _table_of(lambda curve: isinstance(curve, Mapping))),
    "epsilon_half": ("not a table of numbers", _NUMBERS_BY_NAME),
    "smallest_epsilon": ("not a table of lists of numbers", _table_of(_list_of(_MAYBE_NUMBER))),
    "fooled_by": ("not a list of lists of names", _list_of(_list_of(_or_null(_is_text)))),
}
_NUMBERS = _list_of(_MAYBE_NUMBER)
_DIRECTIONS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "alignment": ("not a table of tables of numbers", _table_of(_NUMBERS_BY_NAME)),
    **dict.fromkeys(("etmann", "tangent_share"), ("not a table of numbers", _NUMBERS_BY_NAME)),
    **dict.fromkeys(("removal", "noise"), ("not a table of lists of numbers", _table_of(_NUMBERS))),
    **dict.fromkeys(("removed", "radii"), ("not a list of numbers", _list_of(_is_number))),
}
_CONFIG: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("attack.epsilon", "attack.step_size"), ("not a number", _is_number)),
    **dict.fromkeys(("align.weight", "project.penalty"), ("not a number", _is_number)),
    **dict.fromkeys(
        (
            *("train.epochs", "train.steps_per_epoch", "train.batch_size", "data.limit", "attack.steps"),
            *("gan.iterations", "evaluate.images", "evaluate.cw_images"),
            *("evaluate.square_queries", "evaluate.square_images", "evaluate.suite_steps", "evaluate.suite_queries"),
        ),
        ("not a count", _is_count),
    ),
    "project.steps": ("not a list of counts", _list_of(_is_count)),
    **dict.fromkeys(
        (
            *("task", "method", "classifier", "model.pretrained", "delta_x.generator", "delta_x.store", "attack.clip"),
            *("delta_x.name", "evaluate.delta_x", "delta_x.teacher", "evaluate.teacher", "align.targets"),
            *("evaluate.generator", "evaluate.store", "project.generator", "gan.classifier", "matmul_precision"),
            *("project.classes", "project.classifier", "project.shared", "project.solver"),
            *("precision.attack", "precision.training", "precision.evaluation", "precision.square"),
            *("precision.projection", "attack.training_dtype", "gan.dtype", "project.precision"),
        ),
        ("not a string", _is_text),
    ),
}  # fmt: skip


def check(result: Any) -> None:
    """Check the content of a result file.

    Args:
      result: the decoded JSON.

    Raises:
      ValueError: an entry that the report uses is not of its kind; the message names it.
    """
    if not isinstance(result, dict) or not _is_text(result.get("dataset")):
        raise ValueError("not the result of a run")
    json.dumps(result, ensure_ascii=False).encode()  # half of a surrogate pair cannot be written
    for key, (problem, accepts) in _ENTRIES.items():
        if not _or_null(accepts)(result.get(key)):
            raise ValueError(f"{key} is {problem}")
    for name in ("config", "evaluated_config"):
        _check_config(name, result.get(name) or {})
    for name, curve in (result.get("curves") or {}).items():
        _check_curve(f"curves.{name}", curve)
    for name in ("approximated", "carlini_wagner"):
        if not _or_null(_list_of(_MAYBE_NUMBER))((result.get("linearity") or {}).get(name)):
            raise ValueError(f"linearity.{name} is not a list of numbers")
    _check_suite(result.get("suite") or {})
    _check_directions(result.get("directions") or {})


def _check_directions(directions: Mapping[str, Any]) -> None:
    for key, (problem, accepts) in _DIRECTIONS.items():
        if not _or_null(accepts)(directions.get(key)):
            raise ValueError(f"directions.{key} is {problem}")
    for table, points in (("removal", "removed"), ("noise", "radii")):
        for name, values in (directions.get(table) or {}).items():
            if len(values) != len(directions.get(points) or ()):
                raise ValueError(f"directions.{table}.{name} has {len(values)} values, another number than {points}")


def _check_config(name: str, config: Mapping[str, Any]) -> None:
    for key in _CONFIG:
        section, _, last = key.partition(".")
        value = config.get(section)
        if isinstance(value if not last else isinstance(value, Mapping) and value.get(last), Mapping):
            raise ValueError(f"{name}.{key} is a table")
    for key, value in flatten(config):
        if isinstance(value, list) and any(isinstance(item, list | dict) for item in value):
            raise ValueError(f"{name}.{key} is a list of lists")
        problem, accepts = _CONFIG.get(key, ("", lambda value: True))
        if not _or_null(accepts)(value):
            raise ValueError(f"{name}.{key} is {problem}")


_CURVE = dict.fromkeys(("images", "queries"), ("not a count", _is_count))
_SUITE_CURVE = {
    "images": ("not a count", _is_count),
    **dict.fromkeys(("epsilon_half", "gradients", "queries", "seconds"), ("not a number", _is_number)),
    "censored": ("neither true nor false", lambda value: isinstance(value, bool)),
}


def _check_curve(
    name: str, curve: Mapping[str, Any], numbers: Mapping[str, tuple[str, Callable[[Any], bool]]] = _CURVE
) -> None:
    epsilons, errors = curve.get("epsilons"), curve.get("errors")
    if not _list_of(_is_number)(epsilons) or not _list_of(_is_number)(errors) or not any(e > 0 for e in epsilons):
        raise ValueError(f"{name} has no epsilons or no errors")
    if len(epsilons) != len(errors):
        raise ValueError(f"{name} has {len(epsilons)} epsilons and {len(errors)} errors")
    for key, (problem, accepts) in numbers.items():
        if not _or_null(accepts)(curve.get(key)):
            raise ValueError(f"{name}.{key} is {problem}")


def _check_suite(suite: Mapping[str, Any]) -> None:
    for key, (problem, accepts) in _SUITE.items():
        if not _or_null(accepts)(suite.get(key)):
            raise ValueError(f"suite.{key} is {problem}")
    for name, curve in (suite.get("curves") or {}).items():
        _check_curve(f"suite.curves.{name}", curve, _SUITE_CURVE)
