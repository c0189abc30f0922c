"""A tiny project in a folder of its own: git, DVC, a pool of real files, params.yaml, selections for two rounds."""

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import artifacts, datasets, paths, storage
from pipeline.images import reading, region_scores
from pipeline.images.classes import CLASS_SETS
from pipeline.images.masks import save_mask
from pipeline.images.region_scores import RegionScores
from pipeline.params import BudgetLine, Params
from pipeline.params_file import parse, read_yaml
from pipeline.stages import annotate, prepare
from tests import fakes
from tests.project import ROOT

CLASSES = CLASS_SETS["cityscapes19"]

PARAMS = """\
budget:
  r01: {after: r00, images: 3}
  r02: {after: r01, minutes: 20}
seed: 1
prepare:
  classes: cityscapes19
  source: {dataset: gta5, root: source}
  pool: {dataset: cityscapes, root: pool}
  test: {dataset: cityscapes, root: test}
model: {name: small, size: [16, 32], width: 4}
pretrain: {steps: 2, batch: 2, lr: 1e-3}
annotate: {annotator: oracle, oracle_minutes: 4}
tune:
  likelihood: {steps: 2, batch: 2, lr: 1e-3}
  reward: {steps: 2, lr: 1e-3}
compute: {accelerator: cpu, workers: 0}
"""


def write(folder: Path, *, pool: int = 8, second: str = "minutes: 20") -> None:
    """Params, the pool's files and manifest, no labels yet; r01 selects the first three images, r02 the next two.

    What r02 buys is `second`: a line in minutes goes out in portions, and asks for more while there is room.
    """
    with contextlib.chdir(folder):
        paths.PARAMS.write_text(PARAMS.replace("minutes: 20", second))
        fakes.write("cityscapes", Path("pool"), count=pool)
        artifacts.save_classes(CLASSES)
        frame = manifest("pool", "cityscapes")
        prepare.save_start()
        storage.save_json(paths.audit("r01"), {"signal": None, "judged": []})
        select("r01", list(frame["key"][:3]))
        select("r02", list(frame["key"][3:5]))
        for name in ("r01", "r02"):
            score(name, frame["key"])


def manifest(split: str, dataset: str, **more: object) -> pd.DataFrame:
    """Write the manifest of the data in the folder called like the split, as it is now, as `prepare` would."""
    root = Path(split)
    rows = []
    for key, image, mask in datasets.find(dataset, root, "train"):
        height, width = reading.read_image(image).shape[:2]
        row = {"key": key, "image": image.relative_to(root).as_posix(), "height": height, "width": width}
        row |= {"mask": "", "sha256": storage.sha256(image), "mask_sha256": ""}
        if mask is not None:
            row["mask"] = mask.relative_to(root).as_posix()
            row["mask_sha256"] = "" if split == "pool" else storage.sha256(mask)
        rows.append(row)
    frame = pd.DataFrame(rows).assign(**more)
    artifacts.save_manifest(split, frame)
    artifacts.save_ids(split, datasets.table(dataset, root, CLASSES), CLASSES)
    return frame


def select(round_name: str, keys: list[str]) -> None:
    """Write a selection, as the stage before `annotate` would."""
    gains = np.linspace(0.9, 0.5, len(keys))
    frame = pd.DataFrame({"key": keys, "gain": gains, "minutes": 10.0, "probability": 0.25, "method": "draw"})
    artifacts.save_selection(round_name, frame)


def score(round_name: str, keys: Iterable[str], **columns: object) -> None:
    """Write scores, as the stage before `select` would."""
    told = {"gain": 0.5, "minutes": 10.0} | dict.fromkeys(artifacts.COST_COLUMNS[1:], 1.0) | columns
    artifacts.save_scores(round_name, pd.DataFrame({"key": list(keys), **told}))
    region_scores.save(round_name, RegionScores.none())


def predict(round_name: str) -> None:
    """Scores of the pool and predictions for the round's selection, as the stages before `annotate` would."""
    rng = np.random.default_rng([*round_name.encode()])
    keys = artifacts.load_manifest("pool")["key"]
    score(round_name, keys, gain=0.003, **{f"gain_{name}": 0.0001 * n for n, name in enumerate(CLASSES.names)})
    for key in artifacts.load_selection(round_name)["key"]:
        coarse = rng.integers(0, 19, (fakes.SIZE[0] // 4, fakes.SIZE[1] // 4), np.uint8)
        save_mask(paths.prediction(round_name, key), coarse.repeat(4, 0).repeat(4, 1))
        fakes.image(paths.gain_picture(round_name, key), rng)


def initialise(folder: Path) -> None:
    """Make it a git and DVC repository."""
    for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)


def git(*words: str, ok: tuple[int, ...] = (0,)) -> str:
    """Run git in the current directory; what it said."""
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in ok, done.stdout + done.stderr
    return done.stdout


def commit(message: str) -> None:
    """Commit everything that git does not ignore."""
    git("add", "--all")
    git("commit", "--quiet", "--allow-empty", "--message", message)


def make(folder: Path) -> None:
    """All of the above in a new folder: a line of images for each round, nothing bought, committed on branch main."""
    folder.mkdir()
    write(folder, second="images: 2")
    for name in (".gitattributes", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    initialise(folder)
    with contextlib.chdir(folder):
        git("checkout", "-q", "-b", "main")
        commit("start")


def run(round_name: str, line: BudgetLine | None = None, **changes: object) -> None:
    """Run the stage `annotate`, with its section of the params changed."""
    of = params()
    settings = of.annotate.model_copy(update=changes)
    annotate.run(round_name, line or of.budget[round_name], roots=of.roots, score=of.score, annotate=settings)


def commands(said: str) -> list[str]:
    """The commands that a sentence names."""
    return re.findall(r"`([^`]+)`", said)


def params(**changes: object) -> Params:
    """The project's params with whole sections replaced."""
    return parse(read_yaml(paths.PARAMS) | changes, "params.yaml")
