"""Stage: cuts every image of the pool into regions, where these are what is bought (`score.unit: region`).

Answers are kept by the numbers of regions, so a map stays as it is once something of it is ordered. The other maps are
cut anew if the image, `score.region_scale` or `score.region_smallest` have changed: data/regions/about.json says what
each was cut from.
"""

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline import artifacts, ledger, paths, storage
from pipeline.errors import UserError
from pipeline.images import blocks, region_maps
from pipeline.ledger.entries import Order
from pipeline.params import Roots, Score

NOTE_SECONDS = 10.0
"""Seconds from one note of what is cut to the next: as much work is lost by a kill."""


def run(*, roots: Roots, score: Score) -> None:
    """Write data/regions: a map per image of the pool; none but those that are ordered by if the unit is another.

    Raises:
        UserError: a map that something is ordered by is lost, and what is cut instead is another.
    """
    paths.REGIONS.mkdir(parents=True, exist_ok=True)
    wanted = artifacts.load_manifest("pool", roots.pool) if score.unit == "region" else None
    images = {} if wanted is None else {row.key: row for row in wanted.itertuples()}
    book = ledger.load()
    orders = [entry for entry in book.entries if isinstance(entry, Order) and entry.key not in book.removed]
    ordered = {blocks.image_of(order.key): order for order in orders if order.region_map}
    noted: dict[str, list[Any]] = _noted()
    settings = [score.region_scale, score.region_smallest]
    sources = {key: [row.sha256, *settings] for key, row in images.items()}
    hashes = {path.stem: storage.sha256(path) for path in paths.REGIONS.glob("*.png")}
    kept = {key for key, order in ordered.items() if hashes.get(key) == order.region_map}
    kept |= {key for key in images.keys() - ordered.keys() if noted.get(key) == [*sources[key], hashes.get(key)]}
    lost = [key for key in ordered if key not in kept and key not in images]
    if lost:
        raise UserError(_other(lost[0], ordered[lost[0]]))
    for key in hashes.keys() - images.keys() - ordered.keys():
        paths.regions(key).unlink()
    noted = {key: line for key, line in noted.items() if key in kept}
    todo = [row for key, row in images.items() if key not in kept]
    if todo:
        _cut(todo, score, sources, ordered, noted)
    storage.save_json(paths.REGIONS_ABOUT, dict(sorted(noted.items())))
    print(f"{len(images)} images cut into regions, {len(todo)} of them now, {paths.REGIONS}")


def _noted() -> dict[str, list[Any]]:
    """By image, of every map: hash of the image, scale, smallest, hash of the map; nothing if the note is damaged."""
    try:
        content = storage.load_json(paths.REGIONS_ABOUT, region_maps.MAKER)
    except UserError:  # all is cut again, which gives the same
        return {}
    return content if isinstance(content, dict) else {}


def _cut(
    rows: Sequence[Any],
    score: Score,
    sources: Mapping[str, list[Any]],
    ordered: Mapping[str, Order],
    noted: dict[str, list[Any]],
) -> None:
    """Cut images and write their maps; what is cut is noted from time to time."""

    def one(row: Any) -> tuple[str, str]:
        image = reading.read_image(Path(row.image), row.sha256)
        regions = region_maps.cut(image, score.region_scale, score.region_smallest)
        if row.key in ordered and region_maps.digest(regions) != ordered[row.key].region_map:
            raise UserError(_other(row.key, ordered[row.key]))
        return row.key, region_maps.save(row.key, regions)

    from pipeline.images import reading  # here, since other units need neither

    at = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for key, digest in tqdm(pool.map(one, rows), desc="regions", total=len(rows), unit="image", disable=None):
                noted[key] = [*sources[key], digest]
                if time.monotonic() - at > NOTE_SECONDS:
                    storage.save_json(paths.REGIONS_ABOUT, noted)
                    at = time.monotonic()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            storage.save_json(paths.REGIONS_ABOUT, noted)
            raise


def _other(image: str, order: Order) -> str:
    return (
        f"{paths.regions(image)} is not the region map that {order.round} has asked by, and what would be cut now is "
        f"another: run `dvc checkout --force data/regions`, or `dvc pull regions`, or put score.region_scale, "
        f"score.region_smallest and the image back as they were"
    )
