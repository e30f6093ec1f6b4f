"""Estimators of Δx, scored: `python launch/deltax.py --output=DIR [--data=spheres] [--generator=DIR] [--align=NAME]`.

For each data set a table (DIR/NAME/table.md and result.json) and a picture (estimators.png) of every estimator in
gradalign_jax/deltax; `python -m gradalign_jax.report DIR` shows both on its page:

    cosine        of Δ̂x with the exact Δx, or with the projection's where none is known: mean ± sd over test images
    success       share of the images x + Δ̂x that a judge, a classifier, puts into the target class
    length        mean |Δ̂x|₂
    seconds       of processor time to make the estimator, with training and compiling, and for 1,000 images afterwards

--generator takes finished gan and vrgan runs, --judge and --teacher finished classifier runs, at most one of each for a
data set; which one a run is for follows from its config, and MNIST's GAN also serves MNIST-3/5. Without a run the judge
is a perceptron trained on noisy images, the teacher one trained on attacked images; without a generator its
estimators are left out. --align also trains a classifier with an estimator through the command line, and adds what it
reaches in ε50% and in ᾱ against the exact Δx. The same command resumes a training that was stopped.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jax.tree_util import Partial

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout, too

from gradalign_jax import data
from gradalign_jax.alignment import cosine_similarity
from gradalign_jax.deltax import centroid, encoder, nearest, patch, sample, score, teacher, transport
from gradalign_jax.errors import RunError, first_line
from gradalign_jax.experiment import estimates
from gradalign_jax.storage.result import versions
from gradalign_jax.types import Batch, DeltaX
from launch import deltax_runs
from launch.deltax_runs import DIGITS, Case, Runs, load_generator, load_judge, load_teacher, projected
from launch.picture import draw_images

DATA = ("spheres", "squares32", "mnist35", "mnist")
EPSILON = {"spheres": 0.4}  # of the teacher, L2; others 10
PENALTY = {"squares32": 0.03}  # λ of the projection; others 1.5, MNIST's
BLOCK = 50
# What --align runs for a data set, after --config=configs/NAME.py:align.
ALIGN = {
    "spheres": ("--config.train.epochs=4", "--config.train.steps_per_epoch=500"),
    "squares32": (
        *("--config.train.epochs=4", "--config.train.steps_per_epoch=50", "--config.validate.images=50"),
        *("--config.attack.steps=10", "--config.attack.step_size=0.05"),
    ),
}
NAMED = ("exact", "sample", "centroid", "nearest", "patch", "transport", "score")  # estimators without a directory
DIRECTORIES = {"teacher": "teacher", "encoder": "gan", "vrgan": "vrgan"}  # estimators from one of Runs


def main() -> None:
    """Score the estimators on each data set, and write the tables and pictures."""
    arguments = parse_arguments()
    try:
        score_all(arguments)
    except RunError as error:
        sys.exit(f"gradalign_jax: {first_line(error)}")


def score_all(arguments: argparse.Namespace) -> None:
    """Do what the command line says.

    Raises:
      RunError: if a run does not fit, or a training fails.
    """
    datasets = arguments.data or DATA
    runs = deltax_runs.sort(arguments.generator, arguments.judge, arguments.teacher, datasets)
    trainings = align_flags(datasets, runs, arguments.align, arguments.encoder_penalty)
    only = [*arguments.only, *arguments.align] if arguments.only else None
    for name in datasets:
        case = load(name, arguments.images)
        rows, vectors = measure(case, runs, only, arguments.encoder_penalty)
        folder = arguments.output / name
        folder.mkdir(parents=True, exist_ok=True)
        write(folder, case, rows)
        draw(folder, case, vectors)
        for estimator, flags in trainings.get(name, {}).items():
            row = next(row for row in rows if kind_of(row["estimator"]) == estimator)
            row |= align(folder / f"align_{estimator}", name, (*flags, *arguments.align_flag), len(case.target))
            write(folder, case, rows)  # now, lest a stopped command lose it
        print(f"\n{name}, {len(case.target)} test images\n\n{(folder / 'table.md').read_text()}", flush=True)


def parse_arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="directory of tables and pictures")
    parser.add_argument("--data", action="append", choices=DATA, help="repeatable; default: all")
    parser.add_argument("--images", type=int, default=200, help="number of test images (200)")
    names = (*NAMED, *DIRECTORIES)
    text = f"also train with this estimator, on {', '.join(ALIGN)}; repeatable; one of {', '.join(names)}"
    parser.add_argument("--align", action="append", default=[], choices=names, metavar="NAME", help=text)
    text = "a further flag of these trainings (--align-flag=--config.train.steps_per_epoch=100); repeatable"
    parser.add_argument("--align-flag", action="append", default=[], metavar="FLAG", help=text)
    text = "score this estimator alone; repeatable"
    parser.add_argument("--only", action="append", choices=(*names, "projection"), metavar="NAME", help=text)
    text = "λ of the encoder (Eq. 15); default: the projection's, .03 on squares32, else 1.5"
    parser.add_argument("--encoder-penalty", type=float, metavar="λ", help=text)
    for kind in ("generator", "judge", "teacher"):
        parser.add_argument(f"--{kind}", action="append", default=[], type=Path, metavar="DIR", help="repeatable")
    return parser.parse_args()


def kind_of(label: str) -> str:
    """Return the name of the estimator with a label such as "patch, simplex of 8"."""
    return label.split(",")[0].split(" of ")[0]


def load(name: str, images: int) -> Case:
    """Load a data set and the first `images` test images, in whole blocks."""
    dataset = data.load(name)
    if dataset.sample is None:
        images = min(images, len(dataset.splits["test"].label))
    images = max(images - images % BLOCK, min(images, BLOCK))
    if dataset.sample is None:
        test = Batch(*(rows[:images] for rows in dataset.splits["test"]))
    else:
        test = Batch(*jax.device_get(dataset.sample(jax.random.key(1), images)))
    test = test._replace(image=np.asarray(data.to_float(jnp.asarray(test.image))))
    shift = 1 + np.arange(len(test.label)) % (dataset.num_classes - 1)
    target = ((test.label + shift) % dataset.num_classes).astype(np.int32)
    return Case(dataset, estimates.training_images(dataset), test, target)


# ---- estimators


def estimators(case: Case, runs: Runs, encoder_penalty: float | None) -> dict[str, Callable[[], DeltaX]]:
    """Return what makes each estimator, by its label in the table."""
    examples, name = case.examples, case.dataset.name
    known = {} if case.dataset.delta_x is None else {"exact": lambda: Partial(case.dataset.delta_x)}
    gan = runs.gan.get(name, runs.gan.get("mnist") if name in DIGITS else None)
    if gan:
        generate, latent_dim = load_generator(gan, case.dataset)
        penalty, own = PENALTY.get(name, 1.5), encoder_weight(name, encoder_penalty)
        trained = cache(lambda: encoder.make(generate, *examples, latent_dim, penalty=own))
        known |= {
            "projection": lambda: projected(generate, latent_dim, penalty),
            "encoder": trained,
            "encoder, 30 steps": lambda: encoder.polished(trained(), 30, own),
        }
    if name in runs.vrgan:
        known["vrgan"] = lambda: estimates.load_residual(runs.vrgan[name], case.dataset).delta_x
    return known | {
        "teacher": lambda: teacher.make(load_teacher(case, runs), EPSILON.get(name, 10.0)),
        "score": lambda: score.make(*examples),
        "transport": lambda: transport.make(*examples),
        "patch, simplex of 8": lambda: patch.make(*examples, k=8),
        "patch, affine of 8": lambda: patch.make(*examples, k=8, hull="affine"),
        "nearest": lambda: nearest.make(*examples),
        "nearest of 8": lambda: nearest.make(*examples, k=8),
        "centroid": lambda: centroid.make(*examples),
        "sample": lambda: sample.make(*examples),
    }


def encoder_weight(name: str, given: float | None) -> float:
    """Return the encoder's λ: the given one, or the projection's."""
    return PENALTY.get(name, 1.5) if given is None else given


def measure(
    case: Case, runs: Runs, only: list[str] | None, encoder_penalty: float | None = None
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Return a row of numbers for each estimator, and its vectors; with `only`, for those names and the reference."""
    judge, test = load_judge(case, runs), case.test
    verdict = jax.jit(lambda image: judge(image).argmax(-1))
    rows, vectors, reference = [], {}, None
    agree = np.mean(np.asarray(verdict(test.image)) == test.label)
    print(f"{case.dataset.name}: the judge is right on {agree:.1%} of {len(test.label)} images", flush=True)
    for name, make in estimators(case, runs, encoder_penalty).items():
        refers = name in ("exact", "projection") and reference is None
        if only and not refers and kind_of(name) not in only:
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


def align_flags(
    datasets: Iterable[str], runs: Runs, wanted: Iterable[str], encoder_penalty: float | None = None
) -> dict[str, dict[str, list[str]]]:
    """Return the flags of each wanted training by data set and estimator.

    Raises:
      RunError: if an estimator needs a run that is not there on any of the data sets, or none of them is trained on.
    """
    found: dict[str, dict[str, list[str]]] = {name: {} for name in datasets if name in ALIGN}
    for estimator in wanted:
        for name, flags in found.items():
            if (own := _delta_x_flags(estimator, name, runs, encoder_penalty)) is not None:
                flags[estimator] = own
        if not any(estimator in flags for flags in found.values()):
            kind = DIRECTORIES.get(estimator)
            flag = "teacher" if kind == "teacher" else "generator"
            needs = f" and --{flag}=DIR of a {kind} run on it" if kind else ""
            raise RunError(f"--align={estimator} needs --data={' or '.join(ALIGN)}{needs}")
    return found


def _delta_x_flags(estimator: str, name: str, runs: Runs, encoder_penalty: float | None) -> list[str] | None:
    """Return the flags of training with an estimator as it is scored, None where its run is missing."""
    if estimator in NAMED:
        return [f"--config.delta_x.name={estimator}"]
    directory = getattr(runs, DIRECTORIES[estimator]).get(name)
    if directory is None:
        return None
    by_name, key = [f"--config.delta_x.name={estimator}"], "teacher" if estimator == "teacher" else "generator"
    flags = [f"--config.delta_x.{key}={directory.resolve()}"]
    if estimator == "teacher":
        flags.append(f"--config.delta_x.teacher_epsilon={EPSILON.get(name, 10.0)}")
    if estimator == "encoder":
        flags.append(f"--config.delta_x.penalty={encoder_weight(name, encoder_penalty)}")
    return flags if estimator == "vrgan" else by_name + flags


def align(workdir: Path, name: str, flags: Iterable[str], images: int) -> dict[str, float]:
    """Train a classifier through the command line, or resume; return what it reaches.

    Raises:
      RunError: if the training fails.
    """
    measured = ("--config.evaluate.delta_x=exact", f"--config.evaluate.images={images}")
    command = (sys.executable, "-m", "gradalign_jax.main", f"--config=configs/{name}.py:align", *ALIGN[name])
    command = (*command, *measured, *flags, f"--workdir={workdir.resolve()}")
    log = workdir.with_suffix(".log")
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=file, cwd=Path(__file__).resolve().parents[1], check=False)
    if done.returncode:
        raise RunError(f"the training in {workdir} failed with status {done.returncode}: see {log}")
    result = json.loads((workdir / "result.json").read_text())
    reached = {"epsilon_half": result["epsilon_half"]["pgd_linf"], "alpha_delta_x": result["alpha_delta_x"]}
    return reached | {"accuracy": result["accuracy"]}


# ---- output


def reference_of(case: Case) -> str:
    """Return what Δ̂x is compared with, in words."""
    return "exact Δx" if case.dataset.delta_x else "projection"


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


def write(folder: Path, case: Case, rows: list[dict[str, Any]]) -> None:
    """Write the table as Markdown, and as the JSON that a report reads."""
    text = table(rows, reference_of(case))
    (folder / "table.md").write_text(text)
    result = {"dataset": case.dataset.name, "task": "deltax", "images": len(case.target), "estimators": rows}
    result["versions"] = versions()
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")


def draw(folder: Path, case: Case, vectors: dict[str, np.ndarray]) -> None:
    """Draw a few test images and Δ̂x of each estimator; also write these arrays."""
    few = np.arange(min(6, len(case.target)))
    lines = [("x", case.test.image[few]), *((name, vector[few]) for name, vector in vectors.items())]
    figure, axis = plt.subplots(figsize=(4.5, 0.75 * len(lines)))
    draw_images(axis, lines)
    figure.savefig(folder / "estimators.png", dpi=80, bbox_inches="tight")
    plt.close(figure)
    chosen = {"image": case.test.image[few], "label": case.test.label[few], "target": case.target[few]}
    np.savez_compressed(folder / "pictures.npz", **chosen, **{f"delta_x_{k}": v[few] for k, v in vectors.items()})


if __name__ == "__main__":
    main()
