"""The cost model: predicted annotator minutes of an image, from what the model of the round before says of it.

    minutes = t_open + a * regions + b * boundary + c * corrections,      t_open, a, b, c >= 0

People who correct a prediction open an image, look at its regions, follow their boundaries and repaint what is wrong.
The coefficients are fitted to the minutes of the labels that have come back (ridge regression, Hoerl and Kennard 1970,
under the constraint of Lawson and Hanson 1974, that none is negative):

    sum_i (minutes_i - predicted_i)^2 + PRIOR_IMAGES sum_{k = a, b, c} (coefficient_k max(mean feature k, 1))^2 -> min

The prior: every image takes the same time, the mean of those seen, until minutes say otherwise. We know of no measured
split of the time between the parts, and this one is right from the first label on where minutes do not vary. Its weight
is that of PRIOR_IMAGES images: with a spread of one half of the mean from image to image that no feature explains, and
a quarter of the mean expected of each part, the ridge is (0.5 / 0.25)^2 = 4.

People who answer for regions, one by one, open an image and answer:

    minutes = t_open + t_answer * regions

Of these two times there is a guess beforehand (`score.seconds_to_open`, `score.seconds_per_answer`), so the ridge pulls
both towards it, with the weight of as many images.

Squares are pulled by a single tab that was left open over night. So only credible times are fitted: those within a
factor of CREDIBLE of the prediction that they themselves lead to, from the median on (least trimmed squares with a
threshold in the place of a share: Rousseeuw 1984, "Least Median of Squares Regression").

Features are read off every fourth pixel in both directions, which costs a hundredth of a forward pass.

People who are asked what some regions of an image are take t_open + t_answer * regions (`fit_answers`).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, UInt8
from torch import Tensor

from pipeline.images.claims import highest

FEATURES = ("regions", "boundary", "corrections")
"""Features: connected areas of a class; pixels along boundaries between classes; pixels expected to be wrong."""
STEP = 4
"""Pixels from one that is read to the next, in both directions."""
PRIOR_IMAGES = 4.0
CREDIBLE = 5.0
"""Largest factor by which a credible time is above or below its prediction. Where the logarithm of people's times has a
standard deviation of 0.5 around what features explain, 1 honest time in 800 is lost."""
REFITS = 20
"""Iterations of fitting and dropping what is not credible, at most."""
SHORTEST = 1 / 60
"""Lower bound of the predicted minutes of an image."""


def observe(probabilities: Float[Tensor, "n c h w"]) -> Float64[Tensor, "n 3"]:
    """FEATURES of every image of a batch, from calibrated probabilities, in areas and pixels at the network's size."""
    confidence, claim = highest(probabilities[..., ::STEP, ::STEP])
    height, width = probabilities.shape[-2:]
    points = claim[0].numel()
    corrections = (1 - confidence).double().sum((1, 2)) * (height * width / points)
    labellings = claim.cpu().numpy()
    boundary = [STEP * _changes(labelling) for labelling in labellings]
    counted = torch.tensor([[count_regions(one) for one in labellings], boundary], dtype=torch.float64)
    return torch.cat([counted.T, corrections.cpu()[:, None]], dim=1)


def _changes(labels: UInt8[np.ndarray, "h w"]) -> int:
    """Pairs of neighbours of two classes: the length of all boundaries, along rows and columns."""
    return int((labels[1:] != labels[:-1]).sum() + (labels[:, 1:] != labels[:, :-1]).sum())


def count_regions(labels: UInt8[np.ndarray, "h w"]) -> int:
    """Connected areas of one class, neighbours across corners not included.

    All classes in one call: in a map of twice the size there is a bridge between two neighbours if they are alike.
    """
    import cv2  # here, as SciPy below: most importers of this module neither count nor fit

    height, width = labels.shape
    bridges = np.zeros((2 * height - 1, 2 * width - 1), np.uint8)
    bridges[::2, ::2] = 1
    bridges[1::2, ::2] = labels[1:] == labels[:-1]
    bridges[::2, 1::2] = labels[:, 1:] == labels[:, :-1]
    return int(cv2.connectedComponents(bridges, connectivity=4)[0]) - 1  # component 0 is the background


def fit(features: Float64[np.ndarray, "n 3"], minutes: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, "4"]:
    """The coefficients: minutes to open an image, and minutes per region, boundary pixel and correction.

    Args:
        features: FEATURES of n labelled images, one at least, as they were when the images were bought.
        minutes: that the labels took; those that are not credible are left out.

    Raises:
        ValueError: no image, or a value that is not finite or below 0.
    """
    if not len(minutes) or not (np.isfinite(features) & (features >= 0)).all():
        raise ValueError("minutes are fitted to finite features, not negative, of one labelled image at least")
    if not (np.isfinite(minutes) & (minutes >= 0)).all():
        raise ValueError(f"minutes must be finite and not negative, not {minutes[~(minutes >= 0)][:5]}")
    kept = credible(features, minutes)
    return _least_squares(features[kept], minutes[kept])


def fit_regions(
    regions: Float64[np.ndarray, " n"], minutes: Float64[np.ndarray, " n"], guess: tuple[float, float]
) -> Float64[np.ndarray, "2"]:
    """The coefficients of answers for regions: minutes to open an image, and minutes per region.

    Args:
        regions: how many were asked about, of each of n >= 0 images.
        minutes: that the answers took; those that are not credible are left out.
        guess: the coefficients where n is 0, and what the fit is drawn to.

    Raises:
        ValueError: a value that is not finite or below 0.
    """
    prior = np.array(guess, float)
    for values in (regions, minutes, prior):
        if not (np.isfinite(values) & (values >= 0)).all():
            raise ValueError(f"minutes of regions are fitted to finite numbers, not below 0, and not to {values[:5]}")
    if not len(minutes):
        return prior
    features = regions[:, None]
    kept = credible(features, minutes, prior)
    return _least_squares(features[kept], minutes[kept], prior)


def fit_regions_bought(
    bought: Iterable[Mapping[str, Any]], purchases: Mapping[str, Mapping[str, Any]], guess: tuple[float, float]
) -> Float64[np.ndarray, "2"]:
    """The same from the labels bought so far, as `artifacts.load_labels` and `load_purchases` have them.

    Raises:
        KeyError: it is not on record what was asked about an image.
    """
    rows = [(purchases[row["key"]]["regions"], row["minutes"]) for row in bought]
    table = np.array(rows, float).reshape(-1, 2)
    return fit_regions(table[:, 0], table[:, 1], guess)


def of_regions(regions: Float64[np.ndarray, " m"], coefficients: Float64[np.ndarray, "2"]) -> Float64[np.ndarray, " m"]:
    """Predicted minutes for answers about so many regions of each of m images, at least SHORTEST."""
    return predict(np.asarray(regions, float)[:, None], coefficients)


def credible(
    features: Float64[np.ndarray, "n k"],
    minutes: Float64[np.ndarray, " n"],
    prior: Float64[np.ndarray, " k+1"] | None = None,
) -> Bool[np.ndarray, " n"]:
    """Which of the n >= 1 times can be times of work: neither a tab left open nor a click by mistake.

    Iterated from the (lower) median, since a fit to all of them would follow the outliers. `prior` as in the fit.
    """
    start = np.full(len(minutes), np.quantile(minutes, 0.5, method="lower"))
    return _settled(
        minutes, start, lambda kept: predict(features, _least_squares(features[kept], minutes[kept], prior))
    )


def _settled(
    minutes: Float64[np.ndarray, " n"],
    start: Float64[np.ndarray, " n"],
    refitted: Callable[[Bool[np.ndarray, " n"]], Float64[np.ndarray, " n"]],
) -> Bool[np.ndarray, " n"]:
    """Which times are near the predictions that they themselves lead to, iterated from those near the start."""
    kept = _near(minutes, start)
    for _ in range(REFITS):
        now = _near(minutes, refitted(kept))
        if not now.any() or (now == kept).all():
            break
        kept = now
    return kept


def _near(minutes: Float64[np.ndarray, " n"], expected: Float64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    near: np.ndarray = (minutes <= CREDIBLE * expected) & (minutes >= expected / CREDIBLE)
    return near


def _least_squares(
    features: Float64[np.ndarray, "n k"],
    minutes: Float64[np.ndarray, " n"],
    prior: Float64[np.ndarray, " k+1"] | None = None,
) -> Float64[np.ndarray, " k+1"]:
    """The ridge draws all coefficients to the prior; without one, all but the first to 0."""
    from scipy.optimize import nnls  # takes 2 s to import

    # Scaled by their means, so that the ridge treats all features alike; by 1 at least, or rounding would be fitted.
    scale = np.maximum(features.mean(0), 1.0)
    seen = np.column_stack([np.ones(len(minutes)), features / scale])
    scales = np.append(1.0, scale)
    free = 1 if prior is None else 0
    towards = (np.zeros(len(scales)) if prior is None else prior * scales)[free:]
    weight = np.sqrt(PRIOR_IMAGES)
    ridge = weight * np.eye(len(scales))[free:]
    parts = nnls(np.vstack([seen, ridge]), np.append(minutes, weight * towards))[0]
    coefficients: np.ndarray = parts / scales
    return coefficients


def predict(
    features: Float64[np.ndarray, "m k"], coefficients: Float64[np.ndarray, " k+1"]
) -> Float64[np.ndarray, " m"]:
    """Predicted minutes of every image, at least SHORTEST."""
    minutes: np.ndarray = np.maximum(coefficients[0] + features @ coefficients[1:], SHORTEST)
    return minutes


def fit_answers(
    answers: Float64[np.ndarray, " n"], minutes: Float64[np.ndarray, " n"], prior: Float64[np.ndarray, "2"]
) -> Float64[np.ndarray, "2"]:
    """Minutes to open an image, at least SHORTEST, and minutes per answer, not negative.

    The prior is scaled by the median pace and then counts as PRIOR_IMAGES images for each of the two: where every image
    was asked as much about, the minutes cannot tell one from the other, and their ratio is that of the prior.

    Args:
        answers: regions that each of n images was asked about; with no image, the prior is returned.
        minutes: that the answers took; those that are not credible are left out.
        prior: the two until minutes have come back.
    """
    if not len(minutes):
        return prior
    seen = np.column_stack([np.ones(len(answers)), answers])
    paces = minutes / (seen @ prior)
    pace = float(np.quantile(paces, 0.5, method="lower"))

    def fitted(kept: Bool[np.ndarray, " n"]) -> Float64[np.ndarray, "2"]:
        from scipy.optimize import nnls

        weight = np.sqrt(PRIOR_IMAGES) * np.diag([1.0, max(float(answers[kept].mean()), 1.0)])
        found: np.ndarray = nnls(np.vstack([seen[kept], weight]), np.append(minutes[kept], weight @ prior * pace))[0]
        return found

    found = fitted(_settled(minutes, pace * (seen @ prior), lambda kept: seen @ fitted(kept)))
    least: np.ndarray = np.maximum(found, [SHORTEST, 0.0])
    return least
