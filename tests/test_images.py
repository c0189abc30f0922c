import io
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipeline import paths, storage
from pipeline.annotators.contract import Request, Unreachable
from pipeline.annotators.label_studio.addresses import address, fault, local_files, picture, upload
from pipeline.annotators.label_studio.client import Client
from pipeline.errors import UserError
from pipeline.images import reading, region_maps
from pipeline.ledger.entries import Order
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
        np.testing.assert_array_equal(np.asarray(served), reading.read_image(tmp_path / name))
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
            np.testing.assert_array_equal(np.asarray(served), reading.read_image(tmp_path / name))


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


# What annotators' browsers will see


HOME = "https://studio.example.org/ls"
ODD = "Straße 1#a 50%?x&y=+'(z)"


def png(size: tuple[int, int] = (4, 6)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG")
    return file.getvalue()


class Web:
    """Hosts that serve files by address, below a Label Studio under a path of its host; other addresses are 404."""

    def __init__(self, files: dict[str, bytes | int | str]) -> None:
        self.files, self.asked, self.names = files, dict[str, str](), list[bytes]()
        self.server = Client(HOME, "k" * 40, transport=httpx.MockTransport(self.answer))

    def answer(self, request: httpx.Request) -> httpx.Response:
        url = str(request.url)
        self.asked[url] = request.headers.get("Authorization", "")
        if request.method == "POST":
            self.names = re.findall(rb'filename="(\S+)"', request.read())
            return httpx.Response(201, json={"file_upload_ids": [*range(len(self.names))]})
        if "file-uploads" in url:
            return httpx.Response(
                200, json=[{"id": n, "file": f"upload/7/ab-{name.decode()}"} for n, name in enumerate(self.names)]
            )
        if "/api/storages" in url:
            return httpx.Response(200, json=[])
        found = self.files.get(url, 404)
        if found == "nobody":
            raise httpx.ConnectError("nobody listens", request=request)
        if isinstance(found, str):
            return httpx.Response(303, headers={"Location": found})
        return httpx.Response(found) if isinstance(found, int) else httpx.Response(200, content=found)


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Request]:
    monkeypatch.chdir(tmp_path)

    def request(key: str = "a", **annotate: object) -> Request:
        for path in (Path("image.png"), paths.gain_picture("r01", key)):
            storage.write(path, png())
        pool = pd.DataFrame({"image": ["image.png"], "height": [6], "width": [4]}, index=[key])
        return Request("r01", (), {}, pool, None, Annotate(**annotate), "shortfall")  # type: ignore[arg-type]

    return request


UPLOADED = {f"{HOME}/data/upload/7/ab-image.png": png(), f"{HOME}/data/upload/7/ab-gain.jpg": png((2, 3))}


def test_addresses_have_the_path_of_label_studio_and_are_looked_at(ask: Callable[..., Request], tmp_path: Path) -> None:
    web = Web(UPLOADED)
    assert upload(web.server, 7, ["a"], ask()) == [("/ls/data/upload/7/ab-image.png", "/ls/data/upload/7/ab-gain.jpg")]
    assert set(UPLOADED) <= set(web.asked)
    for lacking in UPLOADED:
        with pytest.raises(
            UserError, match=rf"the (image|gain map) of 'a' \({lacking} answers with 404\).*annotate.url"
        ):
            upload(Web({**UPLOADED, lacking: 404}).server, 7, ["a"], ask())

    place = f"{HOME}/data/local-files/?d=regain-7/r01/Stra%C3%9Fe%201%23a%2050%25%3Fx%26y%3D%2B%27%28z%29"
    files = {f"{place}.png": png(), f"{place}.gain.jpg": png()}
    request = ask(ODD, images="local_files", media=str(tmp_path))
    [made] = local_files(Web(files).server, 7, [ODD], request)
    assert made == tuple(name.removeprefix("https://studio.example.org") for name in files)
    with pytest.raises(UserError, match="LOCAL_FILES_SERVING_ENABLED=true"):
        local_files(Web({}).server, 7, [ODD], request)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (404, "answers with 404"),
        (403, "answers with 403"),
        (b"<html>Log in</html>", "is no picture, it starts with b'<html>Log in</html>'"),
        (b"", "is no picture"),
        (png((6, 4)), r"is 6x4, the image of the pool 4x6 \(width x height\)"),
    ],
)
def test_task_whose_picture_is_not_to_be_seen_is_not_sent(
    ask: Callable[..., Request], content: bytes | int, reason: str
) -> None:
    gain = {f"{HOME}/data/upload/7/ab-gain.jpg": png()}
    web = Web({**gain, "https://elsewhere.org/a.png": content})
    with pytest.raises(UserError, match=f"{reason}.*not sent to Label Studio: correct annotate.images"):
        address(web.server, 7, ["a"], ask(images="https://elsewhere.org/{key}.png"))
    assert fault(web.server, {"image": "https://elsewhere.org/a.png", "gain": None}) is not None


def test_keys_are_encoded_in_addresses_for_browsers_and_other_hosts_are_not_told_our_key(
    ask: Callable[..., Request], capsys: pytest.CaptureFixture[str]
) -> None:
    gain = {f"{HOME}/data/upload/7/ab-gain.jpg": png()}
    there = "https://elsewhere.org/Stra%C3%9Fe%201%23a%2050%25%3Fx%26y%3D%2B%27%28z%29.png?v=1"
    web = Web({**gain, there: "https://cdn.org/x", "https://cdn.org/x": png()})
    [(image, _)] = address(web.server, 7, [ODD], ask(ODD, images="https://elsewhere.org/{key}.png?v=1"))
    assert image == there
    assert web.asked[there] == web.asked["https://cdn.org/x"] == ""
    assert web.asked[f"{HOME}/data/upload/7/ab-gain.jpg"].startswith("Token k")
    assert capsys.readouterr().out == ""

    web = Web({**gain, "http://127.0.0.1:1/a.png": "nobody"})
    assert address(web.server, 7, ["a"], ask(images="http://127.0.0.1:1/{key}.png"))[0][0] == "http://127.0.0.1:1/a.png"
    assert "warning: http://127.0.0.1:1/a.png cannot be asked from here" in capsys.readouterr().out
    with pytest.raises(Unreachable, match="Label Studio does not answer"):
        address(Web({**gain, f"{HOME}/a.png": "nobody"}).server, 7, ["a"], ask(images="/ls/{key}.png"))


def test_cloud_address_is_what_label_studio_makes_of_it(ask: Callable[..., Request]) -> None:
    gain = {f"{HOME}/data/upload/7/ab-gain.jpg": png()}
    asked = f"{HOME}/projects/7/resolve/?fileuri=czM6Ly9idWNrZXQvYSBiLnBuZw%3D%3D"
    web = Web({**gain, asked: "https://bucket.cloud.org/signed", "https://bucket.cloud.org/signed": png()})
    request = ask("a b", images="s3://bucket/{key}.png")
    assert address(web.server, 7, ["a b"], request)[0][0] == "s3://bucket/a b.png", "names as they are"
    assert web.asked["https://bucket.cloud.org/signed"] == ""
    with pytest.raises(UserError, match=rf"connect a source storage with that bucket .* at {HOME}/projects/7/settings"):
        address(Web(gain).server, 7, ["a b"], request)


def test_what_is_asked_about_regions_is_shown_in_colour_and_elsewhere_as_the_image_itself(
    ask: Callable[..., Request], tmp_path: Path
) -> None:
    key = "a@regions-r01"
    image = np.full((16, 32, 3), (200, 40, 40), np.uint8)
    Image.fromarray(image).save("image.png")
    region_maps.save("a", np.arange(32).repeat(16).reshape(32, 16).T.astype(np.uint16) // 16)
    order = Order("r01", key, "label_studio", "c", 1.0, 1.0, 1.0, "", regions=(1,))

    def request(**annotate: object) -> Request:
        pool = pd.DataFrame({"image": ["image.png"], "height": [16], "width": [32]}, index=[key])
        return ask(key, **annotate)._replace(orders=[order], pool=pool)

    folder = tmp_path / "media"
    folder.mkdir()
    asked = request(images="local_files", media=str(folder))
    Image.fromarray(image).save("image.png")  # `ask` writes one of its own
    place = f"{HOME}/data/local-files/?d=regain-7/r01/a%40regions-r01.jpg"
    [made] = local_files(Web({place: png((32, 16))}).server, 7, [key], asked)
    assert made == (place.removeprefix("https://studio.example.org"), None), "no gain map"
    shown = np.asarray(Image.open(folder / "regain-7/r01" / f"{key}.jpg"), float)
    assert np.abs(shown[:, 20:] - image[:, 20:]).max() < 4
    assert np.abs(shown[:, :12] - (0.4 * image[:, :12] + 0.6 * 128)).max() < 4

    there = "https://elsewhere.org/a.png"
    found = address(Web({there: png((32, 16))}).server, 7, [key], request(images="https://elsewhere.org/{key}.png"))
    assert found == [(there, None)], "the whole image, as it is"
