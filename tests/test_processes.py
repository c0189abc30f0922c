"""Two processes on this machine's CPU (gloo, loopback) compute what one computes, and only the first one writes."""

import collections
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests import project
from tests.forks import Forks
from tests.project import Project, Run
from tests.server.studio import free_port

pytestmark = pytest.mark.dvc

# Python runs a module of this name at start: it notes which process puts which file into its place.
NOTES = """\
import os, sys
def note(event, arguments):
    if event == "os.rename":
        with open({log!r}, "a") as file:
            file.write(f"{{os.getpid()}} {{os.fspath(arguments[1])}}\\n")
sys.addaudithook(note)
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Project:
    """Audited, not tuned yet: 15 images in the pool and 5 in the test, which two processes cannot share evenly."""
    made = project.make(tmp_path_factory.mktemp("processes") / "tiny", forks=forks)
    of_r01 = ("snapshot", "score", "select", "forecast", "predict", "annotate", "audit")
    made.stages("settings", "prepare", "pretrain", "evaluate r00", *(f"{stage} r01" for stage in of_r01))
    return made._replace(forks=None)


@pytest.fixture
def writers(tiny: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    log = tmp_path / "writers.log"
    (tmp_path / "sitecustomize.py").write_text(NOTES.format(log=str(log)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return log


@pytest.fixture
def two(tiny: Project) -> Iterator[Project]:
    """The project, told to use two processes."""
    tiny.edit("processes: 1", "processes: 2")
    yield tiny
    tiny.edit("processes: 2", "processes: 1")


def by_two(run: Run, writers: Path, *names: str, shared: str = "") -> None:
    """The run was made by two processes, of which one wrote; below the folder `shared`, each wrote files of its own."""
    assert run.status == 0, run.output
    assert "Starting with 2 processes" in run.output
    written = [line.split(" ", 1) for line in writers.read_text().splitlines() if " data/" in line]  # not Python's own
    if shared:
        of_both = [(process, name) for process, name in written if name.startswith(shared)]
        assert len({process for process, _ in of_both}) == 2
        assert len({name for _, name in of_both}) == len(of_both)
        written = [(process, name) for process, name in written if not name.startswith(shared)]
    assert len({process for process, _ in written}) == 1, written
    counts = collections.Counter(name for _, name in written if not name.startswith("data/checkpoints/"))
    assert counts == dict.fromkeys(names, 1)


def scores_of_two(tiny: Project, run: Run, writers: Path, before: pd.DataFrame) -> None:
    by_two(
        run, writers, *(f"data/rounds/r01/{name}" for name in ("scores.csv", "features.npz", "regions.npz", "pool.csv"))
    )
    assert run.output.count("r01: 15 images scored") == 1
    after = pd.read_csv(tiny.folder / "data/rounds/r01/scores.csv")
    assert len(after) == 15
    assert list(after["key"]) == list(before["key"])
    pd.testing.assert_frame_equal(after, before, check_exact=False, rtol=1e-6, atol=1e-12)


def table(tiny: Project) -> pd.DataFrame:
    """The scores; the file is taken away, so that it must be written anew."""
    path = tiny.folder / "data/rounds/r01/scores.csv"
    kept = path.with_name("kept.csv")
    if not kept.exists():
        shutil.move(path, kept)
    path.unlink(missing_ok=True)
    return pd.read_csv(kept)


def test_scores_are_those_of_one_process(two: Project, writers: Path) -> None:
    before = table(two)
    scores_of_two(two, two.pipeline("score", "r01", "--after", "r00"), writers, before)


def test_scores_under_torchrun_are_those_of_one_process(tiny: Project, writers: Path) -> None:
    before = table(tiny)
    # Its own port, 29500, may be another run's.
    launch = ("torchrun", "--master-port", str(free_port()), "--nproc-per-node", "2", "-m", "pipeline")
    run = tiny.run(*launch, "score", "r01", "--after", "r00")
    scores_of_two(tiny, run, writers, before)


def test_confusion_counts_are_exactly_those_of_one_process(two: Project, writers: Path) -> None:
    names = ["data/metrics/r00-confusion.csv", "data/metrics/r00.json"]
    before = two.hashes(names[:1])
    (two.folder / names[0]).unlink()
    by_two(two.pipeline("evaluate", "r00"), writers, *names)
    assert two.hashes(names[:1]) == before


def test_quality_of_labels_is_that_of_one_process(two: Project, writers: Path) -> None:
    folder = two.folder / "data/rounds/r01"
    before, masks = pd.read_csv(folder / "quality.csv"), two.hashes(suspects(folder))
    run = two.pipeline("audit", "r01", "--after", "r00")
    names = (f"data/rounds/r01/{name}" for name in ("audit.csv", "audit.json", "calibration.json", "quality.csv"))
    by_two(run, writers, *names, shared="data/rounds/r01/suspects/")
    after = pd.read_csv(folder / "quality.csv")
    assert len(after) == 3
    pd.testing.assert_frame_equal(after, before, check_exact=False, rtol=1e-5)
    assert two.hashes(suspects(folder)) == masks


def suspects(folder: Path) -> list[str]:
    """The pictures of what is suspected, one for each label."""
    return sorted(str(path) for path in (folder / "suspects").glob("*.png"))


def test_tuning_runs_and_is_written_once(two: Project, writers: Path) -> None:
    run = two.pipeline("tune", "r01", "--after", "r00")
    shown = "data/rounds/r01/after/"
    by_two(run, writers, "data/models/r01/log.csv", "data/models/r01/model.pt", shared=shown)
    assert sorted(path.stem for path in (two.folder / shown).iterdir()) == sorted(two.ordered())
    log = pd.read_csv(two.folder / "data/models/r01/log.csv")
    assert list(log["stage"]) == [0, 1]  # six steps each, one row per training
    assert log.drop(columns=["advantage_std", "reward", "reward_std", "cross_entropy"]).notna().all(axis=None)
    weights = torch.load(two.folder / "data/models/r01/model.pt", weights_only=True)["state"]
    source = torch.load(two.folder / "data/models/r00/model.pt", weights_only=True)["state"]
    assert weights.keys() == source.keys()
    assert all(weight.isfinite().all() for weight in weights.values())
    assert any(not weights[name].equal(source[name]) for name in weights)
    assert [path.name for path in (two.folder / "data/checkpoints").iterdir()] == ["tune-r01-likelihood.pt"]
