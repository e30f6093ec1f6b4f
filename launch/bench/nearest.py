"""The item `nearest`: 100 images of 3,072 numbers, the nearest of 20,000 examples of the target class, 10 classes.

"authors" is the brute-force search, all distances by `torch.cdist` with the other classes masked; "lean" searches class
by class, a tenth of the distances. The share of the matmul rate counts one product of all images with all examples.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from gradalign_jax.deltax import nearest
from launch.bench import peers
from launch.bench import program as bench_program
from launch.bench.interleaved import Item
from launch.bench.peers import torch
from launch.bench.program import Program

ITEMS = ["nearest"]
BATCH, COUNT, SIZE, CLASSES = 100, 20_000, 3072, 10


def inputs(batch: int, count: int, size: int) -> tuple[np.ndarray, ...]:
    """Return examples, their labels, images, and a target class for each image."""
    rng = np.random.default_rng(0)
    examples, image = (rng.uniform(-1, 1, (n, size)).astype(np.float32) for n in (count, batch))
    return examples, rng.integers(0, CLASSES, count), image, rng.integers(0, CLASSES, batch).astype(np.int32)


def program(examples: np.ndarray, labels: np.ndarray, image: np.ndarray, target: np.ndarray) -> Program:
    """Return our Δx: (estimator, images, targets) -> vectors."""
    with bench_program.on_host():
        delta_x = nearest.make(examples, labels)
    return Program(lambda delta_x, image, target: delta_x(image, target, target, None), (delta_x, image, target))


def peer_side(
    examples: np.ndarray, labels: np.ndarray, image: np.ndarray, target: np.ndarray, by_class: bool
) -> Callable[[], Any]:
    """Return PyTorch's Δx, with all distances at once or class by class."""
    examples, image = torch.from_numpy(examples), torch.from_numpy(image)
    labels, target = torch.from_numpy(labels), torch.from_numpy(target).long()
    members = [torch.nonzero(labels == c)[:, 0] for c in range(CLASSES)]
    of_class = [examples[rows] for rows in members]

    def at_once():
        distance = torch.cdist(image, examples)
        distance.masked_fill_(labels[None] != target[:, None], float("inf"))
        return examples[distance.argmin(1)] - image

    def one_by_one():
        vector = torch.empty_like(image)
        for c in range(CLASSES):
            rows = torch.nonzero(target == c)[:, 0]
            some = image[rows]
            vector[rows] = of_class[c][torch.cdist(some, of_class[c]).argmin(1)] - some
        return vector

    return one_by_one if by_class else at_once


def build(name: str, batch: int = BATCH, count: int = COUNT, size: int = SIZE) -> Item:
    """Build the item, without PyTorch's sides if it is not installed."""
    arrays = inputs(batch, count, size)
    ours, seconds = bench_program.ready(program(*arrays))
    sides, agreement = {"ours": ours}, None
    if torch:
        sides |= {"authors": peer_side(*arrays, by_class=False), "lean": peer_side(*arrays, by_class=True)}
        agreement = f"Δx {peers.relative_difference(ours(), sides['authors']()):.0e}"
    return Item(name, sides, seconds, agreement, 2.0 * batch * count * size)
