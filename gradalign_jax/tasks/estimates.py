"""Where a classifier run's Δx comes from: known exactly, a trained generator, or a store of projections."""

import importlib

from ml_collections import ConfigDict

from gradalign_jax.data import Dataset
from gradalign_jax.types import Estimate

# Which task made what a config key names; its module has `load_estimate(directory, dataset) -> Estimate`.
_MADE_BY = {"generator": "vrgan", "store": "project"}


def load(section: ConfigDict, dataset: Dataset) -> Estimate | None:
    """The Δx that `section.generator` or `section.store` names, else the exact one, else None.

    Raises:
      RunError: if what the directory holds is unfinished, damaged, or of another data set.
    """
    for key, task in _MADE_BY.items():
        if section[key]:
            return importlib.import_module(f"gradalign_jax.tasks.{task}").load_estimate(section[key], dataset)
    if dataset.delta_x is None:
        return None
    return Estimate((), lambda _, *batch: dataset.delta_x(*batch), {"source": "exact"})
