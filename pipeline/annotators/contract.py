"""What every annotator is: a function that is asked and answers.

An annotator sends what is not sent yet (idempotently, by round and image key) and yields what has come back. It may be
called any number of times; when it ends before everything has come back, people are still at work.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import UInt8

from pipeline.errors import UserError
from pipeline.images.classes import ClassSet
from pipeline.ledger.entries import Order
from pipeline.params import Annotate

if TYPE_CHECKING:
    import pandas as pd


class Unreachable(UserError):
    """The annotators cannot be reached at the moment; it is worth while to try again later."""


class Request(NamedTuple):
    """What an annotator is asked for."""

    round_name: str
    orders: Sequence[Order]
    """Images, or blocks, of the round that may still have something to say."""
    known: Mapping[str, str]
    """By image key, the version of what is on record. Answered again only in another version, and never sent again."""
    pool: "pd.DataFrame"
    """The pool's manifest, indexed by key; a block has a row of its own, with the size of its crop."""
    classes: ClassSet
    """What can be painted."""
    annotate: Annotate
    """How this annotator works."""
    acquisition: str
    """What the orders' gains are: of `params.IN_POINTS` points of mIoU, others have units of their own."""


class Answer(NamedTuple):
    """The label of one image has come back."""

    key: str
    mask: UInt8[np.ndarray, "h w"]
    """Class ids and IGNORE, at the image's own size, or the block's."""
    minutes: float
    """What it took."""
    annotator: str
    """Who made it."""
    changed: int | None = None
    """Pixels in which it differs from the prediction that was sent along; None if none was."""
    agreement: float | None = None
    """Share of pixels on which several annotators agree; None if there was one."""
    version: str = ""
    """Which annotation it was made from, in which state."""


class Skipped(NamedTuple):
    """Somebody would not label this image."""

    key: str
    minutes: float
    annotator: str
    version: str = ""


class HeldBack(NamedTuple):
    """There is an annotation, but it cannot be taken as it is."""

    key: str
    reason: str
    """One sentence: what is wrong with it, and what the annotator should do."""


Annotator = Callable[[Request], Iterator[Answer | Skipped | HeldBack]]
