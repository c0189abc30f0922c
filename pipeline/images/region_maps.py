"""Region maps: an image cut once into connected regions that look alike, each a question that one answer settles.

    Felzenszwalb and Huttenlocher 2004, "Efficient graph-based image segmentation": neighbouring pixels are merged while
    the difference between two regions is at most the largest difference inside either + scale / pixels.

One answer for each region costs a fraction of painting it (Cai et al. 2021, "Revisiting superpixels for active learning
in semantic segmentation with realistic annotation costs"). A map is an artifact, one PNG of 16 bits per image, and the
same for ever once something of it is ordered: the ledger holds its hash.

What one round asks about one image is one order, one task and one label: `IMAGE@regions-ROUND`, a mask of the whole
image that is IGNORE outside of the regions that were answered.
"""

import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8, UInt16

from pipeline import paths, storage
from pipeline.images import resizing

AREA = 640 * 480
"""Pixels at which an image is cut, at most; larger ones are shrunk first, and the map enlarged."""
SIGMA = 0.5
"""Standard deviation of the Gaussian before the cut, in pixels, as in the paper."""
MAKER = "regions"
"""Name in DVC of the stage that makes the maps."""


def cut(image: UInt8[np.ndarray, "h w 3"], scale: float, smallest: int) -> UInt16[np.ndarray, "h w"]:
    """The region of every pixel, numbered from 0 without gaps.

    Args:
        image: RGB.
        scale: larger gives larger regions.
        smallest: pixels of the smallest region, where the image is cut.
    """
    from skimage.segmentation import felzenszwalb  # here: only one stage cuts

    height, width = image.shape[:2]
    shrink = min(1.0, (AREA / (height * width)) ** 0.5)
    seen = (max(1, round(shrink * height)), max(1, round(shrink * width)))
    small = image if seen == (height, width) else resizing.resize(image, seen)
    found = felzenszwalb(small, scale=scale, sigma=SIGMA, min_size=smallest).astype(np.uint16)
    return found if seen == (height, width) else enlarged(found, (height, width))


def enlarged(regions: UInt16[np.ndarray, "h w"], size: tuple[int, int]) -> UInt16[np.ndarray, "h2 w2"]:
    """The map at another height and width: every pixel has the region of the nearest one."""
    rows, cols = (
        np.minimum((np.arange(new) + 0.5) * old / new, old - 1).astype(int)
        for new, old in zip(size, regions.shape, strict=True)
    )
    resized: np.ndarray = regions[np.ix_(rows, cols)]
    return resized


def save(image: str, regions: UInt16[np.ndarray, "h w"]) -> str:
    """Write the map of an image and return the hash of its file."""
    import cv2

    data = cv2.imencode(".png", regions)[1].tobytes()
    storage.write(paths.regions(image), data)
    return hashlib.sha256(data).hexdigest()


def load(image: str) -> UInt16[np.ndarray, "h w"]:
    """The map of an image.

    Raises:
        UserError: it is not there, or not whole.
    """
    path = paths.regions(image)
    if not path.is_file():
        raise storage.missing(path, MAKER)
    found = _read(path)
    if found is None:
        raise storage.damaged(path, "it is no 16-bit greyscale PNG", MAKER)
    return found


def _read(path: Path) -> UInt16[np.ndarray, "h w"] | None:
    import cv2

    try:
        found: np.ndarray | None = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # raised instead of None for no bytes
        return None
    return None if found is None or found.ndim != 2 or found.dtype != np.uint16 else found
