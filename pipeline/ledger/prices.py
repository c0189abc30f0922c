"""What the images left would cost and bring with the regions that a round would ask about in each of them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

import numpy as np

from pipeline.ledger.candidates import Left
from pipeline.selection import regions


def asked(left: Left, per_image: int | None, minutes: float | None = None) -> "pd.DataFrame":
    """What is left; of unit region with gain and minutes of as many of the best regions as a round would ask about.

    Args:
        left: by a round.
        per_image: `select.regions_per_image`.
        minutes: that a round may spend, if its budget line is in minutes.
    """
    rows, of_regions = left.rows.copy(), left.regions
    if not of_regions.in_force:
        return rows
    parts = [column for column in rows.columns if column.startswith("gain_")]
    to_open, per_answer = map(float, of_regions.price)
    slices, told = of_regions.slices(len(rows)), []
    gains = [of_regions.gain[own] for own in slices]
    each = (
        regions.how_many(gains, to_open, per_answer, minutes)
        if per_image is None
        else [min(per_image, len(own)) for own in gains]
    )
    for own, of_image, k in zip(slices, gains, each, strict=True):
        best = regions.top(of_image, k)
        told.append([k, to_open + k * per_answer, of_image[best].sum(), *of_regions.parts[own][best].sum(0)])
    rows[["asked", "minutes", "gain", *parts]] = np.array(told).reshape(len(rows), 3 + len(parts))
    return rows
