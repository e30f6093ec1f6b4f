"""MNIST-3/5, MNIST and CIFAR-10, as `tensorflow_datasets` prepares them, read without TensorFlow.

The splits are those of the authors' code: `RandomState(0)` shuffles the places in the original training
file, the first tenth validates. `prepare.py` downloads; `cache.py` keeps the decoded arrays.
"""

import functools
import hashlib
import os
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from gradalign_jax.data import cache
from gradalign_jax.data.cache import Folder
from gradalign_jax.data.dataset import Dataset, Split
from gradalign_jax.errors import DataError

_BLOCK = 1_000  # records read at a time


class Spec(NamedTuple):
    """What a data set must look like, and how the label files of the original begin."""

    name: str  # in tensorflow_datasets
    image_shape: tuple[int, int, int]
    num_classes: int
    counts: dict[str, int]  # examples by tfds split
    first_labels: dict[str, tuple[int, ...]]


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


def mnist(data_dir: Folder = None, cache_dir: Folder = None, limit: int | None = None) -> Dataset:
    """Returns MNIST: 54,000 / 6,000 / 10,000 images; the arguments are those of `data.load`."""
    return _tenth_validates("mnist", MNIST, data_dir, cache_dir, limit, classes=None)


def mnist35(data_dir: Folder = None, cache_dir: Folder = None, limit: int | None = None) -> Dataset:
    """Returns MNIST-3/5 (3 is class 0, 5 is class 1): 10,397 / 1,155 / 1,902 images."""
    return _tenth_validates("mnist35", MNIST, data_dir, cache_dir, limit, classes=(3, 5))


def cifar10(data_dir: Folder = None, cache_dir: Folder = None, limit: int | None = None) -> Dataset:
    """Returns CIFAR-10: 45,000 / 5,000 / 10,000 images; the arguments are those of `data.load`."""
    return _tenth_validates("cifar10", CIFAR10, data_dir, cache_dir, limit, classes=None)


def _tenth_validates(name: str, spec: Spec, data_dir, cache_dir, limit, classes: tuple[int, ...] | None) -> Dataset:
    folder = find(spec.name, data_dir)
    arrays = cache.fetch(cache_dir, spec.name, fingerprint(folder), functools.partial(read, spec, folder))
    image, label = arrays["image"], arrays["label"].astype(np.int32)
    kept = range(len(label)) if classes is None else np.flatnonzero(np.isin(label, classes)).tolist()
    if classes is not None:
        label = np.searchsorted(classes, label).astype(np.int32)
    training = [i for i in kept if i < spec.counts["train"]]
    tested = [i for i in kept if i >= spec.counts["train"]]
    np.random.RandomState(0).shuffle(training)  # of a list, in file order, as the authors do
    held_out = len(training) // 10
    places = {"train": training[held_out:], "validation": training[:held_out], "test": tested}
    splits = {}
    for split, place in places.items():
        index = np.asarray(place[:limit], np.int32)
        splits[split] = Split(image[index], label[index], index)
    return Dataset(
        name=name,
        num_classes=spec.num_classes if classes is None else len(classes),
        image_shape=spec.image_shape,
        splits=splits,
        notes=_notes(spec, arrays),
    )


def _notes(spec: Spec, arrays: cache.Arrays) -> tuple[str, ...]:
    notes = []
    starts = {"train": 0, "test": spec.counts["train"]}
    if any(tuple(arrays["label"][starts[split] :][:10]) != spec.first_labels[split] for split in starts):
        notes.append(
            f"this copy of {spec.name} numbers its images otherwise than the original files:"
            " the split is made by the same rule, of other images"
        )
    if arrays["lossy"].any():
        notes.append(f"this copy of {spec.name} holds JPEG images: close to the original, not equal to it")
    return tuple(notes)


def find(name: str, data_dir: Folder = None) -> Path:
    """Returns the folder of the newest prepared version of a data set.

    Looks in `data_dir`, otherwise in $TFDS_DATA_DIR, otherwise in ~/tensorflow_datasets.

    Raises:
      DataError: there is none.
    """
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    versions = [info.parent for info in root.glob(f"{name}/*.*.*/dataset_info.json")]
    if not versions:
        raise DataError(
            f"{name} is not prepared in {root}: run `{_remedy(name, root)}`,"
            " or set TFDS_DATA_DIR to the folder that holds it"
        )
    return max(versions, key=lambda folder: [int(part) for part in folder.name.split(".") if part.isdigit()])


def fingerprint(folder: Path) -> dict:
    """Describes the files of a prepared data set (name, size, time of change), to notice another copy."""
    files = sorted(folder.iterdir())
    return {
        "version": folder.name,
        "files": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files],
    }


def read(spec: Spec, folder: Path) -> cache.Arrays:
    """Decodes a prepared data set, in the order of the original files, the test images last.

    Returns:
      image uint8 `[N, H, W, C]`, label uint8 `[N]`, lossy bool `[splits]` (whether the records are JPEG).

    Raises:
      DataError: a package is missing, or the files are damaged or hold something else.
    """
    try:
        import tensorflow_datasets

        builder = tensorflow_datasets.builder_from_directory(folder)
        _check_info(spec, folder, builder.info)
        total = sum(spec.counts.values())
        with tqdm(total=total, desc=f"decoding {spec.name} (once)", unit="image", disable=None) as bar:
            parts = [_read_split(spec, folder, builder, split, bar) for split in spec.counts]
    except (DataError, MemoryError):
        raise
    except ImportError as error:
        package = (error.name or "tensorflow_datasets").split(".")[0]
        raise DataError(f"reading {spec.name} needs package {package}: pip install {package}") from error
    except Exception as error:  # whatever the readers of files, records and images raise
        cause = str(error).split("\n")[0].split(";")[0]
        raise DataError(f"{folder} cannot be read ({cause}): if it is damaged, {_anew(spec.name, folder)}") from error
    image, label, lossy = zip(*parts, strict=True)
    return {"image": np.concatenate(image), "label": np.concatenate(label), "lossy": np.asarray(lossy)}


def _check_info(spec: Spec, folder: Path, info) -> None:
    file_format = info.file_format.value
    if file_format != "array_record":
        raise DataError(
            f"{folder} is prepared as {file_format}, which needs TensorFlow: prepare it as array_record"
            f" in another folder, `{_remedy(spec.name, 'DIR')}`"
        )
    found = (
        {name: split.num_examples for name, split in info.splits.items()},
        tuple(info.features["image"].shape),
        info.features["label"].num_classes,
    )
    expected = (spec.counts, spec.image_shape, spec.num_classes)
    if found != expected:
        raise _foreign(spec, folder, f"examples, image shape and classes are {found}, not {expected}")


def _read_split(spec: Spec, folder: Path, builder, split: str, bar: tqdm) -> tuple[np.ndarray, np.ndarray, bool]:
    source = builder.as_data_source(split)
    count = spec.counts[split]
    if len(source) != count:
        raise _foreign(spec, folder, f"{split} holds {len(source)} records, not {count}")
    image = np.empty((count, *spec.image_shape), np.uint8)
    label = np.empty(count, np.uint8)
    place = _hashed_order(split, count)
    for start in range(0, count, _BLOCK):
        positions = range(start, min(start + _BLOCK, count))
        for position, record in zip(positions, source.__getitems__(list(positions)), strict=True):
            one = record["image"]
            if one.shape != spec.image_shape or one.dtype != np.uint8:
                raise _foreign(spec, folder, f"an image is {one.dtype} {one.shape}, not uint8 {spec.image_shape}")
            if not 0 <= record["label"] < spec.num_classes:
                raise _foreign(spec, folder, f"a label is {record['label']}, not one of {spec.num_classes}")
            if "id" in record:
                place[position] = int(record["id"].decode().rpartition("_")[2])
            image[place[position]], label[place[position]] = one, record["label"]
        bar.update(len(positions))
    if not np.array_equal(np.sort(place), np.arange(count)):
        raise _foreign(spec, folder, f"the ids of {split} do not number 0 to {count - 1}")
    lossy = b"\xff\xd8\xff" in source.data_source[0]  # how a JPEG file begins
    return image, label, lossy


def _hashed_order(split: str, count: int) -> np.ndarray:
    """Returns each record's place in the original file, int `[count]`.

    tfds sorts records by the MD5 of the split's name and the record's key, and the key is that place. So
    the original order comes back although MNIST's records do not name it (CIFAR-10's do, in "id"); that
    it did is checked in `_notes`, against the labels with which the original files begin.
    """
    return np.array(sorted(range(count), key=lambda key: hashlib.md5(f"{split}{key}".encode()).digest()))


def _foreign(spec: Spec, folder: Path, what: str) -> DataError:
    return DataError(f"{folder} does not hold {spec.name}: {what}; {_anew(spec.name, folder)}")


def _anew(name: str, folder: Path) -> str:
    return f"remove that folder and run `{_remedy(name, folder.parent.parent)}`"


def _remedy(name: str, data_dir: str | os.PathLike) -> str:
    return f"python -m gradalign_jax.data.prepare {name} --data_dir {shlex.quote(str(data_dir))}"
