"""The demo town: rendered street scenes with exact labels, written in the official GTA5 and Cityscapes layouts."""

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from pipeline.errors import UserError
from pipeline.town.domains import LOOKS
from pipeline.town.plan import plan
from pipeline.town.scene import paint

CLIP = 4
"""Frames per clip of the pool: near-duplicates, as video has. Every source and test image is a clip of its own."""

POOL_CITIES = ("apfelbrueck", "honigtal", "kieselfurt", "rosenwick", "sternmoor", "wolkenstieg")
TEST_CITIES = ("himmelfurt", "nebelwick", "zimtstein")

# One colour per labelId, as in the official GTA5 label files; the last one is the licence plate, stored as 34.
GTA5_PALETTE = (
    (0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0), (20, 20, 20), (111, 74, 0), (81, 0, 81), (128, 64, 128), (244, 35, 232),
    (250, 170, 160), (230, 150, 140), (70, 70, 70), (102, 102, 156), (190, 153, 153), (180, 165, 180), (150, 100, 100),
    (150, 120, 90), (153, 153, 153), (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152),
    (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 0, 90), (0, 0, 110),
    (0, 80, 100), (0, 0, 230), (119, 11, 32), (0, 0, 142),
)  # fmt: skip


class Job(NamedTuple):
    """One image to draw."""

    look: str
    part: int
    """0 source, 1 pool, 2 test."""
    clip: int
    frame: int
    size: tuple[int, int]
    seed: int
    image: Path
    label: Path


def draw_town(
    root: Path, *, source: int, pool: int, test: int, size: tuple[int, int], seed: int, workers: int | None = None
) -> None:
    """Draws the demo town below `root`: the *game* look in `root/gta5`, the *camera* look in `root/cityscapes`.

    Pool images come as clips of `CLIP` frames; test images are single views of other cities. Every image depends on
    the seed, its part and its number only: drawing more of them, or with more processes, changes none.

    Args:
        root: where the folders `gta5` and `cityscapes` are written.
        source: number of labelled game images.
        pool: number of camera images to buy from (Cityscapes train).
        test: number of camera images to measure on (Cityscapes val).
        size: height and width, pixels.
        seed: another seed is another town.
        workers: processes; by default as many as there are cores.

    Raises:
        UserError: `root` already holds images that do not belong to this town.
    """
    jobs = list(_jobs(root, {"source": source, "pool": pool, "test": test}, size, seed))
    _refuse_strangers(root, {path for job in jobs for path in (job.image, job.label)})
    for folder in {path.parent for job in jobs for path in (job.image, job.label)}:
        folder.mkdir(parents=True, exist_ok=True)
    count = min(workers or os.cpu_count() or 1, len(jobs))
    with tqdm(total=len(jobs), desc="draw the demo town", unit="image", disable=None) as bar:
        if count <= 1:
            for job in jobs:
                _draw(job)
                bar.update()
            return
        # Fresh processes: a fork of one that has started threads (torch, OpenCV) may hang.
        with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as executor:
            for _ in executor.map(_draw, jobs, chunksize=8):
                bar.update()


def _jobs(root: Path, counts: dict[str, int], size: tuple[int, int], seed: int) -> Iterator[Job]:
    for number in range(counts["source"]):
        name = f"{number + 1:05d}.png"
        yield Job("game", 0, number, 0, size, seed, root / "gta5" / "images" / name, root / "gta5" / "labels" / name)
    for part, split, cities, length in ((1, "train", POOL_CITIES, CLIP), (2, "val", TEST_CITIES, 1)):
        for number in range(counts["pool" if split == "train" else "test"]):
            clip, frame = divmod(number, length)
            sequence, place = divmod(clip, len(cities))
            stem = f"{cities[place]}_{sequence:06d}_{19 + frame:06d}"
            image = root / "cityscapes" / "leftImg8bit" / split / cities[place] / f"{stem}_leftImg8bit.png"
            label = root / "cityscapes" / "gtFine" / split / cities[place] / f"{stem}_gtFine_labelIds.png"
            yield Job("camera", part, clip, frame, size, seed, image, label)


def _refuse_strangers(root: Path, ours: set[Path]) -> None:
    """Images of an earlier, larger town would silently join this one."""
    for folder in ("gta5", "cityscapes"):
        for path in (root / folder).rglob("*.png"):
            if path not in ours:
                raise UserError(
                    f"{path} is no image of the demo town to be drawn; delete {root} or name another folder"
                )


def _draw(job: Job) -> None:
    cv2.setNumThreads(1)  # the processes share the cores already
    look = LOOKS[job.look]
    image, label = paint(plan(look, _rng(job, 0)), job.frame, job.size, _rng(job, job.frame + 1))
    Image.fromarray(image).save(job.image)
    if job.look == "game":
        coloured = Image.fromarray(label, mode="P")
        coloured.putpalette(np.array(GTA5_PALETTE, np.uint8).tobytes())
        coloured.save(job.label)
    else:
        Image.fromarray(label).save(job.label)


def _rng(job: Job, frame: int) -> np.random.Generator:
    """The randomness of a whole clip (`frame` 0) or of one of its frames (from 1)."""
    return np.random.default_rng(np.random.SeedSequence(job.seed % 2**64, spawn_key=(job.part, job.clip, frame)))
