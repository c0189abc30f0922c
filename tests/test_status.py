import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import ledger, paths, storage
from pipeline.commands import status
from pipeline.ledger.entries import Delivery, Order, Skip
from pipeline.params import Params
from tests import repo
from tests.conftest import ROOT


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.chdir(tmp_path)
    paths.PARAMS.write_text(repo.PARAMS)
    return repo.params()


def order(key: str, round_name: str) -> Order:
    return Order(round_name, key, "oracle", "cityscapes19", 0.1, 10.0, 0.5, "")


def deliver(*keys: str, round_name: str = "r01") -> None:
    ledger.append([Delivery(round_name, key, "oracle", 4.0, "", "") for key in keys])


def test_before_anything_is_bought(params: Params) -> None:
    content = status.collect(params)
    assert [row["round"] for row in content["rounds"]] == ["r00", "r01", "r02"]
    assert [row["budget"] for row in content["rounds"]] == ["-", "3 images", "20 minutes"]
    assert content["spent"] == {"images": 0, "minutes": 0}
    assert content["next"] == "r00: to be trained and measured"


def test_states_from_source_to_done(params: Params) -> None:
    def states() -> list[str]:
        return [row["state"] for row in status.collect(params)["rounds"]]

    storage.save_json(paths.metrics("r00"), {"miou": 0.25})
    assert states() == ["done", "nothing ordered yet", "nothing ordered yet"]
    ledger.append([order("a", "r01"), order("b", "r01"), order("c", "r01")])
    deliver("a")
    assert states()[1].startswith(
        "2 labels, about 8 minutes, to come from the oracle: `dvc repro`"
    )  # nobody is waited for
    asked = params.model_copy(update={"annotate": params.annotate.model_copy(update={"annotator": "label_studio"})})
    deliver("b")
    assert status._state(status.collect(params)["rounds"][1], asked) == (
        "waiting for 1 label, about 4 minutes, from label_studio"
    )
    deliver("c")
    assert states()[1] == "to be trained and measured"
    storage.save_json(paths.metrics("r01"), {"miou": 0.5})
    assert states()[1] == "done"
    assert status.collect(params)["next"] == "r02: nothing ordered yet"
    ledger.append([order("d", "r02")])
    deliver("d", round_name="r02")
    storage.save_json(paths.metrics("r02"), {"miou": 0.5})
    assert status.collect(params)["next"] == "all rounds are done"


def test_corrections_are_no_second_label(params: Params) -> None:
    ledger.append([order("a", "r01"), order("b", "r01")])
    deliver("a", "a")
    row = status.collect(params)["rounds"][1]
    assert (row["ordered"], row["labelled"], row["minutes"], row["minutes_out"]) == (2, 1, 4.0, 4.0)


def test_nothing_is_spent_while_nothing_is_labelled(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    ledger.append([order("a", "r01"), order("b", "r01"), order("c", "r01")])
    content = status.collect(params)
    assert content["spent"] == {"images": 0, "minutes": 0}
    assert content["out"] == {"images": 3, "minutes": 30}
    status.run(params, as_json=False)
    said = capsys.readouterr().out
    assert "labelled: 0 images in 0 minutes; out: 3 images, about 30 minutes expected; next:" in said
    assert "spent" not in said


def test_open_tab_is_told_and_does_not_count(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ["a", "b", "c"]
    ledger.append([order(key, "r02") for key in keys])
    took = {"a": 5.0, "b": 480.0, "c": 5.0}
    ledger.append([Delivery("r02", key, "ann@example.org", took[key], "", "") for key in keys])
    content = status.collect(params)
    assert content["annotators"] == [
        {"round": "r02", "annotator": "ann@example.org", "labelled": 3, "skipped": 0, "minutes": 15.0}
    ]
    assert content["rounds"][2]["minutes"] == content["spent"]["minutes"] == 15.0
    status.run(params, as_json=False)
    said = capsys.readouterr().out
    assert "r02: b: 480 minutes of ann@example.org, as when a tab is left open, count as 5" in said
    assert "r02: 15 minutes spent, 5 left of its line of 20 minutes" in said


def test_line_in_minutes_of_which_some_is_out_says_what_is_left(params: Params) -> None:
    ledger.append([order("a", "r02"), order("b", "r02")])
    ledger.append([Delivery("r02", "a", "ann@example.org", 8.0, "", ""), Skip("r02", "b", "ann", 1.0, "")])
    ledger.append([order("c", "r02")])
    row = status.collect(params)["rounds"][2]
    assert row["account"] == "9 of 20 minutes spent, about 8 are out, 3 left"
    assert (row["minutes"], row["minutes_skipped"], row["minutes_out"]) == (8.0, 1.0, 8.0)


def test_agreement_of_several_annotators_is_reported(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.collect(params)["agreement"] == {}
    ledger.append([order(key, "r01") for key in "abc"])
    for key, share in (("a", 0.1), ("a", 0.8), ("b", 0.9), ("c", None)):  # of corrections the last counts
        ledger.append([Delivery("r01", key, "ann@example.org", 1.0, "ab" * 32, "", agreement=share)])
    assert status.collect(params)["agreement"] == {"r01": pytest.approx(0.85)}
    status.run(params, as_json=False)
    assert "r01: several annotators agree on 85.0% of the pixels\n" in capsys.readouterr().out


def test_table_shows_rounds_spending_and_what_is_outside(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    storage.save_json(paths.metrics("r00"), {"miou": 0.2539})
    storage.save_json(paths.forecast("r01"), {"expected": 0.4, "low": 0.301, "high": 0.5})
    ledger.append([order("a", "r01"), order("b", "r07")])
    deliver("a")
    status.run(params, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "round",
        "budget",
        "ordered",
        "labelled",
        "skipped",
        "minutes",
        "forecast",
        "mIoU",
        "state",
    ]
    assert lines[1].split() == ["r00", "-", "0", "0", "0", "0", "-", "25.4", "done"]
    found = lines[2].split(maxsplit=11)
    assert found[:9] == ["r01", "3", "images", "1", "1", "0", "4", "30.1", "to"]
    assert found[9:] == ["50.0", "-", "to be trained and measured"]
    says = (
        "labelled: 1 image in 4 minutes; out: 1 image, about 10 minutes expected; next: r01: to be trained and measured"
    )
    assert says in lines
    assert "bought in rounds that the budget table no longer has: r07" in lines


def test_json_of_the_command_and_a_start_without_torch(params: Params) -> None:
    ledger.append([order("a", "r01")])
    code = (
        "import sys; from pipeline.__main__ import main; code = main(['status', '--json']); "
        "heavy = {'torch', 'albumentations', 'matplotlib', 'scipy', 'dvc', 'label_studio_sdk', 'httpx'}; "
        "print(sorted(heavy & set(sys.modules))); "
        "sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    *shown, heavy = done.stdout.splitlines()
    assert json.loads("\n".join(shown)) == status.collect(params)
    assert heavy == "[]"


def test_a_reader_who_has_seen_enough_ends_it_quietly(params: Params) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "pipeline", "status"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
