"""Pictures that a person would rather look at than read: the curve of the rounds, and a panel per bought image."""

import io
from collections.abc import Sequence

import cv2
import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from pipeline import transforms
from pipeline.labels import IGNORE, ClassSet, colourise

GAP, HEADER = 6, 44
"""Pixels between the pictures of a panel, and above them for the captions."""
LONGEST = 1024
"""Pixels of the longer side, at most, of a picture that is looked at in a browser."""


def png(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def panel(
    *,
    image: UInt8[np.ndarray, "h w 3"],
    truth: UInt8[np.ndarray, "h w"],
    before: UInt8[np.ndarray, "h w"],
    after: UInt8[np.ndarray, "h w"],
    gain: Float[np.ndarray, "h w"],
    classes: ClassSet,
    title: str,
) -> bytes:
    """Image, prediction, gain map, label and prediction after training, side by side, as a PNG file.

    The gain map runs from dark (nothing to gain) to bright (the image's 99th percentile). Where the label is IGNORE,
    label and predictions are greyed out in the pictures alike.
    """
    height, width = truth.shape
    zoom = max(1, round(240 / height))
    pictures = {
        "image": image,
        f"prediction before ({_right(before, truth):.0%} right)": colourise(before, classes),
        "gain map (bright: label this)": _heat(gain),
        "label": colourise(truth, classes),
        f"prediction after ({_right(after, truth):.0%} right)": colourise(after, classes),
    }
    tall, wide = height * zoom, width * zoom
    sheet = Image.new("RGB", (len(pictures) * (wide + GAP) - GAP, tall + HEADER), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    draw.text((2, 2), title, "black", font)
    for place, (caption, picture) in enumerate(pictures.items()):
        left = place * (wide + GAP)
        draw.text((left + 2, HEADER // 2), caption, "black", font)
        grown = cv2.resize(picture, (wide, tall), interpolation=cv2.INTER_NEAREST)
        sheet.paste(Image.fromarray(grown), (left, HEADER))
    return png(np.asarray(sheet))


def gain_overlay(image: UInt8[np.ndarray, "h w 3"], gain: Float[np.ndarray, "h2 w2"]) -> bytes:
    """The image, grey and darkened, under its gain map, as a JPEG file of at most LONGEST pixels a side.

    The heat is a panel's: dark where there is nothing to gain, bright from the image's 99th percentile on.
    """
    height, width = image.shape[:2]
    zoom = min(1.0, LONGEST / max(height, width))
    size = (max(1, round(height * zoom)), max(1, round(width * zoom)))
    grey = cv2.cvtColor(transforms.resize(image, size), cv2.COLOR_RGB2GRAY)[..., None]
    # In these shares the darkest pixel of highest gain is still brighter than a white one of none.
    picture = 0.35 * grey + 0.65 * transforms.resize(_heat(gain), size)
    buffer = io.BytesIO()
    Image.fromarray(picture.round().astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _heat(gain: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """From dark (nothing to gain) to bright (the image's 99th percentile and above)."""
    top = max(float(np.quantile(gain, 0.99)), 1e-12)
    heat: np.ndarray = (mpl.colormaps["inferno"](np.clip(gain / top, 0, 1))[..., :3] * 255).astype(np.uint8)
    return heat


def _right(prediction: UInt8[np.ndarray, "h w"], truth: UInt8[np.ndarray, "h w"]) -> float:
    known = truth != IGNORE
    return float((prediction[known] == truth[known]).mean()) if known.any() else 0.0


def curve(labels: Sequence[int], miou: Sequence[float], names: Sequence[str]) -> bytes:
    """The mIoU (in points) against labels bought, one point per round, as a PNG file."""
    figure = Figure(figsize=(7, 4), dpi=130, layout="constrained")
    axes = figure.subplots()
    points = [100 * value for value in miou]
    axes.plot(list(labels), points, marker="o", color="#1f6f8b", linewidth=2)
    for x, y, name in zip(labels, points, names, strict=True):
        axes.annotate(f"{name}: {y:.1f}", (x, y), textcoords="offset points", xytext=(8, -12), fontsize=9)
    axes.margins(x=0.16, y=0.12)
    axes.set(xlabel="images labelled", ylabel="mIoU on the test set, points", title="What the labels brought")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
