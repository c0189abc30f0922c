"""Which files belong together: names as they come from phones, Macs, Windows and archives."""

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline import datasets
from pipeline.datasets import files
from pipeline.datasets.files import Listing
from pipeline.errors import UserError
from pipeline.images import reading
from tests import fakes

every_layout = pytest.mark.parametrize("name", datasets.DATASETS)
PLACES = {
    "gta5": ("images", "labels", "", ""),
    "cityscapes": ("leftImg8bit/train/ulm", "gtFine/train/ulm", "_leftImg8bit", "_gtFine_labelIds"),
    "camvid": ("train", "trainannot", "", ""),
    "idd_lite": ("leftImg8bit/train", "gtFine/train", "_image", "_label"),
    "folder": ("images", "masks", "", ""),
}


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


@pytest.fixture
def put(tmp_path: Path, name: str) -> Callable[[str, str | None], None]:
    """Put an image and a mask where a layout has them; names end in a suffix, sub-folders may lead."""
    images, masks, image_end, mask_end = PLACES[name]

    def one(image: str, mask: str | None) -> None:
        for folder, end, given in ((images, image_end, image), (masks, mask_end, mask)):
            if given is not None:
                stem, _, suffix = given.rpartition(".")
                touch(tmp_path / folder / f"{stem}{end}.{suffix}")

    return one


def found(name: str, root: Path) -> Listing:
    return datasets.listing(name, root, "train")


@every_layout
@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("a.png", "a.PNG"),
        ("DSC_1.JPG", "dsc_1.png"),
        ("b.jfif", "b.TIF"),
        ("c.png", "c.bmp"),
        (unicodedata.normalize("NFD", "straße_café.png"), unicodedata.normalize("NFC", "straße_café.png")),
        (unicodedata.normalize("NFC", "東京 é.webp"), unicodedata.normalize("NFD", "東京 é.png")),
        ("a .png", "a.png"),
        ("day/deep/a.png", "Day/deep /a.png"),
    ],
)
def test_a_mask_is_found_whatever_the_spelling(
    name: str, image: str, mask: str, tmp_path: Path, put: Callable[[str, str | None], None]
) -> None:
    put(image, mask)
    (sample,), unused = found(name, tmp_path)
    assert sample.mask is not None
    assert not unused
    assert sample.key == unicodedata.normalize("NFC", sample.key) == sample.key.strip()


@every_layout
def test_folders_in_other_capitals_are_the_layouts(
    name: str, tmp_path: Path, put: Callable[[str, str | None], None]
) -> None:
    put("a.png", "a.png")
    for path in sorted(tmp_path.iterdir()):
        path.rename(path.with_name(path.name.upper()))
    (sample,) = found(name, tmp_path).samples
    assert sample.mask is not None


@every_layout
def test_what_is_not_used_is_listed_by_the_reason(
    name: str, tmp_path: Path, put: Callable[[str, str | None], None]
) -> None:
    put("a.png", "a.png")
    put("b.heic", "c.png")
    put("notes.txt", None)
    touch(tmp_path / "stray.jpg")
    for left in ("._a.png", "Thumbs.db", ".ipynb_checkpoints/a-checkpoint.png", "@eaDir/a.png/THUMB.jpg"):
        touch(tmp_path / PLACES[name][0] / left)
    samples, unused = found(name, tmp_path)
    assert [sample.key for sample in samples] == ["a"]
    names = {reason: [path.name for path in paths] for reason, paths in unused.items()}
    image_end, mask_end = PLACES[name][2:]
    assert names == {
        files.UNREAD: [f"b{image_end}.heic", f"notes{image_end}.txt"],
        files.WITHOUT_IMAGE: [f"c{mask_end}.png"],
        files.OUTSIDE: ["stray.jpg"],
        files.LEFT_BY_SYSTEMS: ["._a.png", ".ipynb_checkpoints", "@eaDir", "Thumbs.db"],
    }


def test_pictures_in_other_folders_are_listed_where_there_are_no_splits(tmp_path: Path) -> None:
    for folder in ("images", "IMAGES", "masks"):
        touch(tmp_path / folder / f"{folder.lower()}.png")
    assert found("folder", tmp_path).unused[files.OUTSIDE] == [tmp_path / "IMAGES/images.png"]
    touch(tmp_path / "val/other.png")
    touch(tmp_path / "train/a.png")
    assert files.OUTSIDE not in found("camvid", tmp_path).unused


def test_names_that_are_not_the_layouts_are_listed_and_its_other_kinds_of_masks_are_not(tmp_path: Path) -> None:
    fakes.write("cityscapes", tmp_path, count=2)
    city = tmp_path / "gtFine/train/ulm"
    touch(city / "ulm_000000_000000_gtFine_polygons.json")
    touch(tmp_path / "leftImg8bit/train/ulm/IMG_1.png")
    unused = found("cityscapes", tmp_path).unused
    assert {reason: [path.name for path in paths] for reason, paths in unused.items()} == {
        files.MISNAMED: ["IMG_1.png"]
    }


def test_keys_of_sub_folders_differ_and_are_file_names(tmp_path: Path) -> None:
    for folder in ("", "day/", "night/", "night/rain/"):
        touch(tmp_path / f"images/{folder}1.png")
        touch(tmp_path / f"masks/{folder}1.png")
    samples = found("folder", tmp_path).samples
    assert [sample.key for sample in samples] == ["1", "day~1", "night~1", "night~rain~1"]
    assert [sample.mask.parent.name for sample in samples if sample.mask] == ["masks", "day", "night", "rain"]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (("day/1.png", "day~1.png"), "have one name, 'day~1'"),
        (("a.png", "A.jpg"), "have names that differ in capitals only"),
        (("Day/1.png", "day/1.png"), "have names that differ in capitals only"),
        ((unicodedata.normalize("NFD", "é.png"), unicodedata.normalize("NFC", "é.png")), "have one name, 'é'"),
        (("a.png", "a .png"), "have one name, 'a'"),
        ((f"{'ü' * 101}.png",), "has 202 bytes, and files are called like it"),
        ((f"{'d' * 150}/{'n' * 60}.png",), "has 211 bytes"),
        (("a\nb.png",), "holds a control character"),
        ((os.fsdecode(b"caf\xe9.png"),), "is not valid UTF-8"),
    ],
)
def test_names_that_cannot_be_keys_are_refused(tmp_path: Path, images: tuple[str, ...], message: str) -> None:
    for image in images:
        touch(tmp_path / "images" / image)
    with pytest.raises(UserError, match=message) as error:
        found("folder", tmp_path)
    assert "rename" in str(error.value) or "shorten" in str(error.value)


def test_two_masks_of_one_image_are_refused_unless_one_is_lossy(tmp_path: Path) -> None:
    touch(tmp_path / "images/a.png")
    touch(tmp_path / "masks/a.jpg")
    assert str(found("folder", tmp_path).samples[0].mask).endswith("a.jpg")  # for reading to refuse by name
    touch(tmp_path / "masks/a.tif")
    assert str(found("folder", tmp_path).samples[0].mask).endswith("a.tif")
    touch(tmp_path / "masks/a.png")
    with pytest.raises(UserError, match=r"a\.(png|tif) and .*a\.(png|tif) are both masks of .*images/a\.png: remove"):
        found("folder", tmp_path)


def test_links_are_followed_and_broken_ones_named(tmp_path: Path) -> None:
    elsewhere = fakes.image(tmp_path / "elsewhere/deep/1.png", np.random.default_rng(0))
    images = tmp_path / "data/images"
    images.mkdir(parents=True)
    (images / "linked").symlink_to(elsewhere.parent)
    (images / "a.png").symlink_to(elsewhere)
    (elsewhere.parent / "round").symlink_to(images)  # in a circle
    samples = datasets.find("folder", tmp_path / "data", "")
    assert [sample.key for sample in samples] == ["a", "linked~1"]
    (images / "gone.png").symlink_to(tmp_path / "unmounted/gone.png")
    broken = datasets.find("folder", tmp_path / "data", "")[1]
    with pytest.raises(UserError, match=r"gone\.png is a link to .*unmounted/gone\.png, where nothing is: fetch"):
        reading.read_image(broken.image)


def test_a_folder_of_what_is_not_read_says_so(tmp_path: Path) -> None:
    touch(tmp_path / "images/a.heic")
    with pytest.raises(UserError, match=r"no folder images in .*1 files have a suffix that is not read \(.*a\.heic\)"):
        found("folder", tmp_path)


@pytest.mark.parametrize(
    ("key", "unfit"), [("aux", True), ("COM1.left", True), ("a:b", True), ("a.", True), ("a~b", False)]
)
def test_names_that_windows_has_not(key: str, unfit: bool) -> None:
    assert files.unfit_for_windows(key) == unfit
