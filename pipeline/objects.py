"""Objects of a label map: the connected areas of every class, neighbours across corners included.

Label maps do not tell two cars apart that touch, so these are areas rather than instances.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Int64, UInt8

from pipeline.labels import IGNORE


class Objects(NamedTuple):
    """Class by class."""

    ids: Int64[np.ndarray, "h w"]
    """The object that a pixel belongs to, -1 where the map is IGNORE."""
    labels: Int64[np.ndarray, " k"]
    """The class of every object."""
    boxes: Int64[np.ndarray, "k 4"]
    """Its bounding box: y, x of the first pixel, y, x after the last one."""


def find(labels: UInt8[np.ndarray, "h w"]) -> Objects:
    """The objects of one label map; IGNORE makes none."""
    ids = np.full(labels.shape, -1, np.int64)
    numbers, boxes, found = [np.zeros(0, np.int64)], [np.zeros((0, 4), np.int64)], 0
    for number in np.setdiff1d(labels, [IGNORE]):
        mask = labels == number
        areas, table = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)[1:3]
        ids[mask] = areas[mask] - 1 + found  # OpenCV's component 0 is what is not in the mask
        left, top, width, height, _ = table[1:].T.astype(np.int64)
        boxes.append(np.stack([top, left, top + height, left + width], axis=1))
        numbers.append(np.full(len(left), number, np.int64))
        found += len(left)
    return Objects(ids, np.concatenate(numbers), np.concatenate(boxes))
