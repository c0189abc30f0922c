"""Merges the regions of an image until they are few enough to look through: those of one class that look alike."""

import heapq

import numpy as np
from jaxtyping import UInt8, UInt16

MOST = 150
"""Regions of one image, at most: with more, the editor becomes sluggish, and so do people."""


def merged(
    image: UInt8[np.ndarray, "h w 3"],
    regions: UInt16[np.ndarray, "h w"],
    predicted: UInt8[np.ndarray, "h w"],
    most: int = MOST,
) -> UInt16[np.ndarray, "h w"]:
    """A map of at most `most` regions, numbered from 0 without gaps, each made of neighbours in the map given.

    The smallest region is merged with that neighbour of the same predicted class whose mean colour is nearest, and so
    on; where no region has such a neighbour, with the nearest of another class.

    Args:
        image: RGB.
        regions: a map numbered from 0 without gaps.
        predicted: class ids and IGNORE; the commonest in a region is its class.
        most: 1 or more.
    """
    count, flat = int(regions.max()) + 1, regions.ravel().astype(np.int64)
    pixels = np.bincount(flat, minlength=count)
    colours = np.stack([np.bincount(flat, image[..., n].ravel(), count) for n in range(3)], axis=1)
    votes = np.bincount(flat * 256 + predicted.ravel(), minlength=count * 256).reshape(count, 256)
    near, into, left = _neighbours(regions, count), np.arange(count), count
    for any_class in (False, True):
        queue = [(int(pixels[region]), region) for region in range(count) if into[region] == region]
        heapq.heapify(queue)
        while queue and left > most:
            size, region = heapq.heappop(queue)
            if into[region] != region or pixels[region] != size:
                continue  # merged by now, and with others in the queue again
            own = votes[region].argmax()
            others = [one for one in sorted(near[region]) if any_class or votes[one].argmax() == own]
            if not others:
                continue
            off = colours[others] / pixels[others, None] - colours[region] / size
            other = others[int((off**2).sum(axis=1).argmin())]
            for sums in (pixels, colours, votes):
                sums[other] += sums[region]
            near[other] = (near[other] | near[region]) - {region, other}
            for one in near[region] - {other}:
                near[one] = near[one] - {region} | {other}
            into[region], left = other, left - 1
            heapq.heappush(queue, (int(pixels[other]), other))
    while (into != into[into]).any():
        into = into[into]
    numbers = np.unique(into, return_inverse=True)[1].astype(np.uint16)
    whole: UInt16[np.ndarray, "h w"] = numbers[regions]
    return whole


def _neighbours(regions: UInt16[np.ndarray, "h w"], count: int) -> list[set[int]]:
    """By region, those that share an edge with it."""
    across = np.stack([regions[:, :-1].ravel(), regions[:, 1:].ravel()], axis=1)
    along = np.stack([regions[:-1].ravel(), regions[1:].ravel()], axis=1)
    near = [set[int]() for _ in range(count)]
    for one, other in np.unique(np.concatenate([across, along]), axis=0).tolist():
        if one != other:
            near[one].add(other)
            near[other].add(one)
    return near
