"""Geometry of regions for the editor: outlines to click on, shapes that people draw, and a picture of what is asked.

Label Studio's coordinates are percent of the image's width and height.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8, UInt16

from pipeline.annotators.label_studio import regions
from pipeline.annotators.label_studio.regions import Refused, shown

COARSE = 0.003
"""By how much an outline may differ from its region, as a share of the image's longer side: 3 pixels on the screen. The
editor draws a dot for every corner of the chosen one; what it stands for is known by its id."""
HAZE, GREY = 0.6, 128
"""Share of grey over what is not asked about, and its level: on bright and on dark images the asked regions stand
out, and what surrounds them can still be made out."""
FAR = 1000.0
"""A coordinate of more than so many percent is no place that anybody has clicked on."""
CORNERS = 90
"""Of the polygon that stands for an ellipse."""

Outline = list[list[float]]


def outlines(places: UInt16[np.ndarray, "h w"]) -> list[tuple[int, Outline]]:
    """A polygon around each region, in percent, smallest first: so an inner region comes before the one around it.

    The editor puts the first on top. Of a region in several pieces, the largest piece.

    Args:
        places: number of the region of every pixel from 1; 0 for none.

    Returns:
        The number of each region, and its polygon.
    """
    height, width = places.shape
    tolerance = COARSE * max(height, width)
    found = []
    for number in np.unique(places[places > 0]).tolist():
        rows, cols = (np.flatnonzero((places == number).any(axis)) for axis in (1, 0))
        top, left = int(rows[0]), int(cols[0])
        part = (places[top : rows[-1] + 1, left : cols[-1] + 1] == number).astype(np.uint8)
        pieces = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE, offset=(left, top))[0]
        piece = max(pieces, key=lambda one: (cv2.contourArea(one), len(one)))
        corners = cv2.approxPolyDP(piece, tolerance, closed=True)[:, 0]
        if len(corners) < 3:  # thinner than the tolerance
            x, y, wide, tall = cv2.boundingRect(piece)
            corners = np.array([(x, y), (x + wide - 1, y), (x + wide - 1, y + tall - 1), (x, y + tall - 1)]) + 0.0
            corners += np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
        percent = (corners + 0.5) * 100 / (width, height)
        found.append((float(cv2.contourArea(piece)), number, np.round(percent, 3).tolist()))
    return [(number, outline) for _, number, outline in sorted(found)]


def hazed(image: UInt8[np.ndarray, "h w 3"], asked: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """The image with a grey haze over what is not asked about."""
    grey: UInt8[np.ndarray, "h w 3"] = np.round((1 - HAZE) * image + HAZE * GREY).astype(np.uint8)
    return np.where(asked[..., None], image, grey)


def filled(corners: Float[np.ndarray, "n 2"], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The pixels whose middle lies within a polygon, as a canvas fills it: where it winds round them.

    Args:
        corners: column and row of each, in pixels; the first pixel reaches from 0 to 1.
        size: height and width.
    """
    height, width = size
    turns = np.zeros((height, width + 1), np.int32)  # what the winding number changes by, from left to right
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        low, high = sorted((y0, y1))
        rows = np.arange(max(0, np.ceil(low - 0.5)), min(height, np.ceil(high - 0.5)), dtype=int)
        if rows.size:
            crossings = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            cols = np.clip(np.ceil(crossings - 0.5), 0, width).astype(int)
            turns[rows, cols] += 1 if y1 > y0 else -1
    inside: Bool[np.ndarray, "h w"] = np.cumsum(turns, axis=1)[:, :width] != 0
    return inside


def drawn(item: Mapping[str, Any], name: str, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The pixels of a shape that somebody has drawn.

    Args:
        item: the region of a result, with `value`.
        name: its id, for what is said about it.
        size: height and width of the image.

    Raises:
        Refused: it is of another type than SHAPES, or of another image, or it has no place.
    """
    shape = item.get("type")
    if shape == regions.TYPE:
        return regions.strokes(item, name, size)
    regions.check_image(item, name, size)
    corners = CORNERS_OF[str(shape)](item["value"], name, size)
    return filled(corners, size)


def _polygon(value: Mapping[str, Any], name: str, size: tuple[int, int]) -> Float[np.ndarray, "n 2"]:
    points = value.get("points")
    if not isinstance(points, list) or len(points) < 3:
        raise Refused(
            f"region {shown(name)} has {shown(points)} instead of three points or more: delete it and draw it again"
        )
    pairs = []
    for point in points:
        if not isinstance(point, list) or len(point) != 2:
            raise Refused(f"region {shown(name)} has the point {shown(point)}: delete it and draw it again")
        pairs.append([_number(each, name, "a coordinate") for each in point])
    corners: Float[np.ndarray, "n 2"] = np.array(pairs) * _scale(size)
    return corners


def _rectangle(value: Mapping[str, Any], name: str, size: tuple[int, int]) -> Float[np.ndarray, "n 2"]:
    x, y, wide, tall, angle = _numbers(value, name, ("x", "y", "width", "height"))
    start = np.array([x, y]) * _scale(size)
    sides = np.array([(0, 0), (wide, 0), (wide, tall), (0, tall)]) * _scale(size)
    corners: Float[np.ndarray, "n 2"] = start + sides @ _turn(angle)
    return corners


def _ellipse(value: Mapping[str, Any], name: str, size: tuple[int, int]) -> Float[np.ndarray, "n 2"]:
    x, y, across, along, angle = _numbers(value, name, ("x", "y", "radiusX", "radiusY"))
    round_it = np.arange(CORNERS) * 2 * np.pi / CORNERS
    radii = np.array([across, along]) * _scale(size)
    on_axes = np.stack([np.cos(round_it), np.sin(round_it)], axis=1) * radii
    corners: Float[np.ndarray, "n 2"] = np.array([x, y]) * _scale(size) + on_axes @ _turn(angle)
    return corners


CORNERS_OF = {"polygonlabels": _polygon, "rectanglelabels": _rectangle, "ellipselabels": _ellipse}
SHAPES = (*CORNERS_OF, regions.TYPE)
"""Types of what people may draw themselves; the labels are in `value`, under the type's name."""


def _scale(size: tuple[int, int]) -> Float[np.ndarray, "2"]:
    return np.array(size[::-1]) / 100


def _turn(degrees: float) -> Float[np.ndarray, "2 2"]:
    """For rows of column and row: clockwise, as one sees it."""
    angle = np.deg2rad(degrees)
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _numbers(value: Mapping[str, Any], name: str, keys: Sequence[str]) -> list[float]:
    """These numbers of a value, and its rotation, which may be missing."""
    numbers = [_number(value.get(key), name, f"the {key}") for key in keys]
    return [*numbers, _number(value.get("rotation") or 0, name, "the rotation")]


def _number(value: Any, name: str, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -FAR <= value <= FAR:
        raise Refused(f"region {shown(name)} has {what} {shown(value)}: delete it and draw it again")
    return float(value)
