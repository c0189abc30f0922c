"""The plain way through label-studio-sdk, as its documentation shows it, for `benchmarks.label_studio`."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
from jaxtyping import UInt8

from pipeline import artifacts, paths
from pipeline.annotators.contract import Request
from pipeline.annotators.label_studio import brush, client, editor
from pipeline.images.classes import CLASS_SETS, IGNORE
from pipeline.images.masks import load_mask

CLASSES = CLASS_SETS["cityscapes19"]
ROUND = "r01"
BATCH = 25
SECONDS = 60.0
"""What every annotation takes."""
Phase = Callable[[str], AbstractContextManager[None]]
"""Takes the time of a phase."""
Masks = dict[str, UInt8[np.ndarray, "h w"]]


def by_sdk(request: Request, phase: Phase) -> Masks:
    """The same by the SDK's calls and codec."""
    from label_studio_sdk import LabelStudio

    url, token = request.annotate.url, os.environ[client.KEY]
    keys = [order.key for order in request.orders]
    with phase("send"):
        ls = LabelStudio(base_url=url, api_key=token, timeout=client.TIMEOUT)
        project = ls.projects.create(
            title=request.annotate.project,
            label_config=editor.label_config(CLASSES),
            show_instruction=True,
            expert_instruction="please correct",
            show_collab_predictions=True,
        ).id
        ids = []
        for start in range(0, len(keys), BATCH):
            some = keys[start : start + BATCH]
            addresses = upload(ls, url, token, project, some, request.pool)
            body = []
            for name, (image, gain) in zip(some, addresses, strict=True):
                digest = request.pool.at[name, "sha256"]
                data = {"image": image, "gain": gain, "key": f"{ROUND}/{name}", "sha256": digest}
                result = sdk_regions(artifacts.load_prediction(ROUND, name))
                body.append({"data": data, "predictions": [{"model_version": "r00", "score": 0.5, "result": result}]})
            ids += ls.projects.import_tasks(project, request=body, return_task_ids=True).task_ids
    with phase("answer"):
        for name, task in zip(keys, ids, strict=True):
            result = sdk_regions(load_mask(paths.mask(name)))
            ls.annotations.create(id=task, result=result, lead_time=SECONDS)
    with phase("collect"):
        collected = {}
        for task in ls.projects.exports.as_json(project):  # no slower than ls.tasks.list(fields="all")
            name = task["data"]["key"].removeprefix(f"{ROUND}/")
            [annotation] = task["annotations"]
            collected[name] = overlaid(annotation["result"], artifacts.load_prediction(ROUND, name))
        return collected


def upload(
    ls: Any, url: str, token: str, project: int, keys: Sequence[str], pool: pd.DataFrame
) -> list[tuple[str, str]]:
    """Upload images and gain pictures, for which the SDK has no call, and look up where they are, for which it has."""
    files = {}
    for name in keys:
        files[f"image {name}"] = ("image.png", Path(pool.at[name, "image"]).read_bytes())
        files[f"gain {name}"] = ("gain.jpg", paths.gain_picture(ROUND, name).read_bytes())
    answered = httpx.post(
        f"{url}/api/projects/{project}/import",
        params={"commit_to_project": "false"},
        files=files,
        headers={"Authorization": f"Token {token}"},
        timeout=client.TIMEOUT,
    )
    ids = answered.raise_for_status().json()["file_upload_ids"]
    stored = {file.id: f"/data/{file.file}" for file in ls.files.list(project, ids=str(ids))}
    return [(stored[image], stored[gain]) for image, gain in zip(ids[::2], ids[1::2], strict=True)]


def sdk_regions(ids: UInt8[np.ndarray, "h w"]) -> list[dict[str, Any]]:
    """One region per class, by the SDK's codec."""
    from label_studio_sdk.converter.brush import mask2rle

    height, width = ids.shape
    return [
        {
            "id": f"c{number:02d}",
            "type": "brushlabels",
            "from_name": "label",
            "to_name": "image",
            "image_rotation": 0,
            "original_width": width,
            "original_height": height,
            "value": {
                "format": "rle",
                "rle": mask2rle((ids == number).astype(np.uint8) * 255),
                "brushlabels": [CLASSES.names[number]],
            },
        }
        for number in np.unique(ids).tolist()
    ]


def overlaid(result: Sequence[Mapping[str, Any]], sent: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """The mask that was meant, by the SDK's codec: pixels that were added win over those that were sent."""
    from label_studio_sdk.converter.brush import decode_rle

    mask = np.full(sent.shape, IGNORE, np.uint8)
    added = []
    for region in result:
        number = CLASSES.names.index(region["value"]["brushlabels"][0])
        now = decode_rle(region["value"]["rle"]).reshape(*sent.shape, 4)[:, :, 3] >= brush.OPAQUE
        new = now & (sent != number)
        mask[now & ~new] = number
        added.append((number, new))
    for number, new in added:
        mask[new] = number
    return mask
