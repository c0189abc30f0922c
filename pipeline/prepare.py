"""Stage: draws the demo town if asked to, looks at every file once, and writes the manifests of source, pool and test.

The pool's masks stay closed: they belong to the oracle annotator.
"""

import itertools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from pipeline import artifacts, blocks, datasets, ledger, paths
from pipeline.datasets.scan import Found, scan, shared_images
from pipeline.errors import UserError
from pipeline.labels import CLASS_SETS, IGNORE, ClassSet
from pipeline.params import Data, Prepare, Town

SPLITS = ("source", "pool", "test")


def run(*, prepare: Prepare) -> None:
    """Write data/town, data/manifests/*.csv, and of round r00 the pool, the empty list of labels, the empty audit.

    Raises:
        UserError: data is missing or damaged, masks do not fit, two of the sets share an image, an image is called
            like a block of another, or labels were bought in other classes.
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
    artifacts.save_classes(classes)
    for split, found in usable.items():
        data = getattr(prepare, split)
        root = Path(data.root)
        artifacts.save_manifest(split, frame(found, root, classes if split == "source" else None))
        artifacts.save_ids(split, datasets.table(data.dataset, root, classes), classes)
    artifacts.save_images(paths.SOURCE_ROUND, ledger.pool_of(paths.SOURCE_ROUND))
    artifacts.save_labels(paths.SOURCE_ROUND, [])
    artifacts.save_json(paths.audit(paths.SOURCE_ROUND), {"signal": None})  # nothing was bought


def check_bought(classes: ClassSet) -> None:
    """See that what was bought was bought in these classes, before anything is made anew.

    An older ledger names a class list by its path only: then the source model says which classes that listed.

    Raises:
        UserError: it was not.
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
        from pipeline.datasets.town import draw_town

        draw_town(paths.TOWN, source=town.source, pool=town.pool, test=town.test, size=town.size, seed=town.seed)


def look(data: Data, split: str, classes: ClassSet) -> list[Found]:
    """Every sample of a set, with the masks of source and test."""
    root = Path(data.root)
    samples = datasets.find(data.dataset, root, data.split)
    table = datasets.table(data.dataset, root, classes)  # for the pool too: an early error if classes do not fit
    return scan(samples, None if split == "pool" else table, split)


def keep(found: Sequence[Found], name: str, *, skip: bool) -> list[Found]:
    """The samples that can be used: all, or with `skip` all but those whose mask has another size.

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
    """Raise where two sets share an image file, whatever it is called: the test would not be one."""
    for one, other in itertools.combinations(sets, 2):
        for left, right in shared_images(sets[one], sets[other]):
            raise UserError(
                f"{one} and {other} share an image: {left.sample.image} and {right.sample.image} have the same "
                "content; take it out of one of them"
            )


def frame(found: Sequence[Found], root: Path, classes: ClassSet | None) -> pd.DataFrame:
    """A manifest, with paths below `root`; with `classes`, also the pixels of each class in a column `n_<class>`."""
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
