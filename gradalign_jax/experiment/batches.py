"""The examples of each training step, as pure functions of (seed, step)."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from gradalign_jax import data
from gradalign_jax.data import pipeline
from gradalign_jax.errors import RunError
from gradalign_jax.types import IMAGE_RANGE

_SAMPLED = {"validation": 200, "test": 1000}  # sizes of the splits of a sampled data set (the authors')


def load(config: ConfigDict) -> data.Dataset:
    """Load the configured data set onto the host."""
    section = config.data
    options = {key: section[key] for key in ("folder", "table") if key in section}
    return data.load(
        section.name,
        data_dir=section.dir or None,
        cache_dir=section.cache or None,
        limit=section.limit or None,
        **options,
    )


def described(dataset: data.Dataset) -> dict[str, Any]:
    """Return what a result says of its data: `shape` of an image, and size and class balance of each split."""
    splits = {
        name: {"images": len(split.label), "share_of_class_0": float(np.mean(split.label == 0))}
        for name, split in dataset.splits.items()
    }
    return {"shape": list(dataset.image_shape), "splits": splits}


def steps_per_epoch(config: ConfigDict, dataset: data.Dataset) -> int:
    """Return the configured number of steps, or the number of whole batches in the data set.

    Raises:
      RunError: if the data set has fewer batches, no number is configured for a sampled data set, or the run has more
        steps than an int32 counts.
    """
    batch, wanted = config.train.batch_size, config.train.steps_per_epoch
    if dataset.sample is not None:
        if not wanted:
            raise RunError("config.train.steps_per_epoch=0: this data set is sampled, give a number >= 1")
        return wanted
    whole = len(dataset.splits["train"].label) // batch
    if max(wanted, 1) > whole:
        raise RunError(
            f"an epoch of {wanted or 1} batches of {batch} needs more than the {whole * batch} images there are: "
            "lower config.train.steps_per_epoch (0: as many as there are) or config.train.batch_size"
        )
    steps = wanted or whole
    if config.train.epochs * steps >= 2**31:
        raise RunError(f"config.train.epochs={config.train.epochs} of {steps} steps are more than 2147483647: lower it")
    return steps


def source(config: ConfigDict, dataset: data.Dataset, steps_per_epoch: int, key: jax.Array) -> Callable:
    """Build the source of a chunk's batches: fresh samples, or the images on the device in an epoch's random order."""
    if dataset.sample is not None:
        return lambda _, first: lambda key, slots, step: dataset.sample(key, indices=slots)
    size, batch = len(dataset.splits["train"].label), config.train.batch_size

    def at_chunk(split: data.Split, first: jax.Array) -> Callable:
        order = pipeline.epoch_order(key, first // steps_per_epoch, size, steps_per_epoch * batch)

        def at(key: jax.Array, slots: jax.Array, step: jax.Array):
            chosen = pipeline.gather(split, order[step % steps_per_epoch * batch + slots])
            if dataset.augment is None:
                return chosen
            keys = jax.vmap(lambda slot: jax.random.fold_in(key, slot))(slots)
            return chosen._replace(image=jax.vmap(dataset.augment)(keys, chosen.image))

        return at

    return at_chunk


def split(config: ConfigDict, dataset: data.Dataset, name: str, key: jax.Array) -> data.Split:
    """Return a split on the host; a sampled data set is sampled once (the authors resampled at every pass)."""
    if dataset.sample is None:
        return dataset.splits[name]
    count = min(_SAMPLED[name], config.data.limit or _SAMPLED[name])
    return data.Split(*jax.device_get(dataset.sample(key, count)))


def image_range(dataset: data.Dataset) -> tuple[float, float]:
    """Return [-1, 1], or the range of the training images where it is wider, as on Squares."""
    low, high = IMAGE_RANGE
    image = dataset.splits["train"].image if "train" in dataset.splits else np.zeros(1, np.uint8)
    if image.dtype == np.uint8:
        return low, high
    return min(low, float(image.min())), max(high, float(image.max()))
