"""Files that params.yaml names and DVC does not watch: is their content what the stages that read them have recorded?

DVC cannot depend on a path that may also be the name of a built-in class set, or not be given at all. So `prepare`
records what the class lists say and `pretrain` which weights it read, what follows depends on those records, and here
the files are held against them.
"""

from pathlib import Path

import numpy as np

from pipeline import artifacts, datasets, ledger, paths, storage
from pipeline.errors import UserError
from pipeline.images.classes import IGNORE, UNKNOWN
from pipeline.params import Model, Params, Prepare

SPLITS = ("source", "pool", "test")


def changed(params: Params) -> list[str]:
    """A sentence for each file that is not what was recorded, or that cannot be read at all."""
    try:
        lists = class_lists(params.prepare)
    except UserError as error:  # to those who ask for all, the rest is worth telling all the same
        lists = [str(error)]
    return [*lists, *weights(params.model)]


def class_lists(prepare: Prepare) -> list[str]:
    """A sentence for each class list that does not say what `prepare` read in it; one that is not here says nothing."""
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
    """A sentence if the file `model.weights` is not the one that the source model started from."""
    recorded, file = paths.weights(paths.SOURCE_ROUND), Path(model.weights or "")
    if not recorded.is_file() or not file.is_file():
        return []
    if storage.load_json(recorded, "pretrain")["sha256"] == storage.sha256(file):
        return []
    return [
        f"model.weights ({file}) is not the file that the source model was trained from: put it back, or run "
        f"`dvc repro -s -f pretrain`, then `dvc repro`"
    ]
