"""`python -m pipeline rehearse`: a simulated annotator who works in Label Studio, to rehearse a loop before it is paid.

It knows the pool's own labels and answers with them, through the server's API, with errors of a stated size. It takes
what the label stream gives out, as people do, so that faults of the stream show in the rehearsal. Answers and masks go
through label-studio-sdk, which no other part of the pipeline uses: so the loop reads what a second implementation has
written. The answers bear the name of the key's owner: use a Label Studio project of its own.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import httpx
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from pipeline import artifacts, paths, streams
from pipeline.annotators.contract import Unreachable
from pipeline.annotators.label_studio import client, connection, region_answers, regions
from pipeline.annotators.oracle import by_region, known_label
from pipeline.errors import UserError
from pipeline.images import blocks
from pipeline.images.classes import IGNORE, ClassSet
from pipeline.params import Params

if TYPE_CHECKING:
    import pandas as pd

SMOOTH = 10.0
"""Correlation length of the displacement along a boundary: standard deviation of the Gaussian blur, pixels."""
SPREAD = 0.5
"""Standard deviation of the logarithm of the time for an image."""
PAGE = 500


class Noise(NamedTuple):
    """The simulated annotator's errors and pace, and the seed of everything that is random."""

    jitter: float
    """Pixels by which boundaries are displaced (standard deviation)."""
    swaps: float
    """Share of the connected areas that get a wrong class."""
    skips: float
    """Share of the images that are skipped."""
    seconds: float
    """Median time for an image."""
    seed: int


class Work(NamedTuple):
    """The simulated annotator's answer for one image."""

    mask: UInt8[np.ndarray, "h w"]
    skipped: bool
    seconds: float


def run(params: Params, noise: Noise) -> None:
    """Answer what the label stream gives out, as long as it shows images of this pool, and print how many they were.

    It gives out tasks that need more annotations and have none of the key's owner, so that a second run adds none.

    Raises:
        UserError: the noise cannot be, an image has no known label, the server, the key or the project is not there, or
            the stream does not give what annotators are promised.
    """
    _check(noise)
    url, title = params.annotate.url.rstrip("/"), params.annotate.project
    stream = client.Client(url)  # also refuses a key that is missing, or that the SDK would fail with
    pool = artifacts.load_manifest("pool", params.roots.pool).set_index("key", drop=False)
    classes = artifacts.load_classes()
    table = artifacts.load_ids("pool", classes)
    from label_studio_sdk import LabelStudio  # takes 5 s

    counts = {"answered": 0, "skipped": 0}
    with (
        contextlib.closing(stream),
        _sentences(url),
        connection.connections(follow_redirects=True) as http,
    ):
        key = os.environ[client.KEY].strip()
        server = LabelStudio(base_url=url, api_key=key, timeout=client.TIMEOUT, httpx_client=http)
        project = _project(server, title, url)
        left = {task.id: task.data for task in _open_tasks(server, project)}
        ours, done = sum(_is_ours(data, pool) for data in left.values()), set[int]()
        bar = tqdm(total=ours, desc="rehearse", unit="image", disable=None)
        while (task := _next(stream, project)) is not None and _is_ours(task["data"], pool) and task["id"] not in done:
            name, sent = task["data"]["key"], _sent(task, title)
            work = annotated(_known(_key(name), pool, table), noise, name)
            asked = region_answers.unpack((task["meta"] or {}).get("regions"))
            if work.skipped:
                result = sent
            elif asked is None:
                result = _result(work.mask, sent, classes)
            else:
                result = _answers(work.mask, asked, sent, params.annotate.oracle_purity, classes)
            server.annotations.create(
                task["id"],
                result=result,
                was_cancelled=work.skipped,
                lead_time=work.seconds,
                request_options={"max_retries": 0},  # a lost answer may belong to an annotation that was made
            )
            counts["skipped" if work.skipped else "answered"] += 1
            done.add(task["id"])
            bar.update()
        bar.close()
    unseen = [data["key"] for number, data in left.items() if number not in done and _is_ours(data, pool)]
    if unseen and task is not None and not _is_ours(task["data"], pool):
        raise UserError(
            f"{title}: the label stream gives task {task['id']}, which shows no image of this pool, before "
            f"{unseen[0]!r} ({len(unseen)} in all): rehearse in a Label Studio project of its own (annotate.project)"
        )
    others = f", and {len(unseen)} that the stream does not give to this user" if unseen else ""
    said = f"answered {counts['answered']}, skipped {counts['skipped']}"
    print(f"{title}: {said}, left {len(left.keys() - done) - len(unseen)} that show no image of this pool{others}")


# The simulated annotator's errors


def annotated(truth: UInt8[np.ndarray, "h w"], noise: Noise, name: str) -> Work:
    """The work on one image. Depends on nothing but the arguments, so the order of the images does not matter.

    Args:
        truth: class ids and IGNORE.
        noise: how good the annotator is.
        name: of the task, `ROUND/KEY`.
    """
    rng = streams.rng(noise.seed, "rehearse", name)
    skipped = bool(rng.random() < noise.skips)
    seconds = float(noise.seconds * np.exp(SPREAD * rng.standard_normal()))
    mask = swap(jitter(truth, noise.jitter, rng), noise.swaps, rng)
    return Work(mask, skipped or bool((mask == IGNORE).all()), seconds)  # people skip an image with nothing to paint


def jitter(mask: UInt8[np.ndarray, "h w"], pixels: float, rng: np.random.Generator) -> UInt8[np.ndarray, "h w"]:
    """Displace every boundary, across its direction, by a smooth random amount.

    Args:
        mask: class ids and IGNORE.
        pixels: standard deviation of the displacement.
        rng: where chance comes from.
    """
    height, width = mask.shape
    radius = round(3 * SMOOTH)
    kernel = cv2.getGaussianKernel(2 * radius + 1, SMOOTH, cv2.CV_32F)
    scale = pixels / float((kernel**2).sum())  # the blur multiplies the standard deviation of white noise by this sum
    rows, columns = np.indices((height, width), np.float32)
    for grid in (rows, columns):
        white = rng.standard_normal((height + 2 * radius, width + 2 * radius), np.float32)
        grid += scale * cv2.sepFilter2D(white, -1, kernel, kernel)[radius:-radius, radius:-radius]
    moved: np.ndarray = cv2.remap(mask, columns, rows, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    return moved


def swap(mask: UInt8[np.ndarray, "h w"], share: float, rng: np.random.Generator) -> UInt8[np.ndarray, "h w"]:
    """Give connected areas of one class another class that occurs in the image.

    Args:
        mask: class ids and IGNORE, which stays.
        share: probability of each area.
        rng: where chance comes from.
    """
    swapped = mask.copy()
    present = np.setdiff1d(mask, [IGNORE])
    for number in present if len(present) > 1 else ():
        count, areas = cv2.connectedComponents((mask == number).astype(np.uint8))
        others = rng.choice(present[present != number], count)  # the first is for what is not of this class
        table = np.where(rng.random(count) < share, others, number)
        swapped[mask == number] = table[areas[mask == number]]
    return swapped


def _check(noise: Noise) -> None:
    for name, value in (("swaps", noise.swaps), ("skips", noise.skips)):
        if not 0 <= value <= 1:
            raise UserError(f"--{name} is {value:g}: it is a share, give a number from 0 to 1")
    if not 0 <= noise.jitter < np.inf:
        raise UserError(f"--jitter is {noise.jitter:g}: give a number of pixels, 0 for exact boundaries")
    if not 0 < noise.seconds < np.inf:
        raise UserError(f"--seconds is {noise.seconds:g}: give the time that an image takes, 90 for example")
    if noise.seed < 0:
        raise UserError(f"--seed is {noise.seed}: give 0 or more")


# Through the SDK


def _project(server: Any, title: str, url: str) -> int:
    """The oldest project of exactly this title, as the stage `annotate` takes it."""
    found = [project.id for project in server.projects.list(title=title) if project.title == title]
    if not found:
        raise UserError(
            f"there is no project {title!r} at {url}: run `dvc repro` with annotator: label_studio in {paths.PARAMS}, "
            f"which makes it and sends the images"
        )
    return int(min(found))


def _open_tasks(server: Any, project: int) -> list[Any]:
    """Tasks that have neither an annotation nor a skip, without their regions."""
    include = "id,data,total_annotations,cancelled_annotations"
    tasks = server.tasks.list(project=project, page_size=PAGE, fields="all", include=include)
    return [task for task in tasks if not task.total_annotations and not task.cancelled_annotations]


def _next(stream: client.Client, project: int) -> Any:
    """The task that the editor gets when somebody presses Label All Tasks; None if there is none."""
    try:
        return stream.send("POST", "/api/dm/actions", {"project": project}, id="next_task", project=project)
    except client.NotFound:
        return None


def _sent(task: Mapping[str, Any], title: str) -> list[dict[str, Any]]:
    """The regions that the editor shows for correction."""
    if not task["predictions"]:
        raise UserError(
            f"{title}: the label stream gives {task['data']['key']!r} without the model's own labels: run `dvc repro`, "
            f"which sets the project's settings back, then this again"
        )
    return list(task["predictions"][0]["result"])


def _known(key: str, pool: "pd.DataFrame", table: UInt8[np.ndarray, "256"]) -> UInt8[np.ndarray, "h w"]:
    image = pool.loc[blocks.image_of(key)]
    if not image["mask"]:
        raise UserError(
            f"the simulated annotator has no label for {key!r}, since {image['image']} has no mask to know it from: "
            f"rehearse on a pool that comes with masks (the demo town, say), and let people label this one"
        )
    return known_label(key, pool, table)


def _is_ours(data: Mapping[str, Any], pool: "pd.DataFrame") -> bool:
    """Whether a task shows an image of this pool, or a block of one."""
    name = data.get("key")
    if not isinstance(name, str):
        return False
    image = blocks.image_of(_key(name))
    return image in pool.index and bool(pool.at[image, "sha256"] == data.get("sha256"))


def _key(name: str) -> str:
    """The key of the image or block in the name of a task, `ROUND/KEY`."""
    return name.partition("/")[2]


def _result(mask: UInt8[np.ndarray, "h w"], sent: list[dict[str, Any]], classes: ClassSet) -> list[dict[str, Any]]:
    """The result of a perfect correction: one region per class, under the id of the region that was sent for it."""
    from label_studio_sdk.converter.brush import mask2rle

    ids = {region["value"][regions.TYPE][0]: region["id"] for region in sent}
    height, width = mask.shape
    return [
        {
            "id": ids.get(classes.names[number], f"n{number:02d}"),
            "type": regions.TYPE,
            "from_name": regions.FROM_NAME,
            "to_name": regions.TO_NAME,
            "image_rotation": 0,
            "original_width": width,
            "original_height": height,
            "value": {
                "format": regions.FORMAT,
                "rle": mask2rle(np.where(mask == number, np.uint8(255), np.uint8(0))),
                "brushlabels": [classes.names[number]],
            },
        }
        for number in np.setdiff1d(mask, [IGNORE]).tolist()
    ]


def _answers(
    mask: UInt8[np.ndarray, "h w"],
    asked: region_answers.Questions,
    sent: list[dict[str, Any]],
    purity: float,
    classes: ClassSet,
) -> list[dict[str, Any]]:
    """The result of answering questions about regions: each with the class of most of it, or *mixed*."""
    places = range(1, len(asked.asked) + 1)
    answered, names = by_region(mask, asked.places, places, purity), (*classes.names, region_answers.MIXED)
    answers = {
        region_answers.region_id(region): names[min(answered[asked.places == place].min(), len(classes.names))]
        for region, place in zip(asked.asked, places, strict=True)
    }
    return [
        item | {"value": item["value"] | {region_answers.TYPE: [answers[item["id"]]]}}
        if item["id"] in answers
        else item
        for item in sent
    ]


@contextlib.contextmanager
def _sentences(url: str) -> Iterator[None]:
    """A context in which faults of the SDK become one sentence."""
    from label_studio_sdk.core.api_error import ApiError

    again = "then run this again: it goes on where it stopped"
    try:
        yield
    except ApiError as error:
        body = error.body.get("detail", error.body) if isinstance(error.body, dict) else error.body
        said = " ".join(str(body).split())[:300]
        raise UserError(
            f"Label Studio at {url} answers with {error.status_code} ({said}): look at {client.KEY} and at the "
            f"server's log, {again}"
        ) from None
    except httpx.HTTPError as error:
        why = f"{type(error).__name__}: {error}"
        raise Unreachable(f"Label Studio does not answer at {url} ({why}): start it, {again}") from None
