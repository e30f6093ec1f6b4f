"""Every run behind the paper's tables, as data: its config, what it changes in it, and which runs it needs first.

Table 3 trains with PGD at 6 or 7 values of ε that the paper does not list. Here they are 7, in steps of √2 around the
ε of Table S1, ε/4 ... 2ε, with two digits. On Spheres, where ‖x‖₁ is about √(2·500/π) = 17.8 times ‖x‖₂,
half the distance between the classes takes an ε of .0081 (outwards) to .0087 (inwards). 2ε = .01 moves a typical x past
it, and √2 ε = .0071 is close to the largest ε50% of the paper (.0076), so there the list is ε/8 ... ε.
"""

import importlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

METHODS = ("baseline", "align", "pgd")
TABLE_2 = ("spheres", "squares", "mnist35", "copd", "mnist", "cifar10")
DIRECT = ("spheres", "squares", "mnist35", "copd")  # Δ̂x by a VR-GAN
INDIRECT = ("squares32", "mnist", "cifar10")  # by projection onto a conditional GAN's manifold
# Where no exact Δx is known: the config key that takes an estimate, and the task that makes it.
ESTIMATE = {"mnist35": "generator", "copd": "generator", "mnist": "store", "cifar10": "store"}
MAKER = {"generator": "vrgan", "store": "project"}
EPSILON = {"spheres": 0.005, "squares": 0.2, "mnist35": 0.3, "copd": 0.006, "mnist": 0.3, "cifar10": 0.01}
IMAGENET = ("squares", "mnist35", "copd", "mnist")  # classifiers and critics start from ImageNet weights
# Config keys by which a run names another one's directory.
GAN_OF_PROJECT = "project.generator"
CLASSIFIER_OF_EVALUATE = "classifier"
_CONFIGS = os.path.relpath(Path(__file__).resolve().parents[1] / "configs")  # from where the command is typed


def epsilons(dataset: str) -> tuple[float, ...]:
    """The ε that PGD trains with for Table 3; the one of Table S1 is among them."""
    first = -6 if dataset == "spheres" else -4
    return tuple(float(f"{EPSILON[dataset] * 2 ** (k / 2):.2g}") for k in range(first, first + 7))


class Job(NamedTuple):
    """One run."""

    name: str  # dataset/what/seed: its directory below the root
    task: str  # what follows the colon of --config
    overrides: Mapping[str, Any]
    uses: Mapping[str, str]  # config keys whose values are other jobs' directories
    tables: frozenset[str]

    @property
    def dataset(self) -> str:
        """The data set, and its config's name."""
        return self.name.partition("/")[0]

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the jobs that have to be finished first."""
        return tuple(dict.fromkeys(self.uses.values()))


class Scale(NamedTuple):
    """How much of the paper is run, and how long."""

    datasets: tuple[str, ...]
    flag: str  # after the task: "" or ",smoke"
    seeds: Mapping[str, int]  # by data set; "": of the others
    generators: int  # as many estimates of Δx; trained with one, measured with the next
    validated: int  # estimates where Δx is known, of section 3.2
    epsilons: Mapping[str, tuple[float, ...]]  # of Table 3
    series: int  # seeds at each of them
    evaluated: Mapping[str, int]  # seeds that an evaluation measures, Square Attack with it; by data set; "": others
    scatter: int  # images of Figure 7, under Carlini and Wagner's attack, of the first seed
    overrides: Mapping[str, Mapping[str, Any]]  # by "dataset:task"; "dataset:classifier" is about all three


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
_BLACK_BOX = {"evaluate.square_queries": 10}  # in the classifier's own run, to spare another start
# Tiny: it shows that every table and figure can be made, not their numbers.
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
# Numbers that can be held against the paper's; planned for an hour and a half on two CPU cores, not timed as a whole.
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
    changed = {**({} if task == "evaluate" else {"seed": seed}), **own, **shared}  # it takes its classifier's
    return Job(f"{dataset}/{what}/seed{seed}", task, changed, uses or {}, frozenset(tables))


def _estimates(scale: Scale, dataset: str) -> Iterator[Job]:
    """The runs that estimate a data set's Δx."""
    tables = {"spheres": ("1", "3.2"), "squares": ("3.2",), "squares32": ("3.2",)}.get(dataset, ())
    for seed in range(scale.generators if dataset in ESTIMATE else scale.validated):
        if dataset in DIRECT:
            yield _job(scale, dataset, "vrgan", "vrgan", seed, tables)
        if dataset in INDIRECT:
            gan = _job(scale, dataset, "gan", "gan", seed, tables)
            yield gan
            yield _job(scale, dataset, "project", "project", seed, tables, {GAN_OF_PROJECT: gan.name})


def _measured_with(scale: Scale, dataset: str, task: str, seed: int) -> dict[str, str]:
    """A classifier's estimates: `align` trains with its own, and every run is measured with another one."""
    kind = ESTIMATE.get(dataset)
    if kind is None:
        return {}
    made = f"{dataset}/{MAKER[kind]}/seed"
    uses = {f"evaluate.{kind}": f"{made}{(seed + 1) % scale.generators}"}
    if task == "align":
        uses[f"delta_x.{kind}"] = f"{made}{seed % scale.generators}"
    return uses


def _classifiers(scale: Scale, dataset: str) -> Iterator[Job]:
    """Table 2's and S2's rows of a data set, their evaluations, and Table 3's series."""
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
    """All runs of a scale in an order in which each comes after those it needs.

    Args:
      scale: one of SCALES.
      datasets: only these, if any are named.
      table: only what this table shows ("1", "2", "3", "3.2", "S2"), and what that needs.
      generators: another number of estimates of Δx than the scale's.

    Raises:
      ValueError: if a data set or a table is not the paper's, or one estimate were to train and measure alike.
    """
    names = scale.datasets
    for name in datasets:
        if name not in names:
            raise ValueError(f"--only={name}: the data sets of this scale are {', '.join(names)}")
    if generators < 2 and generators != 0:
        raise ValueError(f"--generators={generators}: one estimate of Δx trains, another one measures; give 2 or more")
    if generators:
        scale = scale._replace(generators=generators)
    chosen = [name for name in names if not datasets or name in datasets]
    jobs = [job for name in chosen for job in _estimates(scale, name)]
    jobs += [job for name in chosen if name in TABLE_2 for job in _classifiers(scale, name)]
    if table:
        known = sorted({t for job in jobs for t in job.tables})
        if table not in known:
            raise ValueError(f"--table={table}: the tables with runs are {', '.join(known)}")
        jobs = closure(jobs, [job.name for job in jobs if table in job.tables])
    return jobs


def closure(jobs: list[Job], wanted: Iterable[str]) -> list[Job]:
    """The wanted jobs and all that they need, in the plan's order."""
    by_name = {job.name: job for job in jobs}
    kept, open_ = set(), list(wanted)
    while open_:
        name = open_.pop()
        if name not in kept:
            kept.add(name)
            open_ += by_name[name].needs
    return [job for job in jobs if job.name in kept]


def stages(jobs: list[Job]) -> list[list[Job]]:
    """The jobs in groups: those of one group need only jobs of earlier groups."""
    level: dict[str, int] = {}
    for job in jobs:  # in order, so that what a job needs has its level already
        level[job.name] = 1 + max((level[name] for name in job.needs if name in level), default=-1)
    return [[job for job in jobs if level[job.name] == i] for i in range(max(level.values(), default=-1) + 1)]


def configured(job: Job, scale: Scale):
    """The job's config before its overrides, or None where there is no such data set or task yet."""
    try:
        return importlib.import_module(f"configs.{job.dataset}").get_config(job.task + scale.flag)
    except (ImportError, ValueError):
        return None


def command(job: Job, scale: Scale, root: str, extra: Iterable[str] = ()) -> list[str]:
    """The job as a command line, without the interpreter."""
    values = {**job.overrides, **{key: f"{root}/{name}" for key, name in job.uses.items()}}
    return [
        *("-m", "gradalign_jax.main", f"--config={_CONFIGS}/{job.dataset}.py:{job.task}{scale.flag}"),
        *(f"--config.{key}={value}" for key, value in values.items()),
        *extra,
        f"--workdir={root}/{job.name}",
    ]
