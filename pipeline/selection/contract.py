"""The contract of selection methods: (candidates, budget, rng) -> chosen images and their inclusion probabilities.

Under a budget in minutes a method that goes down a fixed or drawn order stops at the first image that does not fit:
passing it over for a later, smaller one would favour small images beyond what the probabilities say.
"""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64


class Candidates(NamedTuple):
    """The m images that may be bought, of c classes, and the features of b bought ones."""

    gains: Float64[np.ndarray, " m"]
    """Expected gain of every image, in any unit, not negative."""
    minutes: Float64[np.ndarray, " m"]
    """Predicted annotation minutes, above 0."""
    parts: Float64[np.ndarray, "m c"]
    """The gain split by class, not negative."""
    features: Float[np.ndarray, "m d"] | None = None
    """One vector per image."""
    by_class: Float[np.ndarray, "m c d"] | None = None
    """One vector per image and class, pooled over the pixels of that class; 0 where the image shows none of it."""
    gradient: Float[np.ndarray, "m g"] | None = None
    """BADGE's gradient embedding."""
    bought_features: Float[np.ndarray, "b d"] | None = None
    """`features` of the images bought already."""
    bought_by_class: Float[np.ndarray, "b c d"] | None = None
    """`by_class` of the images bought already."""
    holds: Float[np.ndarray, "m c"] | None = None
    """Pixels of every class that an image is expected to show, as a multiple of the mean over the m images."""
    bought_holds: Float[np.ndarray, "b c"] | None = None
    """The same of the images bought already: labelled pixels."""
    iou: Float64[np.ndarray, " c"] | None = None
    """Expected IoU of every class in the pool, in [0, 1]."""


class Budget(NamedTuple):
    """How much is bought: in images or in predicted minutes, exactly one of the two."""

    images: int | None = None
    minutes: float | None = None

    @property
    def limit(self) -> float:
        """Most minutes that the choice may take; the tolerance lets three times 0.1 minutes fit into 0.3."""
        return np.inf if self.minutes is None else self.minutes * (1 + 1e-12)


class Settings(NamedTuple):
    """The numbers that the methods take, from the section `select` and for their searches."""

    power: float = 1.0
    """Exponent of the gain in draws: 0 is uniform, large is best first."""
    uniform_share: float = 0.1
    """Share of the drawing probability that is spread evenly."""
    terms: int = 4000
    """Of `coverage`: most (image, class) pairs on which it is evaluated."""
    whole: int = 300_000
    """Of `coverage`: candidates times choices up to which every step searches all candidates, beyond it a sample."""
    epsilon: float = 0.2
    """Of `coverage` by samples: share of the best coverage that it may lose by them, on average; in trials it lost
    less than 0.01."""


class Choice(NamedTuple):
    """The chosen images, in the order of the choice."""

    indices: Int64[np.ndarray, " k"]
    probabilities: Float64[np.ndarray, " k"]
    """Probability of each chosen image to be among the chosen, in (0, 1]; 1 where the method draws nothing."""


Method = Callable[[Candidates, Budget, np.random.Generator], Choice]
"""A member of the family, made for its settings. Errors: ValueError where numbers are out of range or missing."""


class Entry(NamedTuple):
    """A line of `METHODS`: how a member is made, and what it needs."""

    make: Callable[[Settings], Method]
    needs_features: Literal["features", "by_class", "gradient"] | None = None
    """The field of `Candidates` that it needs; None if gains and minutes are enough."""
    by_gain: bool = False
    """Whether it looks for gain, so that a score without a signal misleads it; the others look for rare, typical or
    diverse images."""


NAMES = {"features": "features", "by_class": "features by class", "gradient": "gradient embeddings"}


def check(candidates: Candidates, budget: Budget, *, classes: bool = False) -> None:
    """Check the numbers of candidates and budget; with `classes`, also the gains by class.

    Raises:
        ValueError: one sentence that says what is wrong.
    """
    images, most = budget
    if (images is None) == (most is None):
        raise ValueError(f"a budget is in images or in minutes, not {images} images and {most} minutes")
    amount = (images if most is None else most) or 0
    if not np.isfinite(amount) or amount < 0:
        raise ValueError(f"the budget must be finite and not negative: {images} images, {most} minutes")
    for name, gains in (("gains", candidates.gains), ("gains by class", candidates.parts)):
        fine = np.isfinite(gains) & (gains >= 0)
        if not fine.all():
            raise ValueError(f"{name} must be finite and not negative, not {gains[~fine][:5]}")
    fine = np.isfinite(candidates.minutes) & (candidates.minutes > 0)
    if not fine.all():
        raise ValueError(f"minutes must be finite and above 0, not {candidates.minutes[~fine][:5]}")
    if images is not None and images > len(candidates.gains):
        raise ValueError(f"{images} images are asked for, but only {len(candidates.gains)} can be drawn")
    if classes and not candidates.parts.shape[1]:
        raise ValueError("this method weighs classes, and there is no gain by class: no column gain_<class>")


def compared(candidates: Candidates, need: str) -> tuple[Float[np.ndarray, "m ..."], Float[np.ndarray, "b ..."]]:
    """The field `need` of the candidates, and that of the images bought already (zero rows if there are none).

    Raises:
        ValueError: there is no such field, it is not of these images, or not finite.
    """
    own: np.ndarray | None = getattr(candidates, need)
    bought: np.ndarray | None = getattr(candidates, f"bought_{need}", None)
    if own is None:
        raise ValueError(f"this method compares images by {NAMES[need]}, and there are none: set score.features: true")
    if bought is None:
        bought = np.zeros((0, *own.shape[1:]), own.dtype)
    if own.shape[:-1] != (candidates.parts if need == "by_class" else candidates.gains).shape:
        raise ValueError(f"{NAMES[need]} of shape {own.shape} do not belong to gains of {candidates.parts.shape}")
    if own.shape[1:] != bought.shape[1:]:
        raise ValueError(f"{NAMES[need]} are of shape {own.shape}, those of bought images of {bought.shape}")
    if not all(np.isfinite(row).all() for block in (own, bought) for row in block):
        raise ValueError(f"{NAMES[need]} must be finite")
    return own, bought


def expected_number(candidates: Candidates, budget: Budget) -> float:
    """How many images the budget buys, if each takes the mean of the predicted minutes."""
    if budget.minutes is None:
        return float(budget.images or 0)
    return budget.minutes / float(candidates.minutes.mean()) if len(candidates.minutes) else 0.0


def take(order: Iterable[int], minutes: Float64[np.ndarray, " m"], budget: Budget) -> Int64[np.ndarray, " k"]:
    """The first images of an order that fill the budget; the order is read only as far as needed.

    Raises:
        ValueError: the order has fewer images than are asked for.
    """
    taken: list[int] = []
    spent = 0.0
    for index in islice(order, budget.images):
        spent += minutes[index]
        if spent > budget.limit:
            break
        taken.append(index)
    if budget.images is not None and len(taken) < budget.images:
        raise ValueError(f"{budget.images} images are asked for, but only {len(taken)} can be drawn")
    return np.array(taken, np.int64)
