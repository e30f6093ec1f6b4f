"""Our attacks beside adv-lib's, on real classifiers: `python launch/parity.py RUN|TAR ...`.

RUN is the directory of a finished classifier run of MNIST or MNIST-3/5, TAR advertorch's source distribution
(launch/lenet.py). What the rows compare: launch/suites.md, "Parity with adv-lib".
"""

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import torch
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout, too

from gradalign_jax import data
from gradalign_jax.attacks import apgd, fab, targets
from gradalign_jax.evaluation.programs import Model
from gradalign_jax.experiment import artifacts
from gradalign_jax.experiment.subject import create_classifier
from gradalign_jax.ops import platform
from gradalign_jax.storage import weights
from launch import lenet
from launch.bench.torch_peer import adversarial, models

HEADER = """| classifier | attack | ε | images | decisions that differ | largest difference | robust % here | adv-lib |
|---|---|---|---|---|---|---|---|"""
UNIT = (0.0, 1.0)


class Subject(NamedTuple):
    """A classifier on both sides: images in [0, 1], `[B, H, W, C]` here and `[B, C, H, W]` in PyTorch -> logits."""

    name: str
    ours: Callable
    peer: Callable
    image: np.ndarray
    label: np.ndarray


def main() -> None:
    """Print a row for each classifier and attack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="+", metavar="RUN|TAR")
    parser.add_argument("--epsilon", type=float, required=True, help="in L∞, of [0, 1]")
    parser.add_argument("--images", type=int, default=100, help="number of test images (100)")
    parser.add_argument("--steps", type=int, default=100, help="of each attack (100)")
    parser.add_argument("--double", action="store_true", help="compute in float64")
    parser.add_argument("--skip-random", action="store_true", help="only the deterministic comparisons")
    options = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_enable_x64", options.double)
    if options.double:
        torch.set_default_dtype(torch.float64)
        torch.Tensor.float = torch.Tensor.double  # adv-lib casts masks to single precision
    torch.manual_seed(0)
    print(HEADER, flush=True)
    for source in options.source:
        subject = lenet_subject(source, options) if source.is_file() else run_subject(source, options)
        noise = np.random.default_rng(0).uniform(size=subject.image.shape)
        dtype = np.float64 if options.double else np.float32
        subject = subject._replace(image=((255 * subject.image + noise) / 256).astype(dtype))
        # XLA's own convolution in float64: a CPU's faster forms round to other signs where a gradient is exactly 0.
        with platform.target("gpu") if options.double else contextlib.nullcontext():
            compare(subject, options)


def lenet_subject(source: Path, options: argparse.Namespace) -> Subject:
    """Return advertorch's LeNet trained with PGD."""
    tensors = lenet.read(source)
    image, label = lenet.images(options.images)
    ours, peer = lenet.logits_fn(tensors), lenet.torch_logits_fn(tensors)
    return Subject("public LeNet", ours, peer, image, label)


def run_subject(source: Path, options: argparse.Namespace) -> Subject:
    """Return the classifier of a finished run, a ResNet-18."""
    variables, described = weights.read(source / artifacts.CLASSIFIER)
    config = ConfigDict(described["config"])
    dataset = data.load(config.data.name)
    model = Model(create_classifier(config, dataset), variables)
    binary = config.model.get("binary", False)
    peer = models.ResNet18(1 if binary else dataset.num_classes, config.model.get("stem", "imagenet"))
    peer = models.load_flax(peer, variables).eval().requires_grad_(False)
    raw = config.model.get("input_mapping", "unit") == "raw"

    def peer_logits(image):
        output = peer(4 * image - 3 if raw else 2 * image - 1)  # the peer itself maps [-1, 1] to [0, 1]
        return torch.cat([-output / 2, output / 2], 1) if binary else output

    test = dataset.splits["test"]
    image = test.image[: options.images].astype(np.float32) / 255
    name = f"{dataset.name} {config.method}"
    return Subject(name, lambda image: model(2 * image - 1), peer_logits, image, test.label[: options.images])


def compare(subject: Subject, options: argparse.Namespace) -> None:
    """Print the rows of one classifier."""
    image, label = subject.image, np.asarray(subject.label)
    theirs = torch.as_tensor(image).permute(0, 3, 1, 2).contiguous(), torch.as_tensor(label).long()
    logits = np.asarray(jax.jit(subject.ours)(image))
    with torch.no_grad():
        gap = np.abs(subject.peer(theirs[0]).numpy() - logits).max() / np.abs(logits).max()
    print(f"| {subject.name} | logits | – | {len(label)} | – | {gap:.0e} | – | – |", flush=True)
    towards = np.array(targets.likeliest(logits, label, 1))[:, 0]
    multiclass = logits.shape[1] >= 4
    for name, loss in (("APGD-CE", "cross_entropy"), ("APGD-T", "dlr" if multiclass else "cross_entropy")):
        target = towards if name == "APGD-T" else None
        differ, largest = from_the_image(subject, theirs, loss, target, options)
        robust = (None, None) if options.skip_random else from_random_starts(subject, theirs, loss, target, options)
        report(subject, f"{name}, {loss}", options, differ, largest, robust)
    report(subject, "FAB-T", options, *boundary(subject, theirs, towards, options))


def report(subject: Subject, attack: str, options: argparse.Namespace, differ: int, largest: float, robust) -> None:
    """Print one row."""
    cells = ["–" if value is None else f"{100 * value:.1f}" for value in robust]
    size = f"{options.epsilon:g} | {len(subject.label)} | {differ} | {largest:.0e}"
    print(f"| {subject.name} | {attack} | {size} | {cells[0]} | {cells[1]} |", flush=True)


def from_the_image(subject: Subject, theirs, loss: str, target, options: argparse.Namespace) -> tuple[int, float]:
    """Return how many decisions of APGD differ, and the largest difference of the loss where neither side fooled."""
    _, fooled, value, _ = adversarial.auto_pgd()._apgd(
        subject.peer,
        theirs[0],
        theirs[1] if target is None else torch.as_tensor(target).long(),
        torch.full((len(subject.label),), options.epsilon),
        torch.inf,
        x_init=theirs[0],
        targeted=target is not None,
        n_iter=options.steps,
        loss_function="ce" if loss == "cross_entropy" else loss,
    )
    run = jax.jit(apgd.search("linf", options.steps, 1, loss, random_start=False, bounds=UNIT), static_argnums=0)
    found = run(subject.ours, jax.random.key(0), subject.image, subject.label, options.epsilon, target)
    ours, peer, value = np.asarray(found.fooled), fooled.numpy(), value.numpy()
    # With a target, adv-lib counts only images in which the target wins; here any wrong class counts.
    differ = peer & ~ours if target is not None else peer != ours
    kept = ~ours & ~peer
    gap = np.abs(np.asarray(found.loss)[kept] - value[kept]).max(initial=0)
    return int(differ.sum()), float(gap / np.abs(value[kept]).max(initial=1e-30))


def from_random_starts(subject: Subject, theirs, loss: str, target, options: argparse.Namespace):
    """Return the share of images that APGD leaves correctly classified, here and by adv-lib as it is published."""
    published = adversarial.adv_lib("attacks.auto_pgd")
    peer = published.apgd if target is None else published.apgd_targeted
    name = "ce" if loss == "cross_entropy" else loss
    attacked = peer(subject.peer, *theirs, options.epsilon, torch.inf, n_iter=options.steps, loss_function=name)
    make = apgd.make if target is None else apgd.make_targeted
    run = jax.jit(make("linf", options.steps, loss=loss, bounds=UNIT), static_argnums=0)
    ours = run(subject.ours, jax.random.key(0), subject.image, subject.label, options.epsilon)
    return robust(subject, ours), robust(subject, attacked.permute(0, 2, 3, 1).numpy())


def robust(subject: Subject, attacked) -> float:
    """Return the share of attacked images that are classified correctly."""
    return float(np.mean(np.asarray(jax.jit(subject.ours)(attacked)).argmax(-1) == subject.label))


def boundary(subject: Subject, theirs, towards, options: argparse.Namespace):
    """Return the same for FAB-T: the distance to one class from the image, and all classes at ε."""
    peers, count = adversarial.fab(), len(subject.label)
    start = torch.full((count,), torch.inf)
    arguments = {"u": start, "targets": torch.as_tensor(towards).long(), "n_iter": options.steps}
    _, reached, distance = peers._fab(subject.peer, *theirs, torch.inf, **arguments)
    run = jax.jit(fab.search("linf", options.steps, last_steps=0, bounds=UNIT), static_argnums=0)
    found = run(subject.ours, jax.random.key(0), subject.image, subject.label, options.epsilon, towards)
    ours, peer = np.asarray(found.distance), np.where(reached.numpy(), distance.numpy(), np.inf)
    differ, both = np.isfinite(ours) != np.isfinite(peer), np.isfinite(ours) & np.isfinite(peer)
    largest = np.abs(ours[both] - peer[both]).max(initial=0) / peer[both].max(initial=1e-30)
    if options.skip_random:
        return int(differ.sum()), float(largest), (None, None)
    attacked = peers.fab(subject.peer, *theirs, torch.inf, options.steps, targeted_restarts=True)
    attacked = attacked.permute(0, 2, 3, 1).numpy()
    inside = np.abs(attacked - subject.image).max((1, 2, 3)) <= options.epsilon
    attacked = np.where(inside[:, None, None, None], attacked, subject.image)
    run = jax.jit(fab.make_targeted("linf", options.steps, bounds=UNIT), static_argnums=0)
    ours = run(subject.ours, jax.random.key(0), subject.image, subject.label, options.epsilon)
    return int(differ.sum()), float(largest), (robust(subject, ours), robust(subject, attacked))


if __name__ == "__main__":
    main()
