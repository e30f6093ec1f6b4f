"""The suites' items: AutoAttack and MALT in L∞ at one ε, on advertorch's LeNet trained with PGD and MNIST test images.

Ours are the programs of an evaluation, float32. PyTorch's are adv-lib's attacks and a Square Attack of our own
(torch_peer/adversarial.py). Both have the same images, weights and budgets, and draw their own random starts.
"""

import time
from pathlib import Path

import jax
import numpy as np

from gradalign_jax import parallel
from gradalign_jax.data import Split
from gradalign_jax.evaluation import programs
from gradalign_jax.evaluation import suite as suites
from gradalign_jax.evaluation.options import Attacks, Square, Suite
from gradalign_jax.types import Classifier
from launch import lenet
from launch.bench.interleaved import Item
from launch.bench.peers import torch

ITEMS = ("autoattack", "malt")
EPSILON, UNIT = 0.3, (0.0, 1.0)


def build(name: str, archive: Path, count: int, queries: int) -> Item:
    """Build one of ITEMS: `count` images, `queries` of Square Attack; 100 steps and 9 classes, as published."""
    weights = lenet.read(archive)
    image, label = lenet.images(count)
    logits_fn = lenet.logits_fn(weights)
    settings = Suite(name, queries=queries)
    evaluation = programs.build(
        Classifier(init=lambda key: {}, apply=lambda variables, image, train=False: (logits_fn(image), {})),
        Split(image, label.astype(np.int32), np.arange(count, dtype=np.int32)),
        Attacks((EPSILON,), square=Square(queries), bounds=UNIT),
        on=jax.local_devices()[:1],
        block=100,
        key=jax.random.key(0),
        delta_x=None,
    )
    nothing = parallel.replicate({"": np.zeros(1)}, evaluation.devices)
    attacks = suites.stages(evaluation, settings, 10, UNIT)
    wrong = evaluation.clean(nothing) != evaluation.label
    found = {}

    def ours():
        outcome = suites.run(attacks, nothing, (EPSILON,), wrong)
        found["ours"] = 1 - outcome.fooled[-1].mean()
        found["gradients"] = outcome.gradients.sum(0).mean()

    start = time.perf_counter()
    ours()  # a whole run: an attack is compiled when an image survives the ones before it
    first = time.perf_counter() - start
    sides = {"ours": ours}
    if torch:
        from launch.bench.torch_peer import adversarial

        peer, run = lenet.torch_logits_fn(weights), getattr(adversarial, name)
        images = torch.from_numpy(image).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(label).long()

        def lean():
            found["lean"] = run(peer, *images, EPSILON, settings.steps, queries).double().mean().item()

        sides["lean"] = lean

    def agreement() -> str:
        robust = ", ".join(f"{side} {100 * found[side]:.1f} %" for side in sides)
        return f"robust: {robust}; {found['gradients']:.0f} gradients an image; first run {first:.0f} s"

    return Item(f"{name}, {count} images", sides, None, agreement, None, parts=count)
