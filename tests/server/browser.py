"""Somebody at work in Label Studio's editor, in a real browser: keys and mouse go in, screenshots come out."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from playwright.sync_api import Page, Response, sync_playwright

from pipeline.images.classes import IGNORE, ClassSet, colourise
from tests.server.studio import Studio

NEEDED = "REGAIN_NEEDS_BROWSER"
"""An environment variable: if it is set, tests fail without a browser instead of being skipped."""
SCREENSHOTS = "REGAIN_SCREENSHOTS"
"""An environment variable: the folder that keeps the screenshots."""

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--force-color-profile=srgb"]
PATIENCE = 300_000.0
"""Milliseconds for anything, on a busy machine."""
OPACITY = 0.6
"""Of what is painted."""

SUBMIT = 'button[aria-label="Submit current annotation"]'
IMAGE = "img[alt=image]"
INSTRUCTIONS = ".lsf-modal-ls__content"
EDITOR = "Htx.annotationStore.selected.names.get('image')"
"""The editor's own view of the image: read, never written."""

Point = tuple[float, float]
"""Column and row, in pixels of the image."""


@contextmanager
def open_page(screenshots: Path) -> Iterator[Page]:
    """A window of a browser without a history; skips the test where there is no browser."""
    chromium = shutil.which("chromium")
    if chromium is None:
        if os.environ.get(NEEDED):
            pytest.fail(f"chromium is not on PATH, but {NEEDED} is set")
        pytest.skip("chromium is not on PATH")
    with sync_playwright() as driver:
        window = driver.chromium.launch(executable_path=chromium, args=FLAGS, timeout=PATIENCE)
        page = window.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(PATIENCE)
        try:
            yield page
        except BaseException:
            page.screenshot(path=screenshots / "failed.png")
            raise
        finally:
            window.close()


class Editor:
    """The editor of one project, in which somebody has logged in."""

    def __init__(self, page: Page, studio: Studio, project: int, classes: ClassSet) -> None:
        self.page, self.url, self.classes = page, f"{studio.url}/projects/{project}/data", classes
        page.goto(f"{studio.url}/user/login/")
        page.fill("input[name=email]", studio.email)
        page.fill("input[name=password]", studio.password)
        page.click("button[type=submit]")
        page.wait_for_url(lambda url: "/user/login" not in url, wait_until="commit")

    def open_stream(self) -> str:
        """Take whatever Label Studio gives out next, as from the project's page; what its instructions say."""
        self.page.goto(self.url)
        self.page.get_by_role("button", name="Label All Tasks").first.click()
        self.wait_for_task(but=0)
        return self.page.locator(INSTRUCTIONS).inner_text()

    def open_address_of_stream(self) -> str:
        """The same by the address that people send each other."""
        self.page.goto(f"{self.url}?labeling=1")
        self.wait_for_task(but=0)
        return self.page.locator(INSTRUCTIONS).inner_text()

    def close_instructions(self) -> None:
        """They cover the image."""
        self.page.click('button[aria-label="Close modal"]')
        self.page.locator(INSTRUCTIONS).wait_for(state="hidden")

    def open_task(self, number: int) -> None:
        """Open one task, also if it is done."""
        self.page.goto(f"{self.url}?task={number}")
        self.wait_for_task(number)

    def task(self) -> int:
        """The number of the task that is shown."""
        return int(self.page.evaluate("Htx.task.id"))

    def wait_for_task(self, number: int | None = None, *, but: int | None = None) -> None:
        """Wait until this task, or another one, is there."""
        condition = f"Htx.task.id == {number}" if number is not None else f"Htx.task.id != {but}"
        self.page.wait_for_function(f"globalThis.Htx?.task && {condition} && Htx.annotationStore.selected")
        self.page.wait_for_function(f"document.querySelector('{IMAGE}')?.naturalWidth > 0")

    def wait_for_painting(self, image: np.ndarray, ids: np.ndarray) -> None:
        """Wait until image and labels are seen: in the middle of every area, its class's colour over the image."""
        seen = np.zeros_like(image)
        middle = cv2.erode((ids != IGNORE).astype(np.uint8), np.ones((9, 9))) > 0
        for number in np.unique(ids):
            middle &= ~(cv2.morphologyEx((ids == number).astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((9, 9))) > 0)
        assert middle.mean() > 0.1, "areas too small to tell their colours"
        expected = (1 - OPACITY) * image + OPACITY * colourise(ids, self.classes)
        off = np.inf
        for _ in range(int(PATIENCE / 500)):
            seen = self.picture(image.shape[:2])
            off = float(np.abs(seen.astype(float) - expected)[middle].mean())
            if off < 8:
                return
            self.page.wait_for_timeout(500)
        raise AssertionError(f"the labels are not seen: {off:.0f} grey values off")

    def picture(self, size: tuple[int, int]) -> np.ndarray:
        """What is seen where the image is, in the image's own size."""
        data = self.page.screenshot(clip=self._box(), animations="disabled")
        shown: np.ndarray = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        return cv2.resize(shown, size[::-1], interpolation=cv2.INTER_AREA)[..., ::-1]

    def _box(self) -> Any:
        box = self.page.locator(IMAGE).bounding_box()
        assert box is not None
        return box

    def scale(self) -> float:
        """Pixels on the screen per pixel of the image."""
        return float(self._box()["width"] / self.page.evaluate(f"document.querySelector('{IMAGE}').naturalWidth"))

    def stroke(self, points: Sequence[Point]) -> None:
        """Move the mouse over the image from point to point, with its button down."""
        box, scale = self._box(), self.scale()
        # Pixel 3 reaches from 3 to 4.
        on_screen = [(box["x"] + (x + 0.5) * scale, box["y"] + (y + 0.5) * scale) for x, y in points]
        self.page.mouse.move(*on_screen[0])
        self.page.mouse.down()
        for x, y in on_screen[1:]:
            self.page.mouse.move(x, y, steps=8)
        self.page.mouse.up()
        self.page.wait_for_function(f"!{EDITOR}.isDrawing")

    def wait_for_regions(self, number: int) -> None:
        """Wait until so many polygons are there, and drawn."""
        regions = "Htx.annotationStore.selected.regionStore.regions"
        self.page.wait_for_function(f"{regions}.length == {number}")
        self.page.wait_for_timeout(2500)

    def regions(self) -> dict[str, list[str]]:
        """The labels of every region by its id, those drawn by hand included."""
        regions = "Htx.annotationStore.selected.regionStore.regions"
        return dict(self.page.evaluate(f"{regions}.map(region => [region.cleanId, [...region.labels]])"))

    def chosen_regions(self) -> list[str]:
        """The ids of those that a key would relabel."""
        chosen: list[str] = self.page.evaluate("Htx.annotationStore.selected.selectedRegions.map(one => one.cleanId)")
        return chosen

    def click(self, point: Point) -> None:
        """Into the image."""
        box, scale = self._box(), self.scale()
        self.page.mouse.click(box["x"] + (point[0] + 0.5) * scale, box["y"] + (point[1] + 0.5) * scale)
        self.page.wait_for_timeout(300)  # a key that comes sooner than a person's may meet what was chosen before

    def polygon(self, points: Sequence[Point]) -> None:
        """Click round an area, over whatever is there."""
        self.page.keyboard.down("Control")
        for point in [*points, points[0]]:
            self.click(point)
        self.page.keyboard.up("Control")
        self.page.wait_for_function(f"!{EDITOR}.isDrawing")

    def press(self, keys: str) -> None:
        """One key after the other."""
        for key in keys:
            self.page.keyboard.press(key)

    def chosen_label(self) -> list[str]:
        """The label that the next stroke has."""
        states = self.page.evaluate(f"[...({EDITOR}.activeStates() ?? [])].map(state => [...state.selectedValues()])")
        return [name for state in states for name in state]

    def choose_label(self, name: str) -> None:
        """With the mouse."""
        self.page.locator(".lsf-label").get_by_text(name, exact=True).click()

    def choose_region(self, name: str) -> None:
        """From the list of regions."""
        self.page.locator("[class*=outliner]").get_by_text(name, exact=True).first.click()
        self.page.wait_for_function("Htx.annotationStore.selected.selectedRegions.length == 1")

    def holds(self, tool: str) -> bool:
        """Whether this tool (brush-tool, eraser) is in hand."""
        return "active" in (self.page.locator(f'button[aria-label="{tool}"]').get_attribute("class") or "")

    def submit(self) -> None:
        """A new annotation."""
        with self.page.expect_response(_saved) as answer:
            self.page.click(SUBMIT)
        assert answer.value.ok

    def update(self) -> None:
        """An annotation that was submitted before."""
        with self.page.expect_response(_saved) as answer:
            self.page.get_by_role("button", name="submit").filter(has_text="Update").click()
        assert answer.value.ok

    def skip(self) -> None:
        """Leave it to nobody."""
        with self.page.expect_response(_saved) as answer:
            self.page.click('button[aria-label="skip-task"]')
        assert answer.value.ok


def _saved(response: Response) -> bool:
    changes = response.request.method in ("POST", "PATCH", "PUT")
    return changes and "/annotations" in response.url and "/drafts" not in response.url
