"""Images and masks resized, the same in every stage."""

import cv2
import numpy as np
from jaxtyping import UInt8


def resize(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The image at (height, width) `size`: averaged when it shrinks, linear when it grows."""
    shrinks = size[0] < image.shape[0]
    resized: np.ndarray = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return resized


def resize_mask(mask: UInt8[np.ndarray, "h w"], size: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2"]:
    """The mask at (height, width) `size`; class ids are picked, never mixed."""
    resized: np.ndarray = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return resized
