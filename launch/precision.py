"""What the precision of a search costs the numbers that are reported: `python launch/precision.py DIR...`.

DIR is a finished classifier run or a finished gan run. Each search runs in float32 and in bfloat16 (or --search) from
the same starts, and float32 judges what either found.

    classifier   ε50% under PGD L∞, PGD L2 and Square Attack, on the run's own grid and with its attack; and what the
                 attack of PGD training gains of logit_other - logit_label at the run's ε
    gan          L_proj of projected test images, the similarity of the two Δx, of either to the exact one, and, with
                 --classifier, ᾱ_Δx of a classifier of the same data

Shifts stand beside the deviation of the paper's five runs; one of more than a fifth of it disqualifies a precision.
Few images resolve little: beside each shift stand the verdicts that differ, and --search=float32 is a control.

A search has the forms of a GPU, whose activations are bfloat16 where factors are; the float32 that it is compared with
has those of the platform it runs on, which are faster there and differ by float32 rounding (the control shows what
that shifts). On a CPU XLA may leave out some roundings to bfloat16: XLA_FLAGS=--xla_allow_excess_precision=false
forbids it. No CPU computes TF32, and nothing here emulates it.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a checkout runs uninstalled

from gradalign_jax import alignment, paper, parallel, robustness
from gradalign_jax.attacks import pgd
from gradalign_jax.data import Split, pipeline
from gradalign_jax.deltax import projection
from gradalign_jax.evaluation.programs import Evaluation, Model
from gradalign_jax.experiment import artifacts
from gradalign_jax.experiment.subject import Stream, Subject, create_classifier, head, load_subject
from gradalign_jax.models import biggan_folded
from gradalign_jax.ops import platform, precision
from gradalign_jax.storage import weights
from gradalign_jax.tasks import project
from gradalign_jax.types import Array, Batch, Variables

ATTACKS = ("pgd_linf", "pgd_l2", "square_linf")
CLASSIFIER, GENERATOR = "classifier.safetensors", "generator.safetensors"
UNSHIFTED = (
    "ᾱ_x, and ᾱ_Δx of an exact Δx or of one from a VR-GAN, are computed in float32 from the clean image, without a "
    "search: no precision here can shift them. ᾱ_Δx of projected Δx depends on the projection (--classifier)."
)


def main() -> None:
    """Print the tables of every run."""
    options = parse()
    jax.config.update("jax_default_matmul_precision", "highest")  # what is reported, as in every run
    runs = [Path(directory) for directory in options.directory]
    classifiers = [run for run in runs if (run / CLASSIFIER).exists()]
    generators = [run for run in runs if run not in classifiers]
    if classifiers:
        table_head("run", "attack", "images", "float32", "search", "its ε50%", "shift", "deviation",
             "shift / deviation", "fooled by it alone, by float32 alone")  # fmt: skip
        print_rows(classifiers, epsilon_rows, options)
        print(f"\n{UNSHIFTED}\n")
        table_head("run", "ε", "search", "gain of its attack / gain of float32's", "error, float32", "its error")
        print_rows(classifiers, gain_rows, options)
        print()
    if generators:
        table_head("run", "pairs", "L_proj float32", "search", "its L_proj", "ratio", "sim of the two Δx",
             "sim to exact, float32", "its", "shift / deviation",
             "ᾱ_Δx float32", "its", "shift / deviation")  # fmt: skip
        print_rows(generators, projection_rows, options)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="+")
    parser.add_argument("--images", type=int, default=100, help="of the test split, for classifiers")
    parser.add_argument("--correct", action="store_true", help="only images classified rightly without an attack")
    parser.add_argument("--square-images", type=int, default=0, help="of those, for Square Attack; 0: all")
    parser.add_argument("--queries", type=int, default=200, help="of Square Attack; 0: leave it out")
    parser.add_argument("--pairs", type=int, default=60, help="of test images and classes, for GANs")
    parser.add_argument("--steps", default="", help="of PGD (40), or of the projection (600,150); default: as it ran")
    parser.add_argument("--classifier", default="", help="directory of a classifier of the GAN's data, for ᾱ_Δx")
    parser.add_argument("--search", action="append", choices=("bfloat16", "tf32", "float32"), help="repeatable")
    parser.add_argument("--platform", choices=("gpu", "tpu", "cpu"), default="gpu", help="whose forms are traced")
    options = parser.parse_args()
    options.search = options.search or ["bfloat16"]
    options.steps = [int(steps) for steps in options.steps.split(",") if steps]
    if "tf32" in options.search and jax.default_backend() == "cpu":
        parser.error("--search=tf32: a CPU computes float32 instead; run this on a GPU")
    return options


def table_head(*columns: str) -> None:
    """Print a Markdown table's head."""
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)


def print_rows(runs: Sequence[Path], rows: Callable, options: argparse.Namespace) -> None:
    """Print what `rows(run, options)` yields, as soon as it does."""
    for run in runs:
        for cells in rows(run, options):
            print(f"| {' | '.join([run.name, *cells])} |", flush=True)


def deviations(shift: float, cell: paper.Number | None) -> tuple[str, str]:
    """The paper's deviation and the shift in units of it; one printed as 0 counts as half a unit of its last digit."""
    if cell is None or cell.sd is None:
        return "-", "-"
    return f"{cell.sd:g}", f"{shift / (cell.sd or cell.rounding):+.2f}"


# ---- classifiers


class Subject(NamedTuple):
    """A finished classifier on the devices. evaluation: search -> its measurements, all from the same starts."""

    config: ConfigDict
    variables: Variables
    parts: Subject
    evaluation: Callable[[str], Evaluation]


def load(run: Path, options: argparse.Namespace) -> Subject:
    """Read a finished classifier run."""
    variables, described = weights.read(run / CLASSIFIER)
    config = ConfigDict(described["config"])
    config.evaluate.generator = config.evaluate.store = ""
    config.evaluate.square_queries = options.queries
    config.evaluate.block = min(config.evaluate.block, options.images)
    if options.steps:
        config.attack.steps = options.steps[0]
    parts = load_subject(config, config, batch_size=0)
    split, copies = parts.split("test"), parallel.replicate(variables, parts.devices)

    def evaluation(search: str, split: Split) -> Evaluation:
        config.precision = ConfigDict({"evaluation": search, "square": search})
        return parts.evaluation(split, Stream.TEST, parts.attacks("linf", "l2"))

    if options.correct:
        split = head(split, 4 * options.images)
        with platform.target(jax.default_backend()):
            right = ~evaluation("float32", split).errors(copies, "", 0, 0)
        split = Split(*(rows[right] for rows in split))
    split = head(split, options.images)
    return Subject(config, copies, parts, lambda search: evaluation(search, split))


def epsilon_rows(run: Path, options: argparse.Namespace) -> Iterator[Sequence[str]]:
    """ε50% of each attack by either search."""
    subject = load(run, options)
    paper_row = paper.TABLE_2.get((subject.config.data.name, subject.config.method), {})
    reference, *evaluations = (subject.evaluation(search) for search in ("float32", *options.search))
    for attack in ATTACKS if options.queries else ATTACKS[:2]:
        with platform.target(jax.default_backend()):
            exact, judged = half(subject, reference, attack, options)
        for search, evaluation in zip(options.search, evaluations, strict=True):
            with platform.target(options.platform):
                found, seen = half(subject, evaluation, attack, options, guess=exact)
            common = [(judged[epsilon], seen[epsilon]) for epsilon in seen if epsilon in judged]
            alone = sum(int(np.sum(b & ~a)) for a, b in common), sum(int(np.sum(a & ~b)) for a, b in common)
            deviation, share = deviations(found - exact, paper_row.get(attack))
            images = len(next(iter(seen.values())))
            yield (attack, str(images), f"{exact:.5f}", search, f"{found:.5f}", f"{found - exact:+.5f}", deviation,
                   share, f"{alone[0]}, {alone[1]} of {images * len(common)}")  # fmt: skip


def half(
    subject: Subject, evaluation: Evaluation, attack: str, options: argparse.Namespace, guess: float | None = None
) -> tuple[float, dict[float, np.ndarray]]:
    """ε50%, and who is misclassified at each ε that it took."""
    section, seen = subject.config.evaluate, {}
    grid = section.l2_epsilons if attack == "pgd_l2" else section.linf_epsilons
    step_size = section.l2_step_size if attack == "pgd_l2" else subject.config.attack.step_size
    part = range(min(options.square_images or evaluation.size, evaluation.size))

    def error_at(epsilon: float) -> float:
        if attack == "square_linf" and epsilon > 0:
            seen[epsilon] = evaluation.square(subject.variables, [epsilon], options.queries, part)["fooled"][0]
        elif attack == "square_linf":
            seen[epsilon] = evaluation.errors(subject.variables, attack, epsilon, 0)[: len(part)]
        else:
            seen[epsilon] = evaluation.errors(subject.variables, attack, epsilon, step_size)
        return float(seen[epsilon].mean())

    return float(robustness.bracketed_epsilon_half(error_at, [0.0, *grid], guess)[0]), seen


def gain_rows(run: Path, options: argparse.Namespace) -> Iterator[Sequence[str]]:
    """How far the attack of PGD training gets by either search, at the run's ε."""
    subject = load(run, options)
    with platform.target(jax.default_backend()):
        exact, error = gain(subject, "float32")
    for search in options.search:
        with platform.target(options.platform):
            found, its_error = gain(subject, search)
        cells = (f"{subject.config.attack.epsilon:g}", search, f"{found / exact:.4f}", f"{error:.3f}")
        yield (*cells, f"{its_error:.3f}")


def gain(subject: Subject, search: str) -> tuple[float, float]:
    """The mean gain of logit_other - logit_label, and the error, both by the float32 model."""
    attack, section, margin = subject.parts.training_attack(), subject.config.attack, pgd.LOSSES["margin"]

    def measure(variables: Variables, batch: Batch) -> tuple[Array, Array]:
        model = Model(subject.parts.classifier, variables)
        keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(0), index))(batch.index)
        with precision.scope(search):
            image = attack(model.searched(search), keys, batch.image, batch.label, section.epsilon, section.step_size)
        after, before = (margin(model(x), batch.label) for x in (image, batch.image))
        return after - before, ~(after < 0)

    gained, wrong = subject.evaluation(search).blocks.map(measure)(subject.variables)
    return float(gained.mean()), float(wrong.mean())


# ---- generators


class Projected(NamedTuple):
    """Test images projected to every class. loss: L_proj with the penalty `[N, K]`; delta_x: `[N, K, ...]`."""

    loss: np.ndarray
    delta_x: Array


def projection_rows(run: Path, options: argparse.Namespace) -> Iterator[Sequence[str]]:
    """L_proj and Δx by either search."""
    _, described = weights.read(run / GENERATOR)
    config = importlib.import_module(f"configs.{described['dataset']}").get_config("project")
    config.project.update({"generator": str(run), "splits": ("test",), "block": 20})
    config.project.images = -(-options.pairs // described["num_classes"])
    if options.steps:
        config.project.steps = tuple(options.steps)
    with platform.target(jax.default_backend()):
        task, exact = projected(config, "float32")
    for search in options.search:
        with platform.target(options.platform):
            _, found = projected(config, search)
        losses = [float(each.loss.mean(dtype=np.float64)) for each in (exact, found)]
        both = alignment.cosine_similarity(*(flat(each.delta_x) for each in (exact, found)))
        other = np.arange(exact.loss.shape[1]) != task.pairs.images.label[:, None]
        similarity = float(np.asarray(both).reshape(other.shape)[other].mean())
        yield (str(other.size), f"{losses[0]:.5f}", search, f"{losses[1]:.5f}", f"{losses[1] / losses[0]:.4f}",
               f"{similarity:.4f}", *to_exact(task, exact, found), *alpha(task, exact, found, options))  # fmt: skip


def projected(config: ConfigDict, search: str) -> tuple[project.ProjectRun, Projected]:
    """Project as a run does, and look at the result in float32."""
    config.precision.projection = search
    task = project.ProjectRun(config, None)
    program, results = task.program(), []
    for shards, taken in task.calls(list(range(-(-len(task.pairs.row) // task.block)))):
        found = jax.device_get(
            program(*parallel.split((task.pairs.row[taken], task.pairs.target[taken]), task.devices))
        )
        results += list(zip(*found, strict=True))[: len(shards)]
    z, loss = (np.concatenate(each)[: len(task.pairs.row)] for each in zip(*results, strict=True))
    image = pipeline.to_float(jnp.asarray(task.pairs.images.image[task.pairs.row]))
    generate_fn = artifacts.generate_fn(biggan_folded.fold(task.variables), task.dataset.image_shape[0])
    delta_x = jax.jit(lambda *a: projection.delta_x(generate_fn, *a))(image, task.pairs.target, z)
    shape = len(task.pairs.images.label), task.dataset.num_classes
    penalised = loss + config.project.penalty * np.mean(z**2, axis=1)
    return task, Projected(penalised.reshape(shape), delta_x.reshape(*shape, *delta_x.shape[1:]))


def flat(delta_x: Array) -> Array:
    """`[N, K, ...]` -> `[N * K, ...]`."""
    return delta_x.reshape(-1, *delta_x.shape[2:])


def batch_of(task: project.ProjectRun) -> Batch:
    """The images that were projected."""
    images = jax.device_put(task.pairs.images)
    return pipeline.gather(images, jnp.arange(len(images.label)))


def to_exact(task: project.ProjectRun, *found: Projected) -> tuple[str, str, str]:
    """Mean similarity to the exact Δx by either search, and the shift beside the paper's deviation."""
    if task.dataset.delta_x is None:
        return ("-",) * 3
    batch, rows = batch_of(task), jnp.arange(len(task.pairs.images.label))
    delta_x = task.dataset.delta_x(batch.image, batch.label, 1 - batch.label, batch.index)
    values = [float(alignment.cosine_similarity(delta_x, each.delta_x[rows, 1 - batch.label]).mean()) for each in found]
    return compared(values, paper.SECTION_3_2.get(task.dataset.name))


def alpha(task: project.ProjectRun, exact: Projected, found: Projected, options: argparse.Namespace) -> Sequence[str]:
    """ᾱ_Δx of a classifier by either search's Δx, and the shift beside the paper's deviation."""
    if not options.classifier:
        return ("-",) * 3
    variables, described = weights.read(Path(options.classifier) / CLASSIFIER)
    config, batch = ConfigDict(described["config"]), batch_of(task)
    model, rows = create_classifier(config, task.dataset), jnp.arange(len(batch.label))

    @jax.jit
    def measured(variables: Any, bank: Array) -> Array:
        logits_fn = lambda x: model.apply(variables, x)[0]  # noqa: E731
        return alignment.measure(logits_fn, lambda image, label, target, index: bank[rows, target], *batch)

    values = [float(measured(variables, each.delta_x)["alpha_delta_x"].mean()) for each in (exact, found)]
    return compared(values, paper.TABLE_2.get((config.data.name, config.method), {}).get("alpha_delta_x"))


def compared(values: Sequence[float], cell: paper.Number | None) -> tuple[str, str, str]:
    """The values of both searches and their difference in units of the paper's deviation."""
    return f"{values[0]:.4f}", f"{values[1]:.4f}", deviations(values[1] - values[0], cell)[1]


if __name__ == "__main__":
    main()
