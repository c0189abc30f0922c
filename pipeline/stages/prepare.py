"""Stage: draws the demo town if asked to, looks at every file once, and writes the manifests of source, pool and test.

The pool's masks stay closed: they belong to the oracle annotator.
"""

import itertools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from pipeline import artifacts, datasets, ledger, paths, storage
from pipeline.datasets import plausibility
from pipeline.datasets.files import LEFT_BY_SYSTEMS, UNREAD
from pipeline.datasets.plausibility import Doubt
from pipeline.datasets.scan import Found, duplicates, pixels, scan, shared_images
from pipeline.errors import UserError
from pipeline.images import blocks
from pipeline.images.classes import CLASS_SETS, IGNORE, UNKNOWN, ClassSet
from pipeline.images.masks import load_mask
from pipeline.ledger.entries import Ledger
from pipeline.params import Data, Prepare, Town

if TYPE_CHECKING:
    import pandas as pd
from pipeline.params import SPLITS


def run(*, prepare: Prepare) -> None:
    """Write data/town, data/manifests/*.csv, and of round r00 the pool, the empty list of labels, the empty audit.

    Raises:
        UserError: data is missing or damaged, masks do not fit, two of the sets share an image, an image is called
            like a part of another, or labels were bought in other classes.
    """
    classes = datasets.class_set(prepare.classes)
    check_bought(classes)
    draw(prepare)
    usable = {}
    for split in SPLITS:
        data: Data = getattr(prepare, split)
        found = look(data, split, classes)
        usable[split] = keep(found, f"{split} ({data.dataset} in {data.root})", skip=prepare.size_mismatch == "skip")
    refuse_leakage(usable)
    blocks.check_image_keys(found.sample.key for found in usable["pool"])
    refuse_or_tell([*doubts(prepare, usable, classes), *pool_doubts(usable["pool"], ledger.load())])
    artifacts.save_classes(classes)
    for split, found in usable.items():
        data = getattr(prepare, split)
        root = Path(data.root)
        artifacts.save_manifest(split, frame(found, root, classes if split == "source" else None))
        artifacts.save_ids(split, ids(data, split, [one.sample.mask for one in found], classes), classes)
    artifacts.save_images(paths.SOURCE_ROUND, ledger.pool_of(paths.SOURCE_ROUND))
    save_start()


def save_start() -> None:
    """Write the files of r00 that the first round reads: no labels, no audit, no forecast."""
    artifacts.save_labels(paths.SOURCE_ROUND, [])
    artifacts.save_purchases(paths.SOURCE_ROUND, [])
    storage.save_json(paths.audit(paths.SOURCE_ROUND), {"signal": None, "judged": []})
    storage.save_json(paths.forecast(paths.SOURCE_ROUND), {"measured": {}})


def check_bought(classes: ClassSet) -> None:
    """Check that what was bought was bought in these classes, before anything is written.

    An older ledger names a class list by its path only: then the classes are those of the source model.

    Raises:
        UserError: something was bought in other classes.
    """
    book, unnamed = ledger.load(), None
    by_path = any(not order.class_names and order.classes not in CLASS_SETS for order in book.orders)
    if by_path and (paths.model(paths.SOURCE_ROUND) / "model.pt").is_file():
        unnamed = artifacts.load_model(paths.SOURCE_ROUND)[1]["classes"]
    ledger.check_classes(book, classes.names, unnamed)


def draw(prepare: Prepare) -> None:
    """Fill data/town with the demo town, or leave it empty: it is an output of the stage either way."""
    town: Town | None = prepare.town
    if town is None:
        for split in SPLITS:
            root = Path(getattr(prepare, split).root)
            if root.absolute().is_relative_to(paths.TOWN.absolute()):
                raise UserError(
                    f"prepare.{split}.root is {root}, but prepare.town is not set and {paths.TOWN} is emptied then: "
                    "set prepare.town, or keep your own data elsewhere"
                )
    if paths.TOWN.exists():
        shutil.rmtree(paths.TOWN)
    paths.TOWN.mkdir(parents=True)
    if town is not None:
        from pipeline.town.draw import draw_town

        draw_town(paths.TOWN, source=town.source, pool=town.pool, test=town.test, size=town.size, seed=town.seed)


def look(data: Data, split: str, classes: ClassSet) -> list[Found]:
    """Scan every sample of a set; the masks only of source and test."""
    root = Path(data.root)
    listing = datasets.listing(data.dataset, root, data.split)
    for line in passed_over(split, listing.unused):
        print(f"warning: {line}")
    # also for the pool, so that classes that do not fit are an error now
    table = ids(data, split, [sample.mask for sample in listing.samples], classes)
    return scan(listing.samples, None if split == "pool" else table, split)


def ids(data: Data, split: str, masks: Sequence[Path | None], classes: ClassSet) -> UInt8[np.ndarray, "256"]:
    """Table from the ids that a set's masks store to class ids. A pool without masks needs no class list."""
    if split == "pool" and not any(masks):
        return np.where(np.arange(256) == IGNORE, IGNORE, UNKNOWN).astype(np.uint8)
    return datasets.table(data.dataset, Path(data.root), classes)


def passed_over(split: str, unused: Mapping[str, Sequence[Path]]) -> list[str]:
    """One sentence per reason why files were not taken, for files that may be meant as images or masks."""
    lines = []
    for reason, files in unused.items():
        if reason != LEFT_BY_SYSTEMS:
            suffixes = ", ".join(sorted({path.suffix for path in files} - {""})) if reason == UNREAD else ""
            lines.append(
                f"{split}: {len(files)} files {reason}{f' ({suffixes})' if suffixes else ''} and are passed over, "
                f"{files[0]} first"
            )
    return lines


def keep(found: Sequence[Found], name: str, *, skip: bool) -> list[Found]:
    """The samples that can be used: all of them, or with `skip` those whose mask has the image's size.

    Raises:
        UserError: anything else is wrong with a sample, or none is left.
    """
    kept = [one for one in found if not one.faults]
    skipped = [one for one in found if skip and [fault.kind for fault in one.faults] == ["size mismatch"]]
    if len(kept) + len(skipped) < len(found):
        faults = [fault for one in found for fault in one.faults if not (skip and fault.kind == "size mismatch")]
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        hint = "; prepare.size_mismatch: skip leaves such images out" if faults[0].kind == "size mismatch" else ""
        raise UserError(f"{name}: {faults[0].text}{more}: run `python -m pipeline doctor` to see all{hint}")
    if skipped:
        print(f"{name}: skipped {len(skipped)} of {len(found)} images, whose masks have another size")
    if not kept:
        raise UserError(f"{name}: no image is left, every mask has another size than its image")
    looked_at = [one.counts for one in kept if one.counts is not None]
    if looked_at and not sum(counts[:IGNORE].sum() for counts in looked_at):
        raise UserError(f"{name}: no pixel of any mask is of a class: check prepare.classes and the dataset's layout")
    return kept


def refuse_leakage(sets: Mapping[str, Sequence[Found]]) -> None:
    """Raise if two sets hold an image file of the same content: the test set would not be held out."""
    for one, other in itertools.combinations(sets, 2):
        for left, right in shared_images(sets[one], sets[other]):
            raise UserError(
                f"{one} and {other} share an image: {left.sample.image} and {right.sample.image} have the same "
                "content; take it out of one of them"
            )


def doubts(prepare: Prepare, sets: Mapping[str, Sequence[Found]], classes: ClassSet) -> list[Doubt]:
    """Doubts about source and test: ids that seem to mean something else, images rotated by EXIF without their masks.

    The pool's masks stay closed, also where the oracle labels: it checks them before it takes an order.
    """
    found, counted = list[Doubt](), {}
    for split in ("source", "test"):
        data: Data = getattr(prepare, split)
        counts, stored = pixels(sets[split])
        if stored.any():
            table = datasets.table(data.dataset, Path(data.root), classes)
            found += [
                doubt._replace(text=f"{split}: {doubt.text}")
                for doubt in plausibility.of_masks(datasets.DATASETS[data.dataset].ids, stored, table, classes)
            ]
            counted[split] = counts
        turned = [one.doubt for one in sets[split] if one.doubt]
        if turned:
            more = f", and {len(turned) - 1} more" if len(turned) > 1 else ""
            found.append(
                Doubt(False, f"{split}: {turned[0]}{more}: see that the masks are those of the upright images")
            )
    if len(counted) == 2:
        found += plausibility.apart(counted["source"], counted["test"], ("source", "test"), classes)
    return found


def pool_doubts(pool: Sequence[Found], book: Ledger) -> list[Doubt]:
    """Doubts about the pool: where it disagrees with the ledger, and images that it holds twice."""
    there, by_hash = {one.sample.key: one for one in pool}, {one.sha256: one.sample.key for one in pool}
    bought = {blocks.image_of(order.key): order for order in book.orders}
    found = []
    absent = [order for key, order in bought.items() if key not in there]
    if absent:
        key, renamed = blocks.image_of(absent[0].key), by_hash.get(absent[0].image or "-")
        found.append(Doubt(True, ledger.absent(key, absent[0].round, renamed, len(absent) - 1)))
    changed = [key for key, order in bought.items() if key in there and order.image not in ("", there[key].sha256)]
    for key in changed:
        size, mask = (there[key].height, there[key].width), paths.mask(bought[key].key)
        if blocks.parse(bought[key].key) is None and mask.is_file() and (shape := load_mask(mask).shape) != size:
            found.append(
                Doubt(
                    True,
                    f"pool: {there[key].sample.image}, which {bought[key].round} has bought, is {size[1]}x{size[0]} "
                    f"now, and its label {shape[1]}x{shape[0]}: put the image back as it was",
                )
            )
    if changed:
        found.append(
            Doubt(
                False,
                f"pool: {len(changed)} images were changed after they had been bought, {changed[0]!r} first: see that "
                f"their labels still fit, {paths.mask(bought[changed[0]].key)}, or put them back",
            )
        )
    groups = duplicates(pool)
    if groups:
        extra, (one, other, *_) = sum(map(len, groups)) - len(groups), groups[0]
        found.append(
            Doubt(
                False,
                f"pool: {extra} images have the same content as another, {other.sample.image} as {one.sample.image} "
                "first: of each group one is bought",
            )
        )
    return found


def refuse_or_tell(found: Sequence[Doubt]) -> None:
    """Raise if a doubt is sure, print the others."""
    for doubt in found:
        if doubt.sure:
            raise UserError(doubt.text)
    for doubt in found:
        print(f"warning: {doubt.text}")


def frame(found: Sequence[Found], root: Path, classes: ClassSet | None) -> "pd.DataFrame":
    """The manifest, with paths below `root`; with `classes` also the pixels of each class, in columns `n_<class>`."""
    import pandas as pd  # here, since it takes as long to import as all the rest

    rows: list[dict[str, str | int]] = []
    for one in found:
        sample = one.sample
        image, mask = (path.relative_to(root).as_posix() if path else "" for path in (sample.image, sample.mask))
        row: dict[str, str | int] = {"key": sample.key, "image": image, "mask": mask}
        row |= {"height": one.height, "width": one.width, "sha256": one.sha256, "mask_sha256": one.mask_sha256}
        if classes is not None and one.counts is not None:
            row |= {f"n_{name}": int(one.counts[number]) for number, name in enumerate(classes.names)}
        rows.append(row)
    return pd.DataFrame(rows)
