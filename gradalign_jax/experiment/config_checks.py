"""Checks of a config's values, before anything expensive is imported or run."""

import ast
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gradalign_jax import deltax, paths
from gradalign_jax.experiment.config_rules import EXACT_DELTA_X, MODEL_OPTIONS, SHARED, TASKS, Rule, estimators, one_of

_PACKAGE = Path(deltax.__file__).parents[1]
# Keys that name a file or directory.
_PATHS = (
    *("data.dir", "data.cache", "data.folder", "classifier", "model.pretrained", "gan.classifier"),
    *("delta_x.generator", "delta_x.store", "evaluate.generator", "evaluate.store", "project.generator"),
    *("delta_x.teacher", "evaluate.teacher", "project.classifier", "project.shared"),
)


def _look_up(config: ConfigDict, dotted: str) -> Any:
    for key in dotted.split("."):
        config = config[key]
    return config


def _check_rules(config: ConfigDict, rules: Mapping[str, Rule]) -> None:
    for key, (rule, holds) in rules.items():
        try:
            value = _look_up(config, key)
        except (KeyError, TypeError) as error:
            raise ValueError(f"config.{key} is missing: see configs/common.py") from error
        numbers = [v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, float)]
        try:
            kept = all(map(math.isfinite, numbers)) and holds(value)
        except TypeError:  # text instead of numbers
            kept = False
        if not kept:
            raise ValueError(f"config.{key}={value!r} {rule}")


def _check_devices(config: ConfigDict) -> None:
    if config.devices and config.train.batch_size % config.devices:
        raise ValueError(
            f"config.train.batch_size={config.train.batch_size} is not a multiple of config.devices={config.devices}: "
            "change one of them"
        )


# The key of the directory that an estimator of Δx needs, and what the directory holds.
_NEEDS = {"vrgan": "generator", "encoder": "generator", "projection": "store", "teacher": "teacher"}
_OPTIONS = {"neighbors": ("nearest", "patch"), "penalty": ("encoder",)}  # keys that only these estimators read


def _arguments(name: str) -> list[str]:
    """Return the arguments of `create` of a file of gradalign_jax/models, [] without one; read without an import."""
    tree = ast.parse((_PACKAGE / "models" / f"{name}.py").read_text(encoding="utf-8"))
    found = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "create")
    return [argument.arg for node in found for argument in (*node.args.args, *node.args.kwonlyargs)]


def _check_model(config: ConfigDict, section: str) -> None:
    """Refuse an unknown model, an option it does not have, and a bad value of an option."""
    options = {name: value for name, value in config[section].items() if name not in ("name", "pretrained")}
    arguments = {file.stem: _arguments(file.stem) for file in sorted((_PACKAGE / "models").glob("*.py"))}
    classifies = section == "model"
    models = {name: own for name, own in arguments.items() if own and ("num_classes" in own) == classifies}
    _check_rules(config, {f"{section}.name": one_of(*models)})
    valid = [name for name in models[config[section].name] if name not in ("num_classes", "axis_name")]
    for name in options:
        if name not in valid:
            raise ValueError(
                f"config.{section}.{name}: model {config[section].name!r} has no option {name!r}, its options are "
                f"{', '.join(valid)}"
            )
    _check_rules(config, {f"{section}.{name}": rule for name, rule in MODEL_OPTIONS.items() if name in options})


def check_fits(config: ConfigDict, section: str, data: str, shape: Sequence[int], num_classes: int) -> None:
    """Refuse a model whose options do not fit the data set.

    Args:
      config: the config.
      section: the section with the model's options, "model" or "generator".
      data: name of the data set.
      shape: of an example.
      num_classes: number of classes.

    Raises:
      ValueError: one line with the key, its value and the data set.
    """
    size, options = math.prod(shape), config[section]
    fits: dict[str, Callable[[Any], bool]] = {
        "binary": lambda v: not v or num_classes == 2,
        "channels": lambda v: len(shape) == 3 and v == shape[-1],
        "input_size": lambda v: len(shape) == 1 and v == size,
        "downsamplings": lambda v: len(shape) == 3 and not any(side % 2**v for side in shape[:2]),
    }
    for name, holds in fits.items():
        if name in options and not holds(options[name]):
            raise ValueError(
                f"config.{section}.{name}={options[name]!r} does not fit {data}, which has {num_classes} classes and "
                f"examples of shape {tuple(shape)}"
            )


def _data_sets() -> list[str]:
    """Return the names of the data sets: the files of gradalign_jax/data/sets."""
    return sorted(file.stem for file in (_PACKAGE / "data" / "sets").glob("*.py") if file.stem != "__init__")


def _check_source(name: str, section: ConfigDict) -> None:
    """Refuse a Δx with two sources, a missing one, or an unknown name."""
    key = "name" if "name" in section else "delta_x"
    estimator = section[key]
    if estimator and estimator not in estimators():
        raise ValueError(f"config.{name}.{key}={estimator!r} must be one of {', '.join(estimators())}")
    needed = _NEEDS.get(estimator)
    if needed and not section[needed]:
        raise ValueError(f"config.{name}.{key}={estimator!r} needs config.{name}.{needed}=DIR of a finished run")
    for kind in ("generator", "store", "teacher"):
        if estimator and kind != needed and section[kind]:
            raise ValueError(f"config.{name}.{key}={estimator!r} and config.{name}.{kind} are both given: give one")
    if section.generator and section.store:
        raise ValueError(f"config.{name}.generator and config.{name}.store are both given: give one source of Δx")
    if section.teacher and not estimator:
        raise ValueError(f"config.{name}.teacher is given without config.{name}.{key}=teacher: give both")
    if (section.teacher_epsilon > 0) != (estimator == "teacher"):
        raise ValueError(
            f"config.{name}.teacher_epsilon={section.teacher_epsilon} must be > 0 with config.{name}.{key}=teacher "
            f"and 0 without, the estimator is {estimator!r}"
        )
    for option, readers in _OPTIONS.items():
        if section[option] and estimator not in readers:
            raise ValueError(
                f"config.{name}.{option}={section[option]} is read by {', '.join(readers)} alone, but "
                f"config.{name}.{key}={estimator!r}: remove one of them"
            )
    for kind in ("generator", "store", "teacher"):
        if section[kind] and not paths.is_folder(section[kind]):
            raise ValueError(f"config.{name}.{kind}={section[kind]!r}: no such directory; give a finished run's")


def _check_directions(config: ConfigDict) -> None:
    """Refuse further Δx and measures that lack a gradient, a directory or an exact Δx."""
    section = config.evaluate
    for key in ("estimators", "measures"):
        if section[key] and not section.gradients:
            raise ValueError(f"config.evaluate.{key}={section[key]!r} needs config.evaluate.gradients: give some")
    for name in section.estimators:
        if name in _NEEDS:
            raise ValueError(
                f"config.evaluate.estimators: {name!r} needs a finished run; make it the Δx that measures, by "
                f"config.evaluate.{_NEEDS[name]}=DIR, and it is compared as well"
            )
    for name in ("tangent", "noise"):
        if name in section.measures and not section.store:
            raise ValueError(f"config.evaluate.measures: {name!r} needs config.evaluate.store=DIR of a project run")
    if "exact" in section.estimators and config.data.name not in EXACT_DELTA_X:
        raise ValueError(f"config.evaluate.estimators: {config.data.name} has no exact Δx: take 'exact' off")


def check_measuring(trained: ConfigDict, measuring: ConfigDict) -> None:
    """Refuse to measure alignment with the Δx that the classifier was trained with.

    Raises:
      ValueError: if both sections name the same directory, or the same estimator that has none, and
        `measuring.same_generator` is False.
    """
    estimator = trained.get("name", "")
    named = estimator not in ("", "exact", *_NEEDS) and not measuring.same_generator
    for key, names in (("delta_x", (measuring.delta_x,)), ("estimators", measuring.get("estimators", ()))):
        if named and estimator in names:
            raise ValueError(
                f"config.evaluate.{key}={measuring[key]!r}: training used this estimator, and alignment with it would "
                "measure how well training fitted it; give another one, or config.evaluate.same_generator=True"
            )
    for kind in ("generator", "store", "teacher"):
        directories = [section.get(kind, "") for section in (trained, measuring)]
        same = all(directories) and len({*map(paths.real, directories)}) == 1
        if same and not measuring.same_generator:
            raise ValueError(
                f"config.evaluate.{kind} is the {kind} that training used: alignment with it would measure how well "
                "training fitted it; give another one, or config.evaluate.same_generator=True"
            )


def _check_estimates(config: ConfigDict) -> None:
    """Refuse a missing Δx, and one Δx for both training and measuring."""
    _check_source("delta_x", config.delta_x)
    _check_source("evaluate", config.evaluate)
    _check_directions(config)
    if config.method != "align":
        return
    source = config.delta_x
    named = source.name not in ("", "exact")
    if not (named or source.generator or source.store or config.data.name in EXACT_DELTA_X):
        raise ValueError(
            f"{config.data.name} has no exact Δx: give config.delta_x.generator=DIR of a vrgan run, "
            f"config.delta_x.store=DIR of a project run ({', '.join(EXACT_DELTA_X)} need none), or config.delta_x.name"
        )
    check_measuring(config.delta_x, config.evaluate)


def _check_evaluate(config: ConfigDict) -> None:
    _check_source("evaluate", config.evaluate)
    _check_directions(config)
    if not config.classifier:
        raise ValueError(
            "config.classifier is not given: it is the directory of a finished classifier run or of imported weights"
        )
    if not paths.is_folder(config.classifier):
        raise ValueError(f"config.classifier={config.classifier!r}: no such directory; give a finished run's")


def _check_training(config: ConfigDict) -> None:
    pretrained = config.model.pretrained
    if pretrained and not pretrained.startswith("hf:") and not os.path.isfile(pretrained):
        raise ValueError(
            f"config.model.pretrained={pretrained!r}: no such file; give a safetensors file or hf:owner/name"
        )
    _check_devices(config)
    steps = config.train.epochs * config.train.steps_per_epoch
    if steps >= 2**31:
        raise ValueError(
            f"config.train.epochs={config.train.epochs} makes {steps} steps, more than 2147483647: lower it"
        )


def _check_classifier(config: ConfigDict) -> None:
    _check_model(config, "model")
    _check_estimates(config)
    _check_training(config)
    if config.validate.first_epoch >= config.train.epochs:
        raise ValueError(
            f"config.validate.first_epoch={config.validate.first_epoch} leaves none of the "
            f"{config.train.epochs} epochs to select from: lower it or raise config.train.epochs"
        )


def _check_vrgan(config: ConfigDict) -> None:
    _check_model(config, "model")
    _check_model(config, "generator")
    _check_training(config)


def _check_gan(config: ConfigDict) -> None:
    _check_devices(config)
    if config.gan.iterations % config.gan.sample_every:
        raise ValueError(
            f"config.gan.iterations={config.gan.iterations} is not a multiple of config.gan.sample_every="
            f"{config.gan.sample_every}: change one of them"
        )
    if config.gan.classifier and not paths.is_folder(config.gan.classifier):
        raise ValueError(
            f"config.gan.classifier={config.gan.classifier!r}: no such directory; give a finished classifier run's"
        )


def _check_project(config: ConfigDict) -> None:
    directory = config.project.generator
    if not directory:
        raise ValueError("config.project.generator is missing: give the directory of a gan run of this data set")
    if not paths.is_folder(directory):
        raise ValueError(f"config.project.generator={directory!r}: no such directory; give a finished gan run's")
    classifier = config.project.classifier
    if classifier and not paths.is_folder(classifier):
        raise ValueError(
            f"config.project.classifier={classifier!r}: no such directory; give a finished classifier run's"
        )
    if config.project.classes == "closest" and not classifier:
        raise ValueError(
            "config.project.classes='closest' needs config.project.classifier=DIR of a finished classifier run"
        )


# Checks of several keys together, and of files.
_CHECKS = {
    "classifier": _check_classifier,
    "evaluate": _check_evaluate,
    "vrgan": _check_vrgan,
    "gan": _check_gan,
    "project": _check_project,
}


def check(config: ConfigDict) -> None:
    """Check every value that can be checked without data or devices.

    Raises:
      ValueError: one line with the key, its value and the rule it breaks.
    """
    _check_rules(config, {"task": one_of(*TASKS)})
    _check_rules(config, {"data.name": one_of(*_data_sets())} | SHARED | TASKS[config.task])
    _CHECKS[config.task](config)


def expand_home(config: ConfigDict) -> None:
    """Expand a leading ~ in every key that names a file or directory."""
    for key in _PATHS:
        section, _, name = key.rpartition(".")
        section = config.get(section) if section else config
        if isinstance(section, ConfigDict) and isinstance(section.get(name), str):
            section[name] = os.path.expanduser(section[name])


def resolve(config: ConfigDict) -> None:
    """Apply `matmul_precision=highest`: every precision of the config becomes float32."""
    if config.matmul_precision == "highest":
        for part in config.precision:
            config.precision[part] = "float32"
