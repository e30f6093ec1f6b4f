"""The table of films: which are kept, how patients are divided, and what is refused."""

import csv
import os
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from configs import copd
from gradalign_jax import data
from gradalign_jax.data import radiographs
from gradalign_jax.data.sets.copd import random_crop
from gradalign_jax.errors import DataError
from gradalign_jax.experiment import config_checks

FILMS = Path(os.environ.get("TFDS_DATA_DIR", "")).parent / "cxr"


def write_films(folder, patients=20, size=(30, 40), **columns):
    """Two films a patient, random, with labels by patient; `columns` are functions of the row number."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(2 * patients):
        name = f"secret_{number}.png"
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / name)
        row = {"image": name, "patient_id": f"p{number // 2}", "label": str(number // 2 % 2)}
        rows.append(row | {column: str(value(number)) for column, value in columns.items()})
    write_table(folder, rows)
    return rows


def write_table(folder, rows):
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def load(folder, **options):
    return data.load("copd", cache_dir=folder / "cache", folder=folder, **options)


def kept_rows(folder):
    return radiographs.select(radiographs.read(folder / "metadata.csv"), folder)[0]


def patients_of(dataset, rows):
    return {name: {rows[i]["patient_id"] for i in split.index} for name, split in dataset.splits.items()}


def test_no_patient_is_in_two_splits_and_labels_are_the_table_s(tmp_path):
    rows = write_films(tmp_path)
    dataset = load(tmp_path)
    patients = patients_of(dataset, rows)
    assert {name: len(group) for name, group in patients.items()} == {"train": 14, "validation": 2, "test": 4}
    assert not patients["train"] & patients["test"] | patients["train"] & patients["validation"]
    for split in dataset.splits.values():
        assert [int(rows[i]["label"]) for i in split.index] == split.label.tolist()
    assert dataset.splits["train"].image.shape == (28, 256, 256, 1)
    assert dataset.splits["test"].image.shape == (8, 224, 224, 1)
    assert "view, transplant, days, study_id, test_id" in dataset.notes[0]
    again = load(tmp_path)  # from the cache
    np.testing.assert_array_equal(again.splits["train"].image, dataset.splits["train"].image)
    assert len(set(load(tmp_path, limit=8).splits["train"].label.tolist())) == 2


def test_given_splits_are_kept_and_a_patient_in_two_is_named(tmp_path):
    rows = write_films(tmp_path, split=lambda n: ("train", "validation", "test")[n // 2 % 3])
    dataset = load(tmp_path)
    assert all({rows[i]["split"] for i in split.index} == {name} for name, split in dataset.splits.items())
    rows[3]["split"] = "test"
    write_table(tmp_path, rows)
    with pytest.raises(DataError, match=r"row 5 of the table puts its patient into test, .* validation"):
        load(tmp_path)


def test_filters_of_the_paper(tmp_path):
    columns = {
        "view": lambda n: "LL" if n == 0 else "PA",
        "transplant": lambda n: int(n == 3),  # and with it patient 1's other film
        "days": lambda n: -31 if n == 4 else n % 3 - 1,
        "study_id": lambda n: 999 if n in (6, 7) else n,
    }
    rows = write_films(tmp_path, **columns)
    kept = [int(row["row"]) - 2 for row in kept_rows(tmp_path)]
    assert kept == [n for n in range(len(rows)) if n not in (0, 2, 3, 4, 6, 7)]


def test_the_closest_study_and_test_are_kept(tmp_path):
    rows = write_films(tmp_path)
    studies = {"a": "secret_0.png", "b": "secret_1.png", "c": "secret_2.png"}
    paired = [("a", "t1", 3), ("b", "t1", -2), ("b", "t2", 1), ("c", "t3", 9), ("c", "t4", -8)]
    few = [rows[0] | {"image": studies[s], "study_id": s, "test_id": t, "days": str(d)} for s, t, d in paired]
    write_table(tmp_path, few)
    kept = kept_rows(tmp_path)
    # t1's closest study is b; of b the closest test is t2; of c it is t4.
    assert [(row["study_id"], row["test_id"]) for row in kept] == [("b", "t2"), ("c", "t4")]
    few[1]["image"] = "secret_5.png"  # a second film in study b
    write_table(tmp_path, few)
    kept = kept_rows(tmp_path)
    assert [row["study_id"] for row in kept] == ["a", "c"]


def test_flags_are_read_as_numbers_or_refused(tmp_path):
    rows = write_films(tmp_path, transplant=lambda n: "1.0" if n == 3 else "")
    kept = kept_rows(tmp_path)
    assert len(kept) == len(rows) - 2
    rows[7]["transplant"] = "yes"
    write_table(tmp_path, rows)
    with pytest.raises(DataError, match="row 9 of the table: transplant is 'yes'"):
        load(tmp_path)


def splits_by_row(dataset):
    return {int(i): name for name, split in dataset.splits.items() for i in split.index}


SPELLINGS = {
    "trailing blank": lambda n: f"p{n // 2}" + " " * (n % 2),
    "no-break space": lambda n: f"p{n // 2}" + "\xa0" * (n % 2),
    "zero-width space": lambda n: f"p{n // 2}" + "\u200b" * (n % 2),
    "full-width digits": lambda n: f"{n // 2}".translate({48 + d: 0xFF10 + d for d in range(10)} if n % 2 else {}),
    "leading zeros": lambda n: f"{n // 2:04d}" if n % 2 else f"{n // 2}",
    "float": lambda n: f"{n // 2}.0" if n % 2 else f"{n // 2}",
    "scientific": lambda n: f"{n // 2}00" if n % 2 else f"{n // 2}.0E+02",
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
def test_a_patient_spelled_in_two_ways_stays_in_one_split(tmp_path, spell):
    rows = write_films(tmp_path, size=(8, 8), patient_id=spell)
    split_of = splits_by_row(load(tmp_path))
    assert len(split_of) == len(rows)
    assert all(split_of[n] == split_of[n + 1] for n in range(0, len(rows), 2))
    split = {n: ("train", "validation", "test")[n % 3] for n in range(len(rows))}
    write_table(tmp_path, [row | {"split": split[n]} for n, row in enumerate(rows)])
    with pytest.raises(DataError, match="row 3 of the table puts its patient into validation"):
        load(tmp_path)


def test_the_usual_spelling_divides_patients_as_before(tmp_path):
    rows = write_films(tmp_path, size=(8, 8))
    patients = sorted({row["patient_id"] for row in rows})
    np.random.RandomState(0).shuffle(patients)
    found = patients_of(load(tmp_path), rows)
    assert found == {"validation": set(patients[:2]), "test": set(patients[2:6]), "train": set(patients[6:])}


@pytest.mark.parametrize("other", ["P0", "p00", "p-0", "P 0", "'p0"])
def test_ids_that_may_be_one_patient_are_refused(tmp_path, other):
    rows = write_films(tmp_path, size=(8, 8), patient_id=lambda n: other if n == 1 else f"p{n // 2}")
    with pytest.raises(DataError, match=r"rows 2 and 3 of the table have a patient_id that differs only") as error:
        load(tmp_path)
    assert other not in str(error.value)
    # Different words and numbers are different patients.
    write_table(
        tmp_path, [row | {"patient_id": ("1-23", "12-3", "7", "p7", "7.5")[n % 5]} for n, row in enumerate(rows)]
    )
    assert len({row["patient_id"] for row in kept_rows(tmp_path)}) == 5


def test_labels_and_splits_are_compared_by_value(tmp_path):
    spelled = (("0", "0.0", " 0", "False"), ("1", "1.0", "1 ", "TRUE"))
    rows = write_films(
        tmp_path,
        size=(8, 8),
        label=lambda n: spelled[n // 2 % 2][n // 4 % 4],
        split=lambda n: ("Train ", " validation", "TEST")[n // 2 % 3],
    )
    dataset = load(tmp_path)
    for number, split in enumerate(("train", "validation", "test")):
        expected = [n for n in range(len(rows)) if n // 2 % 3 == number]
        assert sorted(dataset.splits[split].index.tolist()) == expected
        np.testing.assert_array_equal(dataset.splits[split].label, dataset.splits[split].index // 2 % 2)


@pytest.mark.parametrize("path", ["secret_0.png", "./secret_0.png", "link.png", "copy.png"])
@pytest.mark.parametrize(("column", "value"), [("patient_id", "p19"), ("label", "1")])
def test_one_film_has_one_patient_and_one_label(tmp_path, path, column, value):
    rows = write_films(tmp_path, size=(8, 8))
    (tmp_path / "link.png").symlink_to(tmp_path / "secret_0.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "secret_0.png").read_bytes())
    write_table(tmp_path, [*rows, rows[0] | {"image": path, column: value}])
    message = r"rows 2 and 42 of the table .*two patients" if column == "patient_id" else "rows 2 and 42 .*two labels"
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path)
    assert "secret" not in str(error.value) and "p19" not in str(error.value)


def test_a_repeated_row_counts_once(tmp_path):
    rows = write_films(tmp_path, size=(8, 8))
    once = load(tmp_path)
    write_table(tmp_path, [*rows, *rows])
    twice = load(tmp_path)
    for name, split in once.splits.items():
        np.testing.assert_array_equal(twice.splits[name].index, split.index)
    assert "40 rows left out that repeat a film" in twice.notes[-1]


@pytest.mark.parametrize("empty", ["", " ", "nan", "NaN", "NA", "None", "<NA>"])
def test_empty_cells_of_a_filter_are_refused_and_an_empty_column_is_absent(tmp_path, empty):
    columns = {
        "days": lambda n: "3",
        "study_id": lambda n: f"s{n}",
        "test_id": lambda n: f"t{n}",
    }
    rows = write_films(tmp_path, size=(8, 8), **columns)
    assert len(kept_rows(tmp_path)) == len(rows)
    for column in columns:
        write_table(tmp_path, [row | ({column: empty} if n in (4, 6) else {}) for n, row in enumerate(rows)])
        with pytest.raises(DataError, match=f"rows 6 and 8 of the table: {column} is empty"):
            load(tmp_path)
        write_table(tmp_path, [row | {column: empty} for row in rows])
        kept, notes = radiographs.select(radiographs.read(tmp_path / "metadata.csv"), tmp_path)
        assert len(kept) == len(rows) and column in notes[0]
    write_table(tmp_path, [row | {"days": "inf"} for row in rows])
    with pytest.raises(DataError, match="row 2 of the table: days is 'inf', not a number"):
        load(tmp_path)


def test_studies_and_tests_are_numbered_within_a_patient(tmp_path):
    columns = {"days": lambda n: n % 2, "study_id": lambda n: n % 2, "test_id": lambda n: "1"}
    rows = write_films(tmp_path, size=(8, 8), **columns)
    # Every patient has studies 0 and 1 and test 1, whose closest study is 0.
    assert [row["image"] for row in kept_rows(tmp_path)] == [row["image"] for row in rows[::2]]


def test_headers_are_compared_by_value_and_shifted_cells_are_refused(tmp_path):
    write_films(tmp_path, size=(8, 8))
    table = tmp_path / "metadata.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([" Image, PATIENT_ID,Label ", *lines[1:], ",,"]))
    assert len(kept_rows(tmp_path)) == 40
    table.write_text("\n".join([*lines[:3], lines[3] + ",1", *lines[4:]]))
    with pytest.raises(DataError, match="row 4 of the table has more cells than the header"):
        load(tmp_path)
    table.write_text("\n".join(["image,patient_id,label,Label", *(f"{line},0" for line in lines[1:])]))
    with pytest.raises(DataError, match="two columns label"):
        load(tmp_path)


def test_dicom_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    rows = write_films(tmp_path)
    (tmp_path / "a.dcm").write_bytes(b"film")
    rows[0]["image"] = "a.dcm"
    write_table(tmp_path, rows)
    with pytest.raises(DataError, match=r"gradalign_jax\[dicom\]"):
        load(tmp_path)


def test_labels_from_spirometry(tmp_path):
    rows = write_films(tmp_path, fev1=lambda n: 2.0, fvc=lambda n: 2.8 if n % 4 < 2 else 3.0)
    for row in rows:
        del row["label"]
    write_table(tmp_path, rows)
    dataset = load(tmp_path)
    for split in dataset.splits.values():
        assert split.label.tolist() == [int(i % 4 >= 2) for i in split.index]  # 0.714 and 0.667


def test_crops_are_drawn_anew_and_stay_inside():
    film = np.arange(256 * 256, dtype=np.float32).reshape(256, 256, 1)
    corners = set()
    for seed in range(6):
        crop = np.asarray(random_crop(jax.random.key(seed), film))
        top, left = divmod(int(crop[0, 0, 0]), 256)
        np.testing.assert_array_equal(crop, film[top : top + 224, left : left + 224])
        corners.add((top, left))
    assert len(corners) > 3


def test_what_cannot_be_used_is_named_by_row_not_by_file(tmp_path, refused):
    rows = write_films(tmp_path)
    Image.fromarray(np.full((30, 40), 7, np.uint8)).save(tmp_path / "secret_4.png")
    with refused(DataError, "film of row 6 of the table is constant") as error:
        load(tmp_path)
    assert "secret" not in str(error.value)
    (tmp_path / "secret_4.png").write_bytes(b"\x89PNG no film")
    with refused(DataError, "cannot read the film of row 6") as error:
        load(tmp_path)
    assert "secret" not in str(error.value)
    (tmp_path / "secret_4.png").unlink()
    with refused(DataError, "film of row 6 of the table is missing") as error:
        load(tmp_path)
    assert "secret" not in str(error.value)
    rows[5]["label"] = "yes"
    write_table(tmp_path, rows)
    with refused(DataError, "row 7 of the table: label is 'yes'"):
        load(tmp_path)
    write_table(tmp_path, [{"image": row["image"], "label": "1"} for row in rows])
    with refused(DataError, "has no column patient_id"):
        load(tmp_path)
    with refused(DataError, "cannot read the table"):
        load(tmp_path, table=tmp_path / "nowhere.csv")
    with refused(DataError, r"config\.data\.folder is empty"):
        data.load("copd")


def test_configs_pass_their_check():
    for task in ("baseline", "pgd", "vrgan"):
        for argument in (task, f"{task},smoke"):
            config_checks.check(copd.get_config(argument))
    with pytest.raises(ValueError, match=r"config\.delta_x\.generator=DIR"):
        config_checks.check(copd.get_config("align"))


def test_a_short_row_has_empty_cells(tmp_path):
    (tmp_path / "metadata.csv").write_text("image,patient_id,label,view\na.png,1,0,PA\nb.png,2,1\n")
    kept = kept_rows(tmp_path)
    assert [row["image"] for row in kept] == ["a.png"]


@pytest.mark.skipif(not (FILMS / "metadata.csv").exists(), reason="no films beside the data sets")
def test_real_films(tmp_path):
    dataset = data.load("copd", cache_dir=tmp_path, folder=FILMS, limit=12)
    for split in dataset.splits.values():
        assert len(split.label) == 12
        brightness = split.image.reshape(12, -1)
        assert (np.abs(brightness.mean(1) - 127.5) < 20).all()  # equalized
