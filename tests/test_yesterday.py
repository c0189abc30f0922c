"""A project of commit 2156569 goes on with today's code: nothing is bought again, its models are worth what they were.

tests/data/README.md says how it was made.
"""

import json
import re
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from pipeline import artifacts, params_file, paths, streams
from pipeline.params import Params, Training
from pipeline.stages import tune
from pipeline.stages.running import run
from pipeline.training import likelihood
from pipeline.training.loop import LossFunction
from tests import project
from tests.forks import Forks
from tests.project import ROOT, Project, Run

pytestmark = pytest.mark.dvc

ARCHIVE = Path(__file__).parent / "data/project-2156569.tar.xz"


class Old(NamedTuple):
    """The project, unpacked, with today's code in it, and what was there before anything ran."""

    project: Project
    entries: list[dict[str, Any]]
    labels: dict[str, bytes]

    def json(self, name: str) -> Any:
        return json.loads((self.project.folder / name).read_text())

    def masks(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.project.folder / "data/labels").glob("*.png")}


def unpack(folder: Path) -> None:
    folder.mkdir()
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Old:
    folder = tmp_path_factory.mktemp("yesterday") / "project"
    unpack(folder)
    pulled = Project(folder, forks=forks)
    pulled.git("init", "--quiet")
    pulled.commit("2156569")
    project.copy_code(ROOT, folder)
    pulled.commit("today")
    found = Old(pulled, pulled.ledger(), {})
    return found._replace(labels=found.masks())


def test_status_says_that_all_stages_run_again(old: Old) -> None:
    changed = old.project.dvc("status")
    assert changed.status == 0, changed.output
    stages = set(re.findall(r"^(\S+):$", changed.output, re.MULTILINE))
    every = old.project.dvc("stage", "list", "--name-only").output.split()
    assert len(every) == 6 + 2 * 9
    assert stages == set(every)
    said = json.loads(old.project.pipeline("status", "--json").output)
    assert said["next"].startswith("r02: 3 labels, about 30 minutes, to come from the oracle")
    assert said["changed"] == []


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


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Of a second copy, which is the current directory; what the first stages write today is there."""
    unpack(tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    found = params_file.load()
    for stage in ("settings", "prepare"):
        run(stage, found)
    run("snapshot", found, "r01")
    return found


def test_models_of_yesterday_are_worth_what_they_were(params: Params) -> None:
    before, gains_before = {name: measured(name) for name in ("r00", "r01")}, gains("r01")
    for name in before:
        run("evaluate", params, name)
    run("score", params, "r01")
    for name, (confusion, error) in before.items():
        now, error_now = measured(name)
        assert np.abs(now - confusion).sum() <= 0.001 * confusion.sum()
        assert error_now == pytest.approx(error, rel=1e-3)
    assert gains("r01") == pytest.approx(gains_before, rel=1e-4)


def measured(round_name: str) -> tuple[np.ndarray, float]:
    """The confusion matrix in pixels, and the calibration error."""
    confusion = np.genfromtxt(paths.confusion(round_name), delimiter=",", skip_header=1)[:, 1:]
    return confusion, json.loads(paths.metrics(round_name).read_text())["calibration_error"]


def gains(round_name: str) -> dict[str, float]:
    return artifacts.load_scores(round_name).set_index("key")["gain"].to_dict()


def test_with_the_random_numbers_of_yesterday_training_comes_to_the_models_of_yesterday(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since, every purpose has a stream of its own and the two domains' losses are averaged each by itself.

    That is all that makes today's models others.
    """
    before = {name: weights(name) for name in ("r00", "r01")}
    for stage, *of in (("pretrain",), ("audit", "r01"), ("tune", "r01")):
        with monkeypatch.context() as yesterday:
            if stage != "audit":  # which fits the calibration that `tune` keeps, and trains nothing
                yesterday.setattr(streams, "rng", lambda seed, what, *numbers: np.random.default_rng([seed, *numbers]))
                yesterday.setattr(streams, "seed_of", seed_of_yesterday)
                yesterday.setattr(tune, "likelihood_loss", of_all_pixels)
            run(stage, params, *of)
    for name, was in before.items():
        now = weights(name)
        assert now.keys() == was.keys()
        for one, weight in was.items():
            torch.testing.assert_close(now[one], weight, rtol=1e-4, atol=1e-5)


def of_all_pixels(weights: torch.Tensor, settings: Training, *_: Any) -> LossFunction:
    return likelihood.likelihood_loss(weights, settings)


def seed_of_yesterday(seed: int, *purpose: str | int) -> int:
    what, *numbers = purpose
    if what == "r00":
        return seed
    if what == "r01":
        of_round = int(np.random.SeedSequence([seed, *b"r01"]).generate_state(1)[0])
        return of_round + 1 if numbers == ["reward"] else of_round
    sequence = np.random.SeedSequence([seed, *map(int, numbers)])
    return int(sequence.generate_state(1)[0] if what == "change" else sequence.generate_state(1, np.uint64)[0] >> 1)


def weights(round_name: str) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in artifacts.load_model(round_name)[0].items()}
