"""Where a classifier run's Δx comes from: known exactly, a trained generator, or a store of projections."""

import importlib

import numpy as np
from ml_collections import ConfigDict

from gradalign_jax.data import Dataset
from gradalign_jax.errors import RunError
from gradalign_jax.types import Estimate

# Which task made what a config key names; its module has `load_estimate(directory, dataset) -> Estimate`.
_MADE_BY = {"generator": "vrgan", "store": "project"}


def load(section: ConfigDict, dataset: Dataset, split: str, images: int = 0) -> Estimate | None:
    """The Δx that `section.generator` or `section.store` names, else the exact one, else None.

    split, images: what it is needed for, the first so many images of a split (0: all).

    Raises:
      RunError: if what the directory holds is unfinished, damaged, of another data set, or lacks some of those images.
    """
    for key, task in _MADE_BY.items():
        if section[key]:
            estimate = importlib.import_module(f"gradalign_jax.tasks.{task}").load_estimate(section[key], dataset)
            if split in dataset.splits:
                _check_covers(section[key], estimate, split, dataset.splits[split].index[: images or None])
            return estimate
    if dataset.delta_x is None:
        return None
    return Estimate((), lambda _, *batch: dataset.delta_x(*batch), {"source": "exact"})


def _check_covers(directory: str, estimate: Estimate, split: str, index: np.ndarray) -> None:
    if estimate.index is None:
        return
    lacking = index[~np.isin(index, estimate.index)]
    if len(lacking):
        raise RunError(
            f"{directory} knows no Δx of {len(lacking)} of the {len(index)} {split} images that are needed, image "
            f"{lacking[0]} the first: project those too (config.project.splits, config.project.images), or use fewer "
            "(config.data.limit, config.evaluate.images)"
        )


def check_apart(trained: Estimate | None, measuring: Estimate | None, same_allowed: bool) -> None:
    """Raises RunError where one generator made the Δx that trains and the Δx that measures, wherever each lies."""
    # Raw weights and their average are of one run.
    described = [estimate.described for estimate in (trained, measuring) if estimate]
    generators = {each.get("run", each.get("digest")) for each in described}
    if trained and measuring and not same_allowed and len(generators) == 1 and None not in generators:
        raise RunError(
            "the generator whose Δx trains is the one whose Δx measures: ᾱ_Δx would tell how well training fitted it; "
            "measure by another one's, or give config.evaluate.same_generator=True"
        )
