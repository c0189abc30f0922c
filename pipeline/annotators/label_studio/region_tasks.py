"""Which regions of an image a task asks about: those of the order; of a whole image or block all, merged."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pipeline.annotators.contract import Request
from pipeline.annotators.label_studio import region_answers, region_merging
from pipeline.annotators.label_studio.region_answers import Questions
from pipeline.images import blocks, reading, region_maps
from pipeline.ledger.entries import Order

SCALE, SMALLEST = 60.0, 40
"""How whole images are cut before their regions are merged; as by default where regions are ordered."""


def questions(order: Order, predicted: UInt8[np.ndarray, "h w"], request: Request) -> Questions:
    """What a task asks.

    Args:
        order: of some regions, of an image or of a block.
        predicted: class ids, for the guesses.
        request: of the round.

    Raises:
        UserError: the map is not here.
    """
    guess = predicted if request.annotate.start == "model" else None
    if blocks.is_of_regions(order.key):
        return region_answers.questions(region_maps.load(blocks.image_of(order.key)), order.regions, guess)
    image = blocks.crop(reading.read_image(Path(str(request.pool.at[order.key, "image"]))), order.key)
    regions = region_merging.merged(image, region_maps.cut(image, SCALE, SMALLEST), predicted)
    return region_answers.questions(regions, range(int(regions.max()) + 1), guess)
