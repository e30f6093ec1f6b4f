"""Films and their table: what is kept, how patients are divided, how a film is prepared, and what is refused."""

import csv
import io
import os
import struct
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from configs import copd
from gradalign_jax import data
from gradalign_jax.data import films, radiographs
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


# ---- films: every form of one scene must give the same pixels


def scene(top=255):
    """A film without symmetry, so that a wrong orientation or polarity shows."""
    y, x = np.mgrid[0:90, 0:80]
    return np.clip(0.6 * x / 80 + 0.4 * np.exp(-((y - 20) ** 2 + (x - 15) ** 2) / 200), 0, 1) * top


def assert_same_film(path, atol=0.0):
    """Compares with the scene up to an increasing affine map, which the preparation removes."""
    found, expected = films.read("1", path).astype(float), scene()
    assert found.shape == expected.shape
    unit = (found - found.min()) / (found.max() - found.min())
    np.testing.assert_allclose(unit, expected / expected.max(), atol=atol)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_films_are_turned_upright_by_their_orientation_tag(tmp_path, orientation, suffix):
    upright = scene().astype(np.uint8)
    # How a camera stores the picture: EXIF 2.32, tag 0x0112 (the 0th row and the 0th column of each value).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    quality = {"quality": 98} if suffix == "jpg" else {}
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"film.{suffix}", exif=exif, **quality)
    assert_same_film(tmp_path / f"film.{suffix}", atol=0.03)


@pytest.mark.parametrize("top", [1.0, 4095.0])
def test_a_float_tiff_is_not_clipped(tmp_path, top):
    Image.fromarray(scene(top).astype(np.float32)).save(tmp_path / "film.tif")
    assert_same_film(tmp_path / "film.tif", atol=1e-6)
    Image.fromarray(np.where(scene() > 100, np.nan, scene()).astype(np.float32)).save(tmp_path / "film.tif")
    with pytest.raises(DataError, match="film of row 3 of the table holds NaN"):
        films.read("3", tmp_path / "film.tif")


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535)])
def test_a_tiff_whose_zero_is_white_is_inverted(tmp_path, dtype, top):
    for photometric, stored in ((0, top - scene(top).astype(dtype)), (1, scene(top).astype(dtype))):
        height, width = stored.shape
        tags = {256: width, 257: height, 258: 8 * stored.itemsize, 259: 1, 262: photometric, 273: 0, 277: 1}
        tags |= {278: height, 279: stored.nbytes}
        tags[273] = 8 + 2 + 12 * len(tags) + 4  # the pixels follow the directory
        directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
        header = b"II" + struct.pack("<HIH", 42, 8, len(tags))
        (tmp_path / "film.tif").write_bytes(header + directory + bytes(4) + stored.tobytes())
        assert_same_film(tmp_path / "film.tif", atol=0.01)


def write_dicom(path, pixels, photometric="MONOCHROME2", syntax="1.2.840.10008.1.2.1", **tags):
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = syntax
    film = pydicom.Dataset()
    film.file_meta, film.SOPClassUID, film.SOPInstanceUID = meta, meta.MediaStorageSOPClassUID, "1.2.3"
    film.Rows, film.Columns = pixels.shape[:2]
    film.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        film.PlanarConfiguration = 0
    film.PhotometricInterpretation = photometric
    film.BitsAllocated = film.BitsStored = 8 * pixels.dtype.itemsize
    film.HighBit = film.BitsStored - 1
    film.PixelRepresentation = int(pixels.dtype.kind == "i")
    film.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(film, name, value)
    film.save_as(path, enforce_file_format=True)


def lut(values):
    pydicom = pytest.importorskip("pydicom")
    item = pydicom.Dataset()
    item.LUTDescriptor = [len(values), 0, 16]
    item.add_new("LUTData", "OW", np.asarray(values, "<u2").tobytes())
    return [item]


FALLING, RISING = range(4095, -1, -1), range(4096)
POLARITIES = {  # DICOM PS3.3: modality, then VOI, then presentation; each may invert
    "plain": (False, {}),
    "photometric": (True, {"photometric": "MONOCHROME1"}),
    "slope": (True, {"RescaleSlope": "-1", "RescaleIntercept": "4095"}),
    "rising slope": (False, {"RescaleSlope": "0.5", "RescaleIntercept": "-10"}),
    "shape": (True, {"PresentationLUTShape": "INVERSE"}),
    "identity": (False, {"PresentationLUTShape": "IDENTITY"}),
    "photometric and shape are one": (True, {"photometric": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}),
    "photometric and slope are two": (False, {"photometric": "MONOCHROME1", "RescaleSlope": "-1"}),
    "modality table": (True, {"ModalityLUTSequence": FALLING}),
    "VOI table": (True, {"VOILUTSequence": FALLING}),
    "rising table": (False, {"VOILUTSequence": RISING}),
    "VOI table and photometric": (False, {"VOILUTSequence": FALLING, "photometric": "MONOCHROME1"}),
}


@pytest.mark.parametrize(("inverted", "tags"), POLARITIES.values(), ids=POLARITIES)
def test_dicom_films_have_the_polarity_that_their_tags_say(tmp_path, inverted, tags):
    stored = scene(4095).astype(np.uint16)
    tags = {name: lut(value) if isinstance(value, range) else value for name, value in tags.items()}
    write_dicom(tmp_path / "film.dcm", 4095 - stored if inverted else stored, **tags)
    assert_same_film(tmp_path / "film.dcm", atol=1e-3)


def test_dicom_films_are_recognized_without_suffix_or_preamble(tmp_path):
    write_dicom(tmp_path / "IM0001", scene(4095).astype(np.uint16))
    assert_same_film(tmp_path / "IM0001", atol=1e-3)
    (tmp_path / "bare.DCM").write_bytes((tmp_path / "IM0001").read_bytes()[132:])
    assert_same_film(tmp_path / "bare.DCM", atol=1e-3)


def test_dicom_films_in_color_become_gray(tmp_path):
    gray = scene().astype(np.uint8)
    write_dicom(tmp_path / "rgb.dcm", np.stack([gray] * 3, axis=-1), "RGB")
    assert_same_film(tmp_path / "rgb.dcm", atol=0.01)
    green = np.stack([0 * gray, gray, 0 * gray], axis=-1)
    write_dicom(tmp_path / "green.dcm", green, "RGB")
    expected = np.asarray(Image.fromarray(green).convert("L"), float)
    np.testing.assert_allclose(films.read("1", tmp_path / "green.dcm"), expected, atol=1)
    table = {}
    for color in ("Red", "Green", "Blue"):  # a palette that reverses the order of the stored numbers
        table[f"{color}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        table[f"{color}PaletteColorLookupTableData"] = (256 * np.arange(255, -1, -1)).astype("<u2").tobytes()
    write_dicom(tmp_path / "palette.dcm", 255 - gray, "PALETTE COLOR", **table)
    assert_same_film(tmp_path / "palette.dcm", atol=0.01)


def test_padding_of_a_dicom_film_is_black(tmp_path):
    padded = scene(4095).astype(np.uint16)
    padded[:, :20] = 65535
    write_dicom(tmp_path / "film.dcm", padded, PixelPaddingValue=65535)
    found = films.read("1", tmp_path / "film.dcm")
    np.testing.assert_array_equal(found[:, 20:], padded[:, 20:])
    np.testing.assert_array_equal(found[:, :20], padded[:, 20:].min())


def test_frames_of_a_dicom_film_are_refused(tmp_path):
    stored = scene().astype(np.uint8)
    write_dicom(tmp_path / "film.dcm", stored, NumberOfFrames=2, PixelData=stored.tobytes() * 2)
    with pytest.raises(DataError, match="film of row 5 of the table holds 2 frames"):
        films.read("5", tmp_path / "film.dcm")


def test_a_missing_decoder_is_named(tmp_path, monkeypatch):
    pydicom = pytest.importorskip("pydicom")
    syntax = pydicom.uid.JPEGLosslessSV1
    content = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    write_dicom(tmp_path / "secret.dcm", scene().astype(np.uint8), syntax=syntax, PixelData=content)
    decoder = type(pydicom.pixels.get_decoder(syntax))
    monkeypatch.setattr(decoder, "is_available", property(lambda self: False))
    with pytest.raises(DataError, match=r"film of row 9 .* JPEG Lossless, .*\[dicom\].*gdcm") as error:
        films.read("9", tmp_path / "secret.dcm")
    assert "secret" not in str(error.value) and "replace" not in str(error.value)
    assert "\n" not in str(error.value)


def test_lossless_jpeg_is_decoded_where_a_decoder_is_installed(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("gdcm")
    encoded = io.BytesIO()
    Image.fromarray(scene().astype(np.uint8)).save(encoded, "JPEG", quality=98)
    content = pydicom.encaps.encapsulate([encoded.getvalue()])
    syntax = pydicom.uid.JPEGLosslessSV1
    write_dicom(tmp_path / "film.dcm", scene().astype(np.uint8), syntax=syntax, PixelData=content)
    assert_same_film(tmp_path / "film.dcm", atol=0.03)


def test_labels_from_spirometry(tmp_path):
    rows = write_films(tmp_path, fev1=lambda n: 2.0, fvc=lambda n: 2.8 if n % 4 < 2 else 3.0)
    for row in rows:
        del row["label"]
    write_table(tmp_path, rows)
    dataset = load(tmp_path)
    for split in dataset.splits.values():
        assert split.label.tolist() == [int(i % 4 >= 2) for i in split.index]  # 0.714 and 0.667


def test_a_film_is_cropped_resized_and_equalized(tmp_path):
    ramp = np.tile(np.linspace(0, 60000, 512) ** 1.0, (512, 1))
    wide = np.concatenate([np.full((512, 100), 65535.0), ramp, np.full((512, 100), 65535.0)], axis=1)
    film = films.prepare(wide**0.5, "2")
    assert film.shape == (256, 256, 1)
    # The square in the middle alone is left, and its brightness, however bent, is spread evenly.
    row = film[100, :, 0].astype(float)
    np.testing.assert_allclose(row, np.linspace(0, 255, 256), atol=4)
    deep = tmp_path / "deep.png"
    Image.fromarray((ramp).astype(np.uint16)).save(deep)
    np.testing.assert_allclose(films.read("2", deep), ramp.astype(np.uint16), rtol=0)


def test_crops_are_drawn_anew_and_stay_inside():
    film = np.arange(256 * 256, dtype=np.float32).reshape(256, 256, 1)
    corners = set()
    for seed in range(6):
        crop = np.asarray(random_crop(jax.random.key(seed), film))
        top, left = divmod(int(crop[0, 0, 0]), 256)
        np.testing.assert_array_equal(crop, film[top : top + 224, left : left + 224])
        corners.add((top, left))
    assert len(corners) > 3


def test_what_cannot_be_used_is_named_by_row_not_by_file(tmp_path):
    rows = write_films(tmp_path)
    Image.fromarray(np.full((30, 40), 7, np.uint8)).save(tmp_path / "secret_4.png")
    with pytest.raises(DataError, match="film of row 6 of the table is constant") as error:
        load(tmp_path)
    assert "secret" not in str(error.value)
    (tmp_path / "secret_4.png").write_bytes(b"\x89PNG no film")
    with pytest.raises(DataError, match="cannot read the film of row 6") as error:
        load(tmp_path)
    assert "secret" not in str(error.value)
    (tmp_path / "secret_4.png").unlink()
    with pytest.raises(DataError, match="film of row 6 of the table is missing") as error:
        load(tmp_path)
    assert "secret" not in str(error.value)
    rows[5]["label"] = "yes"
    write_table(tmp_path, rows)
    with pytest.raises(DataError, match="row 7 of the table: label is 'yes'"):
        load(tmp_path)
    write_table(tmp_path, [{"image": row["image"], "label": "1"} for row in rows])
    with pytest.raises(DataError, match="has no column patient_id"):
        load(tmp_path)
    with pytest.raises(DataError, match="cannot read the table"):
        load(tmp_path, table=tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match=r"config\.data\.folder is empty"):
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
