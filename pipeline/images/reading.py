"""Reading of images and masks, the same for every data set.

Images go through OpenCV's decoder in memory: it applies the EXIF rotation, is faster than Pillow (a 1914x1052 PNG in
36 ms instead of 57) and, unlike `cv2.imread`, refuses a file that ends too early. Masks go through Pillow, the only
one of the two that gives the stored numbers of a palette image (mode P) and not its colours.

What is not 8 bits, one picture and lossless (masks) is read as it is meant or refused, never converted in silence:

    images  grey, 1 bit, palette, CMYK: become RGB; alpha is dropped, the colours under it stay
            16 bits: the high byte; refused if nothing is above 14 bits (12-bit cameras), which would be almost black
            floating point, 32-bit whole numbers, Lab: refused, the scale is not known
    masks   8 bits grey or palette, transparent or not; 16 bits where no id is above 255
            colours, 1 to 4 bits grey, JPEG, WebP, AVIF, GIF, JPEG 2000, TIFF with JPEG inside: refused
            turned as their own EXIF tag says, as their images are
    both    of several pages or frames: refused, unless those are marked as smaller copies; up to 2^30 pixels
"""

import contextlib
import hashlib
import io
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from pipeline import storage
from pipeline.errors import UserError
from pipeline.images.classes import apply_table

MOST_PIXELS = 2**30
"""OpenCV's limit."""
# Pillow's own limit, a sixth of that, guards servers against strangers' files; here, large pictures are the user's own.
Image.MAX_IMAGE_PIXELS = None

# What Pillow raises for a damaged file, by format and place of the damage; UnidentifiedImageError is an OSError.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
_LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "GIF", "JPEG2000")
_ORIENTATION = 0x0112
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_FILTERS = threading.Lock()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without Pillow's warnings of odd tags. One thread at a time: Python has one set of filters for all of them."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_image(path: Path, sha256: str = "") -> UInt8[np.ndarray, "h w 3"]:
    """The image as RGB, turned upright as EXIF says; for what is not 8 bits of RGB see the module's docstring.

    Args:
        path: of the file.
        sha256: hash that it has to have; empty: any.

    Raises:
        UserError: the file is missing, cut short, not an image of a kind that is read, or has another hash.
    """
    data = storage.read_bytes(path)
    check_content(data, path, sha256)
    return decode_image(data, path)


def check_content(data: bytes, path: Path, sha256: str) -> None:
    """Check a file's hash against the one `prepare` recorded: 1 to 3 % of the time that decoding takes.

    Raises:
        UserError: it is another.
    """
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(
            f"{path} was changed since `prepare` looked at it: put it back, or run "
            "`dvc repro -f prepare` and then `dvc repro`"
        )


def decode_image(data: bytes, path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """`read_image` for a file whose content is in memory already; `path` is for the error."""
    # The decoder's own arrays are turned; these Pillow turns: OpenCV 4.12 does not heed EXIF in WebP and AVIF, makes
    # the colours of a transparent TIFF black, and shows one frame of a GIF without a word.
    if data[8:12] == b"WEBP" or data[4:8] == b"ftyp" or data[:3] == b"GIF" or data[:4] in _TIFF:
        image = _by_pillow(data, path)
        if image is not None:
            return image
    if data[:4] == b"\x89PNG" and b"acTL" in data[: data.find(b"IDAT")]:
        raise _several("image", path)
    # JPEG and BMP have 8 bits, always; a PNG says it in this byte
    if data[:2] not in (b"\xff\xd8", b"BM") and not (data[:4] == b"\x89PNG" and data[24:25] != b"\x10"):
        _check_depth(data, path)
    image = _decode(data, cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise _unreadable("image", path, data)
    return image


def _decode(data: bytes, how: int) -> np.ndarray | None:
    with contextlib.suppress(cv2.error):  # raised instead of None for no bytes, and for a size that cannot be
        return cv2.imdecode(np.frombuffer(data, np.uint8), how)
    return None


def _by_pillow(data: bytes, path: Path) -> UInt8[np.ndarray, "h w 3"] | None:
    """The picture, decoded by Pillow, if OpenCV would read its kind wrongly; else None."""
    try:
        with _quietly() if data[:4] in _TIFF else contextlib.nullcontext(), Image.open(io.BytesIO(data)) as file:
            _check_single("image", file, path)
            if file.format == "TIFF" and file.mode not in ("LAB", "RGBA"):
                return None
            if file.mode == "LAB":
                raise UserError(f"the image {path} is in the colours L*a*b*: save it as RGB")
            return np.array(ImageOps.exif_transpose(file).convert("RGB"))
    except _DAMAGED:
        if data[:4] in _TIFF:
            return None  # Pillow does not know every TIFF
        raise _unreadable("image", path, data) from None


def _check_depth(data: bytes, path: Path) -> None:
    raw = _decode(data, cv2.IMREAD_UNCHANGED)
    if raw is None or raw.dtype == np.uint8:
        return
    if raw.dtype != np.uint16:
        raise UserError(f"the image {path} holds numbers of the type {raw.dtype}, of unknown scale: save it in 8 bits")
    most = int(raw.max())
    if 0 < most < 2**14:
        raise UserError(
            f"the image {path} has 16 bits, but nothing above {most} of 65535 (as of a camera with "
            f"{most.bit_length()} bits), and would be read as almost black: save it in 8 bits, or stretched to 16"
        )


def _check_single(kind: str, file: Image.Image, path: Path) -> None:
    """See that a file holds one picture, and perhaps smaller copies of it that say that they are such."""
    pages = getattr(file, "n_frames", 1)
    for page in range(1, pages if file.format != "MPO" else 1):
        file.seek(page)
        if file.format != "TIFF" or not getattr(file, "tag_v2", {}).get(254, 0) & 1:
            raise _several(kind, path)
    if pages > 1:
        file.seek(0)


def _several(kind: str, path: Path) -> UserError:
    return UserError(
        f"the {kind} {path} holds several pictures (pages or frames): save the one that is meant by itself"
    )


def orientation(data: bytes) -> int:
    """How a picture's EXIF data has it turned: 1 not at all, 2 mirrored, 3 by 180 degrees, 6 and 8 by 90, ..."""
    if data[:4] == b"\x89PNG" and b"eXIf" not in data and b"Raw profile" not in data:
        return 1  # else Pillow would decode a PNG to look for it
    try:
        with _quietly(), Image.open(io.BytesIO(data)) as file:
            return int(file.getexif().get(_ORIENTATION, 1))
    except _DAMAGED:
        return 1


def read_mask(path: Path, table: UInt8[np.ndarray, "256"], sha256: str = "") -> UInt8[np.ndarray, "h w"]:
    """A mask as class ids (0..C-1, IGNORE), turned as its own EXIF tag says.

    Args:
        path: of the file.
        table: from `classes.id_table` or the data set's `table`.
        sha256: that the file has to have; empty: any.

    Raises:
        UserError: the file is missing, cut short or not of ids of 8 bits, holds one that the table does not define, or
            has another hash.
    """
    data = storage.read_bytes(path)
    check_content(data, path, sha256)
    try:
        return apply_table(decode_mask(data, path), table)
    except ValueError as error:
        raise UserError(
            f"the mask {path} holds {error}: check that `dataset` in params.yaml names its layout, or set those "
            "pixels to 255"
        ) from None


def read_native(path: Path) -> UInt8[np.ndarray, "h w"]:
    """The ids as the mask stores them.

    Raises:
        UserError: the file is missing, cut short or not of ids of 8 bits.
    """
    return decode_mask(storage.read_bytes(path), path)


def decode_mask(data: bytes, path: Path) -> UInt8[np.ndarray, "h w"]:
    """`read_native` for a file whose content is in memory already; `path` is for the error."""
    try:
        with _quietly() if data[:4] in _TIFF else contextlib.nullcontext(), Image.open(io.BytesIO(data)) as file:
            _check_mask(file, path)
            mode, stored = file.mode, np.array(ImageOps.exif_transpose(file))
    except _DAMAGED:
        raise _unreadable("mask", path, data) from None
    if mode in ("L", "P"):
        return stored
    if stored.max(initial=0) > 255 or stored.min(initial=0) < 0:
        raise UserError(
            f"the mask {path} holds numbers up to {stored.max()}, and ids end at 255: are they numbers of objects? "
            "Save the class ids as an 8-bit greyscale PNG"
        )
    return stored.astype(np.uint8)


def _check_mask(file: Image.Image, path: Path) -> None:
    """See that a file can hold ids, before it is decoded."""
    advice = "save the class ids as an 8-bit greyscale PNG"
    inside = str(file.info.get("compression", "")).lower()
    if file.format in _LOSSY or (file.format == "TIFF" and ("jpeg" in inside or "webp" in inside)):
        what = file.format if file.format in _LOSSY else f"TIFF with {inside} inside"
        raise UserError(f"the mask {path} is {what}, a format that changes or renumbers ids: {advice}")
    if file.width * file.height > MOST_PIXELS:
        raise UserError(f"the mask {path} has {file.width}x{file.height} pixels, more than 2^30: cut it into parts")
    _check_single("mask", file, path)
    # Pillow stretches greyscale of fewer bits to 0-255, so that the id 1 of 4 bits would be read as 17
    raw = [tile.args if isinstance(tile.args, tuple) else (tile.args,) for tile in getattr(file, "tile", ())]
    few_bits = any(str(args[:1]).startswith(("('L;2", "('L;4")) for args in raw)
    few_greys = file.format == "PPM" and any(isinstance(arg, int) and arg < 255 for args in raw for arg in args[-1:])
    if few_bits or few_greys:
        raise UserError(f"the mask {path} is greyscale of less than 8 bits, not one byte a pixel: {advice}")
    if file.mode not in ("L", "P", "I", "I;16", "I;16B", "I;16L"):
        several = file.mode in ("RGB", "RGBA", "CMYK", "YCbCr", "LAB")
        colours = "it shows colours or several numbers, not ids; " if several else ""
        raise UserError(
            f"the mask {path} is of mode {file.mode}, not one byte a pixel (mode L or P): {colours}{advice}"
        )


def _unreadable(kind: str, path: Path, data: bytes) -> UserError:
    with _quietly(), contextlib.suppress(*_DAMAGED), Image.open(io.BytesIO(data)) as file:
        if file.width * file.height > MOST_PIXELS:
            return UserError(
                f"the {kind} {path} has {file.width}x{file.height} pixels, more than 2^30: cut it into parts"
            )
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return UserError(f"the {kind} {path} is a HEIC picture, whatever its suffix: save it as JPEG or PNG")
    why = "is cut short, damaged or no image" if data else "is empty"
    return UserError(f"the {kind} {path} {why} ({len(data)} bytes): fetch it again or take it out of the folder")
