"""Class lists and weights that params.yaml names and DVC does not track: compares them with what stages have recorded.

DVC cannot depend on a path that may also be the name of a built-in class set, or not be given at all. So `prepare`
records the content of class lists and `pretrain` which weights it read, later stages depend on those records, and here
the files are compared with them.
"""

from pathlib import Path

import numpy as np

from pipeline import artifacts, datasets, ledger, paths, storage
from pipeline.errors import UserError
from pipeline.images.classes import IGNORE, UNKNOWN
from pipeline.params import Model, Params, Prepare

SPLITS = ("source", "pool", "test")


def changed(params: Params) -> list[str]:
    """A sentence for each file that differs from its record or cannot be read."""
    try:
        lists = class_lists(params.prepare)
    except UserError as error:  # report it as one of the findings, and go on
        lists = [str(error)]
    return [*lists, *weights(params.model)]


def class_lists(prepare: Prepare) -> list[str]:
    """A sentence for each class list whose content is not what `prepare` recorded; missing lists are passed over."""
    if not paths.CLASSES.is_file():
        return []  # nothing is recorded yet
    recorded, given = artifacts.load_classes(), prepare.classes
    if not given.lower().endswith(".csv") or Path(given).is_file():
        classes = datasets.class_set(given)
        if (classes.names, classes.colours) != (recorded.names, recorded.colours):
            try:
                ledger.check_classes(ledger.load(), classes.names)
            except UserError as error:
                return [str(error)]
            return [_sentence(f"prepare.classes ({given})", str(paths.CLASSES))]
    found = []
    for split in SPLITS:
        data = getattr(prepare, split)
        root = Path(data.root)
        here = (root / "classes.csv").is_file() if data.dataset == "folder" else root.is_dir()
        if not here or not paths.ids(split).is_file():
            continue
        ids = artifacts.load_ids(split, recorded)
        if set(np.flatnonzero(ids != UNKNOWN)) == {IGNORE}:
            continue  # a pool without masks
        if not np.array_equal(datasets.table(data.dataset, root, recorded), ids):
            what = f"what the ids in the masks of prepare.{split} ({root}) mean"
            found.append(_sentence(what, str(paths.ids(split))))
    return found


def _sentence(what: str, record: str) -> str:
    return f"{what} is no longer what {record} has: put it back, or run `dvc repro -f prepare`, then `dvc repro`"


def weights(model: Model) -> list[str]:
    """A sentence if the file `model.weights` is not the one that the source model was initialised from."""
    recorded, file = paths.weights(paths.SOURCE_ROUND), Path(model.weights or "")
    if not recorded.is_file() or not file.is_file():
        return []
    if storage.load_json(recorded, "pretrain")["sha256"] == storage.sha256(file):
        return []
    return [
        f"model.weights ({file}) is not the file that the source model was trained from: put it back, or run "
        f"`dvc repro -s -f pretrain`, then `dvc repro`"
    ]
