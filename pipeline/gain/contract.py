"""The contract of acquisitions: probabilities -> statistics, statistics -> gain, probabilities -> gain map."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

from pipeline.images.claims import highest

Probabilities = Float[Tensor, "n c h w"]


class Worth(NamedTuple):
    """What correcting one pixel brings to the pooled mIoU, in points; see `shortfall.worth`."""

    doubt: Float64[Tensor, " c"]
    """One false positive of class c removed: (100/C) J_c / U_c."""
    miss: Float64[Tensor, " c"]
    """One false negative of class c found: (100/C) / U_c."""


class Posterior(NamedTuple):
    """Class probabilities of each dropout-ensemble member for a batch, on the last layer's grid of cells."""

    members: Float[Tensor, "k n c h2 w2"]
    """Class probabilities of the k members."""
    rows: Int64[Tensor, " h"]
    """For every row of pixels the row of cells that it lies in."""
    cols: Int64[Tensor, " w"]
    """The same for columns."""
    worth: Worth | None = None
    """For those acquisitions that need it before the pass."""

    def pixels(self) -> Float[Tensor, "h2 w2"]:
        """How many pixels lie in every cell; 0 for cells of the padding."""
        height, width = self.members.shape[-2:]
        counts = torch.outer(torch.bincount(self.rows, minlength=height), torch.bincount(self.cols, minlength=width))
        return counts.to(self.members.dtype)

    def spread(self, cells: Shaped[Tensor, "n h2 w2"]) -> Shaped[Tensor, "n h w"]:
        """A map of pixels, each with the value of its cell (nearest-neighbour upsampling)."""
        return cells[:, self.rows[:, None], self.cols]


class Units(NamedTuple):
    """What the images of a batch are cut into, blocks or regions: u units."""

    of: Int64[Tensor, "n h w"]
    """The unit of every pixel, numbered from 0 through the batch."""
    number: int
    """u; a unit may be without a pixel."""

    def sums(
        self, classes: int, claim: Shaped[Tensor, "n h w"], pixels: Float[Tensor, "n h w"] | None = None
    ) -> Float64[Tensor, "u c"]:
        """Sum over the pixels of every unit, by claim; without `pixels` their number."""
        weights = None if pixels is None else pixels.flatten().double()
        place = (self.of * classes + claim).flatten()
        return torch.bincount(place, weights, minlength=self.number * classes).view(self.number, classes).double()


class Observe(Protocol):
    """(probabilities, posterior, units) -> sums over the pixels of every unit; without units, of every image."""

    def __call__(
        self, probabilities: Probabilities, posterior: Posterior | None = None, units: Units | None = None
    ) -> Float64[Tensor, "u c s"]:
        """Errors: ValueError if the acquisition needs members or their worth, and has none."""
        ...


Gain = Callable[[Float64[Tensor, "m c s"], Float64[Tensor, "c s"]], Float64[Tensor, "m c"]]
"""(statistics of units, pool totals) -> gain of every unit, by class; its sum is the unit's. Errors: ValueError."""


class GainMap(Protocol):
    """(probabilities, pool totals, posterior) -> gain of every pixel; its sum is the image's gain."""

    def __call__(
        self, probabilities: Probabilities, pool: Float64[Tensor, "c s"], posterior: Posterior | None = None
    ) -> Float[Tensor, "n h w"]:
        """Errors as of `Observe` and `Gain`."""
        ...


class Settings(NamedTuple):
    """The numbers of the section `score` that acquisitions take."""

    smooth: float
    """Share of all unions that is added to every union."""
    blend: float = 1.0
    """Of `gain`: the share of the shortfall in it."""


class Acquisition(NamedTuple):
    """A member of the family, made for its settings: a way to predict gain.

    It has s statistics per image and class; the pool's are their sum over its images.
    """

    statistics: tuple[str, ...]
    """Names of the s statistics."""
    observe: Observe
    gain: Gain
    gain_map: GainMap


class Entry(NamedTuple):
    """A line of `ACQUISITIONS`: how a member is made, and what it needs."""

    make: Callable[[Settings], Acquisition]
    needs_members: bool = False
    """Whether it needs the dropout-ensemble members' probabilities (`Posterior`)."""
    needs_worth: bool = False
    """Whether the posterior must come with its `worth`, estimated before the pass."""
    in_points: bool = False
    """Whether its gains are in mIoU points; others have units of their own."""


def asked(posterior: Posterior | None, name: str) -> Posterior:
    """The posterior, which the acquisition `name` needs.

    Raises:
        ValueError: it is None.
    """
    if posterior is None:
        raise ValueError(f"{name} needs members of the posterior: give it a `Posterior`")
    return posterior


def total(pixels: Tensor) -> Float64[Tensor, " n"]:
    """Sum over the pixels of every image."""
    # torch adds float32 in a tree: on 2 million pixels the error is 1e-7 of the sum, a tenth of the cost of float64
    return pixels.sum((1, 2)).double()


def by_claim(
    probabilities: Probabilities,
    scores: Float[Tensor, "n h w"],
    cells: Posterior | None = None,
    units: Units | None = None,
) -> Float64[Tensor, "u c 2"]:
    """By argmax class, for every unit (without units every image): (pixels, sum of their scores).

    Where `cells` are given, probabilities and scores are of those, and each counts for all its pixels.
    """
    _, claim = highest(probabilities)
    if units is not None:
        if cells is not None:
            claim, scores = cells.spread(claim), cells.spread(scores)
        classes = probabilities.shape[1]
        return torch.stack([units.sums(classes, claim), units.sums(classes, claim, scores)], dim=2)
    pixels = None if cells is None else cells.pixels()
    rows = []
    for c in range(probabilities.shape[1]):
        own = claim == c
        weight = own if pixels is None else own * pixels
        rows.append(torch.stack([total(weight), total(scores * weight)], dim=1))
    return torch.stack(rows, dim=1)
