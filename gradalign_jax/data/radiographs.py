"""The table of a folder of chest radiographs: its columns, filters and splits by patient (paper 3.1, A.1).

The CSV has one row per film. Required columns:

    image       path of the film below the folder
    patient_id
    label       0 or 1; or spirometry instead, `fev1_fvc` (a fraction) or `fev1` and `fvc`: a ratio under 0.7 is class 1

Optional columns, each with the filter of the authors' code that it allows:

    view        PA is kept
    transplant  patients with a 1 in any row are left out; an empty cell counts as 0
    days        days between film and test; fewer than 30 are kept
    study_id    studies of exactly one film are kept
    test_id     with `days` and `study_id`: the closest study of each test, then the closest test of each study is kept
    split       train, validation or test

Cells are compared without surrounding blanks, and ids that are numbers by value: 7, 7.0 and 0007 are one patient.
"nan", "NA", "null" and "none" are empty cells. Error messages name rows, never films or patients.
"""

import csv
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np
from absl import logging

from gradalign_jax.errors import DataError

Row = dict[str, str]  # by column; "row" holds the number of the row's last line in the file

SPLITS = ("train", "validation", "test")
_SHARES = {"validation": 0.11, "test": 0.18}  # of the patients, as in the paper
_EMPTY = {"", "nan", "na", "n/a", "#n/a", "<na>", "nat", "null", "none"}
_BOOLEANS = {"false": 0.0, "true": 1.0}
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"  # zero-width characters, which str.strip keeps


def rows_at(rows: Iterable[Row]) -> str:
    """Return "row 3 of the table" or "rows 3, 5 and 9 of the table", with at most five numbers."""
    numbers = [row["row"] for row in rows]
    if len(numbers) == 1:
        return f"row {numbers[0]} of the table"
    if len(numbers) > 5:
        return f"rows {', '.join(numbers[:5])} and {len(numbers) - 5} more of the table"
    return f"rows {', '.join(numbers[:-1])} and {numbers[-1]} of the table"


def read(table: Path) -> list[Row]:
    """Return the rows of a table with normalized cells; columns without any value are dropped.

    Raises:
      DataError: the table cannot be read, or a required column or cell is missing, or ids are ambiguous.
    """
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")  # a short row ends in empty cells
            reader.fieldnames = [_text(name).lower() for name in reader.fieldnames or ()]
            columns = [name for name in reader.fieldnames if name]
            records = [(str(reader.line_num), record) for record in reader]
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"cannot read the table {table}: {error}; correct config.data.table") from error
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise DataError(f"the table {table} has two columns {twice[0]}: rename or remove one")
    rows = []
    for number, record in records:
        if None in record:
            raise DataError(f"row {number} of the table has more cells than the header: quote cells that hold commas")
        cells = {column: _cell(record[column]) for column in columns}
        if any(cells.values()):
            rows.append({**cells, "row": number})
    if not rows:
        raise DataError(f"the table {table} has no rows below its header")
    used = {column for column in columns if any(row[column] for row in rows)}
    _check_columns(table, used)
    rows = [{column: row[column] for column in (*used, "row")} for row in rows]
    for column in ("image", "patient_id"):
        if empty := [row for row in rows if not row[column]]:
            raise DataError(f"{rows_at(empty)}: {column} is empty; fill it in or remove the row")
    _unify_ids(rows, used)
    return rows


def label_of(row: Row) -> int:
    """Return the class of a row: its label, or 1 for FEV1/FVC under 0.7.

    Raises:
      DataError: the cells are empty or hold no class or ratio.
    """
    if "label" in row:
        return int(_flag(row, "label"))
    ratio = _number(row, "fev1_fvc") if "fev1_fvc" in row else _number(row, "fev1") / max(_number(row, "fvc"), 1e-9)
    if not 0 < ratio <= 1:
        raise DataError(f"row {row['row']} of the table: FEV1/FVC is {ratio:g}, not a fraction in (0, 1]")
    return int(ratio < 0.7)


def select(rows: list[Row], folder: Path) -> tuple[list[Row], list[str]]:
    """Return the rows that pass the paper's filters, one per film, and notes on what was skipped or left out.

    Raises:
      DataError: no row passes, a cell that a filter needs is empty, or a film has two patients or two labels.
    """
    films = [os.path.realpath(folder / row["image"]) for row in rows]
    check_unique(films, rows, lambda row: row["patient_id"], "are of one film, but of two patients")
    rows, skipped = _filtered(rows)
    if not rows:
        raise DataError(
            "no row of the table passes the filters (view PA, no transplant, under 30 days, one film a study)"
        )
    notes = [f"film filters skipped for lack of columns: {', '.join(skipped)}"] if skipped else []
    films = [os.path.realpath(folder / row["image"]) for row in rows]
    check_unique(films, rows, label_of, "are of one film, but have two labels")
    first = dict(zip(reversed(films), reversed(rows), strict=True))
    if len(first) < len(rows):
        notes.append(f"{len(rows) - len(first)} rows left out that repeat a film of an earlier row")
        rows = [row for film, row in zip(films, rows, strict=True) if first[film] is row]
    for note in notes:
        logging.warning(note)
    return rows, notes


def check_unique(keys: Iterable, rows: Iterable[Row], value: Callable[[Row], object], message: str) -> None:
    """Check that rows with equal keys have equal values.

    Raises:
      DataError: two rows do not; they are named, followed by the message.
    """
    seen: dict[object, Row] = {}
    for key, row in zip(keys, rows, strict=True):
        first = seen.setdefault(key, row)
        if first is not row and value(first) != value(row):
            raise DataError(f"{rows_at([first, row])} {message}: correct or remove one")


def divide(rows: list[Row]) -> dict[str, np.ndarray]:
    """Return the positions of each split's rows: the table's splits, else patients shuffled with RandomState(0).

    Raises:
      DataError: a split is unknown or empty, or a patient is in two.
    """
    patients = sorted({row["patient_id"] for row in rows})
    if "split" in rows[0]:
        assigned = _given_splits(rows)
    else:
        np.random.RandomState(0).shuffle(patients)
        bounds = np.cumsum([0] + [round(share * len(patients)) for share in _SHARES.values()])
        assigned = dict.fromkeys(patients, "train")
        for name, start, stop in zip(_SHARES, bounds[:-1], bounds[1:], strict=True):
            assigned |= dict.fromkeys(patients[start:stop], name)
    parts = {
        name: np.array([i for i, row in enumerate(rows) if assigned[row["patient_id"]] == name], int) for name in SPLITS
    }
    for name, part in parts.items():
        if not len(part):
            raise DataError(
                f"no patient is left for the {name} split: the table has {len(patients)} patients; add some"
            )
    return parts


def _given_splits(rows: Sequence[Row]) -> dict[str, str]:
    assigned: dict[str, str] = {}
    for row in rows:
        name, patient = row["split"].lower(), row["patient_id"]
        if name not in SPLITS:
            raise DataError(f"row {row['row']} of the table: split is {row['split']!r}, not {', '.join(SPLITS)}")
        if assigned.setdefault(patient, name) != name:
            raise DataError(
                f"row {row['row']} of the table puts its patient into {name}, an earlier row into "
                f"{assigned[patient]}: keep each patient in one split"
            )
    return assigned


# ---- cells


def _text(value: str | None) -> str:
    return (value or "").strip().strip(_INVISIBLE).strip()


def _cell(value: str) -> str:
    text = _text(value)
    return "" if text.lower() in _EMPTY else text


def _check_columns(table: Path, columns: set[str]) -> None:
    missing = sorted({"image", "patient_id"} - columns)
    if not ("label" in columns or "fev1_fvc" in columns or {"fev1", "fvc"} <= columns):
        missing.append("label (or fev1_fvc, or fev1 and fvc)")
    if missing:
        raise DataError(
            f"the table {table} has no column {missing[0]} with values; it has {', '.join(sorted(columns)) or 'none'}"
        )


def _number(row: Row, column: str) -> float:
    try:
        value = float(row[column])
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        found = repr(row[column]) if row[column] else "empty"
        raise DataError(f"row {row['row']} of the table: {column} is {found}, not a number")
    return value


def _flag(row: Row, column: str) -> bool:
    text = row[column].lower()
    value = _BOOLEANS[text] if text in _BOOLEANS else _number(row, column)
    if value not in (0, 1):
        raise DataError(f"row {row['row']} of the table: {column} is {row[column]!r}, not 0 or 1")
    return value == 1


def _unify_ids(rows: list[Row], columns: set[str]) -> None:
    """Give equal ids one spelling, in place; studies and tests are numbered within a patient."""
    for column in ("patient_id", "study_id", "test_id"):
        if column not in columns:
            continue
        groups = defaultdict(list)
        for row in rows:
            if row[column]:
                scope = "" if column == "patient_id" else row["patient_id"]
                groups[scope, _identity(row[column])].append(row)
        loose: dict[tuple, list[Row]] = {}
        for (scope, identity), group in groups.items():
            other = loose.setdefault((scope, _loose(identity)), group)
            if other is not group:
                raise DataError(
                    f"{rows_at([other[0], group[0]])} have a {column} that differs only in case, punctuation or"
                    " leading zeros: spell one id one way, and tell two ids apart by other characters"
                )
            spelling = min(row[column] for row in group)
            for row in group:
                row[column] = spelling


def _identity(text: str) -> str:
    """Return what makes two spellings the same id: whole numbers by value, other text without repeated blanks."""
    text = " ".join(unicodedata.normalize("NFKC", text).split())
    if re.fullmatch(r"\+?\d+(\.\d*)?(e\+?\d\d?)?", text, re.IGNORECASE):
        value = Decimal(text)
        if value == value.to_integral_value():
            return str(int(value))
    return text


def _loose(identity: str) -> tuple:
    """Return the words and numbers of an id, without case, punctuation and leading zeros."""
    parts = re.findall(r"\d+|[^\W\d_]+", identity.casefold())
    return tuple(int(part) if part.isdecimal() else part for part in parts) or (identity,)


# ---- filters


def _filtered(rows: list[Row]) -> tuple[list[Row], list[str]]:
    """Return the rows that pass the filters, and the columns whose absence skipped one."""
    columns, skipped = rows[0].keys(), []
    # Of all rows: a patient whose transplant is noted beside a lateral film is left out too.
    flagged = [row for row in rows if row.get("transplant") and _flag(row, "transplant")]
    excluded = {row["patient_id"] for row in flagged}
    if "view" in columns:
        rows = [row for row in rows if row["view"].upper() == "PA"]
    else:
        skipped.append("view")
    if "transplant" in columns:
        rows = [row for row in rows if row["patient_id"] not in excluded]
    else:
        skipped.append("transplant")
    if "days" in columns:
        _check_filled(rows, "days")
        rows = [row for row in rows if abs(_number(row, "days")) < 30]
    else:
        skipped.append("days")
    if "study_id" in columns:
        _check_filled(rows, "study_id")
        films = defaultdict(set)
        for row in rows:
            films[row["patient_id"], row["study_id"]].add(os.path.normpath(row["image"]))
        rows = [row for row in rows if len(films[row["patient_id"], row["study_id"]]) == 1]
    else:
        skipped.append("study_id")
    if {"days", "study_id", "test_id"} <= columns:
        _check_filled(rows, "test_id")
        rows = _closest(_closest(rows, "test_id"), "study_id")
    else:
        skipped.append("test_id")
    return rows, skipped


def _check_filled(rows: Iterable[Row], column: str) -> None:
    if empty := [row for row in rows if not row[column]]:
        raise DataError(
            f"{rows_at(empty)}: {column} is empty; fill it in, remove the row, or remove the column to skip its filter"
        )


def _closest(rows: Iterable[Row], column: str) -> list[Row]:
    """Return, of a patient's rows with one id in `column`, that of the fewest days between film and test, in order."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["patient_id"], row[column]].append(row)
    return [min(group, key=lambda row: abs(_number(row, "days"))) for group in groups.values()]
