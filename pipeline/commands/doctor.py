"""`python -m pipeline doctor`: checks data, network, machine and Label Studio, before time is spent.

It does not stop at the first fault but lists all. Exit status 1 means that training would be wrong. The pool's masks
stay closed, as they do everywhere but in the oracle annotator; where that one labels, a few of them are opened, for
this report only.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from pipeline import artifacts, datasets, inputs, ledger, paths
from pipeline.annotators.label_studio import projects
from pipeline.datasets import plausibility
from pipeline.datasets.files import LEFT_BY_SYSTEMS, unfit_for_windows
from pipeline.datasets.scan import Found, duplicates, near_pairs, pixels, scan, shared_images
from pipeline.errors import UserError
from pipeline.images import blocks
from pipeline.images.classes import ClassSet
from pipeline.params import SPLITS, Data, Params, Prepare
from pipeline.stages.prepare import doubts, passed_over, pool_doubts

NEAR = 5
"""Two images whose difference hashes (64 bits) differ in at most this many are called near-duplicates.

Measured on CamVid: 37 frames, each saved at JPEG quality 30, at half size, brightened by a fifth and cropped by 2 %,
make 148 copies; all lie within 5 bits, 146 within 4. Its train and val frames, other streets, lie 8 or more apart.
"""
LOOKED_AT = 20
"""Where the oracle labels, how many of the pool's masks are opened to check what their ids mean."""
LISTED = 10
"""How many examples of one finding are printed."""


class Report(NamedTuple):
    """The findings, printed at the end."""

    problems: list[str]
    """Training would be wrong."""
    warnings: list[str]
    """Training would run, but perhaps not as it is meant."""


def run(params: Params) -> int:
    """Print a report on the data; the result is the exit status: 0 fine, 1 training would be wrong."""
    prepare, report = params.prepare, Report([], [])
    if prepare.town is not None and not (paths.TOWN.is_dir() and any(paths.TOWN.iterdir())):
        print(f"the demo town is not drawn yet ({paths.TOWN} is empty): run `dvc repro prepare` first")
        return 1
    classes = _classes(prepare, report)
    found = {}
    for split in SPLITS:
        found[split] = _look(getattr(prepare, split), split, classes, report)
    for split, looked_at in found.items():
        _describe(split, getattr(prepare, split), looked_at, report, skip=prepare.size_mismatch == "skip")
    if classes is not None:
        _shares(classes, found, report)
        _doubts(params, found, classes, report)
    _duplicates(found, report)
    _budget(params, found["pool"], report)
    _manifests(prepare, found, report)
    _inputs(params, report)
    if classes is not None:
        _trial(params, classes, report)
    if params.annotate.annotator == "label_studio" and classes is not None:
        _label_studio(params, classes, report)
    for title, lines in (("warning", report.warnings), ("problem", report.problems)):
        for line in lines:
            print(f"{title}: {line}")
    count = len(report.problems)
    print("all good" if not count else "1 problem" if count == 1 else f"{count} problems")
    return 1 if report.problems else 0


def _classes(prepare: Prepare, report: Report) -> ClassSet | None:
    try:
        return datasets.class_set(prepare.classes)
    except UserError as error:
        report.problems.append(str(error))
        return None


def _look(data: Data, split: str, classes: ClassSet | None, report: Report) -> list[Found]:
    root, table = Path(data.root), None
    try:
        samples, unused = datasets.listing(data.dataset, root, data.split)
    except UserError as error:
        report.problems.append(f"{split}: {error}")
        return []
    report.warnings.extend(passed_over(split, unused))
    if unused.get(LEFT_BY_SYSTEMS):
        print(f"{split}: {len(unused[LEFT_BY_SYSTEMS])} files {LEFT_BY_SYSTEMS}, {unused[LEFT_BY_SYSTEMS][0]} first")
    if classes is not None and (split != "pool" or any(sample.mask for sample in samples)):
        try:
            table = datasets.table(data.dataset, root, classes)
        except UserError as error:
            report.problems.append(f"{split}: {error}")
    return scan(samples, None if split == "pool" else table, split)


def _describe(split: str, data: Data, found: Sequence[Found], report: Report, *, skip: bool) -> None:
    print(f"{split}: {data.dataset} in {data.root}, {len(found)} images")
    if not found:
        return
    sizes = Counter((one.width, one.height) for one in found if one.sha256)
    print("  width x height: " + _first(f"{w}x{h} ({n})" for (w, h), n in sizes.most_common()))
    masks = sum(one.sample.mask is not None for one in found)
    print(f"  masks: {masks}" + (", which belong to the oracle" if split == "pool" else ""))
    faults = [fault for one in found for fault in one.faults]
    for kind, count in Counter(fault.kind for fault in faults).items():
        texts = [fault.text for fault in faults if fault.kind == kind]
        print(f"  {kind}: {count}")
        for text in texts[:LISTED]:
            print(f"    {text}")
        if count > LISTED:
            print(f"    and {count - LISTED} more")
        if kind == "size mismatch" and skip:
            report.warnings.append(f"{split}: {count} of {len(found)} images are left out, their masks differ in size")
        else:
            report.problems.append(f"{split}: {count} of {len(found)} images: {kind}, first: {texts[0]}")
    if skip and all(one.faults for one in found):
        report.problems.append(f"{split}: no image is left")


def _shares(classes: ClassSet, found: Mapping[str, Sequence[Found]], report: Report) -> None:
    counts = {split: _pixels(found[split], len(classes.names)) for split in ("source", "test")}
    seen = {split: one for split, one in counts.items() if one is not None}
    if not seen:
        return
    width = max(map(len, (*classes.names, "class")))
    print(f"class shares of {classes.name}, in % of the pixels that have a class")
    print(f"  {'class':<{width}}" + "".join(f"  {split:<32}" for split in seen).rstrip())
    for number, name in enumerate(classes.names):
        cells = "".join(f"  {_bar(int(one[number]), int(one.sum())):<32}" for one in seen.values())
        print(f"  {name:<{width}}{cells}".rstrip())
    for split, one in seen.items():
        lacks = [name for name, pixels in zip(classes.names, one, strict=True) if not pixels]
        if len(lacks) == len(classes.names):
            report.problems.append(f"{split}: no pixel of any mask is of a class: check prepare.classes and the layout")
        elif lacks:
            why = "they can only be learnt from bought labels" if split == "source" else "they cannot be measured"
            report.warnings.append(f"the {split} lacks {', '.join(lacks)}: {why}")


def _pixels(found: Sequence[Found], classes: int) -> Int64[np.ndarray, "classes"] | None:
    counts = [one.counts[:classes] for one in found if one.counts is not None]
    return np.sum(counts, axis=0) if counts else None


def _bar(pixels: int, total: int) -> str:
    if not pixels:
        return "    -"
    share = 100 * pixels / total
    return f"{share:5.1f} {'#' * max(round(share / 2.5), 1)}"  # one # is 2.5 %


def _doubts(params: Params, found: Mapping[str, Sequence[Found]], classes: ClassSet, report: Report) -> None:
    """Add what `prepare` would refuse or warn of, and pool images that cannot be labelled or stored everywhere."""
    pool = found["pool"]
    told = doubts(params.prepare, found, classes)
    if pool:
        try:
            told += pool_doubts(pool, ledger.load())
        except UserError as error:  # of the ledger
            report.problems.append(str(error))
    for doubt in told:
        (report.problems if doubt.sure else report.warnings).append(doubt.text)
    closed = [one.sample.key for one in pool if one.sample.mask is None]
    if closed and params.annotate.annotator == "oracle":
        what = f"annotate.annotator is oracle, and {len(closed)} of {len(pool)} images of the pool have no mask"
        if len(closed) == len(pool):
            report.problems.append(f"{what}: let people label (annotate.annotator: label_studio)")
        else:
            report.warnings.append(f"{what}, {closed[0]!r} first: they are not bought")
    if params.annotate.annotator == "oracle" and len(closed) < len(pool):
        _oracle(params.prepare, found, classes, report)
    odd = [one.sample.key for one in pool if unfit_for_windows(one.sample.key)]
    if odd:
        report.warnings.append(f"the pool has {len(odd)} names that Windows cannot store: {_first(map(repr, odd))}")


def _oracle(prepare: Prepare, found: Mapping[str, Sequence[Found]], classes: ClassSet, report: Report) -> None:
    """Check what the oracle would deliver: the ids of a few of the pool's masks, against layout and test set."""
    data, masks = prepare.pool, [one.sample for one in found["pool"] if one.sample.mask]
    few = masks[:: -(-len(masks) // LOOKED_AT)]
    try:
        table = datasets.table(data.dataset, Path(data.root), classes)
    except UserError:
        return  # reported already
    looked_at = scan(few, table, "oracle")
    faulty = [one.faults[0].text for one in looked_at if one.faults]
    if faulty:
        report.warnings.append(f"pool: the oracle cannot deliver {len(faulty)} of {len(few)} masks: {faulty[0]}")
    (counts, stored), (test, _) = pixels(looked_at), pixels(found["test"])
    told = plausibility.of_masks(datasets.DATASETS[data.dataset].ids, stored, table, classes) if stored.any() else []
    for doubt in told:
        (report.problems if doubt.sure else report.warnings).append(f"pool: {doubt.text}")
    report.warnings.extend(doubt.text for doubt in plausibility.apart(counts, test, ("pool", "test"), classes))


def _duplicates(found: Mapping[str, Sequence[Found]], report: Report) -> None:
    for one, other in itertools.combinations(SPLITS, 2):
        pairs = [f"{a.sample.image} = {b.sample.image}" for a, b in shared_images(found[one], found[other])]
        if pairs:
            report.problems.append(f"{one} and {other} share {len(pairs)} images (same content): {_first(pairs)}")
    for split in ("source", "test"):
        groups = duplicates(found[split])
        same = _first(" = ".join(str(one.sample.image) for one in group) for group in groups)
        if groups:
            report.warnings.append(f"{split}: {len(groups)} images are there more than once (same content): {same}")
    pool, test = ([one for one in found[split] if one.sha256] for split in ("pool", "test"))
    hashes = [np.array([one.dhash for one in side], np.uint64) for side in (pool, test)]
    across = near_pairs(hashes[0], hashes[1], NEAR)
    shown = [f"{pool[a].sample.image} ~ {test[b].sample.image}" for a, b in across if pool[a].sha256 != test[b].sha256]
    within = near_pairs(hashes[0], hashes[0], NEAR)
    within = within[within[:, 0] < within[:, 1]]
    print(f"near-duplicates (difference hash, at most {NEAR} of 64 bits apart)")
    print(f"  across pool and test: {len(shown)} pairs")
    print(f"  within the pool: {len(within)} pairs, {len(np.unique(within))} of {len(pool)} images")
    for a, b in within[:3]:
        print(f"    {pool[a].sample.image} ~ {pool[b].sample.image}")
    if shown:
        report.warnings.append(f"pool and test hold {len(shown)} near-duplicates, look at them: {_first(shown)}")


def _trial(params: Params, classes: ClassSet, report: Report) -> None:
    from pipeline.training import trial  # torch: seconds to import, and only this needs it

    report.problems.extend(trial.run(params, classes))


def _budget(params: Params, pool: Sequence[Found], report: Report) -> None:
    lines, unit = [line.images or 0 for line in params.budget.values()], f"{params.score.unit}s"
    asked = sum(lines)
    if params.score.unit == "region":  # every round may ask about other regions of an image
        asked, unit = max(lines, default=0), "images in one round"
    different = len(pool) - sum(len(group) - 1 for group in duplicates(pool))
    there = different * len(blocks.keys("", params.score.grid))
    if pool and asked > there:
        report.problems.append(f"the budget asks for {asked} {unit}, the pool has {there}: lower `budget`")
    try:
        blocks.check_image_keys(found.sample.key for found in pool)
    except UserError as error:
        report.problems.append(str(error))


def _label_studio(params: Params, classes: ClassSet, report: Report) -> None:
    try:
        print(projects.check(params.annotate, classes, params.by_regions))
        report.warnings.extend(projects.concerns(params.annotate, classes, params.by_regions))
    except UserError as error:
        report.problems.append(str(error))


def _manifests(prepare: Prepare, found: Mapping[str, Sequence[Found]], report: Report) -> None:
    skip = prepare.size_mismatch == "skip"
    for split, looked_at in found.items():
        if not looked_at or not paths.manifest(split).is_file():
            continue
        try:
            manifest = artifacts.load_manifest(split)
        except UserError as error:
            report.problems.append(str(error))
            continue
        listed = dict(zip(manifest["key"], zip(manifest["sha256"], manifest["mask_sha256"], strict=True), strict=True))
        there = {
            one.sample.key: (one.sha256, one.mask_sha256)
            for one in looked_at
            if not (skip and any(fault.kind == "size mismatch" for fault in one.faults))
        }
        differ = {
            "gone": listed.keys() - there.keys(),
            "new": there.keys() - listed.keys(),
            "changed": {key for key in listed.keys() & there.keys() if listed[key] != there[key]},
        }
        what = ", ".join(f"{len(keys)} {word} ({min(keys)!r})" for word, keys in differ.items() if keys)
        if what:
            report.problems.append(
                f"{paths.manifest(split)} is not what is on the disk, images or masks: {what}; run "
                "`dvc repro -f prepare`, then `dvc repro`"
            )


def _inputs(params: Params, report: Report) -> None:
    """Add the class lists and weights that differ from what the stages have recorded."""
    report.problems.extend(sentence for sentence in inputs.changed(params) if sentence not in report.problems)


def _first(items: Iterable[str]) -> str:
    texts = list(items)
    more = f", and {len(texts) - LISTED} more" if len(texts) > LISTED else ""
    return ", ".join(texts[:LISTED]) + more
