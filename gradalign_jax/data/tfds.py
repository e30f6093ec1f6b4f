"""Data sets prepared by `tensorflow_datasets`, read without TensorFlow; `prepare.py` downloads them."""

import hashlib
import logging
import os
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from gradalign_jax.data import cache, directories
from gradalign_jax.data.directories import Folder
from gradalign_jax.errors import DataError
from gradalign_jax.terminal import progress_bar

_BLOCK = 1_000  # records read at a time
_PACKAGES = {"PIL": "pillow", "google": "protobuf", "tree": "dm-tree"}  # modules whose package has another name


class Spec(NamedTuple):
    """What a copy of a data set must look like.

    Attributes:
      name: name in `tensorflow_datasets`.
      image_shape: `(H, W, C)`.
      num_classes: number of classes.
      counts: number of examples by split of `tensorflow_datasets`.
      first_labels: by split, the labels with which the original file begins.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    counts: dict[str, int]
    first_labels: dict[str, tuple[int, ...]]


def find(name: str, data_dir: Folder = None) -> Path:
    """Return the directory of the newest prepared version of a data set.

    Args:
      name: name in `tensorflow_datasets`.
      data_dir: where to look; None: $TFDS_DATA_DIR, otherwise ~/tensorflow_datasets.

    Raises:
      DataError: no version is prepared there.
    """
    root = directories.prepared_root(data_dir)
    versions = [info.parent for info in root.glob(f"{name}/*.*.*/dataset_info.json")]
    if not versions:
        raise DataError(
            f"{name} is not prepared in {root}: run `{_remedy(name, root)}`,"
            " or set TFDS_DATA_DIR to the directory that holds it"
        )
    return max(versions, key=lambda folder: [int(part) for part in folder.name.split(".") if part.isdigit()])


def fingerprint(folder: Path) -> dict:
    """Return the names, sizes and modification times of the files of a prepared data set."""
    files = sorted(folder.iterdir())
    return {
        "version": folder.name,
        "files": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files],
    }


def read(spec: Spec, folder: Path) -> cache.Arrays:
    """Decode a prepared data set, in the order of the original files, the test images last.

    Returns:
      image uint8 `[N, H, W, C]`, label uint8 `[N]`, lossy bool `[splits]` (whether the records are JPEG).

    Raises:
      DataError: a package is missing, or the files are damaged or hold other data.
    """
    try:
        builder = _builder_from_directory()(folder)
        _check_info(spec, folder, builder.info)
        total = sum(spec.counts.values())
        with progress_bar(total=total, desc=f"decoding {spec.name} (once)", unit="image") as bar:
            parts = [_read_split(spec, folder, builder, split, bar) for split in spec.counts]
    except (DataError, MemoryError):
        raise
    except Exception as error:  # anything that the readers of files, records and images raise
        cause = str(error).split("\n")[0].split(";")[0]
        if missing := missing_package(error):
            raise DataError(f"reading {spec.name} needs {missing}") from error
        raise DataError(f"{folder} cannot be read ({cause}): if it is damaged, {_anew(spec.name, folder)}") from error
    image, label, lossy = zip(*parts, strict=True)
    return {"image": np.concatenate(image), "label": np.concatenate(label), "lossy": np.asarray(lossy)}


def missing_package(error: BaseException | None) -> str | None:
    """Return the missing package behind an error, with the command that installs it, or None.

    An import that failed deep inside `tensorflow_datasets` may arrive as the cause of another error.
    """
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            module = error.name.split(".")[0]
            package = _PACKAGES.get(module, module)
            return f"package {package}: pip install {package}"
        if isinstance(error, ImportError):
            return "a package that cannot be imported (" + str(error).split("\n")[0].rstrip(".") + "): install it"
        error = error.__cause__  # not __context__: a fallback after a failed import may fail for its own reasons
    return None


def _builder_from_directory():
    # The __init__ of tensorflow_datasets logs an import error with its traceback and continues without its names;
    # the import of public_api raises it.
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        import tensorflow_datasets  # noqa: F401
    finally:
        logging.disable(before)
    from tensorflow_datasets.public_api import builder_from_directory

    return builder_from_directory


def _check_info(spec: Spec, folder: Path, info) -> None:
    file_format = info.file_format.value
    if file_format != "array_record":
        raise DataError(
            f"{folder} is prepared as {file_format}, which needs TensorFlow: prepare it as array_record"
            f" in another directory, `{_remedy(spec.name, 'DIR')}`"
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
    position = _hashed_order(split, count)
    for start in range(0, count, _BLOCK):
        numbers = range(start, min(start + _BLOCK, count))
        for number, record in zip(numbers, source.__getitems__(list(numbers)), strict=True):
            one = record["image"]
            if one.shape != spec.image_shape or one.dtype != np.uint8:
                raise _foreign(spec, folder, f"an image is {one.dtype} {one.shape}, not uint8 {spec.image_shape}")
            if not 0 <= record["label"] < spec.num_classes:
                raise _foreign(spec, folder, f"a label is {record['label']}, not one of {spec.num_classes}")
            if "id" in record:
                position[number] = int(record["id"].decode().rpartition("_")[2])
            image[position[number]], label[position[number]] = one, record["label"]
        bar.update(len(numbers))
    if not np.array_equal(np.sort(position), np.arange(count)):
        raise _foreign(spec, folder, f"the ids of {split} do not number 0 to {count - 1}")
    lossy = b"\xff\xd8\xff" in source.data_source[0]  # the first bytes of a JPEG file
    return image, label, lossy


def _hashed_order(split: str, count: int) -> np.ndarray:
    """Return each record's position in the original file, int `[count]`.

    tfds sorts records by the MD5 of the split's name and the record's key, and the key is that position. This
    recovers the original order although MNIST's records do not store it (CIFAR-10's do, in "id"). The data set
    gets a note if its first labels are not those of the original file.
    """
    return np.array(sorted(range(count), key=lambda key: hashlib.md5(f"{split}{key}".encode()).digest()))


def _foreign(spec: Spec, folder: Path, what: str) -> DataError:
    return DataError(f"{folder} does not hold {spec.name}: {what}; {_anew(spec.name, folder)}")


def _anew(name: str, folder: Path) -> str:
    return f"remove that directory and run `{_remedy(name, folder.parent.parent)}`"


def _remedy(name: str, data_dir: str | os.PathLike) -> str:
    return f"python -m gradalign_jax.data.prepare {name} --data_dir {shlex.quote(str(data_dir))}"
