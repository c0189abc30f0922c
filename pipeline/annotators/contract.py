"""What every annotator is: a function that is asked and answers.

An annotator sends what is not sent yet (idempotently, by image key) and yields what has come back. It may be called
any number of times; when it ends before everything has come back, people are still at work.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import UInt8

from pipeline.ledger import Order
from pipeline.params import Annotate, Prepare


class Request(NamedTuple):
    """What an annotator is asked for."""

    orders: Sequence[Order]
    """Images that have not come back yet."""
    pool: pd.DataFrame
    """The pool's manifest, indexed by key."""
    prepare: Prepare
    """Class set and layout of the pool."""
    annotate: Annotate
    """How this annotator works."""


class Answer(NamedTuple):
    """One image that has come back."""

    key: str
    mask: UInt8[np.ndarray, "h w"]
    """Class ids and IGNORE, at the image's own size."""
    minutes: float
    """What it took."""


Annotator = Callable[[Request], Iterator[Answer]]
