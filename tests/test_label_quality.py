"""Label quality: known answers, plain loops, planted errors; the tables and pictures that come of it."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import ledger, paths
from pipeline.annotators.label_studio import regions
from pipeline.commands import review
from pipeline.errors import UserError
from pipeline.evaluation import label_quality, suspect_pictures, suspects
from pipeline.evaluation.label_quality import Judged
from pipeline.images.classes import CLASS_SETS, IGNORE
from pipeline.images.masks import save_mask
from pipeline.ledger import annotators
from pipeline.ledger.entries import Delivery, Ledger, Order, Skip
from tests import repo

CLASSES = CLASS_SETS["camvid11"]
C = 4


def judge(probabilities: np.ndarray, mask: np.ndarray) -> Judged:
    """As the stage `audit` does, of the probabilities of one image (c, h, w)."""
    classes = len(probabilities)
    own = np.take_along_axis(probabilities, np.minimum(mask, classes - 1)[None].astype(int), 0)[0]
    claim = probabilities.argmax(0).astype(np.uint8)
    return label_quality.judge(classes, mask, claim, own.astype(np.float32), probabilities.max(0).astype(np.float32))


def drawn(rng: np.random.Generator, size: tuple[int, int] = (6, 8)) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and a label, some of it IGNORE."""
    probabilities = rng.dirichlet(np.full(C, 0.4), size).transpose(2, 0, 1).astype(np.float32)
    mask = rng.integers(0, C, size).astype(np.uint8)
    return probabilities, np.where(rng.random(size) < 0.2, IGNORE, mask).astype(np.uint8)


def test_softmin_known_answers() -> None:
    assert label_quality.softmin(np.full(7, 0.4)) == pytest.approx(0.4)
    two = np.array([1.0, 0.0])
    assert label_quality.softmin(two, 1.0) == pytest.approx(1 / (1 + np.e))  # weights 1 and e
    assert label_quality.softmin(two, 1e9) == pytest.approx(0.5)  # the mean
    assert label_quality.softmin(two, 1e-9) == 0  # the minimum, and no overflow
    with pytest.raises(ValueError, match="no quality"):
        label_quality.softmin(np.zeros(0))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0.01, 10))
def test_softmin_lies_between_minimum_and_mean(values: list[float], temperature: float) -> None:
    found = label_quality.softmin(np.array(values), temperature)
    assert min(values) - 1e-9 <= found <= np.mean(values) + 1e-9


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_suspected_pixels_are_those_of_plain_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = [drawn(rng) for _ in range(3)]
    judged = [judge(*one) for one in data]
    limits = label_quality.thresholds(np.sum([one.sums for one in judged], 0))
    own: dict[int, list[float]] = {}
    for p, mask in data:
        for (y, x), label in np.ndenumerate(mask):
            if label != IGNORE:
                own.setdefault(int(label), []).append(float(p[label, y, x]))
    assert limits == pytest.approx([np.mean(own[c]) if c in own else np.inf for c in range(C)], rel=1e-5)
    for (p, mask), one in zip(data, judged, strict=True):
        expected = set()
        for (y, x), label in np.ndenumerate(mask):
            k = int(p[:, y, x].argmax())
            if label not in (IGNORE, k) and p[k, y, x] >= limits[k] - 1e-6:
                expected.add(y * mask.shape[1] + x)
        found = label_quality.suspected(one.contradicted, limits)
        assert set(found.place.tolist()) == expected
        areas = label_quality.areas(found)
        assert sorted(np.concatenate([a.place for a in areas]).tolist() if areas else []) == sorted(expected)
        assert [a.doubt for a in areas] == sorted((a.doubt for a in areas), reverse=True)
        assert sum(a.doubt for a in areas) == pytest.approx(float((found.best - found.own).sum()), rel=1e-4)
        for area in areas:
            rows, columns = np.divmod(area.place, mask.shape[1])
            box = (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
            assert (area.top, area.left, area.bottom, area.right) == box
            assert set(mask.ravel()[area.place]) == {area.given}
            assert set(p.argmax(0).ravel()[area.place]) == {area.claim}
        picture = label_quality.picture(areas, mask.shape)
        assert set(np.flatnonzero(picture != IGNORE).tolist()) == expected


@given(st.integers(0, 2**32 - 1), st.permutations(range(C)))
def test_names_of_classes_do_not_matter(seed: int, order: list[int]) -> None:
    p, mask = drawn(np.random.default_rng(seed))
    table = np.full(256, IGNORE, np.uint8)
    table[order] = np.arange(C)
    one, other = judge(p, mask), judge(p[order], table[mask])
    assert other.quality == pytest.approx(one.quality, rel=1e-5)
    np.testing.assert_array_equal(other.contradicted.place, one.contradicted.place)


def test_label_without_a_pixel_is_not_suspect() -> None:
    p, _ = drawn(np.random.default_rng(0))
    void = judge(p, np.full(p.shape[1:], IGNORE, np.uint8))
    assert (void.pixels, void.quality, len(void.contradicted.place)) == (0, 1.0, 0)
    assert label_quality.areas(void.contradicted) == []
    assert label_quality.thresholds(void.sums).tolist() == [np.inf] * C


def scene(rng: np.random.Generator) -> np.ndarray:
    """A true map of a few boxes."""
    true = np.zeros((24, 32), np.uint8)
    true[12:] = 1
    for _ in range(3):
        y, x = rng.integers(2, 16), rng.integers(2, 24)
        true[y : y + 6, x : x + 6] = rng.integers(2, C)
    return true


def test_planted_errors_are_ranked_first_by_a_model_that_is_mostly_right() -> None:
    """30 labels, 3 with an object of another class; the model is unsure along boundaries, and right in 90 % of all."""
    rng = np.random.default_rng(0)
    judged, wrong = [], dict[int, np.ndarray]()
    for number in range(30):
        true = scene(rng)
        edge = cv2.erode(true, np.ones((3, 3))) != cv2.dilate(true, np.ones((3, 3)))
        logits = 4.0 * (np.arange(C)[:, None, None] == true) + rng.normal(0, 1, (C, 24, 32))
        logits = np.where(edge, 0.35 * logits, logits)
        p = np.exp(logits) / np.exp(logits).sum(0)
        mask = true.copy()
        if number in (4, 11, 25):
            _, numbered = cv2.connectedComponents((true >= 2).astype(np.uint8))
            where = numbered == 1
            mask[where] = 5 - true[where]  # 2 and 3 are taken for each other
            wrong[number] = where
        judged.append(judge(p, mask))
    order = np.argsort([one.quality for one in judged], kind="stable")
    assert set(order[:3].tolist()) == set(wrong)
    limits = label_quality.thresholds(np.sum([one.sums for one in judged], 0))
    for number, where in wrong.items():
        areas = label_quality.areas(label_quality.suspected(judged[number].contradicted, limits))
        assert {areas[0].given, areas[0].claim} == {2, 3}
        inside = where.ravel()[np.concatenate([a.place for a in areas if {a.given, a.claim} == {2, 3}])]
        assert inside.all()
        assert inside.sum() > 0.4 * where.sum()  # its inner part: along the boundary the model is not sure enough


def written(order: list[str], claimed: bool = True) -> None:
    """The tables of r01: each label is less suspect than those before."""
    found = []
    suspects.clear("r01")
    for rank, key in enumerate(order, 1):
        flat = np.zeros((8, 16), np.uint8)
        claim = flat.copy()
        if claimed:
            claim[2:4, 4:8] = 1
        own, best = np.where(claim, 0.05 * rank, 0.9), np.full(flat.shape, 0.9)
        judged = label_quality.judge(11, flat, claim, own.astype(np.float32), best.astype(np.float32))
        found.append(suspects.write("r01", key, "0" * 64, judged, judged.contradicted, (16, 64), CLASSES))
    suspects.save("r01", found[::-1])


def test_tables_and_masks_are_read_as_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    suspects.clear("r01")
    save_mask(paths.suspected("r01", "old"), np.zeros((2, 2), np.uint8))
    written(["b", "1"])
    assert not paths.suspected("r01", "old").exists()
    frame = suspects.load("r01")
    assert frame["key"].tolist() == ["b", "1"]
    assert frame["pixels"].tolist() == [128, 128]
    assert frame["suspected"].tolist() == [8, 8]
    assert frame["doubt"].tolist() == pytest.approx([8 * 0.85, 8 * 0.8])
    [area] = suspects.load_areas("r01")["1"]  # its box is in pixels of the image
    assert (area["given"], area["claim"], area["pixels"]) == (CLASSES.names[0], CLASSES.names[1], 8)
    assert [area[side] for side in ("top", "left", "bottom", "right")] == [4, 16, 8, 32]
    picture = suspects.load_picture("r01", "b")
    assert (picture != IGNORE).sum() == (picture[2:4, 4:8] == 1).sum() == 8


def test_sheet_outlines_what_is_suspected_in_image_and_label() -> None:
    suspected = np.full((24, 32), IGNORE, np.uint8)
    suspected[8:16, 10:20] = 2
    flat = np.zeros((24, 32), np.uint8)
    one = suspect_pictures.Suspect("a", np.full((24, 32, 3), 90, np.uint8), flat, flat, suspected)
    with Image.open(io.BytesIO(suspect_pictures.sheet([one, one], CLASSES, "r01"))) as file:
        sheet = np.asarray(file.convert("RGB"))
    line = (sheet == suspect_pictures.OUTLINE).all(2)
    assert sheet.shape == (24 + 2 * (240 + suspect_pictures.CAPTION), 3 * 320 + 2 * suspect_pictures.GAP, 3)
    rows, columns = np.nonzero(line[: 24 + suspect_pictures.CAPTION + 240, :320])
    top = 24 + suspect_pictures.CAPTION
    assert (rows.min() - top, rows.max() - top) == pytest.approx((80, 160), abs=2)
    assert (columns.min(), columns.max()) == pytest.approx((100, 200), abs=2)
    assert line[:, 326:646].sum() == line[:, :320].sum()  # the label as well
    assert not line[:, 652:].any()
    with pytest.raises(ValueError, match="no label"):
        suspect_pictures.sheet([], CLASSES, "r01")


def test_nobody_is_asked_about_labels_of_the_oracle(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.run("r01")
    keys = [order.key for order in ledger.load().orders]
    written(keys)
    before = paths.LEDGER.read_bytes()
    with pytest.raises(UserError, match=r"the oracle's, .* nobody .*`dvc repro -s -f annotate@r01` and `dvc repro`"):
        review.run(repo.params(), round_name=None, worst=None, keys=keys[:1])
    said = capsys.readouterr().out
    assert f"{keys[0]}: quality 0." in said
    assert f"most of all {CLASSES.names[0]!r} where the model says {CLASSES.names[1]!r}, x 16 to 32, y 4 to 8" in said
    assert keys[1] not in said
    assert "which contradicts 6% of all labelled pixels" in said
    with pytest.raises(UserError, match=r"all labels of r01 were corrected since .*`dvc repro`"):
        review.run(repo.params(), round_name="r01", worst=2, keys=())  # these hashes are none of the ledger's
    assert paths.LEDGER.read_bytes() == before


# -- several annotators ------------------------------------------------------------------------------------------------


def test_agreement_of_a_class_is_the_iou_of_all_pairs() -> None:
    a = np.array([[0, 0, 1, 1, IGNORE]], np.uint8)
    b = np.array([[0, 1, 1, 1, 0]], np.uint8)
    c = np.array([[0, 0, 0, IGNORE, 0]], np.uint8)
    assert regions.agreed([a, b], 3) == ((1, 2), (2, 3), (0, 0))
    # a, c: class 0 in 2 of 3, class 1 in 0 of 1; b, c: class 0 in 2 of 4, class 1 in 0 of 2
    assert regions.agreed([a, b, c], 3) == ((1 + 2 + 2, 2 + 3 + 4), (2 + 0 + 0, 3 + 1 + 2), (0, 0))


@given(st.integers(0, 2**32 - 1))
def test_agreement_with_oneself_is_whole_and_the_order_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = (drawn(rng)[1] for _ in range(2))
    assert all(both == either for both, either in regions.agreed([one, one], C))
    assert regions.agreed([one, other], C) == regions.agreed([other, one], C)


def test_table_of_annotators() -> None:
    def delivery(key: str, who: str, minutes: float, **more: object) -> Delivery:
        return Delivery("r01", key, who, minutes, "0" * 64, "2026", **more)

    orders = [Order("r01", key, "label_studio", "x", 1.0, 4.0, 1.0, "2026") for key in "abcd"]
    book = Ledger(
        (
            *orders,
            delivery("a", "ann", 2.0, changed=10, agreement=0.5, agreed=((1, 4), (0, 0))),
            delivery("b", "bob", 3.0),
            delivery("c", "ann", 4.0, changed=30, agreement=0.7, agreed=((2, 2), (0, 0))),
            Skip("r01", "d", "ann", 1.0, "2026"),
            delivery("a", "ann", 6.0, changed=20, agreement=0.9, agreed=((3, 4), (0, 0))),  # a correction
        )
    )
    ann, bob = annotators.rows(book, {"a": 100, "b": 100, "c": 100}, ["road", "car"])
    assert ann == {
        "round": "r01",
        "annotator": "ann",
        "labels": 2,
        "skipped": 1,
        "minutes": 11.0,
        "minutes_median": 5.0,
        "changed": 0.25,
        "agreement": pytest.approx(0.8),
        "agreement_road": 5 / 6,
        "agreement_car": None,
    }
    assert (bob["labels"], bob["minutes"], bob["changed"], bob["agreement"]) == (1, 3.0, None, None)
    assert sum(row["minutes"] for row in (ann, bob)) == book.spending("r01").measured + book.spending("r01").skipped


def test_agreement_is_kept_in_the_ledger_and_may_be_missing() -> None:
    one = Delivery("r01", "a", "ann", 2.0, "0" * 64, "2026", agreed=((1, 4), (0, 0)))
    line = ledger.format_line(one)
    assert ledger.parse(line) == one
    assert hash(ledger.parse(line)) == hash(one)
    assert ledger.parse(line.replace(', "agreed": [[1, 4], [0, 0]]', "")) == one._replace(agreed=())
    for wrong in ("[[1]]", "[1, 2]", '"x"', "7"):
        with pytest.raises(ValueError, match="no entry"):
            ledger.parse(line.replace("[[1, 4], [0, 0]]", wrong))
