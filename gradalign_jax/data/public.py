"""MNIST and CIFAR-10: their sources and the splits of the authors' code.

`RandomState(0)` shuffles the positions in the original training file, and the first tenth of them validates.
"""

import functools
from collections.abc import Sequence

import numpy as np

from gradalign_jax.data import cache, directories, idx, tfds
from gradalign_jax.data.dataset import Dataset, Split
from gradalign_jax.data.directories import Folder
from gradalign_jax.data.tfds import Spec

MNIST = Spec(
    name="mnist",
    image_shape=(28, 28, 1),
    num_classes=10,
    counts={"train": 60_000, "test": 10_000},
    first_labels={"train": (5, 0, 4, 1, 9, 2, 1, 3, 1, 4), "test": (7, 2, 1, 0, 4, 1, 4, 9, 5, 9)},
)
CIFAR10 = Spec(
    name="cifar10",
    image_shape=(32, 32, 3),
    num_classes=10,
    counts={"train": 50_000, "test": 10_000},
    first_labels={"train": (6, 9, 9, 4, 1, 1, 2, 7, 8, 3), "test": (3, 8, 8, 0, 6, 6, 1, 6, 3, 1)},
)


def load(
    name: str,
    spec: Spec,
    data_dir: Folder,
    cache_dir: Folder,
    limit: int | None,
    digits: Sequence[int] | None = None,
) -> Dataset:
    """Return a data set with a tenth of its training images held out for validation.

    Args:
      name: name of the resulting data set.
      spec: the data set to read.
      data_dir: see `data.load`; MNIST's original idx files are preferred to prepared records.
      cache_dir: see `data.load`.
      limit: see `data.load`.
      digits: the labels to keep, in ascending order, numbered from 0 in the result; None: all.

    Raises:
      DataError: the data are missing, damaged or not the expected ones.
    """
    arrays = _arrays(spec, data_dir, cache_dir)
    image, label = arrays["image"], arrays["label"].astype(np.int32)
    kept = range(len(label)) if digits is None else np.flatnonzero(np.isin(label, digits)).tolist()
    if digits is not None:
        label = np.searchsorted(digits, label).astype(np.int32)
    training = [i for i in kept if i < spec.counts["train"]]
    test = [i for i in kept if i >= spec.counts["train"]]
    np.random.RandomState(0).shuffle(training)  # a list in file order, as in the authors' code
    held_out = len(training) // 10
    positions = {"train": training[held_out:], "validation": training[:held_out], "test": test}
    splits = {}
    for split, chosen in positions.items():
        index = np.asarray(chosen[:limit], np.int32)
        splits[split] = Split(image[index], label[index], index)
    return Dataset(
        name=name,
        num_classes=spec.num_classes if digits is None else len(digits),
        image_shape=spec.image_shape,
        splits=splits,
        notes=_notes(spec, arrays),
    )


def _arrays(spec: Spec, data_dir: Folder, cache_dir: Folder) -> cache.Arrays:
    """Return image uint8 `[N, H, W, C]`, label uint8 `[N]` and lossy bool `[splits]`, the test images last."""
    if spec.name == "mnist" and (files := idx.find(directories.prepared_root(data_dir))):
        parts = [idx.read(files[split], spec.counts[split], spec.first_labels[split]) for split in spec.counts]
        image, label = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return {"image": image, "label": label, "lossy": np.zeros(len(parts), bool)}
    folder = tfds.find(spec.name, data_dir)
    return cache.fetch(cache_dir, spec.name, tfds.fingerprint(folder), functools.partial(tfds.read, spec, folder))


def _notes(spec: Spec, arrays: cache.Arrays) -> tuple[str, ...]:
    notes = []
    starts = {"train": 0, "test": spec.counts["train"]}
    if any(tuple(arrays["label"][start:][:10]) != spec.first_labels[split] for split, start in starts.items()):
        notes.append(
            f"this copy of {spec.name} orders its images differently from the original files: train and validation"
            " together hold the same images as the authors', but divide them differently"
        )
    if arrays["lossy"].any():
        notes.append(f"this copy of {spec.name} holds JPEG images: close to the original ones, not equal to them")
    return tuple(notes)
