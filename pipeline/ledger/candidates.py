"""Candidates of a round: what was scored and is neither bought nor set aside, with the minutes it should take."""

from collections.abc import Iterable, Set
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd


import numpy as np
from jaxtyping import Bool

from pipeline import artifacts
from pipeline.images import blocks, region_scores
from pipeline.images.region_scores import RegionScores
from pipeline.ledger.entries import Ledger, Order, Skip
from pipeline.params import Annotate


class Left(NamedTuple):
    """The images, or blocks, that a round may still buy."""

    rows: "pd.DataFrame"
    """Their rows of the scores; the oracle's minutes are those it books."""
    set_aside: list[str]
    """Sentences on what is left out although it is not bought."""
    regions: RegionScores
    """Of unit region, the regions of those images that it may still buy; `image` is the row of `rows`."""


def regions(orders: Iterable[Order]) -> dict[str, set[int]]:
    """By image, the regions that were asked about."""
    found: dict[str, set[int]] = {}
    for order in orders:
        if order.regions:
            found.setdefault(blocks.image_of(order.key), set()).update(order.regions)
    return found


def left(round_name: str, book: Ledger, annotate: Annotate) -> Left:
    """What a round may still buy, from its scores.

    A skipped image is back in the pool, but not offered again in the round that skipped it. Of regions, a round asks
    about each image once; the minutes of an image are those of all its regions that are left.
    """
    scores, of_regions = artifacts.load_scores(round_name), region_scores.load(round_name)
    gone = {order.key for order in book.orders} | {skip.key for skip in book.skipped(round_name)} | book.removed
    had = {entry.key for entry in book.entries if not isinstance(entry, Skip)} | gone
    if of_regions.in_force:
        asked = {entry.key for entry in book.entries if entry.round == round_name} | book.removed
        gone = {blocks.image_of(key) for key in asked}
        of_regions = of_regions.only(_open(of_regions, scores["key"], regions(book.orders)))
        answers = np.bincount(of_regions.image, minlength=len(scores))
        gone |= set(scores["key"][answers == 0])
        price = of_regions.price
        if annotate.annotator == "oracle":
            price = np.array([annotate.oracle_seconds_to_open, annotate.oracle_seconds_per_answer]) / 60
            of_regions = of_regions._replace(price=price)
        scores["minutes"] = price[0] + price[1] * answers
    oracle = annotate.annotator == "oracle"
    pool = artifacts.load_images(round_name).set_index("key")
    aside, sentences = _set_aside(scores["key"], pool, had, oracle=oracle)
    stays = ~scores["key"].isin(gone | aside).to_numpy()
    rows = scores[stays].reset_index(drop=True)
    if of_regions.in_force:
        of_left = of_regions.only(stays[of_regions.image])
        place = np.cumsum(stays) - 1
        return Left(rows, sentences, of_left._replace(image=place[of_left.image]))
    if oracle:  # its minutes are known beforehand
        rows["minutes"] = [annotate.oracle_minutes * blocks.share(key) for key in rows["key"]]
    return Left(rows, sentences, of_regions)


def _open(scores: RegionScores, images: "pd.Series", asked: dict[str, set[int]]) -> Bool[np.ndarray, " m"]:
    """Which of the regions nobody was asked about."""
    open_ = np.ones(len(scores.region), np.bool_)
    for row, key in enumerate(images):
        if key in asked:
            own = slice(*np.searchsorted(scores.image, [row, row + 1]))
            open_[own] = ~np.isin(scores.region[own], list(asked[key]))
    return open_


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
