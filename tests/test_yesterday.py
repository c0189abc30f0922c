"""A project of commit 2156569 goes on with today's code: it buys nothing again, and its models are worth what they were.

tests/data/README.md says how it was made. The chapters follow each other.
"""

import csv
import json
import re
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import project
from tests.forks import Forks
from tests.project import ROOT, Project, Run

pytestmark = pytest.mark.dvc

ARCHIVE = Path(__file__).parent / "data/project-2156569.tar.xz"
ROUND_STAGES = ("snapshot", "score", "select", "forecast", "predict", "annotate", "audit", "tune", "evaluate")


class Old(NamedTuple):
    """The project, unpacked, with today's code in it, and what was there before anything ran."""

    project: Project
    entries: list[dict[str, Any]]
    labels: dict[str, bytes]

    def json(self, name: str) -> Any:
        return json.loads((self.project.folder / name).read_text())

    def masks(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.project.folder / "data/labels").glob("*.png")}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Old:
    folder = tmp_path_factory.mktemp("yesterday") / "project"
    folder.mkdir()
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    pulled = Project(folder, forks=forks)
    pulled.git("init", "--quiet")
    pulled.commit("2156569")
    project.copy_code(ROOT, folder)
    pulled.commit("today")
    found = Old(pulled, pulled.ledger(), {})
    return found._replace(labels=found.masks())


def test_status_says_what_runs_again(old: Old) -> None:
    changed = old.project.dvc("status")
    assert changed.status == 0, changed.output
    stages = set(re.findall(r"^(\S+):$", changed.output, re.MULTILINE))
    of_rounds = {f"{stage}@{name}" for name in ("r01", "r02") for stage in ROUND_STAGES}
    assert stages == {"settings", "prepare", "pretrain", "evaluate_source", "report"} | of_rounds
    said = json.loads(old.project.pipeline("status", "--json").output)
    assert said["next"].startswith("r02: 3 labels, about 30 minutes, to come from the oracle")
    assert said["changed"] == []


def test_models_of_yesterday_are_worth_what_they_were(old: Old) -> None:
    before = {name: old.json(f"data/metrics/{name}.json") for name in ("r00", "r01")}
    gains_before = gains(old.project, "r01")
    old.project.repro("settings", "prepare")
    for words in (("snapshot", "r01"), ("evaluate", "r00"), ("evaluate", "r01"), ("score", "r01")):
        done = old.project.pipeline(*words)
        assert done.status == 0, done.output
    for name, was in before.items():
        now = old.json(f"data/metrics/{name}.json")
        assert now.keys() - was.keys() == {"reward_pooled_miou"}
        iou = now.pop("iou")
        assert iou == pytest.approx(was.pop("iou"), abs=1e-3)
        assert {key: now[key] for key in was} == pytest.approx(was, abs=1e-3)
    assert gains(old.project, "r01") == pytest.approx(gains_before, rel=1e-4)


def gains(of: Project, round_name: str) -> dict[str, float]:
    with (of.folder / f"data/rounds/{round_name}/scores.csv").open() as file:
        return {row["key"]: float(row["gain"]) for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def again(old: Old) -> Run:
    return old.project.repro()


def test_nothing_is_ordered_again(old: Old, again: Run) -> None:
    now = old.project.ledger()
    assert now[: len(old.entries)] == old.entries
    ordered = [entry["key"] for entry in old.entries if (entry["event"], entry["round"]) == ("order", "r02")]
    assert [(entry["event"], entry["round"]) for entry in now[len(old.entries) :]] == [("delivery", "r02")] * 3
    assert [entry["key"] for entry in now[len(old.entries) :]] == ordered
    assert old.project.ordered("r02") == ordered
    masks = old.masks()
    assert {name: masks[name] for name in old.labels} == old.labels
    assert sorted(masks) == sorted(f"{key}.png" for key in old.project.ordered())
    assert old.project.lost() == []


def test_the_loop_comes_to_its_end(old: Old, again: Run) -> None:
    assert {f"tune@{name}" for name in ("r01", "r02")} | {"pretrain", "report"} <= set(again.ran)
    assert old.json("reports/summary.json")["labels"] == 6
    old.project.commit("today's results")
    assert "up to date" in old.project.dvc("status").output
