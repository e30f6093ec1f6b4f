"""The closest classes c̃(x) of a finished classifier run, for projecting to them alone."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from gradalign_jax import alignment, data, parallel
from gradalign_jax.evaluation.blocks import Blocks
from gradalign_jax.evaluation.programs import Model
from gradalign_jax.experiment import artifacts
from gradalign_jax.experiment.subject import create_classifier
from gradalign_jax.types import Classifier, Variables

# Classes whose distance exceeds the smallest by less than this share count as closest, too: an evaluation's program may
# round differently, and must find the pair that it needs.
_TIE = 1e-3


class Judge(NamedTuple):
    """A finished classifier: its functions, its weights and their digest."""

    classifier: Classifier
    variables: Variables
    digest: str


def load(directory: str, dataset: data.Dataset) -> Judge:
    """Load the classifier of `config.project.classifier`.

    Raises:
      RunError: if its weights are missing or damaged, or of another data set.
    """
    variables, config, described = artifacts.load_classifier(directory, dataset.name, "config.project.classifier")
    artifacts.check_classes(directory, described, dataset)
    return Judge(create_classifier(config, dataset), variables, described["digest"])


def classes(judge: Judge, images: data.Split, on: Sequence[jax.Device], block: int) -> np.ndarray:
    """Return which classes are c̃ (Eq. 5) of each image, bool `[N, K]`: one, or several that are equally close.

    Args:
      judge: the classifier.
      images: `[N, ...]`.
      on: the devices.
      block: images per device and program call.
    """

    def distances(variables, batch):
        return alignment.by_class(Model(judge.classifier, variables), None, *batch)["distance"]

    blocks = Blocks(images, on=on, block=block, block_key="config.project.block")
    return nearest(blocks.map(distances)(parallel.replicate(judge.variables, on)), images.label)


def nearest(distance: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Mark each image's closest other class, and any tied with it up to rounding, bool `[N, K]`.

    Args:
      distance: signed, `[N, K]`; +inf for a class that no linear step reaches.
      label: int `[N]`.
    """
    own = np.arange(distance.shape[1]) == label[:, None]
    order = np.where(own, np.inf, np.minimum(distance, np.finfo(np.float32).max))
    first = np.arange(distance.shape[1]) == order.argmin(1)[:, None]
    least = order.min(1, keepdims=True)
    return first | (np.isfinite(distance) & (order <= least + _TIE * np.abs(least)))
