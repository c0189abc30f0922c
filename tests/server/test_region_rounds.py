"""Regions answered in the editor itself, in a real browser, and through the calls that it makes."""

import base64
import io
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jaxtyping import UInt8, UInt16
from matplotlib.path import Path as Polygon
from PIL import Image

from pipeline import artifacts, ledger, paths
from pipeline.annotators.label_studio import client, projects
from pipeline.commands import rehearse
from pipeline.errors import UserError, WaitingForPeople
from pipeline.images import blocks, region_maps
from pipeline.images.classes import CLASS_SETS, IGNORE
from pipeline.images.masks import load_mask, save_mask
from pipeline.params import BudgetLine
from pipeline.stages import annotate
from tests import repo
from tests.server import browser
from tests.server.browser import Editor
from tests.server.people import Person, text
from tests.server.studio import Studio

CLASSES = CLASS_SETS["cityscapes19"]
NAMES = CLASSES.names
KEYS = dict(zip(NAMES, "1234567890qwrtyioas", strict=True))
SIZE, SIDE = (96, 192), 24
"""Height and width of an image, and of its regions, which are squares: 4 rows of 8."""
NUMBERS = itertools.count()


def squares() -> UInt16[np.ndarray, "h w"]:
    rows, cols = np.indices(SIZE) // SIDE
    return (rows * (SIZE[1] // SIDE) + cols).astype(np.uint16)


def middle(region: int) -> tuple[float, float]:
    """Column and row."""
    row, col = divmod(region, SIZE[1] // SIDE)
    return col * SIDE + SIDE / 2, row * SIDE + SIDE / 2


def guess(region: int, name: str) -> int:
    """What the model takes a region for in a round."""
    return (3 * region + len(name) + int(name[1:])) % len(NAMES)


class Rounds:
    """The stage `annotate` on a tiny project whose images have squares for regions."""

    def __init__(self, studio: Studio, **own: Any) -> None:
        self.title = f"Regions {next(NUMBERS)}"
        self.params = repo.params(score={"unit": "region"})
        about = {"annotator": "label_studio", "url": studio.url, "project": self.title, "min_seconds": 0.0}
        self.settings = self.params.annotate.model_copy(update=about | own)
        self.images = list(artifacts.load_manifest("pool")["key"])
        self.asked: dict[str, list[int]] = {}

    def ask(self, name: str, asked: dict[str, list[int]]) -> str:
        """Order regions of images, the first being worth most, and send the questions; what the stage says."""
        keys = self.select(name, asked)
        repo.score(name, self.images, gain=0.9, **{f"gain_{one}": 0.001 for one in NAMES})
        table = np.array([guess(region, name) for region in range(int(squares().max()) + 1)], np.uint8)
        for key in keys:
            save_mask(paths.prediction(name, key), table[squares()])
        return self.wait(name)

    def select(self, name: str, asked: dict[str, list[int]]) -> list[str]:
        """Write the selection of a round; its keys."""
        keys = [blocks.key_of_regions(image, name) for image in asked]
        self.asked |= dict(zip(keys, asked.values(), strict=True))
        repo.select(name, keys)
        regions = [" ".join(map(str, each)) for each in asked.values()]
        artifacts.save_selection(name, artifacts.load_selection(name).assign(regions=regions))
        return keys

    def run(self, name: str) -> None:
        line = BudgetLine(after="r00" if name == "r01" else "r01", images=len(artifacts.load_selection(name)))
        of = self.params
        annotate.run(name, line, roots=of.roots, score=of.score, select=of.select, annotate=self.settings)

    def wait(self, name: str) -> str:
        with pytest.raises(WaitingForPeople) as caught:
            self.run(name)
        return str(caught.value)

    def expected(self, key: str, name: str, **answers: int) -> UInt8[np.ndarray, "h w"]:
        """The guesses of what was asked, but for the answers given."""
        mask = np.full(SIZE, IGNORE, np.uint8)
        for region in self.asked[key]:
            mask[squares() == region] = answers.get(f"r{region}", guess(region, name))
        return mask


@pytest.fixture
def rounds(project: Path, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Rounds:
    """Images of coloured noise in squares."""
    monkeypatch.setenv(client.KEY, studio.token)
    rng = np.random.default_rng(0)
    for path in artifacts.load_manifest("pool", Path("pool"))["image"]:
        colours = rng.integers(0, 256, (int(squares().max()) + 1, 3), np.uint8)
        Image.fromarray(colours[squares()]).save(path)
    for image in repo.manifest("pool", "cityscapes")["key"]:
        region_maps.save(image, squares())
    return Rounds(studio)


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get(browser.SCREENSHOTS) or tmp_path / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def drawn(person: Person, title: str, name: str) -> list[dict[str, Any]]:
    """What somebody has drawn by hand in a task, as the server has it."""
    [annotation] = person.tasks(title)[name]["annotations"]
    return [item for item in annotation["result"] if item["origin"] == "manual"]


@pytest.mark.browser
def test_two_rounds_of_regions_from_the_label_stream(
    rounds: Rounds, studio: Studio, person: Person, screenshots: Path
) -> None:
    first, second, third = (blocks.key_of_regions(image, "r01") for image in rounds.images[:3])
    asked = {rounds.images[0]: [9, 3, 20, 14], rounds.images[1]: [30, 2], rounds.images[2]: [5]}
    assert rounds.ask("r01", asked) == "r01: 0 of 3 labelled; run `dvc repro` again when they are done"
    keys = {task["id"]: key.partition("/")[2] for key, task in person.tasks(rounds.title).items()}
    with browser.open_page(screenshots) as page:
        editor = Editor(page, studio, person.project(rounds.title)["id"], CLASSES)
        told = editor.open_stream()
        assert "Round r01: please answer what 3 images ask" in told
        assert all(f"{name} [{key}]" in told for name, key in KEYS.items())
        editor.close_instructions()
        editor.wait_for_regions(5)
        page.screenshot(path=screenshots / "regions-1-as-sent.png")
        assert keys[editor.task()] == first, "the most valuable comes first"
        assert editor.regions() == {f"region-{n}": [NAMES[guess(n, "r01")]] for n in (9, 3, 20, 14)} | {
            "rest": ["not asked"]
        }

        # A correction, a second thought, one that is mixed, one left as it is, and an area of one's own.
        editor.click(middle(3))
        assert editor.chosen_regions() == ["region-3"]
        editor.press(KEYS["train"])
        editor.press(KEYS["bus"])
        editor.click(middle(20))
        editor.press("x")
        editor.press("u" + KEYS["car"])
        corners = [(100.0, 70.0), (150.0, 60.0), (140.0, 90.0)]  # over region 20 and what nobody has asked about
        editor.polygon(corners)
        page.screenshot(path=screenshots / "regions-2-answered.png")
        number = editor.task()
        editor.submit()
        editor.wait_for_task(but=number)

        # A round by the keys alone, and one image that is skipped.
        editor.wait_for_regions(3)
        assert keys[editor.task()] == second
        page.keyboard.press("Space")
        [chosen] = editor.chosen_regions()
        while chosen != "region-2":
            page.keyboard.press("Space")
            [chosen] = editor.chosen_regions()
        editor.press(KEYS["person"])
        number = editor.task()
        page.keyboard.press("Control+Enter")
        editor.wait_for_task(but=number)
        editor.wait_for_regions(2)
        editor.skip()

        assert rounds.wait("r01") == "r01: 2 of 2 labelled; `dvc repro` now draws others for the skipped images"
        [shape] = drawn(person, rounds.title, f"r01/{first}")
        points = np.array(shape["value"]["points"]) * SIZE[::-1] / 100
        assert np.abs(points - (np.array(corners) + 0.5)).max() < 1.0
        rows, cols = np.indices(SIZE) + 0.5
        inside = Polygon(points).contains_points(np.stack([cols.ravel(), rows.ravel()], axis=1)).reshape(SIZE)
        expected = rounds.expected(first, "r01", r3=NAMES.index("bus"), r20=IGNORE)
        expected[inside] = NAMES.index("car")
        assert inside.sum() > 300
        np.testing.assert_array_equal(load_mask(paths.mask(first)), expected)
        np.testing.assert_array_equal(
            load_mask(paths.mask(second)), rounds.expected(second, "r01", r2=NAMES.index("person"))
        )
        assert not paths.mask(third).exists()
        changed = {delivery.key: delivery.changed for delivery in ledger.load().deliveries}
        assert changed[second] == SIDE**2
        assert changed[first] == (expected != rounds.expected(first, "r01")).sum()

        # The second round asks elsewhere in the same image.
        rounds.select("r01", {image: asked[image] for image in rounds.images[:2]})
        rounds.run("r01")
        kept = paths.mask(first).read_bytes()
        rounds.ask("r02", {rounds.images[0]: [0, 31], rounds.images[3]: [7]})
        again, other = (blocks.key_of_regions(rounds.images[n], "r02") for n in (0, 3))
        assert "Round r02: please answer what 2 images ask" in editor.open_stream()
        editor.close_instructions()
        editor.wait_for_regions(3)
        assert set(editor.regions()) == {"region-0", "region-31", "rest"}
        editor.click(middle(31))
        editor.press(KEYS["pole"])
        number = editor.task()
        editor.submit()
        editor.wait_for_task(but=number)
        editor.wait_for_regions(2)
        editor.submit()
    rounds.run("r02")
    np.testing.assert_array_equal(load_mask(paths.mask(again)), rounds.expected(again, "r02", r31=NAMES.index("pole")))
    np.testing.assert_array_equal(load_mask(paths.mask(other)), rounds.expected(other, "r02"))
    assert paths.mask(first).read_bytes() == kept


@pytest.mark.browser
def test_a_whole_image_is_corrected_by_its_regions(
    project: Path, studio: Studio, person: Person, screenshots: Path, rounds: Rounds
) -> None:
    image = rounds.images[0]
    rounds.params = repo.params()
    rounds.settings = rounds.settings.model_copy(update={"by": "regions"})
    repo.select("r01", [image])
    repo.score("r01", rounds.images, **{f"gain_{one}": 0.001 for one in NAMES})
    wrong = np.where(squares() < 8, np.uint8(10), np.uint8(0))
    save_mask(paths.prediction("r01", image), wrong)
    rounds.wait("r01")
    with browser.open_page(screenshots) as page:
        editor = Editor(page, studio, person.project(rounds.title)["id"], CLASSES)
        editor.open_stream()
        editor.close_instructions()
        [task] = person.tasks(rounds.title).values()
        editor.wait_for_regions(len(task["predictions"][0]["result"]))
        editor.click(middle(11))
        editor.press(KEYS["terrain"])
        editor.click(middle(2))
        editor.press(KEYS["building"])
        page.screenshot(path=screenshots / "regions-3-whole.png")
        editor.submit()
    rounds.run("r01")
    areas = np.asarray(Image.open(io.BytesIO(base64.b64decode(task["meta"]["regions"]["map"]))))
    assert 8 < len(np.unique(areas)) <= 150
    expected = wrong.copy()  # of every region the commonest class, but for the two
    for area in np.unique(areas):
        expected[areas == area] = np.bincount(wrong[areas == area]).argmax()
    for region, name in ((11, "terrain"), (2, "building")):
        col, row = (int(place) for place in middle(region))
        expected[areas == areas[row, col]] = NAMES.index(name)
    np.testing.assert_array_equal(load_mask(paths.mask(image)), expected)


def test_what_people_see_and_what_reads_their_answers_is_in_the_task(
    rounds: Rounds, person: Person, studio: Studio
) -> None:
    image = rounds.images[0]
    key = blocks.key_of_regions(image, "r01")
    rounds.ask("r01", {image: [9, 3]})
    before = person.tasks(rounds.title)
    rounds.wait("r01")
    assert person.tasks(rounds.title) == before, "nothing is sent twice"
    [task] = before.values()
    assert set(task["data"]) == {"image", "key", "sha256"}
    shown = np.asarray(Image.open(io.BytesIO(person.http.get(task["data"]["image"]).content)).convert("RGB"))
    row = artifacts.load_manifest("pool", Path("pool")).set_index("key").loc[image]
    original = np.asarray(Image.open(row["image"]).convert("RGB")).astype(float)
    for region in (9, 3, 20):
        inner = (squares() == region) & (np.indices(SIZE) % SIDE // 8 == 1).all(axis=0)  # JPEG blurs the edges
        wanted = original if region in (9, 3) else 0.4 * original + 0.6 * 128
        assert np.abs(shown[inner] - wanted[inner]).mean() < 4
    assert [item["id"] for item in task["predictions"][0]["result"]][-1] == "rest"
    assert all("score" not in item for item in task["predictions"][0]["result"])
    told = text(person.project(rounds.title)["expert_instruction"])
    assert "mixed [x]" in told

    # Answers are read without the map or the prediction, from what the task was sent with.
    paths.prediction("r01", key).unlink()
    person.submit(task)
    rounds.run("r01")
    np.testing.assert_array_equal(load_mask(paths.mask(key)), rounds.expected(key, "r01"))


def test_a_project_for_the_brush_is_not_for_regions(rounds: Rounds, person: Person, studio: Studio) -> None:
    rounds.ask("r01", {rounds.images[0]: [9, 3]})
    settings = rounds.settings
    assert "is there" in projects.check(settings, CLASSES, by_regions=True)
    with pytest.raises(UserError, match=r"is made for labels by regions, and these are by the brush: give annotate\."):
        projects.check(settings, CLASSES)
    with pytest.raises(UserError, match="a class is called 'mixed', which is what people answer"):
        projects.check(settings, CLASSES._replace(names=("mixed", *NAMES[1:])), by_regions=True)
    project = person.project(rounds.title)
    config = project["label_config"].replace('value="mixed"', 'value="unclear"')
    person.call("PATCH", f"/api/projects/{project['id']}", json={"label_config": config})
    with pytest.raises(UserError, match=r"lacking: 'mixed'; unknown: 'unclear'"):
        rounds.run("r01")


@pytest.mark.filterwarnings("ignore:The `parse_obj` method is deprecated")  # the SDK's use of pydantic
def test_a_rehearsal_answers_for_regions_from_the_known_labels(rounds: Rounds, person: Person) -> None:
    image = rounds.images[0]
    key = blocks.key_of_regions(image, "r01")
    rounds.ask("r01", {image: [9, 3, 20]})
    road, sky = 7, 23  # as Cityscapes stores them
    stored = np.full(SIZE, road, np.uint8)
    stored[squares() == 20] = sky
    stored[:, ::2][squares()[:, ::2] == 3] = sky  # half and half
    row = artifacts.load_manifest("pool", Path("pool")).set_index("key").loc[image]
    Image.fromarray(stored).save(row["mask"])
    rehearse.run(rounds.params.model_copy(update={"annotate": rounds.settings}), rehearse.Noise(0.0, 0.0, 0.0, 60.0, 1))
    rounds.run("r01")
    expected = rounds.expected(key, "r01", r9=0, r20=NAMES.index("sky"), r3=IGNORE)
    np.testing.assert_array_equal(load_mask(paths.mask(key)), expected)
