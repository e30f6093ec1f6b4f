"""Estimators of Δx, scored: `python launch/deltax.py --output=DIR [--data=spheres] [--generator=DIR] [--align=NAME]`.

For each data set a table (Markdown and JSON) and a picture of every estimator in gradalign_jax/deltax:

    cosine        of Δ̂x with the exact Δx, or with the projection's where none is known: mean ± sd over test images
    success       share of the images x + Δ̂x that a judge, a classifier, puts into the target class
    length        mean |Δ̂x|₂
    seconds       of processor time to make the estimator, with training and compiling, and for 1,000 images afterwards

--generator takes finished gan and vrgan runs, --judge and --teacher finished classifier runs, at most one of each for a
data set; which one a run is for follows from its config, and MNIST's GAN also serves MNIST-3/5. Without a run the judge
is a perceptron trained on noisy images, the teacher one trained on attacked images; without a generator its
estimators are left out. --align also trains a classifier with an estimator through the command line, and adds what it
reaches in ε50% and in ᾱ against the exact Δx.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jax.tree_util import Partial

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout, too

from gradalign_jax import data, models
from gradalign_jax.alignment import cosine_similarity
from gradalign_jax.attacks import losses, pgd
from gradalign_jax.deltax import centroid, encoder, nearest, patch, projection, sample, score, teacher, transport
from gradalign_jax.deltax.encoder import BATCH, fit, perceptron
from gradalign_jax.experiment import artifacts
from gradalign_jax.models import biggan_folded
from gradalign_jax.types import Batch, DeltaX, LogitsFn
from launch.picture import draw_images

DATA = ("spheres", "squares32", "mnist35", "mnist")
DIGITS = {"mnist35": np.array([3, 5])}  # classes of MNIST's generator
EPSILON = {"spheres": 0.4}  # of the teacher, L2
ROBUST = {"spheres": 0.1}  # ε of the attack that trains the default teacher, L2
PENALTY = {"squares32": 0.03}  # λ of projection and encoder; others 1.5, MNIST's
BLOCK = 50
# What --align runs for a data set, after --config=configs/NAME.py:align.
ALIGN = {
    "spheres": ["--config.train.epochs=4", "--config.train.steps_per_epoch=500"],
    "squares32": [
        *("--config.train.epochs=1", "--config.train.steps_per_epoch=200", "--config.train.log_every=50"),
        *("--config.validate.images=50", "--config.attack.steps=10", "--config.attack.step_size=0.05"),
    ],
}
NAMED = ("exact", "sample", "centroid", "nearest", "patch", "transport", "score")  # estimators without a directory
DIRECTORIES = ("teacher", "encoder", "vrgan")  # estimators from a finished run


class Case(NamedTuple):
    """A data set with its test images and, for each of them, the class to move to."""

    dataset: data.Dataset
    examples: tuple[np.ndarray, np.ndarray]
    test: Batch
    target: np.ndarray


class Runs(NamedTuple):
    """Directories of finished runs by the data set that they are for."""

    gan: dict[str, Path]
    vrgan: dict[str, Path]
    judge: dict[str, Path]
    teacher: dict[str, Path]


def main() -> None:
    """Score the estimators on each data set, and write the tables and pictures."""
    arguments = parse_arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    generators = by_data(arguments.generator)
    kinds = {kind: {n: p for (n, task), p in generators.items() if task == kind} for kind in ("gan", "vrgan")}
    classifiers = {k: {n: p for (n, _), p in by_data(getattr(arguments, k)).items()} for k in ("judge", "teacher")}
    runs = Runs(**kinds, **classifiers)
    for name in arguments.data or DATA:
        case = load(name, arguments.images)
        rows, vectors = measure(case, runs, arguments.only)
        if name in ALIGN:
            add_align(rows, name, runs, arguments.align, arguments.output)
        (arguments.output / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
        text = table(rows, "exact Δx" if case.dataset.delta_x else "projection")
        (arguments.output / f"{name}.md").write_text(text)
        draw(case, vectors, arguments.output / f"{name}.png")
        print(f"\n{name}, {len(case.target)} test images\n\n{text}", flush=True)


def parse_arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="directory of tables and pictures")
    parser.add_argument("--data", action="append", choices=DATA, help="repeatable; default: all")
    parser.add_argument("--images", type=int, default=200, help="number of test images (200)")
    names = (*NAMED, *DIRECTORIES)
    text = f"also train with this estimator, on {', '.join(ALIGN)}; repeatable; one of {', '.join(names)}"
    parser.add_argument("--align", action="append", default=[], choices=names, metavar="NAME", help=text)
    parser.add_argument("--only", action="append", metavar="NAME", help="score this estimator alone; repeatable")
    for kind in ("generator", "judge", "teacher"):
        parser.add_argument(f"--{kind}", action="append", default=[], type=Path, metavar="DIR", help="repeatable")
    return parser.parse_args()


def by_data(directories: Iterable[Path]) -> dict[tuple[str, str], Path]:
    """Return directories of runs by (data set, task)."""
    configs = [(directory, json.loads((directory / "config.json").read_text())) for directory in directories]
    return {(config["data"]["name"], config["task"]): directory for directory, config in configs}


def load(name: str, images: int) -> Case:
    """Load a data set and the first `images` test images, in whole blocks."""
    images = max(images - images % BLOCK, min(images, BLOCK))
    dataset = data.load(name)
    if dataset.sample is None:
        test = Batch(*(rows[:images] for rows in dataset.splits["test"]))
    else:
        test = Batch(*jax.device_get(dataset.sample(jax.random.key(1), images)))
    test = test._replace(image=np.asarray(data.to_float(jnp.asarray(test.image))))
    shift = 1 + np.arange(len(test.label)) % (dataset.num_classes - 1)
    target = ((test.label + shift) % dataset.num_classes).astype(np.int32)
    return Case(dataset, artifacts.training_images(dataset), test, target)


# ---- classifiers


def classifier(directory: Path, name: str) -> LogitsFn:
    """Return the classifier of a finished run."""
    variables, config, _ = artifacts.load_classifier(directory, name, "--judge or --teacher")
    options = {key: value for key, value in config.model.items() if key not in ("name", "pretrained")}
    model = models.create(config.model.name, num_classes=data_classes(name), **options)
    return Partial(lambda variables, image: model.apply(variables, image)[0], variables)


def data_classes(name: str) -> int:
    """Return the number of classes of one of DATA."""
    return 10 if name == "mnist" else 2


def small_classifier(case: Case, change: Callable[..., jax.Array], steps: int = 1500) -> LogitsFn:
    """Train a perceptron on images changed by `change(key, logits_fn, image, label)`."""
    images, labels = case.examples
    blind = jnp.zeros(BATCH, jnp.int32)  # the perceptron has a bias per class, a classifier must not know it

    def objective(params, key, images, labels):
        row = jax.random.randint(key, (BATCH,), 0, len(labels))
        image, label = images[row], labels[row]
        image = change(key, lambda x: perceptron(params, x, blind), image, label)
        return losses.cross_entropy(perceptron(params, image, blind), label).mean()

    sizes = (images[0].size, 512, 512, case.dataset.num_classes)
    params = fit(objective, sizes, 1, steps, 1e-3, jax.random.key(2), jnp.asarray(images), jnp.asarray(labels))
    return Partial(lambda params, x: perceptron(params, x, jnp.zeros(len(x), jnp.int32)), params)


def load_judge(case: Case, runs: Runs) -> LogitsFn:
    """Return the classifier that judges x + Δ̂x."""
    name = case.dataset.name
    if name in runs.judge:
        return classifier(runs.judge[name], name)
    scale = 0.5 * float(np.std(case.examples[0]))
    return small_classifier(case, lambda key, _, x, __: x + scale * jax.random.normal(key, x.shape))


def load_teacher(case: Case, runs: Runs) -> LogitsFn:
    """Return the classifier of `teacher`."""
    name = case.dataset.name
    if name in runs.teacher:
        return classifier(runs.teacher[name], name)
    epsilon = ROBUST.get(name, 2.0)
    attack = pgd.make("l2", steps=7)
    return small_classifier(case, lambda key, f, x, y: attack(f, key, x, y, epsilon, 2.5 * epsilon / 7))


# ---- estimators


def estimators(case: Case, runs: Runs) -> dict[str, Callable[[], DeltaX]]:
    """Return what makes each estimator, by its label in the table."""
    examples, name = case.examples, case.dataset.name
    known = {} if case.dataset.delta_x is None else {"exact": lambda: Partial(case.dataset.delta_x)}
    gan = runs.gan.get(name, runs.gan.get("mnist") if name in DIGITS else None)
    if gan:
        generate, latent_dim = load_generator(gan, name, case.dataset.image_shape[0])
        penalty = PENALTY.get(name, 1.5)
        trained = cache(lambda: encoder.make(generate, *examples, latent_dim, penalty=penalty))
        known |= {
            "projection": lambda: projected(generate, latent_dim, penalty),
            "encoder": trained,
            "encoder, 30 steps": lambda: encoder.polished(trained(), 30, penalty),
        }
    if name in runs.vrgan:
        known["vrgan"] = lambda: artifacts.load_residual(runs.vrgan[name], case.dataset).delta_x
    return known | {
        "teacher": lambda: teacher.make(load_teacher(case, runs), EPSILON.get(name, 10.0)),
        "score": lambda: score.make(*examples, sigma=1.5 * float(np.std(examples[0]))),
        "transport": lambda: transport.make(*examples),
        "patch, simplex of 8": lambda: patch.make(*examples, k=8),
        "patch, affine of 8": lambda: patch.make(*examples, k=8, hull="affine"),
        "nearest": lambda: nearest.make(*examples),
        "nearest of 8": lambda: nearest.make(*examples, k=8),
        "centroid": lambda: centroid.make(*examples),
        "sample": lambda: sample.make(*examples),
    }


def load_generator(directory: Path, name: str, size: int) -> tuple[projection.GenerateFn, int]:
    """Return the generator of a GAN run, for the classes of data set `name`, and the size of its latents."""
    _, variables, described = artifacts.load_gan(directory)
    generate = artifacts.generate_fn(biggan_folded.fold(variables), size)
    if name in DIGITS:
        generate = Partial(lambda digit, generate, z, c: generate(z, digit[c]), jnp.asarray(DIGITS[name]), generate)
    return generate, described["latent_dim"]


def projected(generate: projection.GenerateFn, latent_dim: int, penalty: float) -> DeltaX:
    """Return Δx by the paper's 750 steps for each image."""
    project = projection.make(learning_rate=(0.2, 0.2), penalty=penalty, latent_dim=latent_dim)

    def delta_x(generate, image, label, target, index):
        return projection.delta_x(generate, image, target, project(generate, image, target))

    return Partial(delta_x, generate)


def measure(case: Case, runs: Runs, only: list[str] | None) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Return a row of numbers for each estimator, and its vectors; with `only`, for those names and the reference."""
    judge, test = load_judge(case, runs), case.test
    verdict = jax.jit(lambda image: judge(image).argmax(-1))
    rows, vectors, reference = [], {}, None
    agree = np.mean(np.asarray(verdict(test.image)) == test.label)
    print(f"{case.dataset.name}: the judge is right on {agree:.1%} of {len(test.label)} images", flush=True)
    for name, make in estimators(case, runs).items():
        refers = name in ("exact", "projection") and reference is None
        if only and not refers and name.split(",")[0] not in only:
            continue
        started = time.process_time()
        delta_x = jax.block_until_ready(make())
        row = {"estimator": name, "seconds_to_make": time.process_time() - started}
        vector, seconds = in_blocks(delta_x, (*test[:2], case.target, test.index))
        row["seconds_per_1000"] = 1000 * seconds / len(vector)
        row["success"] = float(np.mean(np.asarray(verdict(test.image + vector)) == case.target))
        row["length"] = float(np.linalg.norm(vector.reshape(len(vector), -1), axis=1).mean())
        reference = vector if refers else reference
        if reference is not None:
            cosine = np.asarray(cosine_similarity(jnp.asarray(vector), jnp.asarray(reference)))
            row |= {"cosine": float(cosine.mean()), "cosine_sd": float(cosine.std())}
        rows.append(row)
        vectors[name] = vector
        print(f"  {row}", flush=True)
    return rows, vectors


def in_blocks(delta_x: DeltaX, batch: tuple[np.ndarray, ...]) -> tuple[np.ndarray, float]:
    """Return the vectors of a batch, computed in blocks of BLOCK images, and the seconds without compile time."""
    call = jax.jit(lambda delta_x, *batch: delta_x(*batch))
    size = min(BLOCK, len(batch[0]))
    starts = range(0, len(batch[0]) - size + 1, size)
    blocks = [tuple(rows[start : start + size] for rows in batch) for start in starts]
    program = call.lower(delta_x, *blocks[0]).compile()
    started = time.process_time()
    vectors = [jax.block_until_ready(program(delta_x, *block)) for block in blocks]
    return np.concatenate(vectors), time.process_time() - started


# ---- training


def add_align(rows: list[dict[str, Any]], name: str, runs: Runs, wanted: list[str], output: Path) -> None:
    """Train with each of the wanted estimators, at its defaults, and add the results to its row."""
    options = {estimator: [f"--config.delta_x.name={estimator}"] for estimator in NAMED}
    if name in runs.teacher:
        directory, epsilon = runs.teacher[name], EPSILON.get(name, 10.0)
        options["teacher"] = ["--config.delta_x.name=teacher", f"--config.delta_x.teacher={directory}"]
        options["teacher"] += [f"--config.delta_x.teacher_epsilon={epsilon}"]
    if name in runs.gan:
        options["encoder"] = ["--config.delta_x.name=encoder", f"--config.delta_x.generator={runs.gan[name]}"]
    if name in runs.vrgan:
        options["vrgan"] = [f"--config.delta_x.generator={runs.vrgan[name]}"]
    for estimator in (each for each in wanted if each in options):
        flags = options[estimator]
        workdir = output / f"{name}_align_{estimator}"
        command = [
            sys.executable,
            "-m",
            "gradalign_jax.main",
            f"--config=configs/{name}.py:align",
            *ALIGN[name],
            *flags,
        ]
        command += ["--config.evaluate.delta_x=exact", "--config.evaluate.images=200", f"--workdir={workdir.resolve()}"]
        with (output / f"{workdir.name}.log").open("w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log, cwd=Path(__file__).resolve().parents[1])
        result = json.loads((workdir / "result.json").read_text())
        row = next(row for row in rows if row["estimator"].split(",")[0] == estimator)
        row["epsilon_half"] = result["epsilon_half"]["pgd_linf"]
        row["alpha_delta_x"], row["accuracy"] = result["alpha_delta_x"], result["accuracy"]


# ---- output


def table(rows: list[dict[str, Any]], reference: str) -> str:
    """Return the rows as a Markdown table."""
    trained = any("epsilon_half" in row for row in rows)
    heads = ["estimator", f"cosine with {reference}", "success %", "length", "s to make", "s / 1,000 images"]
    heads += ["ε50% of align", "ᾱ of align"] if trained else []
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cosine = f"{row['cosine']:.3f} ± {row['cosine_sd']:.3f}" if "cosine" in row else "–"
        cells = [row["estimator"], cosine, f"{100 * row['success']:.1f}"]
        cells += [f"{row['length']:.3g}", f"{row['seconds_to_make']:.1f}", f"{row['seconds_per_1000']:.3g}"]
        if trained:
            done = "epsilon_half" in row
            cells += [f"{row['epsilon_half']:.4g}", f"{row['alpha_delta_x']:.3f}"] if done else ["–", "–"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(case: Case, vectors: dict[str, np.ndarray], path: Path) -> None:
    """Draw a few test images and Δ̂x of each estimator."""
    few = np.arange(min(6, len(case.target)))
    lines = [("x", case.test.image[few]), *((name, vector[few]) for name, vector in vectors.items())]
    figure, axis = plt.subplots(figsize=(4.5, 0.75 * len(lines)))
    draw_images(axis, lines)
    figure.savefig(path, dpi=80, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    main()
