"""Chest radiographs as pixels, upright and with bright bones, from PNG, JPEG, TIFF and DICOM files.

The preparation is that of the authors' COPD pipeline. Errors name the row of the table, never the file.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from gradalign_jax.errors import DataError
from gradalign_jax.terminal import progress_bar

SIZE = 256  # pixels of a prepared film, height and width
_THREADS = 4
_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue, as in Pillow's conversion to gray
_WHITE_IS_ZERO = 0  # a value of the TIFF tag below
_TIFF_PHOTOMETRIC = 262


def load(films: Sequence[tuple[str, Path]]) -> np.ndarray:
    """Return prepared films, uint8 `[N, 256, 256, 1]`.

    Args:
      films: row of the table and path of each film.

    Raises:
      DataError: a film cannot be read or is constant.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        images = pool.map(lambda film: prepare(read(*film), film[0]), films)
        return np.stack(list(progress_bar(images, total=len(films), desc="reading films", unit="film")))


def read(row: str, path: Path) -> np.ndarray:
    """Return the pixels of a film, float32 `[h, w]` in the file's range, upright and brighter where denser.

    Raises:
      DataError: the film cannot be read; the row is named.
    """
    try:
        pixels = _read_dicom(row, path) if _is_dicom(path) else _read_image(path)
    except DataError:
        raise
    except Exception as error:  # decoders raise many types
        raise DataError(
            f"cannot read the film of row {row} of the table ({type(error).__name__}): replace or remove it"
        ) from error
    if not np.isfinite(pixels).all():
        raise DataError(f"the film of row {row} of the table holds NaN or infinity: replace or remove it")
    return pixels


def prepare(pixels: np.ndarray, row: str) -> np.ndarray:
    """Prepare a film: largest centered square, bilinear resize, histogram equalization.

    Args:
      pixels: `[h, w]` in any range.
      row: its row of the table, for the error message.

    Returns:
      uint8 `[256, 256, 1]`.

    Raises:
      DataError: all pixels are equal.
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
    equalized = np.interp(unit, (edges[:-1] + edges[1:]) / 2, share)
    return np.rint(255 * equalized).astype(np.uint8)[..., None]


def _read_image(path: Path) -> np.ndarray:
    from PIL import Image, ImageOps

    # Opened here: given a path, Pillow maps the file into memory and misreads a TIFF that is stored sideways.
    with open(path, "rb") as file, Image.open(file) as film:
        deep = film.mode == "F" or film.mode.startswith("I")  # a conversion to "L" would clip these
        # Pillow honors the tag for 8 bits only.
        inverted = deep and film.format == "TIFF" and film.tag_v2.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO
        upright = ImageOps.exif_transpose(film)
        pixels = np.asarray(upright if deep else upright.convert("L"), np.float32)
    return pixels.max() - pixels if inverted else pixels


# ---- DICOM


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() in (".dcm", ".dicom"):
        return True
    with open(path, "rb") as file:  # archives export films without an extension
        return file.read(132)[128:] == b"DICM"


def _read_dicom(row: str, path: Path) -> np.ndarray:
    try:
        import pydicom
    except ImportError as error:
        raise DataError('DICOM films need pydicom: pip install "gradalign_jax[dicom]"') from error
    film = pydicom.dcmread(path, force=True)  # also without the preamble
    _check_decoder(row, film.file_meta.TransferSyntaxUID)
    if int(film.get("NumberOfFrames") or 1) > 1:
        raise DataError(f"the film of row {row} of the table holds {film.NumberOfFrames} frames: export one frame")
    pixels = film.pixel_array
    if film.PhotometricInterpretation == "PALETTE COLOR":
        pixels = pydicom.pixels.apply_color_lut(pixels, film)
    if pixels.ndim == 3:
        return (pixels[..., :3] @ np.array(_LUMINANCE)).astype(np.float32)
    padded = _padding(film, pixels)
    pixels = pixels.astype(np.float32)
    if _inverted(film):
        pixels = pixels.max() - pixels
    if padded.any() and not padded.all():
        pixels[padded] = pixels[~padded].min()
    return pixels


def _check_decoder(row: str, syntax) -> None:
    from pydicom.pixels import get_decoder

    what = f"the film of row {row} of the table is compressed as {syntax.name}"
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise DataError(f"{what}, which pydicom cannot decode: convert it to another transfer syntax") from error
    if not decoder.is_available:
        packages = " or ".join(line.strip() for line in decoder.missing_dependencies)
        raise DataError(f'{what}, and its decoder is missing: pip install "gradalign_jax[dicom]" ({packages})')


def _inverted(film) -> bool:
    """Return whether the gray maps of a DICOM film, applied in turn, map larger stored values to darker gray.

    Histogram equalization undoes every increasing map, so that only the direction of each map matters. INVERSE
    and MONOCHROME1 name the same inversion (DICOM PS3.3, C.8.11.1), so that both together count once.
    """
    maps = (
        _falls(film.get("ModalityLUTSequence")) or float(film.get("RescaleSlope") or 1) < 0,
        _falls(film.get("VOILUTSequence")),
        film.PhotometricInterpretation.strip() == "MONOCHROME1"
        or str(film.get("PresentationLUTShape") or "").strip() == "INVERSE",
    )
    return sum(maps) % 2 == 1


def _falls(sequence) -> bool:
    """Return whether the first lookup table of a sequence ends lower than it begins."""
    if not sequence:
        return False
    table = sequence[0].LUTData
    if isinstance(table, bytes):
        table = np.frombuffer(table, "<u2")
    return int(table[-1]) < int(table[0])


def _padding(film, pixels: np.ndarray) -> np.ndarray:
    """Return the mask `[h, w]` of pixels around the film that hold no image."""
    value = film.get("PixelPaddingValue")
    if value is None:
        return np.zeros(pixels.shape, bool)
    limit = film.get("PixelPaddingRangeLimit")
    low, high = sorted((value, value if limit is None else limit))
    return (low <= pixels) & (pixels <= high)
