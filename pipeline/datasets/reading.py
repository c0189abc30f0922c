"""Reading of images and masks, the same for every data set.

Images go through OpenCV's decoder in memory: it applies the EXIF rotation, is faster than Pillow (a 1914x1052 PNG in
36 ms instead of 57) and, unlike `cv2.imread`, refuses a file that ends too early. Masks go through Pillow, the only
one of the two that gives the stored numbers of a palette image (mode P) and not its colours.
"""

import contextlib
import io
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from pipeline.errors import UserError
from pipeline.labels import apply_table

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""Image files are known by these, in small or capital letters."""

# What Pillow raises for a damaged file, by format and place of the damage; UnidentifiedImageError is an OSError.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


class Sample(NamedTuple):
    """One image of a data set."""

    key: str
    """Unique in its set and fit for a file name."""
    image: Path
    mask: Path | None
    """None: the data set has no mask for this image."""


def read_bytes(path: Path) -> bytes:
    """The file as it is.

    Raises:
        UserError: there is no such file, or it may not be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Red, green, blue; turned upright as EXIF says; grey images are repeated, 16 bits become 8, alpha is dropped.

    Raises:
        UserError: the file is missing, cut short or no image.
    """
    return decode_image(read_bytes(path), path)


def decode_image(data: bytes, path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """`read_image` for a file whose content is in memory already; `path` is for the error."""
    if data[8:12] == b"WEBP":  # OpenCV 4.12 does not apply EXIF rotation to this format
        try:
            with Image.open(io.BytesIO(data)) as file:
                return np.array(ImageOps.exif_transpose(file).convert("RGB"))
        except _DAMAGED:
            raise _unreadable("image", path, data) from None
    image: UInt8[np.ndarray, "h w 3"] | None = None
    with contextlib.suppress(cv2.error):  # raised instead of None for no bytes, and for a size that cannot be
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise _unreadable("image", path, data)
    return image


def read_mask(path: Path, table: UInt8[np.ndarray, "256"]) -> UInt8[np.ndarray, "h w"]:
    """Class ids; `table` comes from `labels.table` or the data set's `table`. Masks are never rotated.

    Raises:
        UserError: the file is missing, cut short or not 8 bits a pixel, or holds an id that the table does not define.
    """
    try:
        return apply_table(read_native(path), table)
    except ValueError as error:
        raise UserError(
            f"the mask {path} holds {error}: check that `dataset` in params.yaml names its layout, or set those "
            "pixels to 255"
        ) from None


def read_native(path: Path) -> UInt8[np.ndarray, "h w"]:
    """The ids as the mask stores them.

    Raises:
        UserError: the file is missing, cut short or not 8 bits a pixel.
    """
    data = read_bytes(path)
    try:
        with Image.open(io.BytesIO(data)) as file:
            # Pillow stretches greyscale of fewer bits to 0-255, so that the id 1 of 4 bits would be read as 17
            stretched = any(str(tile.args).startswith(("L;2", "L;4")) for tile in file.tile)
            mode, ids = file.mode, np.array(file)
    except _DAMAGED:
        raise _unreadable("mask", path, data) from None
    if mode not in ("L", "P") or stretched:
        raise UserError(
            f"the mask {path} is {'greyscale of less than 8 bits' if stretched else f'of mode {mode}'}, not one byte "
            "a pixel (mode L or P): save the class ids as an 8-bit greyscale PNG"
        )
    return ids


def _unreadable(kind: str, path: Path, data: bytes) -> UserError:
    why = "is cut short, damaged or no image" if data else "is empty"
    return UserError(f"the {kind} {path} {why} ({len(data)} bytes): fetch it again or take it out of the folder")


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, sorted; files that begin with a dot are not images (macOS leaves `._NAME.jpg`)."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def folders_in(folder: Path) -> list[str]:
    """The names of a folder's folders, sorted; for errors that say what there is."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


def existing(path: Path) -> Path | None:
    """The path if there is a file."""
    return path if path.is_file() else None
