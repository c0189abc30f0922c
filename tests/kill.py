"""Kills the loop at random moments and compares what it ends with to an undisturbed run.

The loop runs on a tiny town once undisturbed, then in an equal project where `dvc repro` and all that it started are
killed (SIGKILL) again and again: as often in each stage, at a moment drawn evenly from the stage's duration, DVC's own
work after it included. Or `annotate`, the stage that spends, is killed by itself in the moments after it has ordered.
A few kills: test_kill.py; many: benchmarks/kill.py.
"""

import collections
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests import project
from tests.forks import Forks
from tests.project import Project

ROUNDS = ("{after: r00, images: 6}", "{after: r01, images: 3}")
STEPS = 60
"""Long enough for kills within the trainings; a checkpoint is written at every step."""
POLL_SECONDS = 0.005
PATIENCE_SECONDS = 1200.0
TRIES = 10
"""So often a kill of `annotate` is tried that comes when all is done."""
TAKES = "DVC takes a mask"
DVC_FILES = {"dvc.lock": "'./dvc.lock' ", ".dvc/tmp/rwlock": "Unable to read RWLock-file"}
"""Files that DVC writes in place, and what it says when it finds one half-written."""


class Undisturbed(NamedTuple):
    """What a run that is not disturbed ends with."""

    project: Project
    seconds: dict[str, float]
    """Of each stage, in the order they ran: from its start to the next one's."""


class Study(NamedTuple):
    """What the kills did."""

    kills: dict[str, int]
    """By the stage that ran."""
    lost: list[str]
    """Delivered masks that were absent or not what was delivered, after any kill."""
    bought_twice: list[str]
    """Images, or regions, that were ordered twice, after any kill."""
    different: list[str]
    """Files that differ from the undisturbed run's at the end."""
    cut_short: list[str]
    """Files of DVC's own that a kill left half-written, so that DVC refused to go on until they were deleted."""
    resumed: int
    """Trainings that went on from a checkpoint."""


def undisturbed(
    folder: Path, rounds: int, *, threads: int | None = 1, forks: Forks | None = None, unit: str = "image"
) -> Undisturbed:
    """Make a project and run it once."""
    made = project.make(folder, budget=ROUNDS[:rounds], steps=STEPS, threads=threads, forks=forks)
    if unit != "image":
        made.edit("score: {", f"score: {{unit: {unit}, region_smallest: 20, ")
    process, log = start(made)
    seen: dict[str, float] = {}
    while process.poll() is None:
        for stage in running(log):
            seen.setdefault(stage, time.monotonic())
        time.sleep(POLL_SECONDS)
    if process.returncode:
        raise AssertionError(log.read_text()[-5000:])
    begins = [*seen.values(), time.monotonic()]
    return Undisturbed(made, {stage: begins[place + 1] - begins[place] for place, stage in enumerate(seen)})


def equal(reference: Undisturbed, folder: Path) -> Project:
    """A project equal to the reference, its code included, that has not run yet."""
    same = reference.project
    rounds = sum(stage.startswith("score@") for stage in reference.seconds)
    made = project.make(
        folder, budget=ROUNDS[:rounds], steps=STEPS, threads=same.threads, code=same.folder, forks=same.forks
    )
    shutil.copy(same.folder / "params.yaml", made.folder / "params.yaml")
    return made


def start(made: Project) -> tuple["subprocess.Popen[bytes]", Path]:
    """`dvc repro` in a session of its own, and the file that it writes to."""
    log = made.folder.parent / f"{made.folder.name}-{time.monotonic_ns()}.log"
    return made.start(sys.executable, "-m", "dvc", "repro", log=log), log


def running(log: Path) -> list[str]:
    """Stages that DVC has started so far."""
    return re.findall(r"^Running stage '(.+?)'", log.read_text(errors="replace"), re.MULTILINE)


def study(reference: Undisturbed, folder: Path, kills: int, rng: np.random.Generator) -> Study:
    """Kill `dvc repro` in an equal project in `folder` `kills` times; then let it finish.

    Raises:
        AssertionError: a run ended by itself, but not well.
    """
    order = list(reference.seconds)
    other = equal(reference, folder)
    theirs = reference.project.results()
    counts: collections.Counter[str] = collections.Counter()
    lost: set[str] = set()
    twice: set[str] = set()
    different: set[str] = set()
    cut_short: list[str] = []
    resumed = 0
    while counts.total() < kills:
        left = kills - counts.total()
        targets = collections.deque(order[place * len(order) // left] for place in range(left))
        while True:
            process, log = start(other)
            target = targets.popleft() if targets else None
            stage = _kill(process, log, target, other.folder / "data/checkpoints", counts, reference.seconds, rng)
            said = log.read_text(errors="replace")
            resumed += said.count(": resumed at step ") + said.count(", so it is taken from ")
            lost.update(other.lost())
            twice.update(other.bought_twice())
            if stage is not None:
                counts[stage] += 1
            elif process.returncode == 0:
                break
            else:
                refused = [name for name, words in DVC_FILES.items() if words in said]
                if not refused or "Running stage" in said:
                    raise AssertionError(said[-5000:])
                (other.folder / refused[0]).unlink()
                cut_short.append(refused[0])
        ours = other.results()
        different |= {name for name in theirs | ours if theirs.get(name) != ours.get(name)}
        if reference.project.bought() != other.bought():
            different.add("data/ledger.jsonl")
        if counts.total() < kills:  # it was through before it was killed often enough
            other = equal(reference, other.folder.with_name(f"{other.folder.name}-again"))
    return Study(dict(counts), sorted(lost), sorted(twice), sorted(different), cut_short, resumed)


def _kill(
    process: "subprocess.Popen[bytes]",
    log: Path,
    target: str | None,
    checkpoints: Path,
    counts: Mapping[str, int],
    seconds: dict[str, float],
    rng: np.random.Generator,
) -> str | None:
    """Kill the session while `target`, or a later stage if that is done, is at work; the stage, or None if it ended.

    Of a training's kills, the first and every second one comes after it has written to `checkpoints`.
    """
    order = list(seconds)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        stages = running(log)
        if target is not None and stages and order.index(stages[-1]) >= order.index(target):
            longest = seconds[stages[-1]] * (0.8 if stages[-1] == order[-1] else 1)  # the last must not get through
            if stages[-1].startswith(("pretrain", "tune")) and counts.get(stages[-1], 0) % 2 == 0:
                if not list(checkpoints.glob(f"{stages[-1].replace('@', '-')}*.pt")):
                    time.sleep(POLL_SECONDS)
                    continue
                longest = 0.2  # a training this small is soon over
            try:
                process.wait(rng.uniform(0, longest))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return running(log)[-1]
        time.sleep(POLL_SECONDS)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise AssertionError(f"`dvc repro` did not end: {log.read_text()[-5000:]}")
    return None


def annotate_study(made: Project, kills: int, rng: np.random.Generator) -> Study:
    """Kill `annotate r01` of a finished project `kills` times, each time as if nothing had been bought before.

    The kills take turns: as soon as a mask is written, any of them as often; a moment after one is on record, while DVC
    takes it; at any moment between the order and the end. One that comes too late is tried again.
    """
    wanted = ["data/rounds/r01/labels.json", *(f"data/labels/{key}.png" for key in made.ordered("r01"))]
    before, bought = made.hashes(wanted), [entry for entry in made.bought() if entry["round"] == "r01"]
    states: collections.Counter[str] = collections.Counter()
    lost: set[str] = set()
    twice: set[str] = set()
    different: set[str] = set()
    process = _order(made)
    ordered = time.monotonic()
    if process.wait(PATIENCE_SECONDS):
        raise AssertionError("annotate failed undisturbed")
    seconds = time.monotonic() - ordered
    tracked = made.hashes(["data/labels.dvc"])
    for number in range(kills):
        tries = (_kill_annotate(made, number % 3, len(before), seconds, rng) for _ in range(TRIES))
        states[next((moment for moment in tries if moment), "nowhere: it had ended")] += 1
        lost.update(made.lost())
        again = made.pipeline("annotate", "r01")
        if again.status:
            raise AssertionError(again.output)
        lost.update(made.lost())
        twice.update(made.bought_twice())
        now = made.hashes([*wanted, "data/labels.dvc"])
        pairs = zip([*wanted, "data/labels.dvc"], now, [*before, *tracked], strict=True)
        different |= {name for name, is_now, was in pairs if is_now != was}
        if made.bought() != bought:
            different.add("data/ledger.jsonl")
    return Study(dict(states), sorted(lost), sorted(twice), sorted(different), [], 0)


def _kill_annotate(made: Project, turn: int, labels: int, seconds: float, rng: np.random.Generator) -> str | None:
    """Start `annotate` and kill it in its turn; what it was about, or None if it had ended."""
    process, label = _order(made), rng.integers(1, labels)
    while process.poll() is None and ((turn == 0 and _masks(made) < label) or (turn == 1 and _delivered(made) < label)):
        time.sleep(0.0005)
    while True:
        try:
            process.wait((0, rng.uniform(0, 0.02), rng.uniform(0, seconds))[turn])
            return None
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGSTOP)  # so that nothing goes on while the disk is looked at
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            moment = _moment(made)
            if turn != 1 or moment == TAKES:
                os.killpg(process.pid, signal.SIGKILL)
                return moment if process.wait() < 0 else None
            os.killpg(process.pid, signal.SIGCONT)


def _masks(made: Project) -> int:
    return len(list(made.folder.glob("data/labels/[!.]*.png")))


def _delivered(made: Project) -> int:
    return len(made.ledger()) - len(made.ordered())


def _moment(made: Project) -> str:
    """What a killed `annotate` was about, as the disk tells."""
    labels_dvc = made.folder / "data/labels.dvc"
    tracked = re.search(r"nfiles: (\d+)", labels_dvc.read_text()) if labels_dvc.is_file() else None
    if _masks(made) > _delivered(made):
        return "a mask is not on record yet"
    if _delivered(made) > (int(tracked[1]) if tracked else 0):
        return TAKES
    return "between two labels"


def _order(made: Project) -> "subprocess.Popen[bytes]":
    """Forget all that was bought and start `annotate r01` in a session of its own; it has ordered on return."""
    for name in ("data/labels", "data/labels.dvc", "data/ledger.jsonl", "data/rounds/r01/labels.json"):
        path = made.folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    log = made.folder.parent / "annotate.log"
    process = made.start(sys.executable, "-m", "pipeline", "annotate", "r01", log=log)
    while process.poll() is None and not (made.folder / "data/ledger.jsonl").exists():
        time.sleep(0.0005)
    return process


def totals(done: Study) -> dict[str, int]:
    """The study in four numbers."""
    return {
        "kills": sum(done.kills.values()),
        "lost": len(done.lost),
        "bought_twice": len(done.bought_twice),
        "different": len(done.different),
    }
