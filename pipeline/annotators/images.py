"""Where Label Studio finds the pictures of a task: uploaded, in a folder that it reads, or at an address of its own.

The editor turns a picture as its EXIF data says, but not the regions that were sent with it; so pictures are served
upright and without EXIF data.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pipeline import artifacts, blocks, datasets, paths
from pipeline.annotators.client import Client
from pipeline.annotators.contract import Request
from pipeline.datasets.reading import read_bytes
from pipeline.errors import UserError

PLAIN = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
"""Formats that a browser shows."""
UPLOAD_BYTES = 20_000_000
"""Per request; Label Studio takes 250 MB."""

Addresses = list[tuple[str, str]]
"""Of the image and of its gain map, for each image."""
Place = Callable[[Client, int, Sequence[str], Request], Addresses]


def picture(path: Path, key: str = "") -> tuple[str, bytes]:
    """Suffix and content of an image as it is served: the file itself, or, if it has EXIF data, upright and as PNG.

    If the key is that of a block, its crop.
    """
    data = read_bytes(path)
    upright = datasets.read_image(path)  # also the proof that it is whole
    if blocks.parse(key) is not None:
        return ".png", _png(blocks.crop(upright, key))
    with Image.open(io.BytesIO(data)) as file:
        # Pillow would decode a PNG a second time for its EXIF data, which are in a chunk of one of these names.
        exif = any(name in data for name in (b"eXIf", b"Raw profile")) if file.format == "PNG" else file.getexif()
        if file.format in PLAIN and not exif and file.mode in ("RGB", "L", "P"):
            return PLAIN[file.format], data
    return ".png", _png(upright)


def _png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def upload(server: Client, project: int, keys: Sequence[str], request: Request) -> Addresses:
    """Send the pictures to the server."""
    addresses: list[str] = []
    files: dict[str, tuple[str, bytes]] = {}
    for key in keys:
        suffix, content = picture(Path(str(request.pool.at[key, "image"])), key)
        gain = read_bytes(paths.gain_picture(request.round_name, key))
        files |= {f"image{len(files)}": (f"image{suffix}", content), f"gain{len(files)}": ("gain.jpg", gain)}
        if sum(len(content) for _, content in files.values()) > UPLOAD_BYTES:
            addresses += _upload(server, project, files)
            files = {}
    addresses += _upload(server, project, files)
    return list(zip(addresses[::2], addresses[1::2], strict=True))


def _upload(server: Client, project: int, files: Mapping[str, tuple[str, bytes]]) -> list[str]:
    if not files:
        return []
    # Each under a field name of its own: of files in one field the server keeps the last.
    ids = server.upload(f"/api/projects/{project}/import", files, commit_to_project="false")["file_upload_ids"]
    stored = {one["id"]: one["file"] for one in server.get(f"/api/projects/{project}/file-uploads", ids=str(ids))}
    names = [str(stored.get(number, "")) for number in ids]
    for name, (given, _) in zip(names, files.values(), strict=True):
        if not name.endswith(Path(given).suffix):
            raise UserError(f"Label Studio at {server.url} keeps {given!r} as {name!r}: is its disk full?")
    return [f"/data/{name}" for name in names]


def local_files(server: Client, project: int, keys: Sequence[str], request: Request) -> Addresses:
    """Write the pictures where the server reads them; the folder's record in the project is what lets it."""
    root = Path(request.annotate.media)
    if not root.is_dir():
        raise UserError(
            f"annotate.media is {str(root)!r}, which is no folder: name the server's "
            f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT as seen from here, or set annotate.images to upload"
        )
    folder = root / f"regain-{project}"
    addresses = []
    for key in keys:
        suffix, content = picture(Path(str(request.pool.at[key, "image"])), key)
        pictures = {
            f"{key}{suffix}": content,
            f"{key}.gain.jpg": read_bytes(paths.gain_picture(request.round_name, key)),
        }
        for name, data in pictures.items():
            artifacts.write(folder / request.round_name / name, data)
        names = [f"{folder.name}/{request.round_name}/{name}" for name in pictures]
        addresses.append((f"/data/local-files/?d={quote(names[0])}", f"/data/local-files/?d={quote(names[1])}"))
    path = str(folder.resolve())
    records = server.get("/api/storages/localfiles", project=project)
    if path not in [record["path"] for record in records]:
        record = {"project": project, "title": "Regain", "path": path, "use_blob_urls": True}
        server.send("POST", "/api/storages/localfiles", record)  # never to be synced: that makes tasks of its own
    if not server.exists(addresses[0][0]):
        raise UserError(
            f"Label Studio at {server.url} does not serve {addresses[0][0]}: start it with "
            f"LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT="
            f"{root.resolve()}, or set annotate.images to upload"
        )
    return addresses


def address(server: Client, project: int, keys: Sequence[str], request: Request) -> Addresses:
    """Images that have addresses of their own (a cloud's, say); gain maps are uploaded.

    Raises:
        UserError: a block is asked for.
    """
    if cut := next((key for key in keys if blocks.parse(key) is not None), None):
        raise UserError(
            f"annotate.images is {request.annotate.images!r}, where whole images are, not the block {cut!r}: set it to "
            f"upload or local_files"
        )
    files = {
        f"gain{number}": ("gain.jpg", read_bytes(paths.gain_picture(request.round_name, key)))
        for number, key in enumerate(keys)
    }
    gains = _upload(server, project, files)
    return [(request.annotate.images.replace("{key}", key), gain) for key, gain in zip(keys, gains, strict=True)]


PLACES: dict[str, Place] = {"upload": upload, "local_files": local_files}
