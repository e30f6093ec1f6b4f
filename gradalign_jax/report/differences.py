"""How a run differs from the paper's run, in words, and how much of the paper's work it did."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gradalign_jax import paper
from gradalign_jax.config_keys import BEFORE
from gradalign_jax.report import paper_settings
from gradalign_jax.report.runs import Run

# Every config key is in one of the next three sets or in `paper_settings`.
# The settings by which runs, and rows of a table, are told apart.
IDENTITY = {"task", "method", "seed", "data.name", "attack.epsilon"}
# Keys that change no number of a table.
WITHOUT_EFFECT = {
    *("devices", "data.dir", "data.cache", "data.folder", "data.table", "classifier"),
    *("train.log_every", "train.checkpoint_minutes", "evaluate.block", "project.block"),
    *("project.classes", "project.classifier", "project.shared"),
    *("gan.sample_every", "gan.sample_columns", "gan.check_images", "gan.classifier"),
    "evaluate.cw_images",  # the number of points in Figure 7
    *(f"evaluate.{key}" for key in ("suite", "norm", "suite_steps", "suite_queries")),  # attacks besides the paper's
    *(f"evaluate.{key}" for key in ("gradients", "estimators", "measures")),  # directions besides the paper's
}
# Keys whose differences are described in words of their own; all others read "KEY ours, not the paper's".
DESCRIBED = {
    *("train.epochs", "train.steps_per_epoch", "data.limit", "model.pretrained", "gan.iterations", "project.steps"),
    *("attack.steps", "attack.clip", "evaluate.same_generator", "matmul_precision"),
    *(f"evaluate.{key}" for key in ("images", "square_queries", "square_images")),
    *(f"precision.{part}" for part in ("training", "attack", "evaluation", "square", "projection")),
    *("delta_x.generator", "delta_x.store", "evaluate.generator", "evaluate.store", "project.generator"),
    *("delta_x.name", "evaluate.delta_x"),
    *(f"delta_x.{key}" for key in ("neighbors", "penalty", "teacher", "teacher_epsilon")),
    *(f"evaluate.{key}" for key in ("neighbors", "penalty", "teacher", "teacher_epsilon")),
}

_PRETRAINED = ("squares", "mnist35", "copd", "mnist")  # these start from ImageNet weights in the paper
_WEIGHTS = "classifier.safetensors"  # name of a classifier run's weights
_USES = {"delta_x": "Δ̂x for training", "evaluate": "Δ̂x for measuring", "project": "GAN"}
# Data sets whose Δx is by each file of gradalign_jax/deltax in the paper.
_ESTIMATORS = {
    "exact": ("spheres", "squares", "squares32"),
    "vrgan": ("mnist35", "copd"),
    "projection": ("mnist", "cifar10", "squares32"),
}
_MEASURING = ("evaluate.", "attack.")  # sections of the config
_EARLIER_KEYS = {"attack": "attack.training_dtype", "training": "gan.dtype", "projection": "project.precision"}


def steps(run: Run) -> int | None:
    """Return the number of training steps of a run, None where its config does not tell."""
    if run.task == "gan":
        return run.setting("gan.iterations")
    epochs, length = run.setting("train.epochs"), run.setting("train.steps_per_epoch")
    if not epochs or length is None:
        return None
    if length == 0 and not run.setting("data.limit", 0) and run.dataset in ("mnist", "cifar10"):
        length, _ = paper.EPOCHS[run.dataset]
    return epochs * length or None


def work_order(run: Run) -> tuple[float, int]:
    """Return a sort key for runs of different settings: most work first, then fewest differences."""
    if run.task == "project":
        work = sum(run.setting("project.steps") or ()) * (run.result.get("pairs") or 1)
    elif run.task == "evaluate":
        work = run.setting("evaluate.images") or math.inf  # 0: all
    else:
        work = steps(run) or 0
    return -work, len(differences(run))


def differences(run: Run) -> list[str]:
    """Return the differences between a run's config and the paper's settings, each in a few words."""
    return list(dict.fromkeys([*in_training(run), *in_measuring(run)]))


def in_training(run: Run) -> list[str]:
    """Return the differences in how the run's network, or its projections, were computed."""
    estimator = _estimator(run, "delta_x.name", "training") if run.result.get("method") == "align" else []
    return [*_in_training_alone(run), *estimator, *_in_sources(run, ("delta_x", "project"))]


def _in_training_alone(run: Run) -> list[str]:
    found = []
    length = (paper.GAN_ITERATIONS if run.task == "gan" else paper.STEPS).get(run.dataset)
    ours = steps(run)
    if length and ours and ours != length:
        found.append(f"{ours:,} of {length:,} steps")
    elif length and not ours and (epochs := run.setting("train.epochs")):
        found.append(f"{epochs:,} epochs")
    if (projected := run.setting("project.steps")) and list(projected) != [600, 150]:
        found.append(f"{sum(projected):,} of 750 steps")
    if run.setting("data.limit"):
        found.append(f"{run.setting('data.limit'):,} images in each split")
    pretrained = run.setting("model.pretrained")
    if run.dataset in _PRETRAINED and pretrained == "":
        found.append("from scratch, not from ImageNet weights")
    if pretrained and Path(pretrained).name == _WEIGHTS:
        found.append("from another run's weights, not from ImageNet weights")
    if run.result.get("method") == "pgd":
        found += [*_attack_steps(run), *_low_precision(run, "attack", "attack of training")]
    if run.task != "evaluate":
        found += [*_low_precision(run, "training", "training"), *_low_precision(run, "projection", "projection")]
    return found + [words for key, words in _other_values(run).items() if not key.startswith("evaluate.")]


def in_measuring(run: Run) -> list[str]:
    """Return the differences in how a classifier was measured."""
    found = []
    if run.setting("evaluate.images"):
        found.append(f"{run.setting('evaluate.images'):,} test images")
    found += _attack_steps(run)
    queries, images = run.setting("evaluate.square_queries", 0), run.setting("evaluate.square_images", 0)
    if queries and queries != paper.SQUARE_QUERIES:
        found.append(f"{queries:,} of {paper.SQUARE_QUERIES:,} queries")
    if queries and images:
        found.append(f"{images:,} images under Square Attack")
    if (run.setting("attack.clip") or "range") != "range":
        found.append("attacks clip to the data's range")
    found += _low_precision(run, "evaluation", "attacks of the test")
    found += _low_precision(run, "square", "Square Attack") if queries else []
    if run.setting("evaluate.same_generator"):
        found.append("measured by the Δ̂x that trained it")
    found += [words for key, words in _other_values(run).items() if key.startswith(_MEASURING)]
    return found + _estimator(run, "evaluate.delta_x", "measuring") + _in_sources(run, ("evaluate",))


def _estimator(run: Run, key: str, words: str) -> list[str]:
    """Return a phrase where a config names an estimator of Δx that is not the paper's for the data set."""
    name = run.setting(key) or ""
    return [f"Δx for {words} by {name}"] if name and run.dataset not in _ESTIMATORS.get(name, ()) else []


def _low_precision(run: Run, part: str, words: str) -> list[str]:
    """Return a phrase where one part of a run had coarser products than the authors'.

    Theirs had float32, and in projections float16, whose rounding is that of TF32.
    """
    current = run.setting(f"precision.{part}")
    if current and run.setting("matmul_precision") == "highest":  # overrides config.precision
        return []
    used = (run.result.get("precision") or {}).get(part)
    if used == "tf32" and part != "projection":
        return [f"{words} in TF32"]
    # A config's "tf32" and "auto" are float32 on a CPU, and the platform is not known here.
    used = used or current or run.setting(_EARLIER_KEYS.get(part, ""))
    return [f"{words} in bfloat16"] if used == "bfloat16" else []


def _attack_steps(run: Run) -> list[str]:
    count = run.setting("attack.steps")
    return [] if count in (None, paper.ATTACK_STEPS) else [f"{count} of {paper.ATTACK_STEPS} attack steps"]


def _in_sources(run: Run, sections: Iterable[str]) -> list[str]:
    """Return how the runs behind an estimate of Δx differ from the paper's, beyond the run's own differences."""
    found, own = {}, _in_training_alone(run)
    for key, source in run.sources.items():
        words = [] if source is None else [words for words in differences(source) if words not in own]
        if text := "from a run that is not in this report" if source is None else ", ".join(words):
            found[key.partition(".")[0]] = text
    names = dict(_USES)
    if found.get("delta_x") == found.get("evaluate"):  # one phrase for both
        names["delta_x"] = "Δ̂x"
        found.pop("evaluate", None)
    return [f"{names[section]}: {found[section]}" for section in sections if section in found]


def _is_unused(run: Run, key: str) -> bool:
    """Return whether a key has no effect in a run."""
    if key == "align.weight":
        return run.result.get("method") != "align"
    if key == "optimizer.momentum":
        return run.setting("optimizer.name") != "sgd"
    return key.startswith("evaluate.cw_") and not run.setting("evaluate.cw_images")


def _other_values(run: Run) -> dict[str, str]:
    """Return the keys of `paper_settings` that a run changed, with both values in words."""
    found = {}
    task = "classifier" if run.setting("method") else run.task  # an evaluation can show the config that trained
    for key, printed in paper_settings.values(run.dataset, task).items():
        ours = run.setting(key, BEFORE.get(key, printed))
        ours = tuple(ours) if isinstance(ours, list) else ours
        if ours is None or _equal(ours, printed) or _is_unused(run, key):
            continue
        if isinstance(printed, tuple) and isinstance(ours, tuple) and len(printed) > 2:
            fewer = set(ours) < set(printed)
            found[key] = f"{key}: {len(ours)} of {len(printed)} values" if fewer else f"{key}: other values"
        else:
            pair = ["all" if key.endswith(".images") and value == 0 else value for value in (ours, printed)]
            found[key] = f"{key} {pair[0]}, not {pair[1]}"
    return found


def _equal(ours: Any, printed: Any) -> bool:
    """Return whether two values are the same, but for the last bits of a number that was computed."""
    if isinstance(ours, int | float) and isinstance(printed, float):
        return math.isclose(ours, printed, rel_tol=1e-12)
    return ours == printed
