"""The contract of acquisitions: probabilities -> statistics, statistics -> gain, probabilities -> gain map."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Float64, Int64
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

    def part(self, image: int, rows: slice, cols: slice) -> "Posterior":
        """The posterior of a part of one image, in pixels; of a cell that it cuts only the pixels inside count."""
        of_rows, of_cols = self.rows[rows], self.cols[cols]
        top, left, bottom, right = (int(edge) for edge in (of_rows[0], of_cols[0], of_rows[-1] + 1, of_cols[-1] + 1))
        cells = self.members[:, image : image + 1, :, top:bottom, left:right]
        return Posterior(cells, of_rows - top, of_cols - left, self.worth)

    def spread(self, cells: Float[Tensor, "n h2 w2"]) -> Float[Tensor, "n h w"]:
        """A map of pixels, each with the value of its cell (nearest-neighbour upsampling)."""
        return cells[:, self.rows[:, None], self.cols]


class Observe(Protocol):
    """(probabilities, posterior) -> sums over the pixels of every image."""

    def __call__(self, probabilities: Probabilities, posterior: Posterior | None = None) -> Float64[Tensor, "n c s"]:
        """Errors: ValueError if the acquisition needs members or their worth, and has none."""
        ...


Gain = Callable[[Float64[Tensor, "m c s"], Float64[Tensor, "c s"]], Float64[Tensor, "m c"]]
"""(statistics of images, pool totals) -> gain of every image, by class; its sum is the image's. Errors: ValueError."""


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
    probabilities: Probabilities, scores: Float[Tensor, "n h w"], pixels: Float[Tensor, "h w"] | None = None
) -> Float64[Tensor, "n c 2"]:
    """By argmax class: (pixels, sum of their scores); `pixels` is how many a cell stands for, None for one."""
    _, claim = highest(probabilities)
    rows = []
    for c in range(probabilities.shape[1]):
        own = claim == c
        weight = own if pixels is None else own * pixels
        rows.append(torch.stack([total(weight), total(scores * weight)], dim=1))
    return torch.stack(rows, dim=1)
