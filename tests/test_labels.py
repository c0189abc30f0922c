import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.errors import UserError
from pipeline.images.classes import (
    CLASS_SETS,
    IGNORE,
    LAYOUTS,
    MERGED,
    UNKNOWN,
    ClassSet,
    apply_table,
    colourise,
    id_table,
)

# The second implementation: the number tables of ../shared/data/README.md, written out independently of the names.
TRAIN_IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13}
TRAIN_IDS |= {27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)
CAMVID = {23: SKY, 17: POLE, 18: POLE, 7: ROAD, 8: PAVEMENT, 9: PAVEMENT, 21: TREE, 22: TREE, 19: SIGN, 20: SIGN}
CAMVID |= {13: FENCE, 14: FENCE, 24: PEDESTRIAN, **dict.fromkeys((11, 12, 15, 16), BUILDING)}
CAMVID |= {**dict.fromkeys(range(26, 32), CAR), **dict.fromkeys((25, 32, 33), BICYCLIST)}

IDD = {7: 0, 8: 1, 22: 1, 24: 2, 25: 2, **dict.fromkeys((26, 27, 28, 31, 32, 33), 3)}
IDD |= {**dict.fromkeys((12, 13, 17, 19, 20), 4), 11: 5, 21: 5, 23: 6}


@pytest.mark.parametrize(("name", "ids"), [("cityscapes19", TRAIN_IDS), ("camvid11", CAMVID), ("idd7", IDD)])
def test_labelids_agree_with_the_published_numbers(name: str, ids: dict[int, int]) -> None:
    expected = [ids.get(i, IGNORE) for i in range(35)] + [UNKNOWN] * 220 + [IGNORE]
    assert id_table("labelids", CLASS_SETS[name]).tolist() == expected


def test_camvid_is_itself_with_11_ignored() -> None:
    assert id_table("camvid", CLASS_SETS["camvid11"]).tolist() == [*range(11), IGNORE, *[UNKNOWN] * 243, IGNORE]


def test_idd_lite_is_itself() -> None:
    assert id_table("idd_lite", CLASS_SETS["idd7"]).tolist() == [*range(7), *[UNKNOWN] * 248, IGNORE]


def test_camvid_as_cityscapes_leaves_out_what_would_be_wrong() -> None:
    mapped = id_table("camvid", CLASS_SETS["cityscapes19"])
    names = [CLASS_SETS["cityscapes19"].names[i] if i != IGNORE else None for i in mapped[:12]]
    expected = "sky,building,pole,road,sidewalk,vegetation,traffic sign,fence,car,person"
    assert names == [*expected.split(","), None, None]


def test_merged_names_exist_and_no_stored_name_counts_twice() -> None:
    for (layout, classes), merged in MERGED.items():
        stored = [name for names in merged.values() for name in names]
        assert len(stored) == len(set(stored))
        assert set(stored) <= set(LAYOUTS[layout])
        assert set(merged) <= set(CLASS_SETS[classes].names)


def test_sets_have_one_name_and_colour_per_class() -> None:
    for key, classes in CLASS_SETS.items():
        assert key == classes.name
        assert len(set(classes.names)) == len(classes.names) == len(set(classes.colours))


def test_a_set_of_ones_own_takes_the_names_it_shares() -> None:
    own = ClassSet("own.csv", ("car", "lane marking", "road"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))
    mapped = id_table("labelids", own)
    assert (mapped[26], mapped[7], mapped[8]) == (0, 2, IGNORE)
    strange = ClassSet("cells.csv", ("nucleus",), ((1, 2, 3),))
    with pytest.raises(UserError, match=r"cells\.csv \(nucleus\).*cityscapes19 or camvid11 or idd7"):
        id_table("labelids", strange)


def test_unknown_layout_names_the_known() -> None:
    with pytest.raises(UserError, match=r"unknown layout of ids 'synthia': choose one of labelids, camvid"):
        id_table("synthia", CLASS_SETS["camvid11"])


masks = hnp.arrays(np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 7)))


@given(masks, hnp.arrays(np.uint8, 256, elements=st.integers(0, 253)))
def test_apply_table_is_the_table_pixel_by_pixel(native: np.ndarray, lookup: np.ndarray) -> None:
    assert apply_table(native, lookup).tolist() == [[lookup[i] for i in row] for row in native]


@given(masks)
def test_apply_table_refuses_exactly_the_unknown_ids(native: np.ndarray) -> None:
    lookup = id_table("labelids", CLASS_SETS["camvid11"])
    unknown = sorted({i for i in native.ravel().tolist() if 34 < i < 255})
    if unknown:
        with pytest.raises(ValueError, match=f"^unknown ids {', '.join(map(str, unknown))}$"):
            apply_table(native, lookup)
    else:
        assert UNKNOWN not in apply_table(native, lookup)


def test_colourise_paints_each_class_and_refuses_others() -> None:
    classes = CLASS_SETS["camvid11"]
    painted = colourise(np.array([[0, 10, IGNORE]], np.uint8), classes)
    assert painted.tolist() == [[[128, 128, 128], [0, 128, 192], [32, 32, 32]]]
    with pytest.raises(ValueError, match="camvid11 has the classes 0-10, not 11, 254"):
        colourise(np.array([[11, 3, 254]], np.uint8), classes)
