"""A scan of every file of a data set: hashes, sizes, pixel counts, and faults, which are collected, not raised."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import Int, Int64, UInt8, UInt64
from tqdm import tqdm

from pipeline import storage
from pipeline.datasets import plausibility
from pipeline.datasets.files import Sample
from pipeline.errors import UserError
from pipeline.images.classes import IGNORE, UNKNOWN
from pipeline.images.reading import decode_image, decode_mask, orientation

FaultKind = Literal["unreadable", "no mask", "size mismatch", "unknown ids", "turned apart"]


class Fault(NamedTuple):
    """One thing that is wrong with one sample."""

    kind: FaultKind
    text: str
    """A clause that names the file."""


class Found(NamedTuple):
    """The result of scanning one sample."""

    sample: Sample
    height: int
    """Pixels, upright; 0 if the image cannot be read."""
    width: int
    sha256: str
    """Of the image file; empty if it cannot be read."""
    dhash: int
    """Difference hash of the image, 64 bits."""
    counts: Int64[np.ndarray, "256"] | None
    """Pixels of every class id (IGNORE too); None where the mask was not looked at or has a fault."""
    faults: tuple[Fault, ...]
    mask_sha256: str = ""
    """Of the mask file; empty if it was not looked at or cannot be read."""
    stored: Int64[np.ndarray, "256"] | None = None
    """Pixels of every id as the mask stores them; None where `counts` is."""
    doubt: str = ""
    """What may be wrong with it and cannot be told from its files: a sentence."""


def scan(samples: Sequence[Sample], table: UInt8[np.ndarray, "256"] | None, what: str) -> list[Found]:
    """Scan all samples, on all cores, with a progress bar.

    Args:
        samples: of one set.
        table: from stored id to class id; None leaves the masks closed.
        what: name of the set, for the bar.
    """
    # threads suffice: both decoders and the hash release the interpreter's lock
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda sample: look(sample, table), samples)
        return list(tqdm(results, desc=what, total=len(samples), unit="image", disable=None))


def look(sample: Sample, table: UInt8[np.ndarray, "256"] | None) -> Found:
    """Scan one sample. Faults are recorded, not raised."""
    faults: list[Fault] = []
    height = width = dhash = 0
    sha256, data = "", b""
    try:
        data = storage.read_bytes(sample.image)
        image = decode_image(data, sample.image)
        (height, width), dhash, sha256 = image.shape[:2], difference_hash(image), hashlib.sha256(data).hexdigest()
    except UserError as error:
        faults.append(Fault("unreadable", str(error)))
    if table is None:
        return Found(sample, height, width, sha256, dhash, None, tuple(faults))
    if sample.mask is None:
        faults.append(Fault("no mask", f"the image {sample.image} has no mask"))
        return Found(sample, height, width, sha256, dhash, None, tuple(faults))
    counts, mask_sha256 = np.zeros(256, np.int64), ""
    stored, doubt = None, ""
    try:
        content = storage.read_bytes(sample.mask)
        native, mask_sha256 = decode_mask(content, sample.mask), hashlib.sha256(content).hexdigest()
        stored = np.bincount(native.ravel(), minlength=256)
        np.add.at(counts, table, stored)
        turned = (orientation(data), orientation(content))
        if sha256 and native.shape != (height, width):
            faults.append(Fault("size mismatch", _sizes(sample, (height, width), native.shape, turned)))
        elif turned[1] not in (1, turned[0]):
            faults.append(
                Fault("turned apart", f"the mask {sample.mask} is turned by its EXIF tag, its image is not so")
            )
        elif turned[0] in (2, 3, 4) or (turned[0] != 1 and height == width):
            # where EXIF turns by 90 degrees, a mask of the upright size was made from the upright image
            doubt = "" if turned[1] == turned[0] else f"{sample.image} is turned by its EXIF tag, its mask is not"
        unknown = np.flatnonzero((table == UNKNOWN) & (stored > 0))
        if len(unknown):
            ids = ", ".join(str(i) for i in unknown)
            hint = plausibility.unknown(unknown.tolist(), np.flatnonzero(table[:IGNORE] != UNKNOWN).tolist())
            faults.append(Fault("unknown ids", f"the mask {sample.mask} holds unknown ids {ids}{hint}"))
    except UserError as error:
        faults.append(Fault("unreadable", str(error)))
    if faults:
        return Found(sample, height, width, sha256, dhash, None, tuple(faults), mask_sha256)
    return Found(sample, height, width, sha256, dhash, counts, (), mask_sha256, stored, doubt)


def _sizes(sample: Sample, image: tuple[int, ...], mask: tuple[int, ...], turned: tuple[int, int]) -> str:
    which = {
        (True, False): " (the image is turned by its EXIF tag, masks are not)",
        (False, True): " (the mask is turned by its EXIF tag, the image is not)",
    }.get((turned[0] != 1, turned[1] != 1), "")
    turn = which if mask == image[::-1] else ""
    return f"the mask {sample.mask} is {mask[1]}x{mask[0]}, its image {sample.image} {image[1]}x{image[0]}{turn}"


def difference_hash(image: UInt8[np.ndarray, "h w 3"]) -> int:
    """64 bits, one per pair of neighbours in an 8x9 greyscale miniature: is the right one brighter?

    Krawetz, "Kind of Like That" (hackerfactor.com, 2013).
    """
    small = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (9, 8), interpolation=cv2.INTER_AREA)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


def near_pairs(
    one: UInt64[np.ndarray, "n"], other: UInt64[np.ndarray, "m"], distance: int
) -> Int[np.ndarray, "pairs 2"]:
    """(position in one, position in other) of the hashes that differ in at most `distance` bits."""
    blocks = [
        np.argwhere(np.bitwise_count(one[start : start + 256, None] ^ other) <= distance) + np.array([start, 0])
        for start in range(0, len(one), 256)
    ]
    return np.concatenate([np.zeros((0, 2), np.int64), *blocks])


def duplicates(found: Iterable[Found]) -> list[list[Found]]:
    """Groups of two or more samples of one set whose image files have the same content."""
    by_hash: dict[str, list[Found]] = {}
    for one in found:
        if one.sha256:
            by_hash.setdefault(one.sha256, []).append(one)
    return [group for group in by_hash.values() if len(group) > 1]


def pixels(found: Iterable[Found]) -> tuple[Int64[np.ndarray, "256"], Int64[np.ndarray, "256"]]:
    """Pixels of all masks without a fault: (by class id, by stored id)."""
    counts, stored = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for one in found:
        if one.counts is not None and one.stored is not None:
            counts += one.counts
            stored += one.stored
    return counts, stored


def shared_images(one: Iterable[Found], other: Iterable[Found]) -> Iterator[tuple[Found, Found]]:
    """Pairs of samples whose image files have the same content."""
    by_hash = {found.sha256: found for found in one if found.sha256}
    return ((by_hash[found.sha256], found) for found in other if found.sha256 in by_hash)
