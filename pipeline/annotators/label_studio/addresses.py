"""Where Label Studio finds the pictures of a task: uploaded, in a folder that it reads, or at an address of its own.

The editor turns a picture as its EXIF data says, but not the regions that were sent with it; so pictures are served
upright and without EXIF data.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile

from pipeline import paths, storage
from pipeline.annotators.contract import Request
from pipeline.annotators.label_studio import region_shapes
from pipeline.annotators.label_studio.client import Client, Elsewhere, NotShown
from pipeline.errors import UserError
from pipeline.images import blocks, reading, region_maps

PLAIN = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
"""Suffixes of the formats that a browser shows."""
UPLOAD_BYTES = 20_000_000
"""Bytes uploaded per request; Label Studio takes 250 MB."""

FOR_BROWSERS = ("http://", "https://", "/")
"""Starts of addresses that a browser requests as they are."""
ORIENTATION = 0x0112
"""EXIF tag: how to turn the picture; 1 is upright."""

Addresses = list[tuple[str, str | None]]
"""For each image the addresses of the image and of its gain map, which is left out where people answer for regions."""
Place = Callable[[Client, int, Sequence[str], Request], Addresses]


def picture(path: Path, key: str = "") -> tuple[str, bytes]:
    """Suffix and content of an image as it is served: the file itself, or, if it has EXIF data, upright and as PNG.

    If the key is that of a block, its crop.
    """
    data = storage.read_bytes(path)
    upright = reading.read_image(path)  # also the proof that it is whole
    if blocks.parse(key) is not None:
        return ".png", _png(blocks.crop(upright, key))
    with Image.open(io.BytesIO(data)) as file:
        # Pillow would decode a PNG a second time for its EXIF data, which are in a chunk of one of these names.
        exif = any(name in data for name in (b"eXIf", b"Raw profile")) if file.format == "PNG" else file.getexif()
        if file.format in PLAIN and not exif and file.mode in ("RGB", "L", "P"):
            return PLAIN[file.format], data
    return ".png", _png(upright)


def _shown(key: str, request: Request) -> dict[str, tuple[str, bytes]]:
    """By field of the task, suffix and content of the pictures that show a label's place."""
    path = Path(str(request.pool.at[key, "image"]))
    if blocks.is_of_regions(key):
        order = next(order for order in request.orders if order.key == key)
        image = reading.read_image(path)
        asked = np.isin(region_maps.load(blocks.image_of(key)), order.regions)
        return {"image": (".jpg", _jpeg(region_shapes.hazed(image, asked)))}
    pictures = {"image": picture(path, key)}
    if not request.by_regions:
        pictures["gain"] = ".jpg", storage.read_bytes(paths.gain_picture(request.round_name, key))
    return pictures


def _jpeg(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    quality = [cv2.IMWRITE_JPEG_QUALITY, 92]
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)[1].tobytes()


def _png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def upload(server: Client, project: int, keys: Sequence[str], request: Request) -> Addresses:
    """Upload the pictures; returns their addresses on the server."""
    addresses: list[str] = []
    files: dict[str, tuple[str, bytes]] = {}
    fields: list[list[str]] = []
    for key in keys:
        shown = _shown(key, request)
        fields.append(list(shown))
        files |= {f"{name}{len(fields)}": (f"{name}{suffix}", data) for name, (suffix, data) in shown.items()}
        if sum(len(content) for _, content in files.values()) > UPLOAD_BYTES:
            addresses += _upload(server, project, files)
            files = {}
    there = iter([*addresses, *_upload(server, project, files)])
    pairs = [(next(there), next(there) if len(names) > 1 else None) for names in fields]
    advice = (
        "set annotate.url to the address at which browsers open Label Studio, with its path, and look whether "
        "LABEL_STUDIO_HOST there is the same"
    )
    return _seen(server, keys, pairs, request, advice)


def _upload(server: Client, project: int, files: Mapping[str, tuple[str, bytes]]) -> list[str]:
    if not files:
        return []
    # One form field per file: of several files in one field the server keeps only the last.
    ids = server.upload(f"/api/projects/{project}/import", files, commit_to_project="false")["file_upload_ids"]
    stored = {one["id"]: one["file"] for one in server.get(f"/api/projects/{project}/file-uploads", ids=str(ids))}
    names = [str(stored.get(number, "")) for number in ids]
    for name, (given, _) in zip(names, files.values(), strict=True):
        if not name.endswith(Path(given).suffix):
            raise UserError(f"Label Studio at {server.url} keeps {given!r} as {name!r}: is its disk full?")
    return [_served(server, f"upload/{name.removeprefix('upload/')}") for name in names]


def _served(server: Client, path: str) -> str:
    """The address of a file that Label Studio serves under /data, as a browser requests it: with the server's path."""
    return f"{urlsplit(server.url).path}/data/{path}"


def local_files(server: Client, project: int, keys: Sequence[str], request: Request) -> Addresses:
    """Write the pictures to the folder that the server reads, and register that folder with the project."""
    root = Path(request.annotate.media)
    if not root.is_dir():
        raise UserError(
            f"annotate.media is {str(root)!r}, which is no folder: name the server's "
            f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT as seen from here, or set annotate.images to upload"
        )
    folder = root / f"regain-{project}"
    addresses: Addresses = []
    for key in keys:
        found = dict[str, str]()
        for field, (suffix, content) in _shown(key, request).items():
            name = f"{key}{suffix}" if field == "image" else f"{key}.{field}{suffix}"
            storage.write(folder / request.round_name / name, content)
            found[field] = _served(server, f"local-files/?d={quote(f'{folder.name}/{request.round_name}/{name}')}")
        addresses.append((found["image"], found.get("gain")))
    path = str(folder.resolve())
    records = server.get("/api/storages/localfiles", project=project)
    if path not in [record["path"] for record in records]:
        record = {"project": project, "title": "Regain", "path": path, "use_blob_urls": True}
        server.send("POST", "/api/storages/localfiles", record)  # never to be synced: that makes tasks of its own
    advice = (
        f"start it with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT="
        f"{root.resolve()}, or set annotate.images to upload"
    )
    return _seen(server, keys, addresses, request, advice)


def address(server: Client, project: int, keys: Sequence[str], request: Request) -> Addresses:
    """Images that have addresses of their own (a cloud's, say); gain maps are uploaded.

    In an address for browsers the key is percent-encoded. A cloud's (s3://bucket/NAME) is one for Label Studio, which
    takes names as they are; it has to have the bucket's keys to show them.

    Raises:
        UserError: a block is asked for, or a picture is not there.
    """
    if cut := next((key for key in keys if blocks.parse(key) is not None), None):
        raise UserError(
            f"annotate.images is {request.annotate.images!r}, where whole images are, not the block {cut!r}: set it to "
            f"upload or local_files"
        )
    template, gains = request.annotate.images, list[str | None]([None] * len(keys))
    if not request.by_regions:
        maps = [("gain.jpg", storage.read_bytes(paths.gain_picture(request.round_name, key))) for key in keys]
        gains = [*_upload(server, project, {f"gain{number}": one for number, one in enumerate(maps)})]
    names = [blocks.image_of(key) for key in keys]
    if template.startswith(FOR_BROWSERS):
        pictures = [template.replace("{key}", quote(name)) for name in names]
        advice = "correct annotate.images, or have the pictures put there, such that a browser sees them"
        return _seen(server, keys, list(zip(pictures, gains, strict=True)), request, advice)
    pictures = [template.replace("{key}", name) for name in names]
    # What Label Studio itself makes of the address when it shows the task, which does not exist yet.
    coded = [base64.urlsafe_b64encode(picture.encode()).decode() for picture in pictures]
    shown = [f"{server.url}/projects/{project}/resolve/?fileuri={quote(one)}" for one in coded]
    advice = (
        f"connect a source storage with that bucket and valid keys at {server.url}/projects/{project}/settings/storage"
        f" (do not sync it), or correct annotate.images ({template!r})"
    )
    _seen(server, keys, list(zip(shown, gains, strict=True)), request, advice)
    return list(zip(pictures, gains, strict=True))


def _seen(server: Client, keys: Sequence[str], addresses: Addresses, request: Request, advice: str) -> Addresses:
    """The addresses, after fetching each as a browser would: the editor lets people submit even without a picture.

    Raises:
        UserError: there is no picture, or not of the size of the labels sent with it; the message ends with `advice`.
    """
    unseen = []
    for key, (image, gain) in zip(keys, addresses, strict=True):
        size = int(request.pool.at[key, "width"]), int(request.pool.at[key, "height"])
        for what, address, expected in (("image", image, size), ("gain map", gain, None)):
            if address is None:
                continue
            try:
                fault = _fault(server, address, expected)
            except Elsewhere as error:
                unseen.append(str(error))
                continue
            if fault is not None:
                raise UserError(
                    f"annotators would not see the {what} of {key!r} ({fault}), so it is not sent to Label Studio: "
                    f"{advice}"
                )
    if unseen:
        print(
            f"warning: {unseen[0]}: look in a browser whether annotators see this picture, and the others "
            f"({len(unseen)} in this batch)"
        )
    return addresses


def fault(server: Client, data: Mapping[str, Any]) -> str | None:
    """Why annotators cannot see the pictures of a task, given its data; None if they can, as far as known here."""
    shown = [data.get("image"), *([data["gain"]] if "gain" in data else [])]  # no gain map with regions
    for address in shown:
        try:
            found = _fault(server, address) if isinstance(address, str) else f"its address is {address!r}"
        except Elsewhere:
            continue
        if found is not None:
            return found
    return None


def _fault(server: Client, address: str, size: tuple[int, int] | None = None) -> str | None:
    """Why a browser cannot show this picture in this width and height, or None; reads only the picture's header."""
    parser, start = ImageFile.Parser(), b""
    content = server.show(address)
    try:
        for part in content:
            start = start or part[:30]
            parser.feed(part)
            if parser.image is not None:
                break
    except NotShown as error:
        return str(error)
    finally:
        content.close()
    image = parser.image
    if image is None:
        return f"{address} is no picture, it starts with {start!r}"
    if image.format == "JPEG" and image.getexif().get(ORIENTATION, 1) != 1:
        return f"the EXIF data of {address} turn it, but not the labels that are sent with it"
    if size is not None and image.size != size:
        return f"{address} is {image.width}x{image.height}, the image of the pool {size[0]}x{size[1]} (width x height)"
    return None


PLACES: dict[str, Place] = {"upload": upload, "local_files": local_files}
