"""In what a run differs from the paper's, in words, and how much of the paper's work it did."""

import math
from collections.abc import Iterable
from pathlib import Path

from gradalign_jax import paper
from gradalign_jax.report import theirs
from gradalign_jax.report.runs import Run

# Keys that are always put into words of their own.
TOLD = {
    *("train.epochs", "train.steps_per_epoch", "data.limit", "model.pretrained", "validate.epsilons"),
    *("attack.steps", "attack.clip", "evaluate.same_generator"),
    *(f"evaluate.{key}" for key in ("images", "linf_epsilons", "l2_epsilons", "square_queries", "square_images")),
}
_QUERIES = 5000  # of Square Attack
_PRETRAINED = ("squares", "mnist35", "copd", "mnist")  # start from ImageNet weights in the paper
_WEIGHTS = "classifier.safetensors"  # as a run leaves them
_USES = {"delta_x": "Δ̂x that trains", "evaluate": "Δ̂x that measures", "project": "GAN"}
# Keys of older runs' configs for the same settings.
_PRECISIONS = {"attack": "attack.training_dtype", "training": "gan.dtype", "projection": "project.precision"}
_MEASURING = ("evaluate.", "attack.")  # sections of the config


def steps(run: Run) -> int | None:
    """Training steps of a run, where its config tells."""
    if run.task == "gan":
        return run.setting("gan.iterations")
    epochs, length = run.setting("train.epochs"), run.setting("train.steps_per_epoch")
    if not epochs or length is None:
        return None
    if length == 0 and not run.setting("data.limit", 0) and run.dataset in ("mnist", "cifar10"):
        length = paper.STEPS[run.dataset] // {"mnist": 30, "cifar10": 100}[run.dataset]
    return epochs * length or None


def best_first(run: Run) -> tuple[float, int]:
    """A key that sorts runs of unlike settings: those that did most first, then those most like the paper's."""
    if run.task == "project":
        work = sum(run.setting("project.steps") or ()) * (run.result.get("pairs") or 1)
    elif run.task == "evaluate":
        work = run.setting("evaluate.images") or math.inf  # 0: all
    else:
        work = steps(run) or 0
    return -work, len(departures(run))


def departures(run: Run) -> list[str]:
    """In what a run differs from the paper's, as far as its config tells; each a few words."""
    return list(dict.fromkeys([*of_training(run), *of_measuring(run)]))


def of_training(run: Run) -> list[str]:
    """Those that concern how the run's network, or its projections, came about."""
    return [*_of_training_alone(run), *_of_sources(run, ("delta_x", "project"))]


def _of_training_alone(run: Run) -> list[str]:
    found = []
    length = (paper.GAN_ITERATIONS if run.task == "gan" else paper.STEPS).get(run.dataset)
    ours = steps(run)
    if length and ours and ours != length:
        found.append(f"{ours:,} steps of {length:,}")
    elif length and not ours and (epochs := run.setting("train.epochs")):
        found.append(f"{epochs:,} epochs")
    if (projected := run.setting("project.steps")) and list(projected) != [600, 150]:
        found.append(f"{sum(projected):,} steps of 750")
    if run.setting("data.limit"):
        found.append(f"{run.setting('data.limit'):,} images a split")
    pretrained = run.setting("model.pretrained")
    if run.dataset in _PRETRAINED and pretrained == "":
        found.append("from scratch, not ImageNet weights")
    if pretrained and Path(pretrained).name == _WEIGHTS:
        found.append("from another run's weights, not ImageNet weights")
    if run.result.get("method") == "pgd":
        found += _attack_steps(run)
        found += _shortened(run, "attack", "attack of training")
    found += _shortened(run, "training", "training") + _shortened(run, "projection", "projection")
    unlike = _other_values(run)
    return found + [words for key, words in unlike.items() if not key.startswith("evaluate.")]


def of_measuring(run: Run) -> list[str]:
    """Those that concern how a classifier was measured."""
    found = []
    if run.setting("evaluate.images"):
        found.append(f"{run.setting('evaluate.images'):,} test images")
    found += _attack_steps(run)
    queries, images = run.setting("evaluate.square_queries", 0), run.setting("evaluate.square_images", 0)
    if queries and queries != _QUERIES:
        found.append(f"{queries:,} queries of {_QUERIES:,}")
    if queries and images:
        found.append(f"{images:,} images under Square Attack")
    if run.setting("attack.clip", "range") != "range":
        found.append("attacks clamp to the data's range")
    found += _shortened(run, "evaluation", "attacks of the test")
    if run.setting("evaluate.same_generator"):
        found.append("measured by the Δ̂x that trained it")
    found += [words for key, words in _other_values(run).items() if key.startswith(_MEASURING)]
    return found + _of_sources(run, ("evaluate",))


def _shortened(run: Run, part: str, words: str) -> list[str]:
    """That one part of a run had bfloat16 products, where the authors' had float32, TF32 or float16."""
    used = (run.result.get("precision") or {}).get(part) or run.setting(f"precision.{part}")
    used = used or run.setting(_PRECISIONS.get(part, ""), "float32")
    return [f"{words} in bfloat16"] if used == "bfloat16" else []


def _attack_steps(run: Run) -> list[str]:
    count = run.setting("attack.steps", 40)
    return [] if count == 40 else [f"{count} attack steps of 40"]


def _of_sources(run: Run, sections: Iterable[str]) -> list[str]:
    """How the runs behind an estimate of Δx differ from the paper's, where the run itself does not do so too."""
    told, known = {}, _of_training_alone(run)
    for key, source in run.sources.items():
        words = [] if source is None else [words for words in departures(source) if words not in known]
        if text := "of a run that is not among these" if source is None else ", ".join(words):
            told[key.partition(".")[0]] = text
    names = dict(_USES)
    if told.get("delta_x") == told.get("evaluate"):  # one line for both
        names["delta_x"] = "Δ̂x"
        told.pop("evaluate", None)
    return [f"{names[section]}: {told[section]}" for section in sections if section in told]


def _other_values(run: Run) -> dict[str, str]:
    """The keys of `theirs` that a run changed, with both values in words."""
    found = {}
    task = "classifier" if run.setting("method") else run.task  # an evaluation can show the config that trained
    for key, printed in theirs.values(run.dataset, task).items():
        ours = run.setting(key, printed)
        ours = tuple(ours) if isinstance(ours, list) else ours
        idle = key == "align.weight" and run.result.get("method") != "align"
        if ours == printed or idle:
            continue
        if isinstance(printed, tuple) and isinstance(ours, tuple) and len(printed) > 2:
            fewer = set(ours) < set(printed)
            found[key] = f"{key}: {len(ours)} of {len(printed)} values" if fewer else f"{key}: other values"
        else:
            pair = ["all" if key.endswith(".images") and value == 0 else value for value in (ours, printed)]
            found[key] = f"{key} {pair[0]}, not {pair[1]}"
    return found
