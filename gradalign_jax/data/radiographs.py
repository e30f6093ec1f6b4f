"""Chest radiographs of two classes, from a folder of films and a CSV (paper 3.1, A.1; the authors' COPD pipeline).

The CSV has a row per film. Columns it needs: `image` (path below the folder), `patient_id`, and either `label` (0 or 1)
or spirometry: `fev1_fvc` (a fraction) or `fev1` and `fvc`; a ratio under 0.7 is class 1. Columns it may have, each with
its filter: `view` (PA is kept), `transplant` (patients with any 1 are left out), `days` (from film to test; under 30 is
kept), `study_id` (studies of exactly one film are kept), `test_id` (with `days` and `study_id`, the closest study of
each test and the closest test of each study), `split` (train, validation, test). Messages name rows, never files.
"""

import csv
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from gradalign_jax.data import cache
from gradalign_jax.data.cache import Folder
from gradalign_jax.data.dataset import Dataset, Split
from gradalign_jax.errors import DataError
from gradalign_jax.types import Array

SIZE, CROP = 256, 224  # pixels of a stored film, and of what a model sees
_SPLITS = ("train", "validation", "test")
_SHARES = {"validation": 0.11, "test": 0.18}  # of the patients; the paper's films divide so
_THREADS = 4
_Row = dict[str, str]


def copd(
    data_dir: Folder = None,
    cache_dir: Folder = None,
    limit: int | None = None,
    folder: Folder = None,
    table: Folder = None,
) -> Dataset:
    """Returns the films of a folder, split by patient; 224 x 224 x 1.

    Training films are kept at 256 x 256 and cropped at random at every visit, the others are cropped in the middle.

    Args:
      data_dir: not read.
      cache_dir, limit: those of `data.load`.
      folder: of the films.
      table: the CSV; by default metadata.csv in the folder.

    Raises:
      DataError: a column or film is missing, a film is constant, a patient is in two splits; the row is named.
    """
    if not folder:
        raise DataError("config.data.folder is empty: give the folder of the films (and config.data.table, a CSV)")
    folder = Path(folder).expanduser()
    table = Path(table).expanduser() if table else folder / "metadata.csv"
    rows, notes = _filtered(_read(table))
    labels = np.array([_label(row) for row in rows], np.int32)
    parts = _divide(rows)
    # Tables are often sorted by class: the first few of a split should hold both.
    parts = {name: np.random.RandomState(0).permutation(part)[:limit] for name, part in parts.items()}
    used = np.sort(np.concatenate(list(parts.values())))
    films = [(row["row"], folder / row["image"]) for row in (rows[i] for i in used)]
    source = {"films": _fingerprint(films), "size": SIZE, "version": 1}
    image = cache.fetch(cache_dir, f"radiographs-{source['films'][:16]}", source, lambda: {"image": _load(films)})[
        "image"
    ]
    place = {int(i): at for at, i in enumerate(used)}
    splits = {}
    for name, part in parts.items():
        chosen = image[[place[int(i)] for i in part]]
        if name != "train":
            edge = (SIZE - CROP) // 2
            chosen = chosen[:, edge : edge + CROP, edge : edge + CROP]
        splits[name] = Split(chosen, labels[part], part.astype(np.int32))
    return Dataset("copd", 2, (CROP, CROP, 1), splits, augment=random_crop, notes=tuple(notes))


def random_crop(key: Array, image: Array) -> Array:
    """A square of 224 x 224 pixels at a random place of a film `[256, 256, C]`."""
    corner = jax.random.randint(key, (2,), 0, SIZE - CROP + 1)
    return jax.lax.dynamic_slice(image, (*corner, 0), (CROP, CROP, image.shape[-1]))


# ---- the table


def _read(table: Path) -> list[_Row]:
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")  # a short row lacks its last cells
            rows = [{**row, "row": str(reader.line_num)} for row in reader]
            columns = set(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read the table {table}: {error}; correct config.data.table") from error
    spirometry = {"fev1_fvc"} <= columns or {"fev1", "fvc"} <= columns
    missing = sorted({"image", "patient_id"} - columns) + ["label (or fev1_fvc, or fev1 and fvc)"] * (
        "label" not in columns and not spirometry
    )
    if missing:
        raise DataError(f"the table {table} has no column {missing[0]}; it has {', '.join(sorted(columns)) or 'none'}")
    for row in rows:
        for column in ("image", "patient_id"):
            if not row[column]:
                raise DataError(f"row {row['row']} of the table has an empty {column}: fill it in or remove the row")
    return rows


def _number(row: _Row, column: str) -> float:
    try:
        return float(row[column])
    except (TypeError, ValueError) as error:
        raise DataError(f"row {row['row']} of the table: {column} is {row[column]!r}, not a number") from error


def _flag(row: _Row, column: str) -> bool:
    value = _number(row, column)
    if value not in (0, 1):
        raise DataError(f"row {row['row']} of the table: {column} is {row[column]!r}, not 0 or 1")
    return value == 1


def _label(row: _Row) -> int:
    if "label" in row:
        if row["label"] not in ("0", "1"):
            raise DataError(f"row {row['row']} of the table: label is {row['label']!r}, not 0 or 1")
        return int(row["label"])
    ratio = _number(row, "fev1_fvc") if "fev1_fvc" in row else _number(row, "fev1") / max(_number(row, "fvc"), 1e-9)
    if not 0 < ratio <= 1:
        raise DataError(f"row {row['row']} of the table: FEV1/FVC is {ratio:g}, not a fraction in (0, 1]")
    return int(ratio < 0.7)


def _filtered(rows: list[_Row]) -> tuple[list[_Row], list[str]]:
    """The rows that the paper would use, and a note of each filter that the table's columns do not allow."""
    if not rows:
        raise DataError("the table has no rows below its header")
    columns, skipped = rows[0].keys(), []
    excluded = {row["patient_id"] for row in rows if row.get("transplant") and _flag(row, "transplant")}
    filters: dict[str, Callable[[_Row], bool]] = {
        "view": lambda row: row["view"].strip().upper() == "PA",
        "transplant": lambda row: row["patient_id"] not in excluded,
        "days": lambda row: abs(_number(row, "days")) < 30,
    }
    for column, keep in filters.items():
        if column in columns:
            rows = [row for row in rows if keep(row)]
        else:
            skipped.append(column)
    if "study_id" in columns:
        films = defaultdict(set)
        for row in rows:
            films[row["study_id"]].add(row["image"])
        rows = [row for row in rows if len(films[row["study_id"]]) == 1]
    else:
        skipped.append("study_id")
    if {"days", "study_id", "test_id"} <= columns:
        rows = _closest(_closest(rows, "test_id"), "study_id")
    else:
        skipped.append("test_id")
    if not rows:
        raise DataError(
            "no row of the table passes the filters (view PA, no transplant, under 30 days, one film a study)"
        )
    notes = [f"film filters skipped for want of columns: {', '.join(skipped)}"] if skipped else []
    for note in notes:
        logging.warning(note)
    return rows, notes


def _closest(rows: Iterable[_Row], column: str) -> list[_Row]:
    """Of the rows that share a value in `column`, the one of the fewest days between film and test; order is kept."""
    groups = defaultdict(list)
    for row in rows:
        groups[row[column]].append(row)
    return [min(group, key=lambda row: abs(_number(row, "days"))) for group in groups.values()]


def _divide(rows: list[_Row]) -> dict[str, np.ndarray]:
    """Positions of each split's rows: as the table says, else by patients shuffled with RandomState(0)."""
    patients = sorted({row["patient_id"] for row in rows})
    if "split" in rows[0]:
        assigned: dict[str, str] = {}
        for row in rows:
            if row["split"] not in _SPLITS:
                raise DataError(f"row {row['row']} of the table: split is {row['split']!r}, not {', '.join(_SPLITS)}")
            if assigned.setdefault(row["patient_id"], row["split"]) != row["split"]:
                raise DataError(
                    f"row {row['row']} of the table puts its patient into {row['split']}, an earlier row into "
                    f"{assigned[row['patient_id']]}: keep each patient in one split"
                )
    else:
        np.random.RandomState(0).shuffle(patients)
        bounds = np.cumsum([0] + [round(share * len(patients)) for share in _SHARES.values()])
        assigned = dict.fromkeys(patients, "train")
        for name, start, stop in zip(_SHARES, bounds[:-1], bounds[1:], strict=True):
            assigned |= dict.fromkeys(patients[start:stop], name)
    parts = {
        name: np.array([i for i, row in enumerate(rows) if assigned[row["patient_id"]] == name], int)
        for name in _SPLITS
    }
    for name, part in parts.items():
        if not len(part):
            raise DataError(
                f"no patient is left for the {name} split: the table has {len(patients)} patients; add some"
            )
    return parts


# ---- the films


def _fingerprint(films: list[tuple[str, Path]]) -> str:
    hashed = hashlib.sha256()
    for row, path in films:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(
                f"the film of row {row} of the table is missing: correct `image` or config.data.folder"
            ) from error
        hashed.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return hashed.hexdigest()


def _load(films: list[tuple[str, Path]]) -> np.ndarray:
    """All films as uint8 [N, 256, 256, 1]."""
    with ThreadPoolExecutor(_THREADS) as pool:
        images = pool.map(lambda film: prepare(_open(*film), film[0]), films)
        return np.stack(list(tqdm(images, total=len(films), desc="reading films", unit="film", disable=None)))


def _open(row: str, path: Path) -> np.ndarray:
    """The film's pixels [h, w], in whatever range it has."""
    try:
        if path.suffix.lower() in (".dcm", ".dicom"):
            return _open_dicom(path)
        from PIL import Image

        with Image.open(path) as film:
            return np.asarray(film if film.mode.startswith("I") else film.convert("L"), np.float32)
    except DataError:
        raise
    except Exception as error:  # decoders raise many kinds
        raise DataError(
            f"cannot read the film of row {row} of the table ({type(error).__name__}): replace or remove it"
        ) from error


def _open_dicom(path: Path) -> np.ndarray:
    try:
        import pydicom
    except ImportError as error:
        raise DataError('DICOM films need pydicom: pip install "gradalign_jax[dicom]"') from error
    film = pydicom.dcmread(path)
    pixels = film.pixel_array.astype(np.float32)
    if pixels.ndim != 2:
        raise ValueError(f"not one grey image, but {pixels.shape}")
    return pixels.max() - pixels if film.get("PhotometricInterpretation") == "MONOCHROME1" else pixels


def prepare(pixels: np.ndarray, row: str) -> np.ndarray:
    """A film [h, w] as uint8 [256, 256, 1]: largest square in the middle, bilinear resize, histogram equalisation.

    Raises:
      DataError: every pixel is the same.
    """
    from PIL import Image

    side = min(pixels.shape)
    top, left = ((length - side) // 2 for length in pixels.shape)
    square = Image.fromarray(pixels[top : top + side, left : left + side].astype(np.float32), "F")
    resized = np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    low, high = float(resized.min()), float(resized.max())
    if not low < high:
        raise DataError(f"the film of row {row} of the table is constant, all pixels {low:g}: remove the row")
    unit = (resized - low) / (high - low)
    counts, edges = np.histogram(unit, bins=256, range=(0, 1))
    share = np.cumsum(counts) / counts.sum()
    equalised = np.interp(unit, (edges[:-1] + edges[1:]) / 2, share)
    return np.rint(255 * equalised).astype(np.uint8)[..., None]
