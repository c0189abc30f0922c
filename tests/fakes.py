"""Tiny data sets in the layout of each dataset, drawn from a seed: real files, no mocks."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.images.classes import CLASS_SETS

SIZE = (24, 32)
"""Height and width."""


def image(path: Path, rng: np.random.Generator, size: tuple[int, int] = SIZE) -> Path:
    """Coloured noise; no two are alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)
    return path


def mask(path: Path, ids: np.ndarray, *, palette: bool = False) -> Path:
    """A mask that stores `ids`, mode L or P."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = Image.fromarray(ids.astype(np.uint8))
    if palette:
        colours = np.random.default_rng(0).integers(0, 256, 768, np.uint8)
        stored = Image.frombytes("P", stored.size, stored.tobytes())
        stored.putpalette(colours.tobytes())
    stored.save(path)
    return path


def _ids(rng: np.random.Generator, count: int) -> np.ndarray:
    ids = rng.integers(0, count, SIZE)
    ids[0, :3] = 255
    ids[1:3].flat[:count] = np.arange(count)  # every id occurs
    return ids


def gta5(root: Path, split: str, rng: np.random.Generator, count: int) -> None:
    for number in range(1, count + 1):
        image(root / f"images/{number:05}.png", rng)
        mask(root / f"labels/{number:05}.png", _ids(rng, 35), palette=True)


def cityscapes(root: Path, split: str, rng: np.random.Generator, count: int) -> None:
    for number in range(count):
        city = ("ulm", "aachen")[number % 2]
        name = f"{split}/{city}/{city}_000000_{number:06}"
        image(root / f"leftImg8bit/{name}_leftImg8bit.png", rng)
        mask(root / f"gtFine/{name}_gtFine_labelIds.png", _ids(rng, 34))
        mask(root / f"gtFine/{name}_gtFine_labelTrainIds.png", _ids(rng, 19))


def camvid(root: Path, split: str, rng: np.random.Generator, count: int) -> None:
    for number in range(count):
        image(root / split / f"0001TP_{number:06}.{('jpg', 'png')[number % 2]}", rng)
        mask(root / f"{split}annot/0001TP_{number:06}.png", _ids(rng, 12))


def folder(root: Path, split: str, rng: np.random.Generator, count: int) -> None:
    names = ("void", *CLASS_SETS["camvid11"].names[::-1])
    for number in range(count):
        image(root / f"images/street {number}.{('JPG', 'png', 'webp', 'bmp')[number % 4]}", rng)
        mask(root / f"masks/street {number}.png", _ids(rng, len(names)))
    lines = ["id,name", *(f"{number},{name}" for number, name in enumerate(names))]
    (root / "classes.csv").write_text("\n".join(lines) + "\n")


def idd_lite(root: Path, split: str, rng: np.random.Generator, count: int) -> None:
    for number in range(count):
        name = f"{split}/{number % 3}/frame{number // 3}"  # drives have frames of the same names
        image(root / f"leftImg8bit/{name}_image.jpg", rng)
        mask(root / f"gtFine/{name}_label.png", _ids(rng, 7))
        mask(root / f"gtFine/{name}_inst_label.png", _ids(rng, 30))


FAKES: dict[str, Callable[[Path, str, np.random.Generator, int], None]] = {
    "gta5": gta5,
    "cityscapes": cityscapes,
    "camvid": camvid,
    "idd_lite": idd_lite,
    "folder": folder,
}
CLASS_SET = {"idd_lite": "idd7"}
"""The class set of which a data set holds every class, where it is not camvid11."""


def write(dataset: str, root: Path, split: str = "train", *, seed: int = 0, count: int = 4) -> Path:
    """Draw a data set under `root`; another seed gives other images under the same names."""
    FAKES[dataset](root, split, np.random.default_rng(seed), count)
    return root
