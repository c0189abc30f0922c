"""What the studies share: the loop in one process, rows that are kept, paired differences, what may be claimed of them.

A study has a folder of its own for what it makes; what is there is not made again, so a killed study goes on where it
was, and several commands may share the work.
"""

import contextlib
import fcntl
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import t as student

from pipeline import artifacts, paths, storage
from pipeline.params import BudgetLine, Params
from pipeline.stages import STAGES
from pipeline.stages.running import run

ROUND = STAGES[STAGES.index("snapshot") : STAGES.index("evaluate") + 1]

# What is kept


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What was made before, or is made now, as JSON has it."""
    if not path.is_file():
        storage.save_json(path, make())
    return json.loads(path.read_text())


@contextlib.contextmanager
def alone(path: Path, wait: bool = False) -> Iterator[bool]:
    """Whether no other process is at this; the lock goes with the process that holds it."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


@contextlib.contextmanager
def folder(path: Path) -> Iterator[None]:
    """Work in a folder of its own, which is a DVC project without git."""
    path.mkdir(parents=True, exist_ok=True)
    before = Path.cwd()
    os.chdir(path)
    try:
        if not Path(".dvc").is_dir():
            subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], check=True)
            subprocess.run([sys.executable, "-m", "dvc", "config", "core.analytics", "false"], check=True)
        yield
    finally:
        os.chdir(before)


# The loop


def source_model(p: Params) -> None:
    """Manifests, the source model, and its mIoU; runs in a folder for them."""
    if not paths.purchases(paths.SOURCE_ROUND).is_file():
        run("prepare", p)
    if not (paths.model(paths.SOURCE_ROUND) / "model.pt").is_file():
        run("pretrain", p)
    if not paths.metrics(paths.SOURCE_ROUND).is_file():
        run("evaluate", p, paths.SOURCE_ROUND)


def pool_size() -> int:
    """Images that may be bought; runs in the folder of a source model."""
    return len(artifacts.load_manifest("pool"))


def loop(
    p: Params,
    start: Path,
    here: Path,
    name: str,
    rescore: Callable[[Params, str, BudgetLine], None] | None = None,
) -> list[dict[str, Any]]:
    """All rounds of one run, as `dvc repro` runs them, but for what no later stage reads.

    Args:
        p: all parameters.
        start: the folder of the source model.
        here: the run's own.
        name: of the run, for its rows.
        rescore: changes the scores of a round before anything is selected.
    """
    with folder(here):
        if not Path("data").is_dir():
            shutil.copytree(start / "data", "copying", ignore=shutil.ignore_patterns("town"))
            Path("copying").rename("data")
            Path("data/town").symlink_to(start / "data/town")
        for round_name, line in p.budget.items():
            if paths.metrics(round_name).is_file():
                continue
            for stage in ROUND:
                if stage == "predict":  # for people and the report
                    continue
                if stage == "score":
                    began = time.perf_counter()
                run(stage, p, round_name)
                if stage == "score" and rescore:
                    rescore(p, round_name, line)
                if stage == "select":
                    storage.save_json(seconds(round_name), time.perf_counter() - began)
        return [measured(name, p.seed, round_name) for round_name in p.budget]


def longer(p: Params, images: int) -> Params:
    """One round `all` of so many images, with as many steps as all rounds of the budget together."""
    rounds, likelihood, reward = len(p.budget), p.tune.likelihood, p.tune.reward
    tune = p.tune.model_copy(
        update={
            "likelihood": likelihood.model_copy(update={"steps": rounds * likelihood.steps}),
            "reward": reward.model_copy(update={"steps": rounds * reward.steps}),
        }
    )
    budget = {"all": BudgetLine(after=paths.SOURCE_ROUND, images=images)}
    return p.model_copy(update={"tune": tune, "budget": budget})


def seconds(round_name: str) -> Path:
    """How long scoring and selecting took."""
    return paths.ROUNDS / round_name / "seconds.json"


def measured(name: str, seed: int, round_name: str) -> dict[str, Any]:
    """One measured model; runs in the run's folder."""
    measures = json.loads(paths.metrics(round_name).read_text())
    labels = json.loads(paths.labels(round_name).read_text())
    of_round = round_name != paths.SOURCE_ROUND
    forecast = json.loads(paths.forecast(round_name).read_text()) if of_round else {}
    return {
        "acquisition": name,
        "seed": seed,
        "round": round_name,
        "images": len(labels),
        "minutes": sum(label["minutes"] for label in labels),
        "miou": measures["miou"],
        "iou": measures["iou"],
        "forecast": [forecast["low"], forecast["expected"], forecast["high"]] if of_round else None,
        "select_seconds": json.loads(seconds(round_name).read_text()) if of_round else None,
    }


# Paired differences


def mean_and_half(differences: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half of its 95 % interval by Student's t; None of less than two."""
    n = len(differences)
    half = student.ppf(0.975, n - 1) * statistics.stdev(differences) / n**0.5 if n > 1 else None
    return statistics.mean(differences), half


def interval(differences: Sequence[float]) -> str:
    """Mean and 95 % interval of paired differences."""
    mean, half = mean_and_half(differences)
    return "-" if half is None else f"{mean:+.2f} ± {half:.2f}"


# What may be claimed (docs/protocol.md)

PROOF = ("camvid", "idd")
"""Pools whose test set no method is designed on. Everything else, held-out sequences of CamVid's `train` and the town
among them, is there to design on, and proves nothing."""
FIRST_NEW_SEED = 21
"""Smaller seeds were looked at while methods were found (docs/gain_study.md, docs/log.md)."""
PAIRED_SEEDS = 5


class Claim(NamedTuple):
    """What the protocol lets be said of a difference."""

    shown: bool
    text: str
    """The mean with its 95 % interval, or why it is not shown."""


def claim(differences: Mapping[str, Mapping[int, float]]) -> Claim:
    """Whether one way is shown to be better than another, as a mean over pools, by what docs/protocol.md asks.

    A seed counts if it was run with both ways on every pool; its difference is the mean over the pools.

    Args:
        differences: pool -> seed -> paired difference in points.
    """
    pools = list(differences)
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in differences.values()))) if pools else []
    fewest = f"{len(seeds)} paired seeds{' on every pool' if len(pools) > 1 else ''}, {PAIRED_SEEDS} are needed"
    designed = [pool for pool in pools if pool not in PROOF]
    old = [seed for seed in seeds if seed < FIRST_NEW_SEED]
    if designed:
        return Claim(False, f"not shown: {', '.join(designed)} is there to design on, and proves nothing")
    if len(pools) < 2:
        return Claim(False, f"not shown: one pool only ({', '.join(pools) or 'none'}){_also(seeds, fewest)}")
    if old:
        return Claim(False, f"not shown: seed {old[0]} is older than {FIRST_NEW_SEED}, and was designed with")
    if len(seeds) < PAIRED_SEEDS:
        return Claim(False, f"not shown: {fewest}")
    means = [statistics.mean(by_seed[seed] for by_seed in differences.values()) for seed in seeds]
    mean, half = mean_and_half(means)
    said = f"{interval(means)} on the mean of {' and '.join(pools)}, {len(seeds)} seeds"
    if half is None or mean - half <= 0:
        return Claim(False, f"not shown: {said}")
    return Claim(True, said)


def _also(seeds: Sequence[int], fewest: str) -> str:
    return f", and {fewest}" if len(seeds) < PAIRED_SEEDS else ""
