"""The shift of reported numbers by a low-precision search: `python launch/precision.py DIR...`.

DIR is a finished classifier run or gan run. Each search runs in float32 and in bfloat16 (or --search) from the same
starts; float32 evaluates the results of both.

    classifier   ε50% under PGD L∞, PGD L2 and Square Attack, on the run's grid and with its attack; the gain in
                 logit_other - logit_label of the attack of PGD training, at the run's ε
    gan          L_proj of projected test images; the similarity of the two Δx, and of each to the exact Δx; with
                 --classifier, ᾱ_Δx of a classifier of the same data

Shifts are compared with the standard deviation of the paper's five runs; a precision whose shift exceeds a fifth of it
is not a default. Few images resolve little: the table also counts the decisions that differ, and --search=float32 is a
control.

The search is traced as for a GPU, with bfloat16 activations if its factors are bfloat16. The float32 reference is
traced for the current platform, which is faster and differs by float32 rounding (the control shows by how much). On a
CPU XLA may skip roundings to bfloat16, which XLA_FLAGS=--xla_allow_excess_precision=false forbids. A CPU does not
compute TF32, and nothing here emulates it.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout, too

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
    "ᾱ_x, and ᾱ_Δx of an exact Δx or a VR-GAN's, are computed in float32 from the clean image, without a search: its "
    "precision cannot shift them. ᾱ_Δx of projected Δx depends on the projection (--classifier)."
)


def main() -> None:
    """Print the tables of every run."""
    options = parse()
    jax.config.update("jax_default_matmul_precision", "highest")  # of reported values, as in a run
    runs = [Path(directory) for directory in options.directory]
    classifiers = [run for run in runs if (run / CLASSIFIER).exists()]
    generators = [run for run in runs if run not in classifiers]
    if classifiers:
        table_head("run", "attack", "images", "float32", "search", "ε50% of search", "shift", "deviation",
             "shift / deviation", "fooled by search only, by float32 only")  # fmt: skip
        print_rows(classifiers, epsilon_rows, options)
        print(f"\n{UNSHIFTED}\n")
        table_head("run", "ε", "search", "gain / float32's gain", "error, float32", "error, search")
        print_rows(classifiers, gain_rows, options)
        print()
    if generators:
        table_head("run", "pairs", "L_proj float32", "search", "L_proj search", "ratio", "sim of the two Δx",
             "sim to exact, float32", "search", "shift / deviation",
             "ᾱ_Δx float32", "search", "shift / deviation")  # fmt: skip
        print_rows(generators, projection_rows, options)


def parse() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="+", metavar="DIR", help="a finished classifier or gan run")
    parser.add_argument("--images", type=int, default=100, help="test images for classifiers (%(default)s)")
    parser.add_argument("--correct", action="store_true", help="only images that are classified correctly")
    parser.add_argument("--square-images", type=int, default=0, help="images for Square Attack; 0 = all of them")
    parser.add_argument("--queries", type=int, default=200, help="queries of Square Attack (%(default)s); 0 = skip it")
    parser.add_argument("--pairs", type=int, default=60, help="pairs of image and class for GANs (%(default)s)")
    parser.add_argument(
        "--steps", default="", help="steps of PGD (40) or of the projection (600,150); default: the run's"
    )
    parser.add_argument("--classifier", default="", metavar="DIR", help="a classifier run on the GAN's data, for ᾱ_Δx")
    parser.add_argument(
        "--search", action="append", choices=("bfloat16", "tf32", "float32"), help="repeatable; default: bfloat16"
    )
    parser.add_argument(
        "--platform", choices=("gpu", "tpu", "cpu"), default="gpu", help="platform to trace the search for (gpu)"
    )
    options = parser.parse_args()
    options.search = options.search or ["bfloat16"]
    options.steps = [int(steps) for steps in options.steps.split(",") if steps]
    if "tf32" in options.search and jax.default_backend() == "cpu":
        parser.error("--search=tf32: a CPU would compute float32; use a GPU")
    return options


def table_head(*columns: str) -> None:
    """Print the head of a Markdown table."""
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)


def print_rows(runs: Sequence[Path], rows: Callable, options: argparse.Namespace) -> None:
    """Print the rows that `rows(run, options)` yields, each as soon as it is ready."""
    for run in runs:
        for cells in rows(run, options):
            print(f"| {' | '.join([run.name, *cells])} |", flush=True)


def deviations(shift: float, cell: paper.Number | None) -> tuple[str, str]:
    """Return the paper's deviation and shift / deviation; a deviation of 0 counts as half a unit of its last digit."""
    if cell is None or cell.sd is None:
        return "-", "-"
    return f"{cell.sd:g}", f"{shift / (cell.sd or cell.rounding):+.2f}"


# ---- classifiers


class Finished(NamedTuple):
    """A finished classifier on the devices.

    Attributes:
      config: the run's config.
      variables: its weights, replicated.
      parts: network and data set.
      evaluation: the evaluation with a search precision, always from the same starts.
    """

    config: ConfigDict
    variables: Variables
    parts: Subject
    evaluation: Callable[[str], Evaluation]


def load(run: Path, options: argparse.Namespace) -> Finished:
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
    return Finished(config, copies, parts, lambda search: evaluation(search, split))


def epsilon_rows(run: Path, options: argparse.Namespace) -> Iterator[Sequence[str]]:
    """Yield ε50% of each attack with float32 and with each search."""
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
    subject: Finished, evaluation: Evaluation, attack: str, options: argparse.Namespace, guess: float | None = None
) -> tuple[float, dict[float, np.ndarray]]:
    """Return ε50%, and which images are misclassified at each ε that was tried."""
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
    """Yield the gain of the attack of PGD training with each search, at the run's ε."""
    subject = load(run, options)
    with platform.target(jax.default_backend()):
        exact, error = gain(subject, "float32")
    for search in options.search:
        with platform.target(options.platform):
            found, its_error = gain(subject, search)
        cells = (f"{subject.config.attack.epsilon:g}", search, f"{found / exact:.4f}", f"{error:.3f}")
        yield (*cells, f"{its_error:.3f}")


def gain(subject: Finished, search: str) -> tuple[float, float]:
    """Return the mean gain in logit_other - logit_label and the error, both of the float32 model."""
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
    """Test images projected to every class: L_proj with the penalty `[N, K]`, and Δx `[N, K, ...]`."""

    loss: np.ndarray
    delta_x: Array


def projection_rows(run: Path, options: argparse.Namespace) -> Iterator[Sequence[str]]:
    """Yield L_proj and Δx with float32 and with each search."""
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
    """Project as a run does, and evaluate the result in float32."""
    config.precision.projection = search
    task = project.ProjectRun(config, None)
    results = task.latents.results(np.arange(len(task.pairs.row)), task.latents.steps)
    _, z, loss = map(np.concatenate, zip(*results, strict=True))
    image = pipeline.to_float(jnp.asarray(task.pairs.images.image[task.pairs.row]))
    generate_fn = artifacts.generate_fn(biggan_folded.fold(task.variables), task.dataset.image_shape[0])
    delta_x = jax.jit(lambda *a: projection.delta_x(generate_fn, *a))(image, task.pairs.target, z)
    shape = len(task.pairs.images.label), task.dataset.num_classes
    penalized = loss + config.project.penalty * np.mean(z**2, axis=1)
    return task, Projected(penalized.reshape(shape), delta_x.reshape(*shape, *delta_x.shape[1:]))


def flat(delta_x: Array) -> Array:
    """Reshape `[N, K, ...]` to `[N * K, ...]`."""
    return delta_x.reshape(-1, *delta_x.shape[2:])


def batch_of(task: project.ProjectRun) -> Batch:
    """Return the projected images."""
    images = jax.device_put(task.pairs.images)
    return pipeline.gather(images, jnp.arange(len(images.label)))


def to_exact(task: project.ProjectRun, *found: Projected) -> tuple[str, str, str]:
    """Return the mean similarity to the exact Δx with each search, and shift / deviation."""
    if task.dataset.delta_x is None:
        return ("-",) * 3
    batch, rows = batch_of(task), jnp.arange(len(task.pairs.images.label))
    delta_x = task.dataset.delta_x(batch.image, batch.label, 1 - batch.label, batch.index)
    values = [float(alignment.cosine_similarity(delta_x, each.delta_x[rows, 1 - batch.label]).mean()) for each in found]
    return compared(values, paper.SECTION_3_2.get(task.dataset.name))


def alpha(task: project.ProjectRun, exact: Projected, found: Projected, options: argparse.Namespace) -> Sequence[str]:
    """Return a classifier's ᾱ_Δx with each search's Δx, and shift / deviation."""
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
    """Return both values, and their difference in units of the paper's deviation."""
    return f"{values[0]:.4f}", f"{values[1]:.4f}", deviations(values[1] - values[0], cell)[1]


if __name__ == "__main__":
    main()
