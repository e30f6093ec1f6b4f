"""Chest radiographs with and without COPD, or of any two classes, from a folder of films and a CSV (paper 3.1, A.1).

`data/radiographs.py` documents the CSV, `data/films.py` the films.
"""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from gradalign_jax.data import cache, films, radiographs
from gradalign_jax.data.dataset import Dataset, Split
from gradalign_jax.data.directories import Folder, expand
from gradalign_jax.errors import DataError
from gradalign_jax.types import Array

CROP = 224  # pixels of the image that a model sees, height and width
_VERSION = 2  # of the preparation of films; another one makes cached films stale


def load(
    data_dir: Folder = None,
    cache_dir: Folder = None,
    limit: int | None = None,
    folder: Folder = None,
    table: Folder = None,
) -> Dataset:
    """Return the films of a folder, split by patient; 224 x 224 x 1 uint8.

    Training films are stored at 256 x 256 and cropped at random at every visit; the others are cropped centrally.

    Args:
      data_dir: not read.
      cache_dir: see `data.load`.
      limit: see `data.load`.
      folder: the directory of the films.
      table: the CSV; None: metadata.csv in `folder`.

    Raises:
      DataError: a column, cell or film is missing or wrong, or patients are not separable; rows are named.
    """
    del data_dir
    if not folder:
        raise DataError("config.data.folder is empty: give the folder of the films (and config.data.table, a CSV)")
    folder = expand(folder)
    rows, notes = radiographs.select(radiographs.read(expand(table or folder / "metadata.csv")), folder)
    labels = np.array([radiographs.label_of(row) for row in rows], np.int32)
    parts = radiographs.divide(rows)
    # Tables are often sorted by class, and a limited split should hold both.
    parts = {name: np.random.RandomState(0).permutation(part)[:limit] for name, part in parts.items()}
    used = np.sort(np.concatenate(list(parts.values())))
    image = _prepared([rows[i] for i in used], folder, cache_dir)
    splits = {}
    for name, part in parts.items():
        chosen = image[np.searchsorted(used, part)]
        if name != "train":
            edge = (films.SIZE - CROP) // 2
            chosen = chosen[:, edge : edge + CROP, edge : edge + CROP]
        splits[name] = Split(chosen, labels[part], part.astype(np.int32))
    return Dataset("copd", 2, (CROP, CROP, 1), splits, augment=random_crop, notes=tuple(notes))


def random_crop(key: Array, image: Array) -> Array:
    """Return a random square of 224 x 224 pixels from a film `[256, 256, C]`."""
    corner = jax.random.randint(key, (2,), 0, films.SIZE - CROP + 1)
    return jax.lax.dynamic_slice(image, (*corner, 0), (CROP, CROP, image.shape[-1]))


def _prepared(rows: Sequence[radiographs.Row], folder: Path, cache_dir: Folder) -> np.ndarray:
    """Return the prepared films of the rows, uint8 `[N, 256, 256, 1]`, from the cache or decoded."""
    paths = [(row["row"], folder / row["image"]) for row in rows]
    source = {"films": _fingerprint(paths), "size": films.SIZE, "version": _VERSION}
    build = functools.partial(_build, paths)
    image = cache.fetch(cache_dir, f"radiographs-{source['films'][:16]}", source, build)["image"]
    # Equal films under two names: the table cannot show that they are one.
    digests = [hashlib.sha256(film).digest() for film in image]
    radiographs.check_unique(digests, rows, lambda row: row["patient_id"], "hold the same film for two patients")
    radiographs.check_unique(digests, rows, radiographs.label_of, "hold the same film with two labels")
    return image


def _build(paths: Sequence[tuple[str, Path]]) -> cache.Arrays:
    return {"image": films.load(paths)}


def _fingerprint(paths: Sequence[tuple[str, Path]]) -> str:
    hashed = hashlib.sha256()
    for row, path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(
                f"the film of row {row} of the table is missing: correct `image` or config.data.folder"
            ) from error
        hashed.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return hashed.hexdigest()
