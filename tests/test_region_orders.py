"""Regions from the selection to the labels that are trained on: nothing lost, bought twice or given to another."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import UInt8, UInt16

from pipeline import __main__, artifacts, ledger, paths, storage
from pipeline.annotators import ANNOTATORS, oracle
from pipeline.annotators.contract import Answer, Request, Skipped
from pipeline.commands import join
from pipeline.errors import UserError, WaitingForPeople
from pipeline.images import blocks, reading, region_maps, region_scores
from pipeline.images.classes import IGNORE
from pipeline.images.items import Item, by_image, id_table_of_labels, labelled_items, with_labels
from pipeline.images.masks import load_mask, save_mask
from pipeline.images.region_scores import RegionScores
from pipeline.ledger import region_orders
from pipeline.ledger.entries import Delivery, Double, Entry, Ledger, Order, Removal, Skip, ordered_twice
from pipeline.params import BudgetLine
from tests import fakes, repo

PURITY, OPEN, ANSWER = 0.2, 6.0, 3.0
"""The masks are noise: few regions are purer."""
SETTINGS = {"oracle_purity": PURITY, "oracle_seconds_to_open": OPEN, "oracle_seconds_per_answer": ANSWER}


def run(round_name: str, line: BudgetLine | None = None, **changes: object) -> None:
    repo.run(round_name, line, **{**SETTINGS, **changes})


def pool() -> list[str]:
    return list(artifacts.load_manifest("pool")["key"])


def key(image: str, round_name: str = "r01") -> str:
    return blocks.key_of_regions(image, round_name)


def truth(image: str) -> UInt8[np.ndarray, "h w"]:
    frame = artifacts.load_manifest("pool", Path("pool")).set_index("key")
    return reading.read_mask(Path(frame.at[image, "mask"]), artifacts.load_ids("pool", repo.CLASSES))


def squares(side: int = 4, size: tuple[int, int] = fakes.SIZE) -> UInt16[np.ndarray, "h w"]:
    """Regions that are squares, row by row."""
    rows, cols = np.arange(size[0]) // side, np.arange(size[1]) // side
    return (rows[:, None] * (cols[-1] + 1) + cols).astype(np.uint16)


def select(round_name: str, asked: dict[str, Sequence[int]], **columns: object) -> None:
    """A selection of regions by image, as the stage before `annotate` would write it."""
    repo.select(round_name, [key(image, round_name) for image in asked])
    told = {"regions": [blocks.listed(regions) for regions in asked.values()]}
    told["minutes"] = [(OPEN + len(regions) * ANSWER) / 60 for regions in asked.values()]
    artifacts.save_selection(round_name, artifacts.load_selection(round_name).assign(**told | columns))


@pytest.fixture
def maps(project: Path) -> list[str]:
    """Every image of the pool has a map of 48 squares; r01 asks about three, r02 about one of these and another."""
    images = pool()
    for image in images:
        region_maps.save(image, squares())
    select("r01", {images[0]: [3, 17, 42], images[1]: [5], images[2]: range(40)})
    select("r02", {images[0]: [1, 2], images[3]: [0, 47]})
    return images


def expected(image: str, regions: Sequence[int]) -> UInt8[np.ndarray, "h w"]:
    """What the oracle answers, pixel by pixel and in other words."""
    true, areas, answer = truth(image), squares(), np.full(fakes.SIZE, IGNORE, np.uint8)
    for region in regions:
        labelled = [c for c in true[areas == region].tolist() if c != IGNORE]
        most = max(sorted(set(labelled)), key=labelled.count, default=IGNORE)
        if labelled and labelled.count(most) >= PURITY * len(labelled):
            answer[areas == region] = most
    return answer


# from the selection to the labels


def test_oracle_answers_what_is_asked_at_its_price(maps: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run("r01")
    book, rows = ledger.load(), artifacts.load_labels("r01")
    assert [order.regions for order in book.orders] == [(3, 17, 42), (5,), tuple(range(40))]
    assert [row["key"] for row in rows] == [key(image) for image in maps[:3]]
    assert [row["minutes"] for row in rows] == [(OPEN + n * ANSWER) / 60 for n in (3, 1, 40)]
    assert book.spent("r01") == (3, pytest.approx((3 * OPEN + 44 * ANSWER) / 60))
    for image, order in zip(maps, book.orders, strict=False):
        assert order.region_map == storage.sha256(paths.regions(image))
        np.testing.assert_array_equal(load_mask(paths.mask(order.key)), expected(image, order.regions))
    found = load_mask(paths.mask(key(maps[2])))
    answered = found[squares() < 40] != IGNORE
    assert 0 < answered.mean() < 1  # some are clear, some mixed
    said = "r01: ordered 44 regions of 3 images from oracle"
    assert said in capsys.readouterr().out
    assert {k: v["regions"] for k, v in artifacts.load_purchases("r01").items()} == {
        key(image): n for image, n in zip(maps, (3, 1, 40), strict=False)
    }

    before = paths.LEDGER.read_bytes(), paths.labels("r01").read_bytes(), paths.LABELS_DVC.read_bytes()
    run("r01")
    assert before == (paths.LEDGER.read_bytes(), paths.labels("r01").read_bytes(), paths.LABELS_DVC.read_bytes())


def test_several_rounds_ask_in_one_image_and_are_one_to_learn_from(maps: list[str]) -> None:
    run("r01")
    run("r02")
    keys = [row["key"] for row in artifacts.load_labels("r02")]
    assert keys == [key(image) for image in maps[:3]] + [key(maps[0], "r02"), key(maps[3], "r02")]
    labels = labelled_items(keys, artifacts.load_manifest("pool").set_index("key"), 19)
    merged = {item.key: item for item in by_image(labels)}
    assert list(merged) == maps[:4]
    np.testing.assert_array_equal(merged[maps[0]].read_mask(fakes.SIZE), expected(maps[0], [3, 17, 42, 1, 2]))
    np.testing.assert_array_equal(labels[0].read_mask(fakes.SIZE), expected(maps[0], [3, 17, 42]))


def test_a_line_in_minutes_is_spent_to_the_second(maps: list[str]) -> None:
    """3 regions cost 15 s, 1 costs 9 s, 40 cost 126 s: two fit into half a minute."""
    line = BudgetLine(after="r00", minutes=0.5)
    repo.score("r01", pool(), minutes=2.1)
    run("r01", line)
    assert ledger.load().spent("r01") == (2, 0.4)


def test_answers_that_are_all_mixed_are_paid_and_learnt_nothing_from(maps: list[str]) -> None:
    run("r01", oracle_purity=1.0)
    rows = artifacts.load_labels("r01")
    assert all((load_mask(paths.mask(row["key"])) == IGNORE).all() for row in rows)
    assert [row["minutes"] for row in rows] == [(OPEN + n * ANSWER) / 60 for n in (3, 1, 40)]
    labels = labelled_items([row["key"] for row in rows], artifacts.load_manifest("pool").set_index("key"), 19)
    assert with_labels(labels) == []

    answered = np.full(fakes.SIZE, IGNORE, np.uint8)
    answered[:4, :4] = 7
    save_mask(paths.mask(rows[0]["key"]), answered)  # by hand
    run("r01")
    assert [d.annotator for d in ledger.load().delivered("r01")] == ["oracle"] * 3 + ["hand"]
    assert with_labels(labels) == labels[:1]
    save_mask(paths.mask(rows[0]["key"]), np.full(fakes.SIZE, IGNORE, np.uint8))  # and back to mixed
    run("r01")
    assert with_labels(labels) == []


@pytest.mark.parametrize(
    ("true", "asked", "purity", "answers"),
    [
        ([3, 3, 3, 5], [0], 0.75, 3),
        ([3, 3, 3, 5], [0], 0.76, IGNORE),  # mixed
        ([3, 3, IGNORE, IGNORE], [0], 1.0, 3),  # the share is one of labelled pixels
        ([IGNORE] * 4, [0], 0.0, IGNORE),
        ([5, 5, 3, 3], [0], 0.5, 3),  # of equals the first
        ([3, 3, 3, 3], [], 0.5, IGNORE),  # not asked about
    ],
)
def test_known_answers(true: list[int], asked: list[int], purity: float, answers: int) -> None:
    """The region in question is above another one, which nobody asks about."""
    mask = np.array([true, [7] * 4], np.uint8)
    regions = np.array([[0] * 4, [1] * 4], np.uint16)
    found = oracle.by_region(mask, regions, asked, purity)
    np.testing.assert_array_equal(found, [[answers] * 4, [IGNORE] * 4])


# what is refused, before anything is ordered


def other_map(image: str) -> None:
    region_maps.save(image, squares(8))


REFUSED: dict[str, tuple[dict[int, str], Callable[[str], object], str]] = {
    "bought by another round": (
        {0: "1 42"},
        lambda image: None,
        "r02 wants region 42 of .*_000001', which r01 has bought already: run `dvc repro -s -f select@r02`",
    ),
    "not in the map": ({0: "48"}, lambda image: None, "wants region 48 of .*_000001.png has 0 to 47: run `dvc repro"),
    "no region": ({0: ""}, lambda image: None, "the regions of .*_000001@regions-r02' are '', not different numbers"),
    "one twice": ({0: "1 1"}, lambda image: None, "are '1 1', not different numbers: run `dvc repro -s -f select@r02`"),
    "nonsense": ({0: "1 -2"}, lambda image: None, "are '1 -2', not different numbers"),
    "another map than before": (
        {0: "1"},
        other_map,
        r"000001\.png is not the region map that r01 has asked by, .*: set score.region_scale and .* back",
    ),
    "no map": (
        {0: "1"},
        lambda image: paths.regions(image).unlink(),
        r"data/regions/aachen_000000_000001\.png not found: run `dvc pull` .* or `dvc repro regions` to make it",
    ),
    "a map of another image": (
        {3: "1"},
        lambda image: region_maps.save(pool()[3], squares(4, (12, 16))),
        r"000007\.png is 12x16, its image 24x32 .*: run `rm .*000007\.png` and `dvc repro -f regions`",
    ),
}


@pytest.fixture(scope="module")
def after_r01(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project of `maps` when r01 is delivered."""
    folder = tmp_path_factory.mktemp("regions") / "project"
    shutil.copytree(made, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_EXP_NAME", raising=False)
        for image in pool():
            region_maps.save(image, squares())
        select("r01", {pool()[0]: [3, 17, 42], pool()[1]: [5]})
        run("r01")
    return folder


@pytest.fixture
def bought(after_r01: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    shutil.copytree(after_r01, tmp_path / "bought")
    monkeypatch.chdir(tmp_path / "bought")
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    return pool()


@pytest.mark.parametrize("why", REFUSED)
def test_orders_that_would_go_wrong_are_refused(why: str, bought: list[str]) -> None:
    asked, happens, says = REFUSED[why]
    repo.select("r02", [key(bought[place], "r02") for place in asked])
    frame = artifacts.load_selection("r02").assign(regions=list(asked.values()))
    happens(bought[0])
    before = paths.LEDGER.read_bytes()
    artifacts.save_selection("r02", frame)
    with pytest.raises(UserError, match=says):
        run("r02")
    assert paths.LEDGER.read_bytes() == before


@pytest.mark.parametrize(
    "wrong", ["aachen_000000_000007@regions-r03", "aachen_000000_000007", "ulm_000000_000000@2x2-0-0"]
)
def test_keys_of_another_round_or_unit_are_refused(wrong: str, bought: list[str]) -> None:
    repo.select("r02", [wrong])
    artifacts.save_selection("r02", artifacts.load_selection("r02").assign(regions="1"))
    with pytest.raises(UserError, match=r"is not a key of r02|score\.unit is (image|block.*), but data/ledger\.jsonl"):
        run("r02")
    repo.select("r02", [key(bought[3], "r02"), bought[4]])
    with pytest.raises(UserError, match=r"score\.unit is (image|region), but data.*: set score\.unit back"):
        run("r02")
    assert not ledger.load().ordered("r02")


def test_units_are_not_mixed() -> None:
    keys = {"image": "a", "region": "a@regions-r01", (2, 2): "a@2x2-0-0", (1, 2): "a@1x2-0-0"}
    for unit in keys:
        for other, name in keys.items():
            with contextlib.nullcontext() if unit == other else pytest.raises(UserError, match=r"score\.unit is"):
                blocks.check_unit(unit, [name], "data/ledger.jsonl")
    blocks.check_unit(None, ["a", "a@regions-r01"], "data/ledger.jsonl")
    with pytest.raises(UserError, match=r"score\.unit is image, but .* its unit is block with score\.blocks"):
        blocks.check_unit(None, ["a@2x2-0-0"], "data/ledger.jsonl")
    with pytest.raises(UserError, match="the image 'a@regions-b' of the pool is called like regions of 'a'"):
        blocks.check_image_keys(["a", "a@regions-b"])


def test_another_map_under_orders_that_are_out_is_refused_before_anyone_answers(
    maps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []

    def nobody(request: Request) -> Iterator[Answer]:
        asked.append(request)
        yield from ()

    monkeypatch.setitem(ANNOTATORS, "label_studio", nobody)
    with pytest.raises(WaitingForPeople, match="0 of 3 labelled"):
        run("r01", annotator="label_studio")
    assert [order.regions for order in asked[0].orders] == [(3, 17, 42), (5,), tuple(range(40))]
    assert tuple(asked[0].pool.loc[key(maps[0]), ["height", "width"]]) == fakes.SIZE
    other_map(maps[1])
    with pytest.raises(UserError, match=r"000003\.png is not the region map that r01 has asked by"):
        run("r01", annotator="label_studio")
    assert len(asked) == 1
    region_maps.save(maps[1], squares())  # cut again, the same
    run("r01")
    np.testing.assert_array_equal(load_mask(paths.mask(key(maps[1]))), expected(maps[1], [5]))


def test_skipped_regions_may_be_asked_again_in_another_round(maps: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def skips(request: Request) -> Iterator[Skipped]:
        yield from (Skipped(o.key, 0.25, "ann", "1") for o in request.orders if o.key not in request.known)

    monkeypatch.setitem(ANNOTATORS, "label_studio", skips)
    with pytest.raises(WaitingForPeople, match="others for the skipped"):
        run("r01", annotator="label_studio")
    select("r02", {maps[0]: [17, 42]})
    run("r02", BudgetLine(after="r00", images=1))
    book = ledger.load()
    assert [(order.round, order.regions) for order in book.orders] == [("r02", (17, 42))]
    assert book.spent("r01") == (0, 0.75)

    # a label of the skipped order, which came late, would pay for two of the regions again
    late: list[str] = []

    def listens(request: Request) -> Iterator[Answer]:
        late.extend(order.key for order in request.orders)
        yield from ()

    monkeypatch.setitem(ANNOTATORS, "label_studio", listens)
    select("r01", {image: [7] for image in maps[3:6]})
    with pytest.raises(WaitingForPeople):
        run("r01", annotator="label_studio")
    assert late == [*(key(image) for image in maps[3:6]), key(maps[1]), key(maps[2])]


def test_minutes_that_people_leave_of_a_line_are_spent_on_more_questions(
    maps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take half of what is predicted. All open regions of an image would not fit; what is asked about one does."""

    def quick(request: Request) -> Iterator[Answer]:
        for one in request.orders:
            if one.key not in request.known:
                yield Answer(one.key, np.full(fakes.SIZE, IGNORE, np.uint8), one.minutes / 2, "ann", one.key)

    monkeypatch.setitem(ANNOTATORS, "label_studio", quick)
    areas = len(maps) * 48
    gains, price = np.linspace(1, 2, areas), np.array([0.2, 0.1])
    parts, image = np.zeros((areas, 0), np.float32), np.repeat(np.arange(len(maps)), 48)
    regions = np.tile(np.arange(48), len(maps))
    scores = RegionScores(image, regions, regions + 1, gains, parts, np.zeros(areas, np.uint8), price)
    repo.score("r01", maps, minutes=0.2 + 48 * 0.1)
    region_scores.save("r01", scores)
    paths.PARAMS.write_text(paths.PARAMS.read_text() + "select: {regions_per_image: 3}\n")
    select("r01", {maps[0]: [3, 17, 42], maps[1]: [5, 6, 7]}, minutes=0.5)
    line = BudgetLine(after="r00", minutes=1.0)
    with pytest.raises(WaitingForPeople, match=r"now draws more images for the 0\.5 minutes that are left"):
        run("r01", line, annotator="label_studio")
    assert not paths.selection("r01").exists()
    select("r01", {image: [3, 17, 42] for image in maps[:4]}, minutes=0.5)
    run("r01", line, annotator="label_studio")
    assert ledger.load().spent("r01") == (4, pytest.approx(1.0))


# kills


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("lost_lines", [0, 1])
def test_killed_run_goes_on_without_asking_again(
    lost_lines: int, maps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def dies(request: Request) -> Iterator[Answer | Skipped]:
        pending = [order.key for order in request.orders if order.key not in request.known]
        calls.append(pending)
        for place, answer in enumerate(oracle.answers(request)):
            yield answer
            if place == 1 and len(calls) == 1:
                raise Killed

    monkeypatch.setitem(ANNOTATORS, "oracle", dies)
    with pytest.raises(Killed):
        run("r01")
    ordered = ledger.load().orders
    lines = paths.LEDGER.read_text().splitlines(keepends=True)
    paths.LEDGER.write_text("".join(lines[: len(lines) - lost_lines]))  # killed between the mask and its delivery
    run("r01")
    three = [key(image) for image in maps[:3]]
    assert calls == [three, three[2 - lost_lines :]]
    assert ledger.load().orders == ordered
    assert [delivery.key for delivery in ledger.load().deliveries] == three
    for order in ordered:
        np.testing.assert_array_equal(
            load_mask(paths.mask(order.key)), expected(blocks.image_of(order.key), order.regions)
        )


# the ledger


AT = "2025-01-02T03:04:05+00:00"
IMAGES = ("a", "b", "c")
ASKED = st.tuples(
    st.integers(1, 4), st.sampled_from(IMAGES), st.lists(st.integers(0, 7), min_size=1, max_size=4, unique=True)
)


def order(number: int, image: str, regions: Sequence[int], at: str = AT) -> Order:
    name, minute = f"r{number:02d}", (OPEN + ANSWER * len(regions)) / 60
    return Order(
        *(name, key(image, name), "oracle", "cityscapes19", 0.1, minute, 0.5, at, "draw", (), "", tuple(regions), "ab")
    )


def delivery(of: Order, at: str = AT) -> Delivery:
    return Delivery(of.round, of.key, "oracle", of.minutes, f"{of.round}{of.regions}", at)


@settings(max_examples=60)
@given(st.lists(st.tuples(ASKED, st.sampled_from(["deliver", "skip", "wait"])), max_size=14))
def test_no_region_is_bought_twice_and_spending_is_exact(
    steps: list[tuple[tuple[int, str, list[int]], str]],
) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for image in IMAGES:
            region_maps.save(image, np.arange(8, dtype=np.uint16)[None])
        standing: dict[str, Order] = {}
        places: set[str] = set()
        minutes_of: dict[str, float] = {}
        for (number, image, regions), ends in steps:
            new = order(number, image, regions)
            wanted = pd.DataFrame({"key": [new.key], "regions": [blocks.listed(regions)]})
            frame = pd.DataFrame({"key": [new.key], "height": 1, "width": 8}).set_index("key")
            others = {r for o in standing.values() if blocks.image_of(o.key) == image for r in o.regions}
            if new.key in places:  # `annotate` passes over what the round has asked
                with pytest.raises(UserError, match="ordered twice"):
                    ledger._check([*ledger.load().entries, new])
                continue
            if others & set(regions):
                with pytest.raises(UserError, match="has bought already"):
                    region_orders.asked(new.round, wanted, ledger.load(), frame)
                with pytest.raises(UserError, match=r"region \d of '.' was ordered twice"):
                    ledger._check([*ledger.load().entries, new])
                continue
            found = region_orders.asked(new.round, wanted, ledger.load(), frame)[new.key]
            assert found == (tuple(regions), storage.sha256(paths.regions(image)))
            new = new._replace(region_map=found[1])
            places.add(new.key)
            ledger.append([new])
            if ends == "skip":
                ledger.append([Skip(new.round, new.key, "ann", 0.05, AT)])
            else:
                standing[new.key] = new
                if ends == "deliver":
                    ledger.append([delivery(new)])
            spent = 0.05 if ends == "skip" else new.minutes
            minutes_of[new.round] = minutes_of.get(new.round, 0.0) + spent
        book = ledger.load()
        assert {o.key: o for o in book.orders} == standing
        assert {p for p in book.taken if p[1] is not None} == {
            (blocks.image_of(o.key), r) for o in standing.values() for r in o.regions
        }
        for name, spent in minutes_of.items():
            assert book.spending(name).minutes == pytest.approx(spent)


def test_an_order_without_regions_keeps_its_line_of_before() -> None:
    plain = Order("r01", "a", "oracle", "cityscapes19", 0.1, 1.0, 0.5, AT)
    assert "region" not in ledger.format_line(plain)
    asks = order(1, "a", [3, 1])
    assert ledger.parse(ledger.format_line(plain)) == plain
    assert ledger.parse(ledger.format_line(asks)) == asks
    for broken in ('["1"]', "3", "[true]", "[1.5]"):
        with pytest.raises(ValueError, match="no entry"):
            ledger.parse(ledger.format_line(asks).replace("[3, 1]", broken))


# branches


@settings(max_examples=60)
@given(st.data())
def test_joined_branches_keep_every_minute_and_no_region_twice(data: st.DataObject) -> None:
    branches: list[list[Entry]] = []
    for branch in range(2):
        mine: list[Entry] = []
        for place, (number, image, regions) in enumerate(data.draw(st.lists(ASKED, max_size=6))):
            at = f"2025-01-02T03:{place:02d}:{branch:02d}+00:00"
            new = order(number, image, regions, at)
            if not ordered_twice([*mine, new]):
                mine += [new, delivery(new, at)] if data.draw(st.booleans()) else [new]
        branches.append(mine)
    entries = [*branches[0], *branches[1]]
    joined, doubles = join.settle(entries)
    ledger._check(joined)
    for kind in (Order, Delivery):
        assert {e for e in joined if isinstance(e, kind)} <= {e for e in entries if isinstance(e, kind)}
    paid = sum(e.minutes for e in entries if isinstance(e, Delivery))
    assert sum(e.minutes for e in joined if isinstance(e, Delivery | Double)) == pytest.approx(paid)
    orders = sum(isinstance(e, Order) for e in entries)
    assert sum(isinstance(e, Order | Double) for e in joined) == orders or len(set(doubles)) < len(doubles)
    assert join.settle(joined) == (joined, [])


def test_other_regions_of_one_image_are_no_double() -> None:
    one, other, same = order(1, "a", [1, 2]), order(2, "a", [3, 4]), order(3, "a", [4, 5])
    entries = [one, delivery(one), other, delivery(other)]
    assert join.settle(entries) == (entries, [])
    joined, doubles = join.settle([*entries, same, delivery(same, "2026"), Removal("r03", same.key, AT)])
    assert doubles == [Double("r03", same.key, "oracle", same.minutes, "r03(4, 5)", "2026")]
    assert joined == [*entries, Removal("r02", other.key, AT), *doubles]


def test_a_round_whose_regions_another_branch_has_bought_is_filled_anew(maps: list[str]) -> None:
    mine, theirs = order(1, maps[0], [1]), order(2, maps[0], [1, 2])
    select("r01", {maps[0]: [1]})
    select("r02", {maps[0]: [1, 2]})
    joined, _ = join.settle([mine, delivery(mine), theirs, delivery(theirs, "2026")])
    for name in ("r01", "r02"):
        join._renew_round(name, Ledger(tuple(joined)))
    assert str(artifacts.load_selection("r01")["regions"].iloc[0]) == "1"
    assert not paths.selection("r02").exists()


# items


def test_of_labels_that_overlap_the_later_one_counts(tmp_path: Path) -> None:
    drawn = {
        "a@regions-r01": [[1, 1, IGNORE], [1, IGNORE, IGNORE]],
        "a@regions-r02": [[IGNORE, 2, 2], [IGNORE, IGNORE, IGNORE]],
        "a@regions-r03": [[IGNORE] * 3] * 2,
    }
    items = []
    for name, mask in drawn.items():
        save_mask(tmp_path / f"{name}.png", np.array(mask, np.uint8))
        items.append(Item(name, Path("a.png"), None, id_table_of_labels(19), ((name, tmp_path / f"{name}.png"),)))
    (merged,) = by_image(items)
    np.testing.assert_array_equal(merged.read_mask((2, 3)), [[1, 2, 2], [1, IGNORE, IGNORE]])
    assert with_labels(items) == items[:2]
    assert with_labels([merged]) == [merged]
    pool = pd.DataFrame({"image": ["a.png"], "sha256": ""}, index=["a"])
    with pytest.raises(UserError, match=r"data/labels/a@regions-r09\.png is not here: run `python -m pipeline join`"):
        labelled_items(["a@regions-r09"], pool, 19)
    with pytest.raises(UserError, match=r"the label of 'a@regions-r01' is 2x3, its part of the image 4x4"):
        merged.read_mask((4, 4))


# to the model

PARAMS = """\
budget:
  r01: {after: r00, images: 3}
  r02: {after: r01, images: 2}
seed: 1
prepare:
  classes: cityscapes19
  source: {dataset: gta5, root: source}
  pool: {dataset: cityscapes, root: pool}
  test: {dataset: cityscapes, root: test, split: val}
model: {name: small, size: [16, 32], width: 8}
pretrain: {steps: 2, batch: 2, lr: 1e-3}
score: {unit: region}
annotate: {annotator: oracle, oracle_purity: 0.2, oracle_seconds_to_open: 6, oracle_seconds_per_answer: 3}
tune:
  likelihood: {steps: 2, batch: 4, lr: 1e-3}
  reward: {steps: 2, lr: 1e-3}
compute: {accelerator: cpu, workers: 0}
"""


def stage(*words: str) -> None:
    assert __main__.main(list(words)) == 0, words


def test_labels_of_regions_are_audited_trained_on_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the selection on, by hand; in each round one image is answered *mixed* throughout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    paths.PARAMS.write_text(PARAMS)
    fakes.write("gta5", Path("source"), seed=1, count=3)
    fakes.write("cityscapes", Path("pool"), seed=2, count=4)
    fakes.write("cityscapes", Path("test"), "val", seed=3, count=2)
    repo.initialise(tmp_path)
    stage("prepare")
    images = pool()
    for image in images:
        region_maps.save(image, squares())
    stage("pretrain")
    stage("evaluate", "r00")
    asked = {
        "r01": {images[0]: [3, 17, 42], images[1]: [5], images[2]: range(40)},
        "r02": {images[0]: [1, 2, 4, 6, 7, 8], images[3]: [0, 47]},
    }
    stage("score", "r01")
    for name, of in asked.items():
        for path in (paths.scores, paths.pool):  # r02's, but for the round: what is tested comes after
            path(name).parent.mkdir(exist_ok=True)
            path(name).write_bytes(path("r01").read_bytes())
        select(name, of)
        for then in ("forecast", "predict", "annotate"):
            stage(then, name)
        if name == "r02":
            path = paths.mask(key(images[3], name))
            save_mask(path, np.full(fakes.SIZE, IGNORE, np.uint8))
            stage("annotate", name)
        for then in ("audit", "tune", "evaluate"):
            stage(then, name)
        table = artifacts.load_audit_table(name)
        masks = {key(image, name): load_mask(paths.mask(key(image, name))) for image in of}
        assert list(table["key"]) == [name for name, mask in masks.items() if (mask != IGNORE).any()]
        assert 0 < len(table) < len(of)
        assert (table["predicted"] > 0).all()
    stage("report")
    assert list(pd.read_csv(paths.ROUNDS_TABLE)["labels"]) == [0, 3, 5]
    assert len(list(paths.SAMPLES.glob("*.png"))) == 5
    capsys.readouterr()
    stage("status")
    assert "labelled: 52 regions of 5 images in 3.1 minutes" in capsys.readouterr().out
    stage("status", "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["unit"], found["regions"], found["spent"]["images"]) == ("region", 52, 5)

    for row in artifacts.load_labels("r02"):
        save_mask(paths.mask(row["key"]), np.full(fakes.SIZE, IGNORE, np.uint8))
    rows = [row | {"sha256": storage.sha256(paths.mask(row["key"]))} for row in artifacts.load_labels("r02")]
    artifacts.save_labels("r02", rows)
    capsys.readouterr()
    assert __main__.main(["tune", "r02"]) == 1
    assert "no pixel of the labels of 4 images is of a class, so nothing can be learnt" in capsys.readouterr().err
    assert __main__.main(["audit", "r02"]) == 1
    assert (
        "r02: no pixel of its labels is of a class: raise its line of the budget in params.yaml"
        in capsys.readouterr().err
    )

    stage("remove", images[0])
    assert "regions of 1 image no longer used" in capsys.readouterr().out
    book = ledger.load()
    assert [blocks.image_of(o.key) for o in book.orders] == [images[1], images[2], images[3]]
    assert (images[0], 3) in book.taken  # and not to be bought again
    stage("status")
    assert "labelled: 52 regions of 5 images in 3.1 minutes" in capsys.readouterr().out
    for command in ("score", "forecast"):  # before the lists of labels are made anew
        assert __main__.main([command, "r02"]) == 1
        assert f"labels.json has '{images[0]}@regions-r01', which" in capsys.readouterr().err
