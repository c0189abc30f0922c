"""A killed loop loses nothing, buys nothing twice, and ends where an undisturbed one ends (tests/kill.py)."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import kill
from tests.conftest import forking
from tests.forks import Forks
from tests.kill import Undisturbed

pytestmark = pytest.mark.dvc

PATIENCE = 600.0
"""Seconds for anything, on a busy machine."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kill")


@pytest.fixture(scope="module")
def reference(folder: Path, forks: Forks) -> Undisturbed:
    return kill.undisturbed(folder / "undisturbed", 1, forks=forks)


@pytest.fixture
def others() -> Iterator[Forks]:
    """They hash strings otherwise, so that an order that depends on it makes a difference."""
    with forking() as started:
        yield started


def test_killed_ten_times_it_ends_where_an_undisturbed_run_ends(
    reference: Undisturbed, folder: Path, others: Forks
) -> None:
    of_others = reference._replace(project=reference.project._replace(forks=others))
    done = kill.study(of_others, folder / "killed", 10, np.random.default_rng(5))
    assert sum(done.kills.values()) == 10
    assert len(done.kills) >= 5, done.kills  # in so many different stages
    assert done.resumed >= 1
    assert done.lost == done.bought_twice == done.different == []


def test_annotate_killed_at_any_moment_loses_and_buys_nothing(reference: Undisturbed) -> None:
    done = kill.annotate_study(reference.project, 6, np.random.default_rng(6))
    hits = sum(count for moment, count in done.kills.items() if not moment.startswith("nowhere"))
    assert hits >= 4, done.kills
    assert kill.TAKES in done.kills, done.kills
    assert done.lost == done.bought_twice == done.different == []


def test_half_written_mask_is_not_taken_for_a_label(reference: Undisturbed) -> None:
    tiny = reference.project
    tracked = tiny.hashes(["data/labels.dvc"])
    part = tiny.folder / f"data/labels/.{tiny.ordered()[0]}.png.part"
    part.write_bytes(b"\x89PNG")
    assert tiny.pipeline("annotate", "r01").status == 0
    assert tiny.hashes(["data/labels.dvc"]) == tracked
    assert str(part.name) not in tiny.git("status", "--porcelain", "--untracked-files=all")
    part.unlink()


def test_stage_that_outlives_a_killed_dvc_is_not_joined_by_a_second(reference: Undisturbed) -> None:
    tiny = reference.project
    before = tiny.results()
    words = (sys.executable, "-m", "dvc", "repro", "--force", "--single-item", "evaluate@r01")
    lock = tiny.folder / "data/stage.lock"
    lock.write_text("")
    dvc = tiny.start(*words, log=tiny.folder.parent / "orphan.log")
    stage = wait_for_stage(lock)
    os.kill(stage, signal.SIGSTOP)  # so that it lives for as long as this takes
    try:
        os.kill(dvc.pid, signal.SIGKILL)
        dvc.wait()
        second = tiny.run(*words)
        assert second.status != 0
        sentence = f"evaluate: `evaluate` (process {stage}) is still running here: wait, or stop it"
        assert sentence in second.output.splitlines(), second.output
        assert "Traceback" not in second.output
    finally:
        os.kill(stage, signal.SIGCONT)
    wait_for_end(stage)
    tiny.repro()
    assert tiny.results() == before


def wait_for_stage(lock: Path) -> int:
    """The process that holds the lock, as soon as there is one."""
    deadline = time.monotonic() + PATIENCE
    while not lock.read_text().endswith(")"):
        assert time.monotonic() < deadline, "the stage did not start"
        time.sleep(0.01)
    return int(lock.read_text().removesuffix(")").rpartition(" ")[2])


def wait_for_end(process: int) -> None:
    deadline = time.monotonic() + PATIENCE
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it may go between two looks, or in one
        while Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline, "the stage did not end"
            time.sleep(0.05)
