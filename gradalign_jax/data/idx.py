"""MNIST's original idx files (train-images-idx3-ubyte and its three siblings), read with NumPy alone."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gradalign_jax.errors import DataError

Files = dict[str, tuple[Path, Path]]  # by split: images, labels

_PREFIXES = {"train": "train", "test": "t10k"}
_FOLDERS = (".", "MNIST/raw")  # the latter is where torchvision downloads them
_UBYTE = 0x08  # the element type of all four files


def find(root: Path) -> Files | None:
    """Return the paths of the four files, plain or gzipped, in `root` or `root`/MNIST/raw; None if there is none.

    Raises:
      DataError: some of the files are there and others are missing.
    """
    for folder in (root / name for name in _FOLDERS):
        stems = {
            split: (folder / f"{prefix}-images-idx3-ubyte", folder / f"{prefix}-labels-idx1-ubyte")
            for split, prefix in _PREFIXES.items()
        }
        files = {split: tuple(_existing(stem) for stem in pair) for split, pair in stems.items()}
        missing = [
            stem.name for split in stems for stem, file in zip(stems[split], files[split], strict=True) if not file
        ]
        if not missing:
            return files
        if len(missing) < 2 * len(_PREFIXES):
            raise DataError(f"{folder} holds MNIST's idx files without {', '.join(missing)}: add it (plain or .gz)")
    return None


def read(files: tuple[Path, Path], count: int, first_labels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return image uint8 `[count, H, W, 1]` and label uint8 `[count]` of a split, in file order.

    Args:
      files: paths of the images and of the labels.
      count: the expected number of examples.
      first_labels: the labels with which the original file begins. Fashion-MNIST and others share its file names.

    Raises:
      DataError: a file is damaged or holds other data.
    """
    image, label = (_array(path) for path in files)
    if image.shape != (count, 28, 28) or label.shape != (count,):
        raise DataError(
            f"{files[0]} and {files[1].name} hold images {list(image.shape)} and labels {list(label.shape)}, not"
            f" [{count}, 28, 28] and [{count}]: replace them with MNIST's files"
        )
    if tuple(label[: len(first_labels)]) != tuple(first_labels)[:count]:
        raise DataError(
            f"{files[1]} does not hold MNIST's labels: it begins with {label[:10].tolist()}, not with"
            f" {list(first_labels)}; replace it with MNIST's file"
        )
    return image[..., None], label


def _existing(stem: Path) -> Path | None:
    return next((path for path in (stem, stem.with_name(f"{stem.name}.gz")) if path.is_file()), None)


def _array(path: Path) -> np.ndarray:
    """Return the array of an idx file: 2 zero bytes, element type, rank, one big-endian int32 per axis, elements."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":  # gzip; the name may say otherwise, since browsers unpack without renaming
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): replace it with MNIST's file") from error
    rank = content[3] if content[:3] == bytes((0, 0, _UBYTE)) and len(content) > 3 else 0
    start = 4 + 4 * rank
    shape = np.frombuffer(content[4:start][: 4 * (len(content[4:start]) // 4)], ">i4").tolist()
    if not rank or len(shape) < rank or len(content) - start != int(np.prod(shape)):
        raise DataError(f"{path} is not a whole idx file of bytes: replace it with MNIST's file")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
