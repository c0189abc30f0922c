"""The README names what there is, and what it shows is there."""

import re
from pathlib import Path

import pytest

from pipeline.annotators import ANNOTATORS
from pipeline.datasets import DATASETS
from pipeline.gain import ACQUISITIONS
from pipeline.images.classes import CLASS_SETS
from pipeline.networks.architectures import MODELS
from pipeline.params import Params
from pipeline.stages import STAGES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]


@pytest.mark.parametrize(
    "name",
    [
        *STAGES,
        "status",
        "budget",
        "doctor",
        "label-studio",
        "rehearse",
        "join",
        "remove",
        *ANNOTATORS,
        *DATASETS,
        *CLASS_SETS,
        *MODELS,
    ],
)
def test_names_every_command_layout_and_model(name: str) -> None:
    assert re.search(rf"\b{name}\b", README)


def test_shipped_params_name_every_section_and_acquisition() -> None:
    text = (ROOT / "params.yaml").read_text()
    assert all(re.search(rf"^{name}:", text, re.MULTILINE) for name in Params.model_fields)
    assert all(name in README for name in ACQUISITIONS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)]+)\)", page.read_text()):
        file, _, heading = link.partition("#")
        assert (page.parent / file).exists(), link
        assert not heading or heading in _headings(page.parent / file), link
    for path in re.findall(r"`((?:docs|examples|tests|benchmarks|pipeline)/[\w./-]+)`", page.read_text()):
        assert (ROOT / path).exists(), path


def test_files_of_the_table_where_things_are_lie_in_the_folder_before_them() -> None:
    rows = README.partition("## Where things are")[2].partition("\n## ")[0].splitlines()
    named = 0
    for row in rows:
        folder = ""
        for name in re.findall(r"`([\w./]+)`", row):
            folder = name if name.startswith("pipeline/") else folder
            assert (ROOT / (folder if folder == name else f"{folder}{name}")).exists(), name
            named += 1
    assert named > 20


def test_contributing_shows_every_folder_on_one_screen() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    folders = [path.parent.name for path in (ROOT / "pipeline").glob("*/__init__.py")]
    assert len(folders) > 10
    assert all(f" {name}/ " in text for name in folders)
    assert len(text.splitlines()) <= 60


def _headings(page: Path) -> set[str]:
    """As the forge makes them: small letters, hyphens for spaces."""
    titles = re.findall(r"^#+ (.+)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_make_has_the_two_commands_of_the_first_screen() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    shown = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert shown == ["demo", "test"]
    assert set(shown) <= set(targets)
