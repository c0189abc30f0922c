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
from collections.abc import Collection
from pathlib import Path

import numpy as np
from jaxtyping import UInt8, UInt16

from pipeline import paths, storage

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

    from pipeline.images import resizing

    height, width = image.shape[:2]
    shrink = min(1.0, (AREA / (height * width)) ** 0.5)
    seen = (max(1, round(shrink * height)), max(1, round(shrink * width)))
    small = image if seen == (height, width) else resizing.resize(image, seen)
    found = felzenszwalb(small, scale=scale, sigma=SIGMA, min_size=smallest).astype(np.uint16)
    return found if seen == (height, width) else enlarged(found, (height, width))


def enlarged(regions: UInt16[np.ndarray, "h w"], size: tuple[int, int]) -> UInt16[np.ndarray, "h2 w2"]:
    """The map at another height and width, resized as masks are: a pixel is in the region that its label comes from."""
    import cv2

    resized: np.ndarray = cv2.resize(regions, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return resized


def save(image: str, regions: UInt16[np.ndarray, "h w"]) -> str:
    """Write the map of an image and return the hash of its file."""
    storage.write(paths.regions(image), _encoded(regions))
    return digest(regions)


def digest(regions: UInt16[np.ndarray, "h w"]) -> str:
    """The hash of the file that `save` writes."""
    return hashlib.sha256(_encoded(regions)).hexdigest()


def _encoded(regions: UInt16[np.ndarray, "h w"]) -> bytes:
    import cv2

    data: bytes = cv2.imencode(".png", regions)[1].tobytes()
    return data


def load(image: str, size: tuple[int, int] | None = None) -> UInt16[np.ndarray, "h w"]:
    """The map of an image, of which `size` is height and width, if it is known.

    Raises:
        UserError: it is not there, not whole, or of another size.
    """
    path = paths.regions(image)
    if not path.is_file():
        raise storage.missing(path, MAKER)
    found = _read(path)
    if found is None:
        raise storage.damaged(path, "it is no 16-bit greyscale PNG", MAKER)
    if size is not None and found.shape != size:
        said = [f"{height}x{width}" for height, width in (found.shape, size)]
        raise storage.damaged(path, f"it is {said[0]}, its image {said[1]} (height x width)", MAKER)
    return found


def share(image: str, regions: Collection[int]) -> float:
    """How much of an image some of its regions cover, in [0, 1]. Errors as of `load`."""
    found = load(image)
    return float(np.isin(found, list(regions)).mean())


def _read(path: Path) -> UInt16[np.ndarray, "h w"] | None:
    import cv2

    try:
        found: np.ndarray | None = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # raised instead of None for no bytes
        return None
    return None if found is None or found.ndim != 2 or found.dtype != np.uint16 else found
