"""Candidates of a round: what was scored and is neither bought nor set aside, with the minutes it should take."""

from collections.abc import Set
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd


from pipeline import artifacts
from pipeline.images import blocks
from pipeline.ledger.entries import Ledger, Skip
from pipeline.params import Annotate


class Left(NamedTuple):
    """The images, or blocks, that a round may still buy."""

    rows: "pd.DataFrame"
    """Their rows of the scores; the oracle's minutes are those it books."""
    set_aside: list[str]
    """Sentences on what is left out although it is not bought."""


def left(round_name: str, book: Ledger, annotate: Annotate) -> Left:
    """What a round may still buy, from its scores.

    A skipped image is back in the pool, but not offered again in the round that skipped it.
    """
    scores = artifacts.load_scores(round_name)
    gone = {order.key for order in book.orders} | {skip.key for skip in book.skipped(round_name)} | book.removed
    had = {entry.key for entry in book.entries if not isinstance(entry, Skip)} | gone
    oracle = annotate.annotator == "oracle"
    pool = artifacts.load_images(round_name).set_index("key")
    aside, sentences = _set_aside(scores["key"], pool, had, oracle=oracle)
    rows = scores[~scores["key"].isin(gone | aside)].reset_index(drop=True)
    if oracle:  # its minutes are known beforehand
        rows["minutes"] = [annotate.oracle_minutes * blocks.share(key) for key in rows["key"]]
    return Left(rows, sentences)


def _set_aside(keys: "pd.Series", pool: "pd.DataFrame", had: Set[str], *, oracle: bool) -> tuple[set[str], list[str]]:
    """(keys not to be bought, sentences why): duplicates, and images that the oracle has no mask of.

    Of images of the same content one stays: one that is ordered (or a block of it), else the first.
    """
    taken = {blocks.image_of(key) for key in had}
    first: dict[str, str] = {}
    for key in sorted(pool.index, key=lambda key: key not in taken):  # stable
        first.setdefault(pool.at[key, "sha256"], key)
    images = keys.map(blocks.image_of)
    known = images.isin(pool.index)
    content, mask = (images.map(pool[column]) for column in ("sha256", "mask"))
    double = known & (content.map(first) != images)
    closed = known & ~double & (mask == "") if oracle else known & False
    sentences = [
        f"set aside: {which.sum()} of {blocks.counted(keys.tolist())} {why}, {keys[which].iloc[0]!r} first"
        for which, why in ((double, "have the same content as another"), (closed, "have no mask for the oracle"))
        if which.any()
    ]
    return set(keys[double | closed]), sentences
