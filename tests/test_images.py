import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipeline import datasets
from pipeline.annotators.client import Client
from pipeline.annotators.contract import Request
from pipeline.annotators.images import address, picture
from pipeline.errors import UserError
from pipeline.params import Annotate

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_what_a_browser_shows_as_it_is_stays_the_file_it_is(tmp_path: Path, name: str) -> None:
    Image.fromarray(PIXELS).save(tmp_path / name)
    assert picture(tmp_path / name) == (Path(name).suffix, (tmp_path / name).read_bytes())


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif"])
def test_what_is_turned_by_exif_becomes_an_upright_png_without_it(tmp_path: Path, name: str) -> None:
    image = Image.fromarray(PIXELS)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / name, exif=exif)
    suffix, content = picture(tmp_path / name)
    assert suffix == ".png"
    with Image.open(io.BytesIO(content)) as served:
        assert served.format == "PNG"
        assert not served.getexif()
        np.testing.assert_array_equal(np.asarray(served), datasets.read_image(tmp_path / name))
        assert served.size == ((6, 4) if name != "a.tif" else served.size)


def test_old_way_of_exif_in_png_and_other_modes_are_written_anew(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("Raw profile type exif", "\nexif\n 0\n")
    Image.fromarray(PIXELS).save(tmp_path / "old.png", pnginfo=info)
    Image.fromarray(PIXELS).convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.full((3, 3), 40000, np.uint16)).save(tmp_path / "deep.png")
    for name in ("old.png", "cmyk.jpg", "deep.png"):
        suffix, content = picture(tmp_path / name)
        assert suffix == ".png"
        with Image.open(io.BytesIO(content)) as served:
            assert served.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(served), datasets.read_image(tmp_path / name))


def test_block_is_served_as_its_crop(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    suffix, content = picture(tmp_path / "a.png", "a@3x2-1-1")
    assert suffix == ".png"
    with Image.open(io.BytesIO(content)) as served:
        np.testing.assert_array_equal(np.asarray(served), PIXELS[2:4, 2:])
    assert picture(tmp_path / "a.png", "a")[1] == (tmp_path / "a.png").read_bytes()


def test_block_has_no_address_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    server, about = Client.__new__(Client), Annotate(images="s3://bucket/{key}.png")
    request = Request.__new__(Request, *(None,) * 5, about, "shortfall")
    with pytest.raises(
        UserError, match=r"annotate\.images is 's3://bucket/.*, not the block 'b@2x2-0-0': set it to upl"
    ):
        address(server, 1, ["a", "b@2x2-0-0"], request)
