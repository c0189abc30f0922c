"""The contract of annotators: a function from a `Request` to an iterator over answers, skips and labels held back.

An annotator sends what is not sent yet (idempotently, by round and image key) and yields what has come back. It may be
called any number of times; when it ends before everything has come back, people are still at work.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import UInt8

from pipeline.errors import UserError
from pipeline.images import blocks
from pipeline.images.classes import ClassSet
from pipeline.ledger.entries import Order
from pipeline.params import Annotate

if TYPE_CHECKING:
    import pandas as pd


class Unreachable(UserError):
    """The annotators cannot be reached at the moment; a later attempt may succeed."""


class Request(NamedTuple):
    """The orders of a round, and what an annotator needs to know to carry them out."""

    round_name: str
    orders: Sequence[Order]
    """Orders of the round, of images or blocks, that may still be answered."""
    known: Mapping[str, str]
    """By image key, the version of the label on record: another version is answered again, none is sent again."""
    pool: "pd.DataFrame"
    """The pool's manifest, indexed by key; a block has a row of its own, with the size of its crop."""
    classes: ClassSet
    """Classes that can be painted."""
    annotate: Annotate
    """The section of params.yaml."""
    acquisition: str
    """The acquisition of the orders' gains: those of `params.IN_POINTS` are in points of mIoU."""
    again: bool = False
    """Whether this run has been answered before: what was warned of then is not said at every poll."""

    @property
    def by_regions(self) -> bool:
        """Whether people answer for regions, instead of painting."""
        return self.annotate.by == "regions" or any(blocks.is_of_regions(order.key) for order in self.orders)


class Answer(NamedTuple):
    """A label of one image that has come back."""

    key: str
    mask: UInt8[np.ndarray, "h w"]
    """Class ids and IGNORE, at the image's own size, or the block's."""
    minutes: float
    """Minutes that it took."""
    annotator: str
    """Who made it."""
    changed: int | None = None
    """Pixels in which it differs from the prediction that was sent along; None if none was."""
    agreement: float | None = None
    """Share of pixels on which several annotators agree; None if there was one."""
    version: str = ""
    """Which annotation it was made from, in which state."""
    agreed: tuple[tuple[int, int], ...] = ()
    """Of several annotators, as `Delivery` has it."""


class Skipped(NamedTuple):
    """Somebody would not label this image."""

    key: str
    minutes: float
    annotator: str
    version: str = ""


class HeldBack(NamedTuple):
    """An annotation that is not taken as it is."""

    key: str
    reason: str
    """One sentence: what is wrong with it, and what the annotator should do."""


Annotator = Callable[[Request], Iterator[Answer | Skipped | HeldBack]]
