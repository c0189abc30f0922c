"""People correct, skip and update in the editor itself, in a real browser; the loop goes on with what they drew."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.labels import CLASS_SETS, IGNORE
from tests import project, sdk
from tests.project import Project
from tests.server import browser
from tests.server.browser import Editor, Point
from tests.server.people import Person
from tests.server.studio import Studio

pytestmark = pytest.mark.server

CLASSES = CLASS_SETS["cityscapes19"]
NAMES = CLASSES.names
SIZE = (96, 192)
KEYS = dict(zip(NAMES, "1234567890qwrtyiopa", strict=True))
TITLE = "In the browser"
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
def person(studio: Studio) -> Iterator[Person]:
    somebody = Person(studio)
    yield somebody
    somebody.http.close()


@pytest.fixture
def loop(tmp_path: Path, studio: Studio) -> Project:
    """A throw-away project with a town of larger images."""
    made = project.make(tmp_path / "project", steps=30)
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

    assert loop.repro("tune@r01").ran == ["annotate@r01", "tune@r01"]
    after = delivered(loop, new)
    np.testing.assert_array_equal(after, drawn(person, new, sent(loop, new)))
    check_strokes(sent(loop, new), after, [last], scale)
    assert loop.lost() == []
    assert [e["key"] for e in loop.ledger() if e["event"] == "delivery"].count(keys[third]) == 2
