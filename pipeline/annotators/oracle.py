"""The oracle: a benchmark's labels in place of people's, at `annotate.oracle_minutes` an image, a block its share.

To a region it answers with the class that most of its labelled pixels are of, or *mixed* (IGNORE) if that is less than
`annotate.oracle_purity` of them; in `oracle_seconds_to_open` an image and `oracle_seconds_per_answer` a region.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8, UInt16

from pipeline import artifacts
from pipeline.annotators.contract import Answer, Request, Skipped
from pipeline.errors import UserError
from pipeline.images import blocks, reading, region_maps
from pipeline.images.classes import IGNORE

if TYPE_CHECKING:
    import pandas as pd


def answers(request: Request) -> Iterator[Answer | Skipped]:
    """Answer every order with the mask from the pool's folder; images without one are skipped.

    Raises:
        UserError: nothing of the round has a mask that can be read there.
    """
    table = artifacts.load_ids("pool", request.classes)
    waiting = [order for order in request.orders if order.key not in request.known]
    reasons = refused([order.key for order in waiting], request.pool, table)
    if reasons and len(reasons) == len(request.orders):  # all of them: perhaps the disk is not mounted
        raise UserError(next(iter(reasons.values())))
    for order in waiting:
        if order.key in reasons:
            print(f"{request.round_name}: {reasons[order.key]}")
            yield Skipped(order.key, 0.0, "oracle", "refused")
        else:
            mask = known_label(order.key, request.pool, table)
            if blocks.is_of_regions(order.key):
                regions = region_maps.load(blocks.image_of(order.key))
                mask = by_region(mask, regions, order.regions, request.annotate.oracle_purity)
            minutes = request.annotate.oracle_minutes_of(blocks.share(order.key), len(order.regions))
            yield Answer(order.key, mask, minutes, "oracle")


def by_region(
    truth: UInt8[np.ndarray, "h w"], regions: UInt16[np.ndarray, "h w"], asked: Sequence[int], purity: float
) -> UInt8[np.ndarray, "h w"]:
    """One class for each region that is asked about, IGNORE elsewhere.

    Args:
        truth: class ids and IGNORE of the whole image.
        regions: the region of every pixel.
        asked: the regions asked about.
        purity: smallest share of a region's labelled pixels that are of one class; below it, or without any, the region
            is *mixed*: IGNORE.
    """
    number = np.int64(regions.max()) + 1
    pixels = np.bincount((regions * np.int64(IGNORE + 1) + truth).ravel(), minlength=number * (IGNORE + 1))
    pixels = pixels.reshape(number, IGNORE + 1)[:, :IGNORE]
    labelled, most = pixels.sum(1), pixels.max(1)
    clear = (most > 0) & (most >= purity * labelled)
    answers = np.full(number, IGNORE, np.uint8)
    answers[[*asked]] = np.where(clear, pixels.argmax(1), IGNORE)[[*asked]]
    answered: np.ndarray = answers[regions]
    return answered


def refused(keys: Iterable[str], pool: "pd.DataFrame", table: UInt8[np.ndarray, "256"]) -> dict[str, str]:
    """By key, why the oracle cannot deliver a label, for those that it cannot deliver.

    Args:
        keys: of images, blocks or regions.
        pool: as in a request.
        table: from the ids that the pool's masks store to class ids.
    """
    reasons = {}
    for key in keys:
        try:
            mask = known_label(key, pool, table)
        except UserError as error:
            reasons[key] = str(error)
            continue
        height, width = int(pool.at[key, "height"]), int(pool.at[key, "width"])
        if mask.shape != (height, width):
            reasons[key] = f"the mask of {key!r} is {mask.shape[0]}x{mask.shape[1]}, its image {height}x{width}"
        elif (mask == IGNORE).all() and not blocks.is_of_regions(key):  # for those, that is an answer
            reasons[key] = f"no pixel of the mask of {key!r} is of a class"
    return reasons


def known_label(key: str, pool: "pd.DataFrame", table: UInt8[np.ndarray, "256"]) -> UInt8[np.ndarray, "h w"]:
    """Class ids and IGNORE of a pool image, or of a block of one; for some regions of one, of all of it.

    Args:
        key: of the image, block or regions.
        pool: the manifest, indexed by key.
        table: from the ids that the pool's masks store to class ids.

    Raises:
        UserError: the image has no mask, or, unless the key is the image's own, one of another size.
    """
    image = pool.loc[blocks.image_of(key)]
    mask = image["mask"]
    if not mask:
        raise UserError(
            f"the oracle has no label for {key!r}: {image['image']} has no mask; "
            f"let people label it (annotate.annotator: label_studio)"
        )
    whole = reading.read_mask(Path(mask), table)
    if blocks.unit_of(key) == "image":
        return whole
    size = (int(image["height"]), int(image["width"]))
    if whole.shape != size:  # for a whole image, `annotate` itself checks the size
        raise UserError(
            f"the mask {mask} is {whole.shape[0]}x{whole.shape[1]}, its image {size[0]}x{size[1]} (height x width), so "
            f"the oracle cannot cut {key!r} out: mend it, or take the image out of the pool"
        )
    return blocks.crop(whole, key)
