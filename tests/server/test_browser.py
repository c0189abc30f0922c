"""People correct, skip and update in the editor itself, in a real browser; the loop goes on with what they drew."""

import csv
import itertools
import os
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline import artifacts, datasets, paths
from pipeline.annotators.label_studio import client
from pipeline.annotators.label_studio.editor import HOTKEYS
from pipeline.errors import WaitingForPeople
from pipeline.images.classes import CLASS_SETS, IGNORE
from pipeline.images.masks import load_mask, save_mask
from pipeline.stages import annotate
from tests import project, repo, sdk
from tests.forks import Forks
from tests.project import Project
from tests.server import browser
from tests.server.browser import Editor, Point
from tests.server.people import Person
from tests.server.studio import Studio

pytestmark = pytest.mark.browser

CLASSES = CLASS_SETS["cityscapes19"]
NAMES = CLASSES.names
SIZE = (96, 192)
KEYS = dict(zip(NAMES, "1234567890qwrtyiopa", strict=True))
TITLE = "In the browser"
NUMBERS = itertools.count()
BRUSH, ERASER = 40.0, 10.0
"""Widths, in pixels on the screen."""
WIDEN = "]" * 5
"""Every task's brush starts with 15; every ] adds 5."""


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get(browser.SCREENSHOTS) or tmp_path / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def loop(tmp_path: Path, studio: Studio, forks: Forks) -> Project:
    """A throw-away project with a town of larger images."""
    made = project.make(tmp_path / "project", steps=30, forks=forks)
    made.edit("size: [32, 64], seed: 3", f"size: {list(SIZE)}, seed: 3")
    made.edit("annotator: oracle", f"annotator: label_studio, url: '{studio.url}', project: {TITLE}")
    return made._replace(variables={"LABEL_STUDIO_API_KEY": studio.token})


def waiting(loop: Project) -> str:
    done = loop.dvc("repro")
    assert done.status != 0
    return next(line for line in done.output.splitlines() if "labelled" in line)


def sent(loop: Project, key: str) -> np.ndarray:
    return np.asarray(Image.open(loop.folder / f"data/rounds/r01/predictions/{key}.png"))


def delivered(loop: Project, key: str) -> np.ndarray:
    return np.asarray(Image.open(loop.folder / f"data/labels/{key}.png"))


def image(person: Person, key: str) -> np.ndarray:
    """As the server shows it."""
    content = np.frombuffer(person.http.get(person.tasks(TITLE)[f"r01/{key}"]["data"]["image"]).content, np.uint8)
    return cv2.imdecode(content, cv2.IMREAD_COLOR)[..., ::-1]


def drawn(person: Person, key: str, before: np.ndarray) -> np.ndarray:
    """The mask of the one annotation that the server has of an image, by Label Studio's own codec."""
    [annotation] = person.tasks(TITLE)[f"r01/{key}"]["annotations"]
    mask, added = np.full(SIZE, IGNORE, np.uint8), []
    for region in annotation["result"]:
        number = NAMES.index(*region["value"]["brushlabels"])
        area = sdk.decode(bytes(region["value"]["rle"]), *SIZE)
        old = (before == number) & (region["origin"] != "manual")
        if region["origin"] == "prediction":
            np.testing.assert_array_equal(area, old)
        mask[area & old] = number
        added.append((number, area & ~old))
    for number, area in added:
        mask[area] = number
    return mask


class Stroke(NamedTuple):
    """Where the mouse went, and what is there now."""

    points: list[Point]
    number: int
    width: float = BRUSH
    """On the screen."""
    only: np.ndarray | None = None
    """Where alone it changes something."""


def distance(points: list[Point]) -> np.ndarray:
    """Of every pixel's middle from a polyline, in pixels."""
    rows, columns = np.indices(SIZE)
    nearest = np.full(SIZE, np.inf)
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        along = ((columns - x0) * (x1 - x0) + (rows - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2)
        along = np.clip(along, 0, 1)
        nearest = np.minimum(nearest, np.hypot(columns - x0 - along * (x1 - x0), rows - y0 - along * (y1 - y0)))
    return nearest


def check_strokes(before: np.ndarray, after: np.ndarray, strokes: list[Stroke], scale: float) -> None:
    """Along every stroke there is its class, and away from all of them nothing has changed."""
    same = np.ones(SIZE, bool)
    for stroke in strokes:
        away = distance(stroke.points)
        only = np.ones(SIZE, bool) if stroke.only is None else stroke.only
        half = stroke.width / scale / 2
        inside = (away <= max(0, half - 1)) & only
        assert inside.sum() > 20
        assert (after[inside] == stroke.number).all(), f"{stroke.number} along {stroke.points}"
        same &= (away > half + 1.5) | ~only
    np.testing.assert_array_equal(after[same], before[same])


def deepest(area: np.ndarray) -> tuple[int, int]:
    """Row and column of the pixel that is deepest in an area."""
    depth = cv2.distanceTransform(np.pad(area.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(np.argmax(depth), SIZE)
    return int(row), int(column)


def absent(mask: np.ndarray) -> list[int]:
    """Classes that are nowhere in it."""
    return [number for number in range(len(NAMES)) if not (mask == number).any()]


def correct(editor: Editor, before: np.ndarray) -> list[Stroke]:
    """Paint a new area, let one of the model's grow and erase from another; by keys, and by the list of regions."""
    counts = np.bincount(before.ravel(), minlength=len(NAMES))
    largest, new = int(counts.argmax()), absent(before)[0]
    grown = int(np.where(counts > 0, counts, SIZE[0] * SIZE[1] + 1).argmin())
    row, column = deepest(before == largest)
    above, below = sorted(min(max((row + step) % SIZE[0], 8), SIZE[0] - 8) for step in (32, 64))
    strokes = [
        Stroke([(20, above), (90, above), (110, above + 6)], new),
        Stroke([(150, below), (60, below - 4)], grown),
        Stroke([(column - 15, row), (column + 15, row)], IGNORE, ERASER, before == largest),
    ]
    editor.press(WIDEN + KEYS[NAMES[new]])
    editor.stroke(strokes[0].points)
    editor.press("u")
    editor.choose_region(NAMES[grown])
    editor.stroke(strokes[1].points)
    editor.press("u")
    editor.choose_region(NAMES[largest])
    editor.press("e")
    editor.stroke(strokes[2].points)
    editor.press("ub")
    return strokes


def check_keys(editor: Editor) -> None:
    """Every label has its key, which the editor does not take for something else."""
    for name, key in KEYS.items():
        editor.press(key)
        assert editor.chosen_label() == [name]
        assert editor.holds("brush-tool"), f"{key} changes the tool"
        editor.press("u")
        assert editor.chosen_label() == []
    editor.choose_label("traffic sign")
    assert editor.chosen_label() == ["traffic sign"]
    editor.press("u")


@pytest.mark.dvc
def test_what_is_drawn_in_the_browser_is_delivered(
    loop: Project, studio: Studio, person: Person, screenshots: Path
) -> None:
    with browser.open_page(screenshots) as page:
        assert waiting(loop) == "r01: 0 of 3 labelled; run `dvc repro` again when they are done"
        keys = {task["id"]: key.removeprefix("r01/") for key, task in person.tasks(TITLE).items()}
        editor = Editor(page, studio, person.project(TITLE)["id"], CLASSES)

        told = editor.open_stream()
        assert "Round r01: please correct 3 images" in told
        assert all(f"{name} [{key}]" in told for name, key in KEYS.items())
        page.screenshot(path=screenshots / "1-instructions.png")
        editor.close_instructions()
        first = editor.task()
        gains = {entry["key"]: entry["gain"] for entry in loop.ledger()}
        assert gains[keys[first]] == max(gains.values()), "the most valuable comes first"
        start = sent(loop, keys[first])
        editor.wait_for_painting(image(person, keys[first]), start)
        page.screenshot(path=screenshots / "2-as-sent.png")
        scale = editor.scale()
        strokes = correct(editor, start)
        page.screenshot(path=screenshots / "3-corrected.png")
        editor.submit()

        editor.wait_for_task(but=first)
        second = editor.task()
        editor.wait_for_painting(image(person, keys[second]), sent(loop, keys[second]))
        check_keys(editor)
        editor.skip()

        editor.wait_for_task(but=second)
        third = editor.task()
        assert sorted({first, second, third}) == sorted(keys)
        start_of_third = sent(loop, keys[third])
        editor.wait_for_painting(image(person, keys[third]), start_of_third)
        one, other = absent(start_of_third)[:2]
        early = Stroke([(30, 20), (80, 40)], one)
        editor.press(WIDEN + KEYS[NAMES[one]])
        editor.stroke(early.points)
        editor.submit()

        assert waiting(loop) == "r01: 2 of 2 labelled; `dvc repro` now draws others for the skipped images"
        after = delivered(loop, keys[first])
        np.testing.assert_array_equal(after, drawn(person, keys[first], start))
        check_strokes(start, after, strokes, scale)
        before_update = delivered(loop, keys[third])
        np.testing.assert_array_equal(before_update, drawn(person, keys[third], start_of_third))
        check_strokes(start_of_third, before_update, [early], scale)
        [skip] = [entry for entry in loop.ledger() if entry["event"] == "skip"]
        assert (skip["key"], skip["annotator"]) == (keys[second], studio.email)
        assert not (loop.folder / f"data/labels/{keys[second]}.png").exists()

        editor.open_task(third)
        editor.wait_for_painting(image(person, keys[third]), before_update)
        late = Stroke([(60, 70), (140, 60)], other, BRUSH * scale / editor.scale())  # this page shows it smaller
        editor.press(WIDEN + KEYS[NAMES[other]])
        editor.stroke(late.points)
        page.screenshot(path=screenshots / "4-update.png")
        editor.update()
        assert waiting(loop) == "r01: 2 of 3 labelled; run `dvc repro` again when they are done"
        updated = delivered(loop, keys[third])
        np.testing.assert_array_equal(updated, drawn(person, keys[third], start_of_third))
        check_strokes(start_of_third, updated, [early, late], scale)

        [new] = set(loop.ordered()) - set(keys.values())
        editor.open_stream()
        editor.close_instructions()
        editor.wait_for_painting(image(person, new), sent(loop, new))
        [swept] = absent(sent(loop, new))[:1]
        last = Stroke([(10, 50), (180, 50)], swept)
        editor.press(WIDEN + KEYS[NAMES[swept]])
        editor.stroke(last.points)
        editor.submit()

    assert loop.repro("tune@r01").ran == ["annotate@r01", "audit@r01", "tune@r01"]
    after = delivered(loop, new)
    np.testing.assert_array_equal(after, drawn(person, new, sent(loop, new)))
    check_strokes(sent(loop, new), after, [last], scale)
    assert loop.lost() == []
    assert [e["key"] for e in loop.ledger() if e["event"] == "delivery"].count(keys[third]) == 2


# Rounds and classes, on flat images that are quick to make


STRIPES = (48, 96)
"""Height and width."""


class Flat:
    """The stage `annotate` on a tiny project: grey images, with stripes of all classes for predictions."""

    def __init__(self, studio: Studio) -> None:
        self.params, self.title = repo.params(), f"Flat {next(NUMBERS)}"
        own = {"annotator": "label_studio", "url": studio.url, "project": self.title, "min_seconds": 0.0}
        self.settings = self.params.annotate.model_copy(update=own)

    def send(self, name: str, keys: list[str]) -> None:
        """Order images, the first being worth most, of which the model says that they are all stripes."""
        count = len(artifacts.load_classes().names)
        repo.select(name, keys)
        repo.predict(name)
        for number, key in enumerate(keys):
            columns = (np.arange(STRIPES[1]) * min(count, 6) // STRIPES[1] + number) % count
            save_mask(paths.prediction(name, key), np.tile(columns.astype(np.uint8), (STRIPES[0], 1)))
        self.wait(name)

    def run(self, name: str) -> None:
        own = {
            "roots": self.params.roots,
            "select": self.params.select,
            "score": self.params.score,
            "annotate": self.settings,
        }
        annotate.run(name, self.params.budget[name], **own)

    def wait(self, name: str) -> str:
        with pytest.raises(WaitingForPeople) as caught:
            self.run(name)
        return str(caught.value)

    def sent(self, name: str, key: str) -> np.ndarray:
        return artifacts.load_prediction(name, key)

    def image(self, key: str) -> np.ndarray:
        path = artifacts.load_manifest("pool", Path("pool")).set_index("key").at[key, "image"]
        return np.asarray(Image.open(path).convert("RGB"))

    def number(self, person: Person, name: str) -> int:
        return int(person.tasks(self.title)[name]["id"])

    def key(self, person: Person, number: int) -> str:
        return next(key for key, task in person.tasks(self.title).items() if task["id"] == number)


@pytest.fixture
def flat(project: Path, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Flat:
    """A tiny project whose images are grey, with stripes for predictions."""
    monkeypatch.setenv(client.KEY, studio.token)
    for number, path in enumerate(artifacts.load_manifest("pool", Path("pool"))["image"]):
        Image.fromarray(np.full((*STRIPES, 3), 60 + 20 * number, np.uint8)).save(path)
    repo.manifest("pool", "cityscapes")
    return Flat(studio)


def test_two_rounds_from_the_label_stream(flat: Flat, studio: Studio, screenshots: Path) -> None:
    """What is left of the first round comes after the second; both are shown with predictions, best first."""
    keys = list(artifacts.load_manifest("pool")["key"])
    first_round, second_round = keys[:3], [keys[4], keys[3]]
    person = Person(studio)
    with browser.open_page(screenshots) as page:
        flat.send("r01", first_round)
        project = person.project(flat.title)
        editor = Editor(page, studio, project["id"], CLASSES)
        told = editor.open_stream()
        assert "Round r01: please correct 3 images, which is expected to raise the mIoU by 2.1 points" in told
        editor.close_instructions()
        for place, key in enumerate(first_round[:2]):
            editor.wait_for_painting(flat.image(key), flat.sent("r01", key))
            assert flat.key(person, editor.task()) == f"r01/{key}"
            number = editor.task()
            editor.submit()
            editor.wait_for_task(but=number)
            assert place or flat.wait("r01").startswith("r01: 1 of 3 labelled")

        # What a team changes by hand is set back by the next send.
        changes = {"sampling": "Sequential sampling", "show_collab_predictions": False, "expert_instruction": "?"}
        person.call("PATCH", f"/api/projects/{project['id']}", json=changes)
        flat.send("r02", second_round)
        there = person.project(flat.title)
        assert (there["sampling"], there["model_version"]) == ("Uncertainty sampling", "Regain")
        person.call("DELETE", f"/api/tasks/{flat.number(person, f'r01/{first_round[2]}')}/")  # with its lock
        flat.wait("r01")  # sent again, so that it is the newest

        flat.wait("r02")
        for look in (editor.open_address_of_stream, editor.open_stream):
            told = look()
            assert "Round r02: please correct 2 images, which is expected to raise the mIoU by 1.4 points" in told
            assert f"{NAMES[0]} [1]" in told
            page.screenshot(path=screenshots / "5-round-2-instructions.png")
            editor.close_instructions()
            assert flat.key(person, editor.task()) == f"r02/{second_round[0]}", "the most valuable image of the round"
        editor.wait_for_painting(flat.image(second_round[0]), flat.sent("r02", second_round[0]))
        page.screenshot(path=screenshots / "6-round-2.png")
        for name, key in (("r02", second_round[0]), ("r02", second_round[1]), ("r01", first_round[2])):
            assert flat.key(person, editor.task()) == f"{name}/{key}"
            editor.wait_for_painting(flat.image(key), flat.sent(name, key))
            number = editor.task()
            editor.submit()
            if name == "r02":
                editor.wait_for_task(but=number)
    flat.run("r01")
    flat.run("r02")
    for name, key in (("r01", first_round[2]), ("r02", second_round[1])):
        np.testing.assert_array_equal(load_mask(paths.mask(key)), flat.sent(name, key))
    person.http.close()


def test_sixty_classes_have_keys_that_are_not_the_editors_own(flat: Flat, studio: Studio, screenshots: Path) -> None:
    odd = [
        "it's",
        'the "old" <road> & new',
        "two  spaces",
        "Straße",
        "\u9053\u8def",
        "a,b",
        "50%",
        "e",
        "null",
        "a/b|c",
    ]
    names = [*odd, *(f"class {number}" for number in range(len(odd), 60))]
    with Path("classes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "name"), *enumerate(names)])
    classes = datasets.class_set("classes.csv")
    artifacts.save_classes(classes)
    [key] = keys = list(artifacts.load_manifest("pool")["key"])[:1]
    person = Person(studio)
    with browser.open_page(screenshots) as page:
        flat.send("r01", keys)
        editor = Editor(page, studio, person.project(flat.title)["id"], classes)
        editor.open_stream()
        editor.close_instructions()
        for name, hotkey in zip(names, HOTKEYS, strict=False):
            page.keyboard.press(hotkey.replace("shift", "Shift"))
            assert editor.chosen_label() == [name]
            assert editor.holds("brush-tool"), f"{hotkey} changes the tool"
            editor.press("u")
        for own in "evb":
            editor.press(own)
            assert editor.chosen_label() == []
        assert editor.holds("brush-tool")
        page.screenshot(path=screenshots / "7-sixty-classes.png")
        editor.submit()
    flat.run("r01")
    np.testing.assert_array_equal(load_mask(paths.mask(key)), flat.sent("r01", key))
    person.http.close()
