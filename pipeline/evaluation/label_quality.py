"""Label quality: which labels, and which pixels of them, are most likely wrong, by a model that has not seen them.

Confident learning, Northcutt et al. 2021, "Confident learning: estimating uncertainty in dataset labels", per pixel:

    t_k = mean of p_k over the pixels that are labelled k         (how sure the model is of k where k is right, mostly)
    a pixel with the label y is suspected if its argmax class k differs from y, and p_k >= t_k

The threshold of each class makes up for a model that is too sure or not sure enough of it. As in cleanlab, no pixel is
suspected whose label is the argmax; unlike there, no class but the argmax is asked whether it reaches its threshold,
so that a pass over the images need only keep the pixels that contradict it.

A label as a whole, Lad and Mueller 2023, "Estimating label quality and errors in semantic segmentation data via any
model": the softmin of its pixels' self-confidences s = p_y, between their mean and their minimum,

    softmin(s) = sum_i s_i w_i / sum_i w_i,   w_i = exp((1 - s_i) / T)

T is 0.03, where cleanlab has 0.1: of planted errors it ranks more first (docs/decisions/0025-quality.md).

Thin seams along boundaries are suspected in any label. What a person would mend is an *area*: suspected pixels that
hang together, of one class by the label and one by the model. Its *doubt* is the sum of p_k - p_y over them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Float32, Float64, Int32, UInt8

from pipeline.images.classes import IGNORE

TEMPERATURE = 0.03
"""Of the softmin."""


class Contradicted(NamedTuple):
    """The m labelled pixels of one image of which the model's argmax class is not the label's."""

    size: tuple[int, int]
    """Height and width of the image."""
    place: Int32[np.ndarray, " m"]
    """Index into the flattened image."""
    given: UInt8[np.ndarray, " m"]
    """Class by the label."""
    claim: UInt8[np.ndarray, " m"]
    """Class by the model."""
    own: Float32[np.ndarray, " m"]
    """Probability of the label's class."""
    best: Float32[np.ndarray, " m"]
    """Probability of the model's class."""

    def at(self, kept: "np.ndarray") -> "Contradicted":
        """Some of them, by a mask or indices."""
        return Contradicted(self.size, *(values[kept] for values in self[1:]))


class Judged(NamedTuple):
    """What a model says of the label of one image."""

    pixels: int
    """That are labelled."""
    quality: float
    """Softmin of their self-confidences, in [0, 1]; 1 where none is labelled."""
    sums: Float64[np.ndarray, "c 2"]
    """As of `confidence_sums`."""
    contradicted: Contradicted


class Area(NamedTuple):
    """Suspected pixels that hang together."""

    given: int
    """Class by the label."""
    claim: int
    """Class by the model."""
    place: Int32[np.ndarray, " m"]
    """Its pixels, as indices into the flattened image."""
    doubt: float
    """Sum over the pixels of how much more probable the model's class is, in pixels."""
    top: int
    left: int
    bottom: int
    right: int
    """The box around it; bottom and right lie just outside."""


def softmin(confidences: Float[np.ndarray, " n"], temperature: float = TEMPERATURE) -> float:
    """The softmin of self-confidences, in [0, 1].

    Raises:
        ValueError: there is none.
    """
    if not confidences.size:
        raise ValueError("a label without a labelled pixel has no quality")
    values = confidences.astype(np.float64)
    weights = np.exp((values.min() - values) / temperature)  # the largest is 1
    return float(values @ weights / weights.sum())


def confidence_sums(
    given: UInt8[np.ndarray, "h w"], own: Float[np.ndarray, "h w"], classes: int
) -> Float64[np.ndarray, "c 2"]:
    """By class, the sum of the self-confidences of the pixels labelled so, and their number; additive over images."""
    known = given != IGNORE
    labels = given[known]
    counts = [np.bincount(labels, weights, classes) for weights in (own[known], np.ones(labels.size))]
    return np.stack(counts, 1).astype(np.float64)  # without a labelled pixel, bincount gives integers


def thresholds(sums: Float64[np.ndarray, "c 2"]) -> Float64[np.ndarray, " c"]:
    """The mean self-confidence of every class; infinite for one without a labelled pixel, which nobody can expect."""
    found: np.ndarray = np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.inf), where=sums[:, 1] > 0)
    return found


def contradicted(
    given: UInt8[np.ndarray, "h w"],
    claim: UInt8[np.ndarray, "h w"],
    own: Float32[np.ndarray, "h w"],
    best: Float32[np.ndarray, "h w"],
) -> Contradicted:
    """The pixels in which label and model differ.

    Args:
        given: class ids by the label, and IGNORE.
        claim: argmax class.
        own: probability of the label's class; anything where that is IGNORE.
        best: probability of the argmax class.
    """
    place = np.flatnonzero((given != IGNORE) & (claim != given)).astype(np.int32)
    height, width = given.shape
    return Contradicted((height, width), place, *(values.ravel()[place] for values in (given, claim, own, best)))


def judge(
    classes: int,
    given: UInt8[np.ndarray, "h w"],
    claim: UInt8[np.ndarray, "h w"],
    own: Float32[np.ndarray, "h w"],
    best: Float32[np.ndarray, "h w"],
) -> Judged:
    """All that is kept of one label; arguments as of `contradicted`, and the number of classes."""
    known = own[given != IGNORE]
    quality = softmin(known) if known.size else 1.0
    return Judged(known.size, quality, confidence_sums(given, own, classes), contradicted(given, claim, own, best))


def suspected(pixels: Contradicted, limits: Float64[np.ndarray, " c"]) -> Contradicted:
    """Those of which the model is as sure as it is, on average, where the label says the same class."""
    # The thresholds are means of rounded numbers: a model that is equally sure everywhere reaches its own.
    return pixels.at(pixels.best >= limits[pixels.claim] - 1e-6)


def areas(pixels: Contradicted) -> list[Area]:
    """The areas that these pixels make up (8-connected), greatest doubt first."""
    found = []
    height, width = pixels.size
    pairs = pixels.given.astype(int) * 256 + pixels.claim
    for pair in np.unique(pairs):
        some = pixels.at(pairs == pair)
        shown = np.zeros(height * width, np.uint8)
        shown[some.place] = 1
        number, numbered, stats, _ = cv2.connectedComponentsWithStats(shown.reshape(height, width), connectivity=8)
        numbers = numbered.ravel()[some.place]
        doubts = np.bincount(numbers, some.best.astype(float) - some.own, number)
        given, claim = divmod(int(pair), 256)
        for one, (left, top, wide, high, _) in enumerate(stats[1:].tolist(), 1):
            place = some.place[numbers == one]
            found.append(Area(given, claim, place, float(doubts[one]), top, left, top + high, left + wide))
    return sorted(found, key=lambda area: -area.doubt)


def picture(areas: Sequence[Area], size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """The model's class in these areas of an image of this height and width, IGNORE elsewhere."""
    ids = np.full(size, IGNORE, np.uint8)
    for area in areas:
        ids.ravel()[area.place] = area.claim
    return ids
