import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import ledger, paths
from pipeline.errors import UserError
from pipeline.ledger.entries import Delivery, Ledger, Order, Removal, Skip, Spending, accounts

AT = "2025-01-02T03:04:05+00:00"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def order(key: str, round_name: str = "r01", minutes: float = 10.0) -> Order:
    return Order(round_name, key, "oracle", "cityscapes19", 0.1, minutes, 0.5, AT)


def delivery(key: str, round_name: str = "r01", minutes: float = 4.0) -> Delivery:
    return Delivery(round_name, key, "oracle", minutes, "ab" * 32, AT)


def skip(key: str, round_name: str = "r01", minutes: float = 0.5) -> Skip:
    return Skip(round_name, key, "ann@example.org", minutes, AT, "7@then")


def test_no_file_means_nothing_was_bought() -> None:
    assert ledger.load() == Ledger()
    assert not paths.LEDGER.exists()


def test_what_is_appended_is_read_back_by_round() -> None:
    ledger.append([order("a"), order("b"), order("c", "r02")])
    ledger.append([delivery("b")])
    book = ledger.load()
    assert book.orders == [order("a"), order("b"), order("c", "r02")]
    assert book.ordered("r01") == [order("a"), order("b")]
    assert book.ordered("r02") == [order("c", "r02")]
    assert book.delivered("r01") == [delivery("b")]
    assert book.delivered("r02") == []


def test_append_keeps_old_bytes_and_writes_one_line_each() -> None:
    ledger.append([order("a")])
    old = paths.LEDGER.read_bytes()
    ledger.append([order("é"), order("c")])
    new = paths.LEDGER.read_bytes()
    assert new.startswith(old)
    assert new.count(b"\n") == 3
    assert new.endswith(b"\n")


def test_append_after_an_editor_took_the_last_newline() -> None:
    ledger.append([order("a")])
    paths.LEDGER.write_bytes(paths.LEDGER.read_bytes().rstrip(b"\n"))
    ledger.append([order("b")])
    assert [entry.key for entry in ledger.load().orders] == ["a", "b"]


def test_a_failed_append_adds_nothing() -> None:
    ledger.append([order("a")])
    old = paths.LEDGER.read_bytes()

    def entries() -> Iterator[Order]:
        yield order("b")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ledger.append(entries())
    assert paths.LEDGER.read_bytes() == old


BROKEN = {
    "half a line": '{"event": "order", "round": "r01", "ke',
    "an unknown event": '{"event": "refund", "key": "a"}',
    "a missing field": '{"event": "delivery", "round": "r01", "key": "a"}',
    "a field too many": '{"event": "delivery", "round": "r01", "key": "a", "annotator": "o", "minutes": 1, '
    '"sha256": "", "at": "", "more": 1}',
    "a list": "[1]",
    "a number": "1",
    "nothing": "",
    "a merge": "<<<<<<< HEAD",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_line_is_named_with_the_way_out(name: str) -> None:
    ledger.append([order("a")])
    paths.LEDGER.write_text(paths.LEDGER.read_text() + BROKEN[name] + "\n")
    with pytest.raises(
        UserError, match=r"data/ledger\.jsonl: line 2 .*after a git merge run `python -m pipeline join`"
    ):
        ledger.load()


def test_ordered_twice_is_refused_by_name() -> None:
    ledger.append([order("a"), order("b"), order("b", "r02")])
    with pytest.raises(UserError, match="'b' was ordered twice"):
        ledger.load()


@pytest.mark.parametrize("entry", [delivery("stranger"), delivery("a", "r02"), skip("stranger"), skip("a", "r02")])
def test_delivery_or_skip_without_its_order_is_refused(entry: Delivery | Skip) -> None:
    ledger.append([order("a")])
    ledger.append([entry])
    with pytest.raises(UserError, match=f"'{entry.key}' was (delivered|skipped) in {entry.round} but not ordered"):
        ledger.load()


def test_spent_counts_orders_and_takes_measured_minutes_where_there_are_some() -> None:
    orders = (order("a", minutes=10.0), order("b", minutes=20.0))
    assert Ledger().spent("r01") == (0, 0)
    assert Ledger(orders).spent("r01") == (2, 30)
    assert Ledger(orders).spent("r02") == (0, 0)
    assert Ledger(orders).spent("r01", [order("c", minutes=5.0)]) == (3, 35)
    assert Ledger((*orders, delivery("b", minutes=5.0))).spent("r01") == (2, 5 + 10 / 4)  # at the pace of b
    corrected = (delivery("b", minutes=5.0), delivery("b", minutes=5.0)._replace(annotator="hand"))
    assert Ledger((*orders, *corrected)).spent("r01") == (2, 7.5)  # a correction is no second purchase


def spending(*took: float, predicted: float = 10.0, more: int = 0) -> Spending:
    keys = [f"k{number}" for number in range(len(took))]
    orders = [order(key, minutes=predicted) for key in [*keys, *(f"out {n}" for n in range(more))]]
    return Ledger((*orders, *(delivery(key, minutes=m) for key, m in zip(keys, took, strict=True)))).spending("r01")


@pytest.mark.parametrize(
    ("took", "counted", "pace"),
    [
        ((480.0,), 10.0, 1.0),  # alone, it is held against the prediction
        ((480.0, 5.0), 5.0 + 5.0, 0.5),
        ((5.0, 480.0, 5.0, 600.0, 5.0), 25.0, 0.5),  # held back from both: what was to be expected counts
        ((5.0, 0.02, 5.0, 5.0), 15.02, 0.5),  # absurdly short ones cost what they cost, and are no pace
        ((90.0, 90.0), 180.0, 9.0),  # a prediction that is far off is given up by the second image
        ((30.0,), 30.0, 3.0),
        ((1.0,), 1.0, 0.1),
        ((3.0, 20.0, 6.0, 14.0), 43.0, 1.075),  # as different as people's times are
        ((), 0.0, 1.0),
    ],
)
def test_time_of_an_open_tab_does_not_count(took: tuple[float, ...], counted: float, pace: float) -> None:
    found = spending(*took, more=3)
    assert (found.measured, found.pace) == (pytest.approx(counted), pytest.approx(pace))
    assert found.out == pytest.approx(30 * pace)
    assert [one.minutes for one in found.held_back] == [m for m in took if m > 100]
    assert sum(found.counted.values()) == found.measured


def test_skip_with_an_open_tab_does_not_count_either() -> None:
    entries = (order("a"), order("b"), delivery("b", minutes=4.0), skip("a")._replace(minutes=480.0))
    found = Ledger(entries).spending("r01")
    assert found.skipped == pytest.approx(4.0)
    assert [(one.key, one.minutes) for one in found.held_back] == [("a", 480.0)]


@pytest.mark.parametrize(
    ("took", "says"),
    [
        (8.0, "8 minutes spent, 22 left of its line of 30 minutes, too little for another"),
        (36.0, "36 minutes spent, 6 more than its line of 30 minutes, since images took longer"),
        (30.0, "30 minutes spent, as its line says"),
    ],
)
def test_line_in_minutes_is_accounted_for(took: float, says: str) -> None:
    assert says in accounts(30.0, spending(took))


def test_skipped_image_may_be_ordered_again_elsewhere_and_its_minutes_stay_spent() -> None:
    ledger.append([order("a"), order("b")])
    ledger.append([skip("a")])
    book = ledger.load()
    assert (book.ordered("r01"), book.withdrawn) == ([order("b")], [order("a")])
    assert book.spent("r01") == (1, 10.5)
    ledger.append([order("a", "r02")])
    assert ledger.load().ordered("r02") == [order("a", "r02")]
    with pytest.raises(UserError, match="'a' was ordered twice"):  # of a label that is here the order stands
        ledger._check([*ledger.load().entries, delivery("a")])
    ledger.append([order("a")])
    with pytest.raises(UserError, match="'a' was ordered twice"):
        ledger.load()


def test_label_of_a_skipped_image_reinstates_its_order() -> None:
    ledger.append([order("a")])
    ledger.append([skip("a")])
    ledger.append([delivery("a", minutes=4.0)])
    book = ledger.load()
    assert (book.ordered("r01"), book.withdrawn) == ([order("a")], [])
    assert book.spent("r01") == (1, 4.5)
    ledger.append([order("a", "r02")])
    with pytest.raises(UserError, match="'a' was ordered twice"):
        ledger.load()


def test_ledger_of_an_older_version_is_read() -> None:
    ledger.append([order("a")])
    fields = '"round": "r01", "key": "a", "annotator": "oracle", "minutes": 4.0, "sha256": "", "at": ""'
    paths.LEDGER.write_text(paths.LEDGER.read_text() + f'{{"event": "delivery", {fields}}}\n')
    assert ledger.load().deliveries == [Delivery("r01", "a", "oracle", 4.0, "", "", None, None, "")]


def test_time_is_in_utc() -> None:
    assert ledger.now().endswith("+00:00")
    assert len(ledger.now()) == len(AT)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
numbers = st.floats(0, 1e9, allow_nan=False)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_sequence_of_appends_is_read_back(data: st.DataObject) -> None:
    keys = data.draw(st.lists(text, unique=True, max_size=6))
    fields = [data.draw(st.tuples(text, st.just(key), text, text, numbers, numbers, numbers, text)) for key in keys]
    orders = [Order(*field) for field in fields]
    deliveries = [
        Delivery(bought.round, bought.key, *data.draw(st.tuples(text, numbers, text, text)))
        for bought in orders
        if data.draw(st.booleans())
    ]
    cut = data.draw(st.integers(0, len(orders)))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        ledger.append(orders[:cut])
        ledger.append(orders[cut:])
        for one in deliveries:
            ledger.append([one])
        assert ledger.load() == Ledger((*orders, *deliveries))


def test_what_is_removed_is_neither_ordered_nor_delivered_but_paid() -> None:
    ledger.append(
        [order("a"), order("b"), delivery("a"), delivery("b", minutes=6.0), order("c"), Removal("r01", "b", AT)]
    )
    book = ledger.load()
    assert book.ordered("r01") == [order("a"), order("c")]
    assert book.withdrawn == []
    assert [one.key for one in book.delivered("r01")] == ["a"]
    assert [one.key for one in book.deliveries] == ["a", "b"]  # its label stays where it is
    assert book.spent("r01") == (3, 4.0 + 6.0 + 5.0)  # c at the pace of a and b
    ledger.append([order("b", "r02")])
    with pytest.raises(UserError, match="'b' was ordered twice"):
        ledger.load()


def test_what_was_never_ordered_cannot_be_removed() -> None:
    ledger.append([Removal("r01", "b", AT)])
    with pytest.raises(UserError, match="'b' was removed in r01 but not ordered there"):
        ledger.load()
