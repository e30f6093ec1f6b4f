"""Films: every form of one scene gives the same pixels, cropped, resized and equalized."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from gradalign_jax.data import films
from gradalign_jax.errors import DataError


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
