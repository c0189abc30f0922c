"""Ids that are valid and mean something else, drawn with the shares of real streets."""

from pathlib import Path

import numpy as np
import pytest

from pipeline import datasets
from pipeline.datasets import plausibility
from pipeline.datasets.scan import pixels, scan
from pipeline.images.classes import CLASS_SETS, IGNORE, LAYOUTS, UNKNOWN, ClassSet, id_table

CITY, CAMVID, IDD = (CLASS_SETS[name] for name in ("cityscapes19", "camvid11", "idd7"))
STREET = {"road": 37, "sidewalk": 6, "building": 22, "vegetation": 16, "sky": 4, "car": 7, "pole": 1, "person": 1}
"""Percent of Cityscapes' pixels, about."""


def stored(**ids: int) -> np.ndarray:
    """Pixels by id, given as `_ID=pixels`."""
    counts = np.zeros(256, np.int64)
    for number, count in ids.items():
        counts[int(number[1:])] = count
    return counts


def street(position: dict[str, int], void: int, void_share: int = 6) -> np.ndarray:
    return stored(**{f"_{position[name]}": share for name, share in STREET.items()}, **{f"_{void}": void_share})


def told(
    ids: str, counts: np.ndarray, classes: ClassSet = CITY, of: np.ndarray | None = None
) -> list[tuple[bool, str]]:
    of = id_table(ids, classes) if of is None else of
    return [(doubt.sure, doubt.text) for doubt in plausibility.of_masks(ids, counts, of, classes)]


LABEL_IDS = {name: number for number, name in enumerate(LAYOUTS["labelids"])}
TRAIN_IDS = {name: number for number, name in enumerate(CITY.names)}


def test_label_ids_are_label_ids_and_train_ids_are_refused() -> None:
    assert told("labelids", street(LABEL_IDS, 3)) == []
    ((sure, text), *_) = told("labelids", street(TRAIN_IDS, 255))
    assert sure
    assert "look like labelTrainIds" in text
    assert "dataset: folder" in text


def test_a_layout_of_few_labelled_classes_is_not_taken_for_train_ids_without_doubt() -> None:
    road_only = told("labelids", stored(_0=70, _7=30))
    assert not any(sure for sure, _ in road_only)


def test_ids_one_off_are_told() -> None:
    camvid = {name.lower(): number for number, name in enumerate(CAMVID.names)}
    shares = {"sky": 17, "building": 23, "pole": 1, "road": 32, "pavement": 5, "tree": 10, "car": 6}
    right = stored(**{f"_{camvid[name]}": share for name, share in shares.items()}, _11=4)
    assert told("camvid", right, CAMVID) == []
    (one_up,) = told("camvid", np.roll(right, 1), CAMVID)
    assert one_up[1].startswith("Pole is 24% of the pixels, which no street has")
    # a list of 1..N with 0 as void, masks of 0..N-1
    classes = ClassSet("own", ("wheat", "soil", "weed"), ((0, 0, 0),) * 3)
    of = np.full(256, UNKNOWN, np.uint8)
    of[[0, 1, 2, 3, 255]] = [IGNORE, 0, 1, 2, IGNORE]
    assert told("", stored(_0=5, _1=40, _2=50, _3=5), classes, of) == []
    (off,) = told("", stored(_0=40, _1=50, _2=10), classes, of)
    assert "id 3 (weed) none: are the masks numbered from 0" in off[1]


def test_binary_masks_are_told() -> None:
    classes = ClassSet("own", ("background", "crack"), ((0, 0, 0),) * 2)
    of = np.full(256, UNKNOWN, np.uint8)
    of[[0, 1, 255]] = [0, 1, IGNORE]
    assert told("", stored(_0=90, _1=10), classes, of) == []
    ((sure, text),) = told("", stored(_0=90, _255=10), classes, of)
    assert sure
    assert "hold 0 and 255 only" in text
    assert any(
        "hold only the ids 0, 1, 255, and there are 11" in t
        for _, t in told("camvid", stored(_0=5, _1=4, _255=1), CAMVID)
    )


def test_a_list_in_another_order_is_told_by_the_other_set() -> None:
    names = ("wheat", "soil", "weed", "stone")
    classes = ClassSet("own", names, ((0, 0, 0),) * 4)
    one, other = stored(_0=40, _1=59, _2=1), stored(_2=40, _3=59, _1=1)
    ((sure, text),) = plausibility.apart(one, other, ("source", "test"), classes)
    assert not sure
    assert text.startswith("wheat is 40.0% of the source and 0.0% of the test, stone is 0.0% of the source and 59.0%")
    assert plausibility.apart(one, stored(_0=20, _1=70, _2=10), ("source", "test"), classes) == []


def test_mostly_void_is_told() -> None:
    assert told("camvid", stored(_0=20, _1=20, _11=60), CAMVID)[-1][1].startswith("60% of the pixels are of no class")


@pytest.mark.parametrize(
    ("ids", "defined", "hint"),
    [
        ([21, 23, 26], list(range(19)), "labelIds have them"),
        ([4], [0, 1, 2, 3], "numbered from 1"),
        ([77], [0, 1, 2, 3], ""),
        ([3], [], ""),
    ],
)
def test_unknown_ids_are_explained_where_they_can_be(ids: list[int], defined: list[int], hint: str) -> None:
    text = plausibility.unknown(ids, defined)
    assert hint in text
    assert bool(text) == bool(hint)


@pytest.mark.parametrize(
    ("name", "split", "classes"),
    [("gta5", "", CITY), ("camvid", "train", CAMVID), ("camvid", "val", CITY), ("idd_lite", "val", IDD)],
)
def test_real_sets_are_beyond_doubt(shared_data: Path, name: str, split: str, classes: ClassSet) -> None:
    root = shared_data / name
    if not root.is_dir():
        pytest.skip(f"real data is not here: {root} is absent")
    of = datasets.table(name, root, classes)
    _, counts = pixels(scan(datasets.find(name, root, split)[:60], of, name))
    assert told(datasets.DATASETS[name].ids, counts, classes, of) == []
