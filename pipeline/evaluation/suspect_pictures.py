"""A picture of the labels that are most likely wrong: where they are contradicted, beside label and prediction."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from pipeline.evaluation.pictures import GAP, png
from pipeline.images.classes import IGNORE, ClassSet, colourise

CAPTION = 40
"""Pixels above each row."""
OUTLINE = (255, 0, 255)
"""Magenta, which no class has."""


class Suspect(NamedTuple):
    """One label; all maps at the network's size."""

    caption: str
    image: UInt8[np.ndarray, "h w 3"]
    label: UInt8[np.ndarray, "h w"]
    predicted: UInt8[np.ndarray, "h w"]
    suspected: UInt8[np.ndarray, "h w"]
    """The model's class in suspected areas, IGNORE elsewhere."""


def sheet(suspects: Sequence[Suspect], classes: ClassSet, title: str) -> bytes:
    """A row for each label, as a PNG file: image and label with what is suspected outlined, and the prediction.

    Raises:
        ValueError: there is no label.
    """
    if not suspects:
        raise ValueError("there is no label to show")
    height, width = suspects[0].label.shape
    zoom = max(1, round(240 / height))
    tall, wide = height * zoom, width * zoom
    paper = Image.new("RGB", (3 * (wide + GAP) - GAP, 24 + len(suspects) * (tall + CAPTION)), "white")
    draw, font = ImageDraw.Draw(paper), ImageFont.load_default(size=15)
    draw.text((2, 3), title, "black", font)
    for row, one in enumerate(suspects):
        top = 24 + row * (tall + CAPTION)
        draw.text((2, top), one.caption, "black", font)
        names = ("image, suspected areas outlined", "label", "prediction of the model before")
        pictures = (one.image, colourise(one.label, classes), colourise(one.predicted, classes))
        for place, (name, picture) in enumerate(zip(names, pictures, strict=True)):
            grown = cv2.resize(picture, (wide, tall), interpolation=cv2.INTER_NEAREST)
            if place < 2:
                _outline(grown, one.suspected, zoom)
            draw.text((place * (wide + GAP) + 2, top + CAPTION // 2), name, "black", font)
            paper.paste(Image.fromarray(grown), (place * (wide + GAP), top + CAPTION))
    return png(np.asarray(paper))


def _outline(picture: UInt8[np.ndarray, "h w 3"], suspected: UInt8[np.ndarray, "h2 w2"], zoom: int) -> None:
    """Draw a line around what is suspected, in place."""
    grown = (suspected != IGNORE).astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1)
    around, _ = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, around, -1, OUTLINE, 2)
