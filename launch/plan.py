"""The runs behind the paper's tables, as data: the config of each, its overrides, and the runs it needs.

Table 3 trains with PGD at 6 or 7 values of ε that the paper does not list. Here they are 7, in steps of √2 around the ε
of Table S1: ε/4 ... 2ε, to two digits. Spheres is an exception: ‖x‖₁ is about √(2·500/π) = 17.8 times ‖x‖₂ there, so
an L∞ perturbation covers half the distance between the classes at ε = .0081 (outwards) or .0087 (inwards). 2ε = .01
moves a typical x past that, and √2 ε = .0071 is close to the largest ε50% in the paper (.0076), so on Spheres the list
is ε/8 ... ε.
"""

import importlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gradalign_jax.paper import EPSILON, METHODS

TABLE_2 = ("spheres", "squares", "mnist35", "copd", "mnist", "cifar10")
DIRECT = ("spheres", "squares", "mnist35", "copd")  # Δ̂x by a VR-GAN
INDIRECT = ("squares32", "mnist", "cifar10")  # by projection onto a conditional GAN's manifold
# Data sets without an exact Δx: the config key of the estimate, and the task that makes it.
ESTIMATE = {"mnist35": "generator", "copd": "generator", "mnist": "store", "cifar10": "store"}
MAKER = {"generator": "vrgan", "store": "project"}
IMAGENET = ("squares", "mnist35", "copd", "mnist")  # classifiers and critics start from ImageNet weights
# Config keys that hold the directory of another run.
GAN_OF_PROJECT = "project.generator"
CLASSIFIER_OF_EVALUATE = "classifier"
_CONFIGS = os.path.relpath(Path(__file__).resolve().parents[1] / "configs")  # from the working directory


def epsilons(dataset: str) -> tuple[float, ...]:
    """Return the ε of PGD training for Table 3, Table S1's among them."""
    first = -6 if dataset == "spheres" else -4
    return tuple(float(f"{EPSILON[dataset] * 2 ** (k / 2):.2g}") for k in range(first, first + 7))


class Job(NamedTuple):
    """One run.

    Attributes:
      name: DATASET/WHAT/SEED, its directory below the root.
      task: the part of --config after the colon.
      overrides: values by config key.
      uses: other jobs' names by config key; the key takes their directory.
      tables: the tables that show it.
    """

    name: str
    task: str
    overrides: Mapping[str, Any]
    uses: Mapping[str, str]
    tables: frozenset[str]

    @property
    def dataset(self) -> str:
        """Name of the data set and of its config."""
        return self.name.partition("/")[0]

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the jobs that have to finish first."""
        return tuple(dict.fromkeys(self.uses.values()))


class Scale(NamedTuple):
    """Which part of the paper is run, and for how long.

    Attributes:
      datasets: names of the data sets.
      flag: suffix of the task: "" or ",smoke".
      seeds: seeds by data set; "" for the others.
      generators: estimates of Δx of a data set; a classifier trains with one and is measured with the next.
      validated: estimates of Δx of a data set with an exact Δx, for section 3.2.
      epsilons: the ε of Table 3 by data set.
      series: seeds at each of them.
      evaluated: seeds that an evaluation run measures, including Square Attack, by data set; "" for the others.
      scatter: images of Figure 7 (Carlini and Wagner's attack), of the first seed.
      overrides: config values by "dataset:task"; "dataset:classifier" applies to all three methods.
    """

    datasets: tuple[str, ...]
    flag: str
    seeds: Mapping[str, int]
    generators: int
    validated: int
    epsilons: Mapping[str, tuple[float, ...]]
    series: int
    evaluated: Mapping[str, int]
    scatter: int
    overrides: Mapping[str, Mapping[str, Any]]


FULL = Scale(
    datasets=(*TABLE_2, "squares32"),
    flag="",
    seeds={"": 5},
    generators=5,
    validated=5,
    epsilons={dataset: epsilons(dataset) for dataset in TABLE_2},
    series=5,
    evaluated={"": 5},
    scatter=1000,
    overrides={},
)
_BLACK_BOX = {"evaluate.square_queries": 10}  # in the classifier's own run, which saves another process
# Tiny runs: they show that every table and figure can be made; the numbers mean nothing.
MINI = Scale(
    datasets=FULL.datasets,
    flag=",smoke",
    seeds={"": 1, "spheres": 2},
    generators=2,
    validated=1,
    epsilons={"spheres": epsilons("spheres")[0:4:3]},
    series=1,
    evaluated={"": 0, "spheres": 1},
    scatter=10,
    overrides={
        "spheres:vrgan": {"train.epochs": 2, "train.steps_per_epoch": 300},
        "squares:vrgan": {
            **{"train.batch_size": 2, "train.epochs": 1, "train.steps_per_epoch": 6, "generator.width": 4},
            **{"validate.images": 4, "evaluate.images": 8, "evaluate.block": 4},
        },
        "squares:classifier": {
            **{**_BLACK_BOX, "train.epochs": 1, "attack.steps": 2},
            **{"validate.images": 4, "evaluate.images": 4, "evaluate.block": 4},
        },
        "spheres:classifier": {"train.epochs": 2, "train.steps_per_epoch": 400, "evaluate.images": 100},
        "spheres:pgd": {"train.steps_per_epoch": 100},
        "spheres:evaluate": {"evaluate.images": 100, "attack.steps": 10},
        "mnist35:classifier": {**_BLACK_BOX, "train.epochs": 1},
        "mnist:classifier": {**_BLACK_BOX, "data.limit": 64, "train.epochs": 1, "attack.steps": 3},
        **{f"{dataset}:gan": {"gan.iterations": 10, "gan.sample_every": 10} for dataset in INDIRECT},
        "mnist:project": {"data.limit": 64},
        "cifar10:classifier": {
            **{**_BLACK_BOX, "data.limit": 64, "train.epochs": 1, "attack.steps": 2},
            **{"validate.images": 4, "evaluate.images": 4, "evaluate.block": 4},
        },
        "cifar10:project": {"data.limit": 64},
        "squares32:project": {"data.limit": 64},
    },
)
# Numbers comparable with the paper's; planned for an hour and a half on two CPU cores, never timed as a whole.
SHORT = Scale(
    datasets=("spheres", "mnist35"),
    flag="",
    seeds={"": 2},
    generators=2,
    validated=1,
    epsilons={},
    series=0,
    evaluated={"": 0, "spheres": 2},
    scatter=50,
    overrides={
        "spheres:vrgan": {"train.epochs": 2},
        "spheres:classifier": {"train.epochs": 2},
        "spheres:pgd": {"train.epochs": 3, "train.steps_per_epoch": 1000},
        "spheres:evaluate": {"evaluate.images": 200, "evaluate.square_images": 50, "evaluate.cw_iterations": 1000},
        "mnist35:vrgan": {"train.epochs": 12},
        "mnist35:classifier": {
            **{"train.epochs": 4, "validate.every_epochs": 2, "validate.images": 60, "evaluate.images": 100},
            **{"evaluate.square_queries": 1000, "evaluate.square_images": 20},
        },
    },
)
SCALES = {"full": FULL, "short": SHORT, "mini": MINI}


def _job(scale: Scale, dataset: str, what: str, task: str, seed: int, tables: Iterable[str], uses=None, **own) -> Job:
    kind = "classifier" if task in METHODS else task
    shared = {k: v for key in (kind, task) for k, v in scale.overrides.get(f"{dataset}:{key}", {}).items()}
    changed = {**({} if task == "evaluate" else {"seed": seed}), **own, **shared}  # an evaluation has its classifier's
    return Job(f"{dataset}/{what}/seed{seed}", task, changed, uses or {}, frozenset(tables))


def _estimates(scale: Scale, dataset: str) -> Iterator[Job]:
    """Yield the runs that estimate a data set's Δx."""
    tables = {"spheres": ("1", "3.2"), "squares": ("3.2",), "squares32": ("3.2",)}.get(dataset, ())
    for seed in range(scale.generators if dataset in ESTIMATE else scale.validated):
        if dataset in DIRECT:
            yield _job(scale, dataset, "vrgan", "vrgan", seed, tables)
        if dataset in INDIRECT:
            gan = _job(scale, dataset, "gan", "gan", seed, tables)
            yield gan
            yield _job(scale, dataset, "project", "project", seed, tables, {GAN_OF_PROJECT: gan.name})


def _measured_with(scale: Scale, dataset: str, task: str, seed: int) -> dict[str, str]:
    """Return a classifier's estimates of Δx: `align` trains with one, and every run is measured with another."""
    kind = ESTIMATE.get(dataset)
    if kind is None:
        return {}
    made = f"{dataset}/{MAKER[kind]}/seed"
    uses = {f"evaluate.{kind}": f"{made}{(seed + 1) % scale.generators}"}
    if task == "align":
        uses[f"delta_x.{kind}"] = f"{made}{seed % scale.generators}"
    return uses


def _classifiers(scale: Scale, dataset: str) -> Iterator[Job]:
    """Yield a data set's rows of Tables 2 and S2, their evaluations, and the series of Table 3."""
    multiclass = ("S2",) if dataset in ("mnist", "cifar10") else ()
    for method in METHODS:
        for seed in range(scale.seeds.get(dataset, scale.seeds[""])):
            tables = ("2", *multiclass, *(("3",) if method == "pgd" else ()))
            job = _job(scale, dataset, method, method, seed, tables, _measured_with(scale, dataset, method, seed))
            yield job
            if seed < scale.evaluated.get(dataset, scale.evaluated[""]):
                uses = {CLASSIFIER_OF_EVALUATE: job.name, **_measured_with(scale, dataset, "evaluate", seed)}
                scatter = {"evaluate.cw_images": scale.scatter} if seed == 0 else {}
                yield _job(scale, dataset, f"{method}-evaluate", "evaluate", seed, ("2",), uses, **scatter)
    for epsilon in scale.epsilons.get(dataset, ()):
        if epsilon == EPSILON[dataset]:
            continue  # a row of Table 2
        for seed in range(scale.series):
            uses = _measured_with(scale, dataset, "pgd", seed)
            yield _job(scale, dataset, f"pgd-{epsilon:g}", "pgd", seed, ("3",), uses, **{"attack.epsilon": epsilon})


def plan(scale: Scale, datasets: Iterable[str] = (), table: str = "", generators: int = 0) -> list[Job]:
    """Return all runs of a scale, each after the runs it needs.

    Args:
      scale: one of SCALES.
      datasets: the data sets; all of the scale's if empty.
      table: the runs that this table shows ("1", "2", "3", "3.2", "S2") and the runs they need; all if empty.
      generators: number of estimates of Δx; the scale's if 0.

    Raises:
      ValueError: if there is no such data set or table, or if one estimate would both train and measure.
    """
    names = scale.datasets
    for name in datasets:
        if name not in names:
            raise ValueError(f"--only={name}: the data sets of this scale are {', '.join(names)}")
    if generators < 2 and generators != 0:
        raise ValueError(f"--generators={generators}: one estimate of Δx trains and another measures; give 2 or more")
    if generators:
        scale = scale._replace(generators=generators)
    chosen = [name for name in names if not datasets or name in datasets]
    jobs = [job for name in chosen for job in _estimates(scale, name)]
    jobs += [job for name in chosen if name in TABLE_2 for job in _classifiers(scale, name)]
    if table:
        tables = sorted({t for job in jobs for t in job.tables})
        if table not in tables:
            raise ValueError(f"--table={table}: the tables with runs are {', '.join(tables)}")
        jobs = closure(jobs, [job.name for job in jobs if table in job.tables])
    return jobs


def closure(jobs: list[Job], wanted: Iterable[str]) -> list[Job]:
    """Return the wanted jobs and all jobs they need, in the plan's order."""
    by_name = {job.name: job for job in jobs}
    kept, pending = set(), list(wanted)
    while pending:
        name = pending.pop()
        if name not in kept:
            kept.add(name)
            pending += by_name[name].needs
    return [job for job in jobs if job.name in kept]


def stages(jobs: list[Job]) -> list[list[Job]]:
    """Return the jobs in stages: a job needs only jobs of earlier stages."""
    level: dict[str, int] = {}
    for job in jobs:  # in the plan's order, so the jobs it needs have a level
        level[job.name] = 1 + max((level[name] for name in job.needs if name in level), default=-1)
    return [[job for job in jobs if level[job.name] == i] for i in range(max(level.values(), default=-1) + 1)]


def configured(job: Job, scale: Scale):
    """Return the job's config without its overrides, or None if there is no such config or task."""
    try:
        return importlib.import_module(f"configs.{job.dataset}").get_config(job.task + scale.flag)
    except (ImportError, ValueError):
        return None


def command(job: Job, scale: Scale, root: str, extra: Iterable[str] = ()) -> list[str]:
    """Return the job's command line, without the interpreter."""
    values = {**job.overrides, **{key: f"{root}/{name}" for key, name in job.uses.items()}}
    return [
        *("-m", "gradalign_jax.main", f"--config={_CONFIGS}/{job.dataset}.py:{job.task}{scale.flag}"),
        *(f"--config.{key}={value}" for key, value in values.items()),
        *extra,
        f"--workdir={root}/{job.name}",
    ]
