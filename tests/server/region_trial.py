"""One trial of the fault study in which a person answers for regions: r02 asks elsewhere in images of r01."""

import base64
import contextlib
import copy
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image

from pipeline import artifacts, paths
from pipeline.images import region_maps
from tests import fakes, repo
from tests.server.trial import NAMES, Trial

SIDE, ASKED = 4, 6
"""Regions are squares; so many are asked about at once."""
VOID = 255


def squares() -> UInt16[np.ndarray, "h w"]:
    """The region of every pixel."""
    rows, cols = np.indices(fakes.SIZE) // SIDE
    return (rows * (fakes.SIZE[1] // SIDE) + cols).astype(np.uint16)


def asked(key: str) -> list[int]:
    """What a key stands for, different in every key; r01 asks about even numbers, r02 about odd ones."""
    odd = int(key.endswith("r02"))
    numbers = np.random.default_rng([*key.encode()]).permutation((int(squares().max()) + 1) // 2)[:ASKED]
    return [int(2 * number + odd) for number in numbers]


def key(image: str, round_name: str) -> str:
    return f"{image}@regions-{round_name}"


class RegionTrial(Trial):
    """Two rounds of regions."""

    fields = ("image",)

    @staticmethod
    def make(folder: Path) -> None:
        """With a map for every image, and predictions for all that may be asked."""
        repo.write(folder, pool=8)
        repo.initialise(folder)
        with contextlib.chdir(folder):
            paths.PARAMS.write_text(paths.PARAMS.read_text() + "score: {unit: region}\n")
            images = list(artifacts.load_manifest("pool")["key"])
            for image in images:
                region_maps.save(image, squares())
            for name in ("r01", "r02"):
                repo.select(name, [key(image, name) for image in images])
                repo.predict(name)

    def wanted(self, images: Sequence[str]) -> list[str]:
        """r02 asks about other regions of two images of r01."""
        return [*(key(image, "r01") for image in images[:5]), *(key(image, "r02") for image in images[:2])]

    def choose(self, round_name: str, keys: Sequence[str]) -> None:
        """With the regions of every key."""
        repo.select(round_name, list(keys))
        listed = [" ".join(map(str, asked(one))) for one in keys]
        artifacts.save_selection(round_name, artifacts.load_selection(round_name).assign(regions=listed))

    def label(self, key: str, chance: np.random.Generator) -> tuple[UInt8[np.ndarray, "h w"], list[dict[str, Any]]]:
        """Some guesses stay, some are corrected, mixed, removed or dragged away; sometimes a box is drawn by hand."""
        result = copy.deepcopy(self.task(key)["predictions"][0]["result"])
        mask = np.full(fakes.SIZE, VOID, np.uint8)
        kept = []
        for item in result:
            place = item["id"].removeprefix("region-")
            if not place.isdigit():
                kept.append(item)  # the rest
                continue
            does = chance.choice(["keep", "correct", "correct", "correct", "mixed", "remove", "drag"])
            if does == "correct":
                item["value"]["polygonlabels"] = [str(chance.choice(NAMES))]
            elif does == "mixed":
                item["value"]["polygonlabels"] = ["mixed"]
            elif does == "drag":
                item["value"]["points"] = chance.uniform(0, 100, (4, 2)).tolist()
            [name] = item["value"]["polygonlabels"]
            if does not in ("mixed", "remove"):
                mask[squares() == int(place)] = NAMES.index(name)
            if does != "remove":
                kept.append(item)
        # By hand, always, so that no label is without an answer, and no two are alike.
        height, width = fakes.SIZE
        top, left = int(chance.integers(height - 8)), int(chance.integers(width - 8))
        tall, wide = (int(n) for n in chance.integers(3, 8, 2))
        number = int(chance.integers(len(NAMES)))
        mask[top : top + tall, left : left + wide] = number
        corners = [(left, top), (left + wide, top), (left + wide, top + tall), (left, top + tall)]
        points = [[100 * x / width, 100 * y / height] for x, y in corners]
        box = {"id": f"h{chance.integers(10**9)}", "type": "polygonlabels", "from_name": "label", "to_name": "image"}
        size = {"original_width": width, "original_height": height, "image_rotation": 0}
        value = {"points": points, "closed": True, "polygonlabels": [NAMES[number]]}
        return mask, [*kept, {**box, **size, "origin": "manual", "value": value}]

    def check_task(self, task: Mapping[str, Any], name: str, key: str) -> None:
        """See that a task asks about its own regions, with their guesses, and shows them in its own image."""
        said, predicted = task["meta"]["regions"], np.asarray(Image.open(self.folder / paths.prediction(name, key)))
        areas = np.asarray(Image.open(io.BytesIO(base64.b64decode(said["map"]))))
        where = np.zeros(fakes.SIZE, int)
        for place, region in enumerate(asked(key), 1):
            where[squares() == region] = place
        votes = [np.bincount(predicted[squares() == region], minlength=len(NAMES)) for region in asked(key)]
        guessed = all(vote[guess] == vote.max() for vote, guess in zip(votes, said["guesses"], strict=True))
        if said["asked"] != asked(key) or not np.array_equal(areas, where) or not guessed:
            self._find("misassigned", f"{name}/{key} asks something else in Label Studio")
        shown = np.asarray(Image.open(io.BytesIO(self.bench.person.http.get(task["data"]["image"]).content)), float)
        off = {one: float(np.abs(shown - self._seen(one)).mean()) for one in self.keys}
        if min(off, key=off.__getitem__) != key:
            self._find("misassigned", f"{name}/{key} has another image in Label Studio")

    def _seen(self, key: str) -> np.ndarray:
        """The image of a key with what it does not ask about under a haze."""
        path = self.folder / str(self.pool.at[key.partition("@")[0], "image"])
        image = np.asarray(Image.open(path).convert("RGB"), float)
        return np.where(np.isin(squares(), asked(key))[..., None], image, 0.4 * image + 0.6 * 128)
