import errno
import hashlib
import io
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import UInt8
from PIL import Image

from pipeline import __main__, artifacts, datasets, ledger, paths, storage
from pipeline.annotators import ANNOTATORS
from pipeline.annotators.contract import Annotator, Answer, Request
from pipeline.commands import remove
from pipeline.errors import UserError, WaitingForPeople
from pipeline.images import blocks, reading
from pipeline.images.classes import CLASS_SETS
from pipeline.images.masks import load_mask, save_mask
from pipeline.ledger import label_store
from pipeline.ledger.entries import Ledger
from pipeline.params import BudgetLine, Select
from pipeline.stages import annotate, report, select
from tests import fakes, repo

TABLE = datasets.table("cityscapes", Path(), CLASS_SETS["cityscapes19"])


class Killed(BaseException):
    """Stands for SIGKILL."""


run = repo.run


def keys(round_name: str) -> list[str]:
    return list(artifacts.load_selection(round_name)["key"])


def truth(key: str) -> UInt8[np.ndarray, "h w"]:
    pool = artifacts.load_manifest("pool", Path("pool")).set_index("key")
    return reading.read_mask(Path(pool.at[key, "mask"]), TABLE)


Scripted = Callable[..., list[list[str]]]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """Add an annotator `scripted` that answers with `masks` at most `each` times a call, then raises `end` if given."""

    def add(
        each: int,
        end: BaseException | None = None,
        masks: Callable[[str], np.ndarray] = truth,
        minutes: Callable[[str], float] = lambda key: 2.5,
    ) -> list[list[str]]:
        calls: list[list[str]] = []

        def annotator(request: Request) -> Iterator[Answer]:
            pending = [order for order in request.orders if order.key not in request.known]
            calls.append([order.key for order in pending])
            assert {order.key for order in ledger.load().orders} >= set(calls[-1]), "asked before it was ordered"
            for order in pending[:each]:
                yield Answer(order.key, masks(order.key), minutes(order.key), "scripted")
            if end is not None and pending:
                raise end

        member: Annotator = annotator
        monkeypatch.setitem(ANNOTATORS, "scripted", member)
        monkeypatch.setitem(ANNOTATORS, "label_studio", member)  # params.yaml takes no name that it does not know
        return calls

    return add


def test_oracle_delivers_and_a_second_run_orders_nothing(bought: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = ledger.load()
    assert [order.key for order in book.orders] == [delivery.key for delivery in book.deliveries] == keys("r01")
    for order, row in zip(book.orders, artifacts.load_selection("r01").to_dict("records"), strict=True):
        assert (order.gain, order.minutes, order.probability) == (row["gain"], row["minutes"], row["probability"])
        assert (order.round, order.annotator, order.classes) == ("r01", "oracle", "cityscapes19")
    rows = artifacts.load_labels("r01")
    for delivery, row in zip(book.deliveries, rows, strict=True):
        np.testing.assert_array_equal(load_mask(paths.mask(delivery.key)), truth(delivery.key))
        assert delivery.sha256 == storage.sha256(paths.mask(delivery.key))
        assert row == {"key": delivery.key, "round": "r01", "minutes": 4.0, "sha256": delivery.sha256}
    assert len(list(Path(".dvc/cache/files").rglob("*/*/*"))) == 3 + 3  # three masks, and the folder after each

    before = paths.LEDGER.read_bytes(), paths.labels("r01").read_bytes(), paths.LABELS_DVC.read_bytes()
    monkeypatch.setenv("DVC_EXP_NAME", "quiet-owl")  # an experiment may run on what is bought
    run("r01")
    assert before == (paths.LEDGER.read_bytes(), paths.labels("r01").read_bytes(), paths.LABELS_DVC.read_bytes())


def test_experiments_do_not_buy(bought: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = paths.LEDGER.read_bytes()
    monkeypatch.setenv("DVC_EXP_NAME", "quiet-owl")
    with pytest.raises(UserError, match="r02 would buy 2 images inside `dvc exp run`"):
        run("r02")
    assert paths.LEDGER.read_bytes() == before


def test_mode_wait_asks_until_everything_is_back_and_labels_are_cumulative(
    bought: Path, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotate, "POLL_SECONDS", 0.01)
    calls = scripted(each=1)
    run("r02", annotator="scripted", mode="wait")
    assert calls == [keys("r02"), keys("r02")[1:]]
    rows = artifacts.load_labels("r02")
    assert [row["key"] for row in rows] == keys("r01") + keys("r02")
    assert [row["round"] for row in rows] == ["r01"] * 3 + ["r02"] * 2
    assert [row["minutes"] for row in rows] == [4.0] * 3 + [2.5] * 2
    assert rows[:3] == artifacts.load_labels("r01")


def test_killed_run_goes_on_without_ordering_again(project: Path, scripted: Scripted) -> None:
    calls = scripted(each=2, end=Killed())
    with pytest.raises(Killed):
        run("r01", annotator="scripted")
    ordered = ledger.load().orders
    assert [order.key for order in ordered] == keys("r01") == calls[0]
    assert [delivery.key for delivery in ledger.load().deliveries] == keys("r01")[:2]
    assert not paths.labels("r01").exists()

    # as if it had been killed a moment earlier: the second mask is on the disk, its delivery not yet in the ledger
    paths.LEDGER.write_text("".join(paths.LEDGER.read_text().splitlines(keepends=True)[:-1]))
    calls = scripted(each=3)
    run("r01", annotator="scripted")
    assert calls == [keys("r01")[1:]]
    assert ledger.load().orders == ordered
    assert [delivery.key for delivery in ledger.load().deliveries] == keys("r01")
    assert [row["key"] for row in artifacts.load_labels("r01")] == keys("r01")


def test_missing_masks_are_to_be_pulled_not_bought_again(bought: Path) -> None:
    before = paths.LEDGER.read_bytes()
    shutil.rmtree(paths.LABELS)
    for name in ("r01", "r02"):
        with pytest.raises(UserError, match=r"data/labels lacks 3 labels .* run `dvc pull data/labels\.dvc`"):
            run(name)
    assert paths.LEDGER.read_bytes() == before


def test_mask_that_the_ledger_does_not_know_is_refused(bought: Path) -> None:
    save_mask(paths.mask("stranger"), truth(keys("r01")[0]))
    with pytest.raises(UserError, match=r"holds 1 label that data/ledger\.jsonl does not know, 'stranger'"):
        run("r02")
    assert not ledger.load().ordered("r02")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (BudgetLine(after="r00", images=2), "would order 3 images, but its budget line says 2 images"),
        (BudgetLine(after="r00", minutes=3.9), "r01 has 3.9 minutes, and its first image is expected to take 4"),
    ],
)
def test_over_budget_is_refused_before_anything_is_ordered(project: Path, line: BudgetLine, says: str) -> None:
    with pytest.raises(UserError, match=says):
        run("r01", line)
    assert not paths.LEDGER.exists()


def score(round_name: str = "r01", minutes: float = 10.0) -> None:
    pool = artifacts.load_manifest("pool")["key"]
    gains = np.linspace(0.9, 0.1, len(pool))
    repo.score(round_name, pool, gain=gains, minutes=minutes)


def go_on(line: BudgetLine, *, annotator: str, killed: int = 0) -> int:
    """What `dvc repro` does, as often as it takes and through so many kills; how often people were waited for."""
    waits = 0
    for _ in range(40):
        try:
            if not paths.selection("r01").exists():
                settings = repo.params(annotate={"annotator": "label_studio"})
                select.run("r01", line, seed=1, select=Select(method="best_first"), annotate=settings.annotate)
            run("r01", line, annotator=annotator)
            return waits
        except WaitingForPeople:
            waits += 1
        except Killed:
            killed -= 1
            assert killed >= 0
    raise AssertionError("it does not end")


@pytest.mark.parametrize("took", [0.5, 1.0, 6.0, 10.0, 13.0, 30.0, 45.0])
@pytest.mark.parametrize("each", [1, 9])
def test_line_in_minutes_is_spent_by_what_is_measured(
    took: float, each: int, project: Path, scripted: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guessed at 10 minutes an image, of a pool of eight; answers come one by one, or all at once."""
    score()
    paths.selection("r01").unlink()
    calls = scripted(each=each, minutes=lambda key: took)
    line = BudgetLine(after="r00", minutes=30)
    go_on(line, annotator="scripted")
    book = ledger.load()
    assert len(calls[0]) == 1  # half of the line, while nobody knows how long an image takes
    images, minutes = book.spent("r01")
    assert minutes == images * took
    assert minutes < 30 + took
    assert minutes > 30 - took or images == 8
    says = "more than its line" if minutes > 30 else "left of its line" if minutes < 30 else "as its line says"
    assert says in capsys.readouterr().out
    assert [row["key"] for row in artifacts.load_labels("r01")] == [order.key for order in book.orders]
    before = paths.LEDGER.read_bytes()
    assert go_on(line, annotator="scripted") == 0
    assert paths.LEDGER.read_bytes() == before


def test_kills_and_second_runs_do_not_overspend(project: Path, scripted: Scripted) -> None:
    score()
    paths.selection("r01").unlink()
    scripted(each=1, end=Killed(), minutes=lambda key: 6.0)
    go_on(BudgetLine(after="r00", minutes=30), annotator="scripted", killed=30)
    book = ledger.load()
    assert book.spent("r01") == (5, 30.0)
    assert len({order.key for order in book.orders}) == len(book.orders) == len(book.deliveries)


def test_open_tab_does_not_stop_the_buying(
    project: Path, scripted: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    score()
    took = dict(zip(artifacts.load_manifest("pool")["key"], [5, 480, 5, 5, 5, 5, 600, 5], strict=True))
    scripted(each=9, minutes=lambda key: float(took[key]))
    go_on(BudgetLine(after="r00", minutes=35), annotator="scripted")
    book = ledger.load()
    assert book.spent("r01") == (7, 35.0)
    assert sorted(delivery.minutes for delivery in book.deliveries)[-2:] == [480, 600]  # on record as they are
    assert {row["minutes"] for row in artifacts.load_labels("r01")} == {5.0}
    assert (
        "480 minutes of scripted are more than 5 times the usual, as when a tab is left open" in capsys.readouterr().out
    )


def test_people_are_asked_for_half_of_the_line_until_their_pace_is_known(project: Path, scripted: Scripted) -> None:
    score()
    line = BudgetLine(after="r00", minutes=30)
    calls = scripted(each=0)
    with pytest.raises(
        WaitingForPeople, match=r"r01: 0 of 1 labelled, 0 of 30 minutes spent; 2 more selected, which go"
    ):
        run("r01", line, annotator="scripted")
    with pytest.raises(WaitingForPeople, match="r01: 0 of 1 labelled"):  # in vain: nobody has worked since
        run("r01", line, annotator="scripted")
    assert calls == [keys("r01")[:1]] * 2
    assert ledger.load().spent("r01") == (1, 10.0)


def test_line_in_images_goes_out_whole_however_long_they_take(project: Path, scripted: Scripted) -> None:
    calls = scripted(each=9, minutes=lambda key: 90.0)
    run("r01", annotator="scripted")
    assert calls == [keys("r01")]


def test_oracle_fills_a_line_in_minutes_in_one_go(project: Path) -> None:
    score()
    run("r01", BudgetLine(after="r00", minutes=9))  # three of 10 minutes are selected, and take 4 each
    assert ledger.load().spent("r01") == (2, 8.0)
    assert [row["key"] for row in artifacts.load_labels("r01")] == keys("r01")[:2]
    assert list(report._bought("r01")["key"]) == keys("r01")[:2]  # the third was selected and not bought


def test_round_is_extended_by_what_is_left_by_the_clock(bought: Path, scripted: Scripted) -> None:
    # three images took 4 minutes each where 10 were predicted: 12 are spent, one more of 4 fits into 16
    score()
    repo.select("r01", [*keys("r01"), keys("r02")[0]])
    run("r01", BudgetLine(after="r00", minutes=15.9))
    assert len(ledger.load().orders) == 3
    calls = scripted(each=0, end=Killed())
    with pytest.raises(Killed):
        run("r01", BudgetLine(after="r00", minutes=16.0), annotator="scripted")
    assert calls == [keys("r02")[:1]]


# labels that nothing can be learnt from


def void(key: str) -> np.ndarray:
    return np.full_like(truth(key), 255)


def test_label_without_a_labelled_pixel_is_held_back(
    project: Path, scripted: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    first = keys("r01")[0]
    scripted(each=3, masks=lambda key: void(key) if key == first else truth(key))
    with pytest.raises(WaitingForPeople, match="r01: 2 of 3 labelled, 1 needs another look"):
        run("r01", annotator="scripted")
    assert f"{first}: not one pixel of its label has a class" in capsys.readouterr().out
    assert first not in {delivery.key for delivery in ledger.load().deliveries}
    scripted(each=3)
    run("r01", annotator="scripted")


def test_label_that_is_erased_by_hand_is_a_sentence(bought: Path) -> None:
    key = keys("r01")[1]
    for mask, says in ((void(key), "has no labelled pixel left"), (np.full_like(truth(key), 77), "holds the ids 77")):
        save_mask(paths.mask(key), mask)
        with pytest.raises(UserError, match=f"{key}.* {says}"):
            run("r01")
    assert len(ledger.load().deliveries) == 3


def test_oracle_skips_what_has_no_label_and_another_is_drawn(
    of_blocks: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """One of three blocks is void, the others of its image are not."""
    pool = artifacts.load_manifest("pool", Path("pool")).set_index("key")
    mask = Path(pool.at[blocks.image_of(of_blocks[0]), "mask"])
    stored = np.array(Image.open(mask))
    stored[:12, 16:] = 0
    Image.fromarray(stored).save(mask)
    with pytest.raises(WaitingForPeople, match="r01: 2 of 2 labelled; `dvc repro` now draws others"):
        run("r01")
    says = f"{of_blocks[0]} is not ordered, others are drawn in its place: no pixel of the mask"
    assert says in capsys.readouterr().out
    book = ledger.load()
    assert [order.key for order in book.ordered("r01")] == of_blocks[1:]
    assert book.spending("r01").skipped == 0


def test_image_that_another_round_has_bought_is_refused(bought: Path) -> None:
    stolen = keys("r01")[1]
    repo.select("r02", [stolen])
    with pytest.raises(UserError, match=f"r02 wants '{stolen}', which r01 has bought already"):
        run("r02")


def test_another_class_set_is_refused(bought: Path) -> None:
    artifacts.save_classes(CLASS_SETS["camvid11"])
    with pytest.raises(UserError, match=r"bought in the classes road, .* \(r01\), but now they are Sky, "):
        run("r02")
    assert not ledger.load().ordered("r02")


def test_unknown_annotator_is_answered_with_the_known(project: Path) -> None:
    with pytest.raises(UserError, match=r"unknown annotate\.annotator 'nobody': choose one of label_studio, oracle"):
        run("r01", annotator="nobody")


def test_mask_of_another_size_is_refused(project: Path, scripted: Scripted) -> None:
    scripted(each=3, masks=lambda key: truth(key)[:-1])
    with pytest.raises(UserError, match="is 23x32, its image 24x32"):
        run("r01", annotator="scripted")
    assert not ledger.load().deliveries
    assert not list(paths.LABELS.glob("*"))


def test_oracle_without_a_label_says_so(project: Path) -> None:
    frame = artifacts.load_manifest("pool").assign(mask="")
    artifacts.save_manifest("pool", frame)
    with pytest.raises(UserError, match=f"the oracle has no label for '{keys('r01')[0]}'"):
        run("r01")


def spoil(key: str, how: str) -> None:
    """Make the mask of a pool image one that the oracle cannot deliver."""
    path = Path(artifacts.load_manifest("pool", Path("pool")).set_index("key").at[key, "mask"])
    if how == "absent":
        path.unlink()
    elif how == "damaged":
        path.write_bytes(path.read_bytes()[:-30])
    else:
        fakes.mask(path, np.zeros(fakes.SIZE if how == "all ignore" else (5, 5)))


@pytest.mark.parametrize("how", ["absent", "damaged", "all ignore", "of another size"])
def test_what_the_oracle_cannot_deliver_is_not_ordered_and_the_round_goes_on(
    project: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *rest = keys("r01")
    spoil(first, how)
    with pytest.raises(WaitingForPeople, match="draws others for the skipped images"):
        run("r01")
    assert f"r01: {first} is not ordered, others are drawn in its place: " in capsys.readouterr().out
    assert [order.key for order in ledger.load().ordered("r01")] == rest
    assert ledger.load().spent("r01") == (2, 8.0)  # it cost nothing
    fifth = artifacts.load_manifest("pool")["key"].iloc[5]
    repo.select("r01", [*rest, fifth])  # as the stage `select` would
    run("r01")
    assert [row["key"] for row in artifacts.load_labels("r01")] == [*rest, fifth]


def test_an_order_that_the_oracle_can_no_longer_deliver_does_not_block_the_round(
    project: Path, scripted: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted(each=1)
    with pytest.raises(WaitingForPeople):
        run("r01", annotator="scripted")
    spoil(keys("r01")[1], "damaged")
    with pytest.raises(WaitingForPeople, match="draws others for the skipped images"):
        run("r01")
    assert "is cut short, damaged or no image" in capsys.readouterr().out
    assert len(ledger.load().delivered("r01")) == 2


def test_a_bought_image_that_left_the_pool_is_a_sentence(bought: Path) -> None:
    frame = artifacts.load_manifest("pool")
    artifacts.save_manifest("pool", frame[frame["key"] != keys("r01")[0]])
    with pytest.raises(UserError, match=f"the pool lacks '{keys('r01')[0]}', which r01 has bought: put its file back"):
        run("r01")
    repo.select("r02", ["nowhere"])
    artifacts.save_manifest("pool", frame)
    with pytest.raises(UserError, match="to buy 'nowhere', which the pool has not: put its file back, or run `dvc rep"):
        run("r02")


def test_an_image_that_has_to_stay_out_is_no_longer_a_label(bought: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone, *rest = keys("r01")
    remove.run([gone])
    assert "1 image no longer used: take the files out of the pool" in capsys.readouterr().out
    assert not paths.selection("r01").exists()  # for DVC to make it anew
    frame = artifacts.load_manifest("pool")
    artifacts.save_manifest("pool", frame[frame["key"] != gone])
    repo.select("r01", rest)
    run("r01")
    assert [row["key"] for row in artifacts.load_labels("r01")] == rest
    assert paths.mask(gone).is_file()
    assert len(ledger.load().orders) == 2
    with pytest.raises(UserError, match=f"'{gone}' is not bought, or removed already"):
        remove.run([gone])


def test_mask_changed_by_hand_is_taken_for_no_further_minutes(bought: Path) -> None:
    key = keys("r01")[1]
    mask = truth(key)
    mask[5, 5] = 3 if mask[5, 5] != 3 else 4
    save_mask(paths.mask(key), mask)
    run("r01")
    latest = ledger.load().deliveries[-1]
    assert (latest.key, latest.annotator, latest.minutes) == (key, "hand", 4.0)
    assert artifacts.load_labels("r01")[1]["sha256"] == latest.sha256 == storage.sha256(paths.mask(key))
    assert ledger.load().spent("r01") == (3, 12.0)


def test_change_by_hand_is_on_record_before_a_newer_answer_takes_its_place(
    bought: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, *_ = keys("r01")
    by_hand, newer = truth(key), truth(key)
    by_hand[5, 5] = 3 if by_hand[5, 5] != 3 else 4
    newer[0, 0] = 3 if newer[0, 0] != 3 else 4
    save_mask(paths.mask(key), by_hand)
    kept = hashlib.md5(paths.mask(key).read_bytes()).hexdigest()

    def corrected(request: Request) -> Iterator[Answer]:
        if request.known[key] != "1@later":
            yield Answer(key, newer, 5.0, "ann@example.org", version="1@later")

    monkeypatch.setitem(ANNOTATORS, "corrected", corrected)
    run("r01", annotator="corrected")
    np.testing.assert_array_equal(load_mask(paths.mask(key)), newer)
    assert [d.annotator for d in ledger.load().deliveries if d.key == key] == ["oracle", "hand", "ann@example.org"]
    assert Path(".dvc/cache/files/md5", kept[:2], kept[2:]).is_file()  # what was painted by hand can be had again


def test_correction_that_was_killed_before_it_was_on_record_is_nobodys_handwork(
    bought: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, *_ = keys("r01")
    newer = truth(key)
    newer[0, 0] = 3 if newer[0, 0] != 3 else 4
    save_mask(paths.mask(key), newer)

    def corrected(request: Request) -> Iterator[Answer]:
        yield Answer(key, newer, 5.0, "ann@example.org", version="1@later")

    monkeypatch.setitem(ANNOTATORS, "corrected", corrected)
    run("r01", annotator="corrected")
    assert [d.annotator for d in ledger.load().deliveries if d.key == key] == ["oracle", "ann@example.org"]


def test_mask_changed_by_hand_to_another_size_is_refused(bought: Path) -> None:
    key = keys("r01")[1]
    save_mask(paths.mask(key), truth(key)[:-1])
    with pytest.raises(UserError, match=f"{key}.* is 23x32, its image 24x32"):
        run("r01")
    assert len(ledger.load().deliveries) == 3


def test_people_who_are_not_done_are_waited_for(
    project: Path, scripted: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    paths.PARAMS.write_text(repo.PARAMS.replace("annotator: oracle", "annotator: label_studio"))
    scripted(each=0)
    assert __main__.main(["annotate", "r01"]) == 75
    assert "r01: 0 of 3 labelled; run `dvc repro` again" in capsys.readouterr().err
    scripted(each=2)
    assert __main__.main(["annotate", "r01"]) == 75
    assert "r01: 2 of 3 labelled; run `dvc repro` again" in capsys.readouterr().err
    assert paths.LABELS_DVC.is_file()  # what came back is safe already
    assert not paths.labels("r01").exists()
    assert __main__.main(["annotate", "r01"]) == 0
    assert len(ledger.load().orders) == len(artifacts.load_labels("r01")) == 3


def test_masks_that_dvc_cannot_take_are_a_sentence(project: Path) -> None:
    Path(".dvc/config").write_text("[core\n")
    with pytest.raises(UserError, match=r"`dvc add data/labels` failed \(.*config.*\): mend that"):
        run("r01")
    assert ledger.load() == Ledger()  # nothing is bought that could not be kept
    Path(".dvc/config").write_text("")
    paths.LABELS_DVC.write_text("outs: [")
    with pytest.raises(UserError, match=r"`dvc add data/labels` failed \(.*labels.dvc.*\): mend that"):
        run("r01")
    assert len(ledger.load().deliveries) == 1
    assert paths.mask(keys("r01")[0]).is_file()
    paths.LABELS_DVC.unlink()
    run("r01")
    assert len(ledger.load().deliveries) == len(ledger.load().orders) == 3


def test_disk_that_is_full_when_dvc_takes_a_mask_is_a_sentence(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(label_store.Repo, "add", full)
        with pytest.raises(UserError, match=r"`dvc add data/labels` failed \(.*No space left on device\): mend that"):
            run("r01")
    assert len(ledger.load().deliveries) == 1
    run("r01")
    assert len(ledger.load().deliveries) == len(ledger.load().orders) == 3


def test_record_of_dvc_that_was_cut_short_is_a_sentence_and_an_empty_one_no_matter(bought: Path) -> None:
    """DVC writes it in place."""
    whole = paths.LABELS_DVC.read_text()
    paths.LABELS_DVC.write_text("")
    run("r01")
    assert paths.LABELS_DVC.read_text() == whole
    paths.LABELS_DVC.write_text(whole[: whole.index("  path")])
    with pytest.raises(UserError, match=r"`dvc add data/labels` failed \(.*labels\.dvc.*\): mend that"):
        run("r01")
    paths.LABELS_DVC.unlink()
    run("r01")
    assert paths.LABELS_DVC.read_text() == whole


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_mode_wait_shows_a_bar_on_a_terminal(
    terminal: bool, bought: Path, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotate, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(sys, "stderr", Terminal() if terminal else io.StringIO())
    scripted(each=1)
    run("r02", annotator="scripted", mode="wait")
    shown = sys.stderr.getvalue()
    assert [text in shown for text in ("annotate r02:", "0/2", "2/2")] == [terminal] * 3, shown


# blocks


def crop(key: str) -> np.ndarray:
    """Every second row of blocks is all of class 3."""
    return np.full((12, 16), 3, np.uint8) if "-1-" in key else blocks.crop(truth(blocks.image_of(key)), key)


@pytest.fixture
def of_blocks(project: Path) -> list[str]:
    """r01 selects two blocks of one image and one of another; nothing is bought yet."""
    one, other = keys("r01")[:2]
    chosen = [f"{one}@2x2-0-1", f"{one}@2x2-1-0", f"{other}@2x2-0-0"]
    repo.select("r01", chosen)
    return chosen


def test_killed_run_on_blocks_goes_on_without_ordering_again(of_blocks: list[str], scripted: Scripted) -> None:
    scripted(each=2, end=Killed(), masks=crop)
    with pytest.raises(Killed):
        run("r01", annotator="scripted")
    paths.LEDGER.write_text("".join(paths.LEDGER.read_text().splitlines(keepends=True)[:-1]))  # as if a moment earlier
    calls = scripted(each=3, masks=crop)
    run("r01", annotator="scripted")
    assert calls == [of_blocks[1:]]
    book = ledger.load()
    assert [o.key for o in book.orders] == [d.key for d in book.deliveries] == of_blocks
    before = paths.LEDGER.read_bytes()
    run("r01", annotator="scripted")
    assert paths.LEDGER.read_bytes() == before
    for key in of_blocks:
        np.testing.assert_array_equal(load_mask(paths.mask(key)), crop(key))


def test_more_blocks_than_the_line_says_are_not_ordered(of_blocks: list[str]) -> None:
    with pytest.raises(UserError, match=r"would order 3 images, but its budget line says 2 images"):
        run("r01", BudgetLine(after="r00", images=2))
    assert not paths.LEDGER.exists()
    repo.score("r01", of_blocks)
    run("r01", BudgetLine(after="r00", minutes=30))
    assert ledger.load().spent("r01") == (3, 3.0)  # the oracle books a quarter of 4 for each


def test_other_blocks_of_an_image_are_bought_later_but_none_twice(of_blocks: list[str]) -> None:
    run("r01")
    image = blocks.image_of(of_blocks[0])
    repo.select("r02", [f"{image}@2x2-0-0"])
    run("r02")
    assert [row["key"] for row in artifacts.load_labels("r02")] == [*of_blocks, f"{image}@2x2-0-0"]
    repo.select("r02", [f"{image}@2x2-0-0", of_blocks[1]])
    with pytest.raises(UserError, match=f"r02 wants '{of_blocks[1]}', which r01 has bought already"):
        run("r02")
    repo.select("r02", [f"{image}@2x2-0-0", keys("r01")[0].partition("@")[0]])  # the same image, whole
    with pytest.raises(UserError, match="and its unit is"):
        run("r02")
    assert ledger.load().spent("r02") == (1, 1.0)


def test_answer_for_a_block_is_of_the_block_and_is_corrected_by_hand_as_one(
    of_blocks: list[str], scripted: Scripted
) -> None:
    scripted(each=3, masks=lambda key: truth(blocks.image_of(key)))
    with pytest.raises(UserError, match=f"the label of '{of_blocks[0]}' is 24x32, its image 12x16"):
        run("r01", annotator="scripted")
    assert not ledger.load().deliveries
    scripted(each=3, masks=crop)
    run("r01", annotator="scripted")
    save_mask(paths.mask(of_blocks[1]), np.full((12, 16), 7, np.uint8))
    run("r01", annotator="scripted")
    latest = ledger.load().deliveries[-1]
    assert (latest.key, latest.annotator) == (of_blocks[1], "hand")
    assert artifacts.load_labels("r01")[1]["sha256"] == latest.sha256


def test_block_of_an_image_that_the_pool_has_not_is_refused(of_blocks: list[str]) -> None:
    repo.select("r01", ["stranger@2x2-0-0"])
    with pytest.raises(UserError, match="r01 is to buy 'stranger@2x2-0-0', a part of an image that"):
        run("r01")
    assert not paths.LEDGER.exists()
