"""Label masks, and other maps of 8 bits, as PNG files: written whole, checked when read."""

import contextlib
import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pipeline import storage
from pipeline.errors import UserError


def save_mask(path: Path, mask: UInt8[np.ndarray, "h w"]) -> str:
    """Write a mask as an 8-bit greyscale PNG of class ids and return the file's sha256."""
    import cv2

    data = cv2.imencode(".png", mask)[1].tobytes()
    storage.write(path, data)
    return hashlib.sha256(data).hexdigest()


def load_mask(path: Path) -> UInt8[np.ndarray, "h w"]:
    """The class ids of a delivered mask, as `save_mask` has written them."""
    if not path.is_file():
        raise absent(path)
    mask = read_grey(path)
    if mask is None:
        raise UserError(f"the label {path} is damaged: run `rm {path}`, then `python -m pipeline join`")
    return mask


def absent(path: Path) -> UserError:
    """The error for a delivered mask that is not here."""
    return UserError(f"the label {path} is not here: run `python -m pipeline join`, which brings it from DVC")


def load_made(path: Path, maker: str) -> UInt8[np.ndarray, "h w"]:
    """Read a greyscale picture that a stage has made; `maker` is what DVC calls that stage.

    Raises:
        UserError: it is not there, or not whole.
    """
    if not path.is_file():
        raise storage.missing(path, maker)
    picture = read_grey(path)
    if picture is None:
        raise storage.damaged(path, "it is no 8-bit greyscale PNG", maker)
    return picture


def read_grey(path: Path) -> UInt8[np.ndarray, "h w"] | None:
    """An 8-bit greyscale picture; None if the file is anything else."""
    import cv2

    picture: np.ndarray | None = None
    with contextlib.suppress(cv2.error):  # raised instead of None for no bytes
        picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    return None if picture is None or picture.ndim != 2 or picture.dtype != np.uint8 else picture
