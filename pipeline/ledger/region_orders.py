"""Orders of regions: what a selection asks about an image, held against the image's region map and against the ledger.

An answer belongs to a region by its number, and a number means something in one map only. So an order holds the hash of
its map, and neither a further order nor an answer is taken while another map lies in its place.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from pipeline import paths, storage
from pipeline.errors import UserError
from pipeline.images import blocks, region_maps
from pipeline.ledger.entries import Ledger, Order

if TYPE_CHECKING:
    import pandas as pd

Asked = tuple[tuple[int, ...], str]
"""Regions of one image, and the hash of its region map."""


def asked(round_name: str, wanted: "pd.DataFrame", book: Ledger, pool: "pd.DataFrame") -> dict[str, Asked]:
    """By key, the regions that a round is to order, and the hash of their map; nothing for keys of other units.

    Args:
        round_name: of the round.
        wanted: rows of its selection that are not ordered yet.
        book: the ledger.
        pool: the manifest, indexed by key, with a row for every key that is wanted.

    Raises:
        UserError: a row asks for no regions, for one that is bought or that the map has not, or in another round's
            name; or the map is not there, not of the image's size, or not the one by which others were bought.
    """
    maps, taken = _maps(book.orders), book.taken
    again = f"run `dvc repro -s -f select@{round_name}`, then `dvc repro`"
    found = {}
    listed = wanted["regions"] if "regions" in wanted else [""] * len(wanted)
    for key, text in zip(wanted["key"], map(str, listed), strict=True):
        if not blocks.is_of_regions(key):
            continue
        image, where = blocks.image_of(key), paths.selection(round_name)
        if key != blocks.key_of_regions(image, round_name):
            raise UserError(f"{where} has {key!r}, which is not a key of {round_name}: {again}")
        try:
            regions = blocks.numbers(text)
        except ValueError:
            regions = ()
        if not regions or len(set(regions)) < len(regions):
            raise UserError(f"{where}: the regions of {key!r} are {text!r}, not different numbers: {again}")
        for region in regions:
            if (image, region) in taken:
                raise UserError(
                    f"{round_name} wants region {region} of {image!r}, which {taken[image, region]} has bought "
                    f"already: {again}"
                )
        found[key] = regions, _checked(image, maps)
        areas, size = region_maps.load(image), (int(pool.at[key, "height"]), int(pool.at[key, "width"]))
        if areas.shape != size:
            raise UserError(
                f"{paths.regions(image)} is {areas.shape[0]}x{areas.shape[1]}, its image {size[0]}x{size[1]} (height x "
                f"width): {_anew(image)}"
            )
        if max(regions) > (last := int(areas.max())):
            raise UserError(
                f"{round_name} wants region {max(regions)} of {image!r}, and {paths.regions(image)} has 0 to {last}: "
                f"run `dvc repro -s -f score@{round_name}`, then `dvc repro`"
            )
    return found


def check_maps(orders: Iterable[Order]) -> None:
    """See that every region map is the one by which these orders name their regions.

    Raises:
        UserError: one is missing, or another one.
    """
    maps = _maps(orders)
    for image in maps:
        _checked(image, maps)


def is_current(order: Order) -> bool:
    """Whether the regions of an order, if it has any, are those of the map that is here."""
    path = paths.regions(blocks.image_of(order.key))
    return not order.regions or (path.is_file() and storage.sha256(path) == order.region_map)


def _maps(orders: Iterable[Order]) -> dict[str, tuple[str, str]]:
    """By image, the hash of its map and the round that has ordered by it."""
    return {blocks.image_of(order.key): (order.region_map, order.round) for order in orders if order.regions}


def _checked(image: str, maps: Mapping[str, tuple[str, str]]) -> str:
    """The hash of an image's map, which is the one on record if there is one."""
    path = paths.regions(image)
    if not path.is_file():
        raise storage.missing(path, region_maps.MAKER)
    digest = storage.sha256(path)
    before, round_name = maps.get(image, (digest, ""))
    if digest != before:
        raise UserError(
            f"{path} is not the region map that {round_name} has asked by, so its answers would go to other regions: "
            f"set score.region_scale and score.region_smallest back, put the image back if it was changed, then "
            f"{_anew(image)}"
        )
    return digest


def _anew(image: str) -> str:
    return f"run `rm {paths.regions(image)}` and `dvc repro -f {region_maps.MAKER}`"
