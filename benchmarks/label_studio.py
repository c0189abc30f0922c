"""What people's labels cost in time: our annotator beside the same steps through label-studio-sdk, at a real server.

    python -m benchmarks.label_studio [--tasks 100] [--repeats 2]

*Codec*: all classes of one mask to brush RLE and back, alternating. *End to end*: a project is made and the tasks are
sent with their pictures and predictions; every task is answered through the API; the answers are collected as masks.
*Ours* is `pipeline.annotators.label_studio.annotator.answers`, answered through its client; the *SDK*'s is what its
documentation shows. Both have the same files, upload the same pictures, post the same corrections, and end with the
same masks, which is checked. One server, fresh projects, alternating; what counts is the median. *Server* is the time
within httpx, of both: what no client can save. The peak memory is that of fresh processes which send and collect,
`--tasks` and a quarter of that.
"""

import argparse
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import httpx
import numpy as np
import pandas as pd
from jaxtyping import UInt8

from benchmarks import results
from benchmarks.label_studio_by_sdk import CLASSES, ROUND, SECONDS, Masks, Phase, by_sdk
from pipeline import artifacts, datasets, paths, storage
from pipeline.annotators.contract import Answer, Request
from pipeline.annotators.label_studio import annotator, brush, client, regions
from pipeline.annotators.label_studio.client import Client
from pipeline.annotators.label_studio.tasks import all_tasks
from pipeline.images import reading
from pipeline.images.classes import IGNORE
from pipeline.images.masks import load_mask, save_mask
from pipeline.ledger.entries import Order
from pipeline.params import Annotate
from pipeline.town.draw import draw_town

NAME = "label_studio"
SIZE = (1024, 2048)
SCENES = 8
"""So many scenes are drawn, which takes 3 s each; tasks share them, but each has a prediction of its own."""
STRIDE = 4
"""Of the network's output, which is then upsampled."""
CODEC_REPEATS = 9
"""Tasks per import through the SDK."""
PHASES = ("send", "answer", "collect")


def main() -> None:
    """Measure and write docs/results/label_studio.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--peak", nargs=2, metavar=("URL", "PROJECT"), help=argparse.SUPPRESS)  # a fresh process
    given = parser.parse_args()
    if given.peak:
        send_and_collect(ask(given.tasks, *given.peak))
        return

    from tests.server.studio import start_studio  # takes what the fresh processes have no need of

    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        draw(given.tasks)
        coded = codec(artifacts.load_prediction(ROUND, key(0)))
        print(coded, flush=True)
        studio = start_studio(Path("label_studio"))
        os.environ[client.KEY] = studio.token
        try:
            runs = end_to_end(given.tasks, given.repeats, studio.url)
            peaks = [peak(count, studio.url) for count in (given.tasks, given.tasks // 4)]
        finally:
            studio.stop()

    ours, sdk = (
        {part: statistics.median(run[part] for run in runs[side]) for part in runs[side][0]} for side in ("ours", "sdk")
    )
    content = {
        "tasks": given.tasks,
        "size": SIZE,
        "regions": len(CLASSES.names),
        "end_to_end_ratio": sdk["total"] / ours["total"],
        "ratio_to_server": ours["total"] / ours["server"],
        **coded,
        "peak_mib": peaks[0],
        "peak_mib_of_a_quarter_of_the_tasks": peaks[1],
        "seconds": runs,
    }
    table = [
        {
            f"{given.tasks} tasks, {SIZE[1]}x{SIZE[0]}, {len(CLASSES.names)} regions": label,
            **{f"{phase}, s": f"{side[phase]:.1f}" for phase in (*PHASES, "total")},
            "of it in the server, s": f"{side['server']:.1f}",
            "sent, MB": f"{side['sent_mb']:.0f}",
            "received, MB": f"{side['received_mb']:.0f}",
            "encode one, ms": f"{encode:.0f}",
            "decode one, ms": f"{decode:.0f}",
            "peak MiB": memory,
        }
        for label, side, encode, decode, memory in (
            ("ours", ours, coded["encode_ms"], coded["decode_ms"], f"{peaks[0]:.0f} ({peaks[1]:.0f} for a quarter)"),
            ("label-studio-sdk", sdk, coded["sdk_encode_ms"], coded["sdk_decode_ms"], "-"),
        )
    ]
    ratios = [sdk[phase] / ours[phase] for phase in (*PHASES, "total", "server")]
    coding = [coded["encode_ratio"], coded["decode_ratio"]]
    cells = ["SDK / ours", *(f"{r:.2f}" for r in ratios), "", "", *(f"{r:.1f}" for r in coding), ""]
    table.append(dict(zip(table[0], cells, strict=True)))
    results.save(NAME, content, table)
    print(*table, sep="\n")


# What is sent


def key(number: int) -> str:
    """Of a task's image."""
    return f"scene-{number:03}"


def draw(tasks: int) -> None:
    """Pool, predictions, gain pictures, and the labels that people will give, in the working directory."""
    from pipeline.evaluation.pictures import gain_overlay  # matplotlib

    root = Path("town")
    draw_town(root, source=1, pool=SCENES, test=1, size=SIZE, seed=0)
    table = datasets.table("cityscapes", root / "cityscapes", CLASSES)
    samples = datasets.find("cityscapes", root / "cityscapes", "train")
    truths = [reading.read_mask(sample.mask, table) for sample in samples if sample.mask]
    rows = []
    for number, (sample, truth) in zip(range(tasks), itertools.cycle(zip(samples, truths, strict=True))):
        rng = np.random.default_rng(number)
        prediction = predicted(truth, rng)
        save_mask(paths.prediction(ROUND, key(number)), prediction)
        save_mask(paths.mask(key(number)), corrected(prediction, truth, rng))
        gain = cv2.GaussianBlur(rng.random((SIZE[0] // 8, SIZE[1] // 8), np.float32), (0, 0), 8)
        storage.write(paths.gain_picture(ROUND, key(number)), gain_overlay(reading.read_image(sample.image), gain))
        row = {"key": key(number), "image": str(sample.image), "mask": "", "height": SIZE[0], "width": SIZE[1]}
        rows.append(row | {"sha256": f"{number:064x}", "mask_sha256": ""})
    frame = pd.DataFrame(rows)
    artifacts.save_manifest("pool", frame)
    scores = {"gain": 0.01, "minutes": 10.0, **{f"gain_{name}": 0.0005 for name in CLASSES.names}}
    artifacts.save_scores(ROUND, frame[["key"]].assign(**scores))


def predicted(truth: UInt8[np.ndarray, "h w"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w"]:
    """The argmax of what a network might say of a scene: uncertain along boundaries, with islands, in every class."""
    height, width = truth.shape
    small = truth[::STRIDE, ::STRIDE]
    best = np.full(truth.shape, -np.inf, np.float32)
    ids = np.zeros(truth.shape, np.uint8)
    for number in range(len(CLASSES.names)):
        logit = cv2.GaussianBlur((small == number).astype(np.float32), (0, 0), 1.5)
        for blur, weight in ((1.0, 0.05), (8.0, 0.12)):
            white = rng.standard_normal(small.shape, np.float32)
            noise = cv2.GaussianBlur(white, (0, 0), blur)
            logit += weight * noise / noise.std()
        for _ in range(1):  # what is not in the scene is mistaken for something somewhere
            centre = rng.integers(0, small.shape[::-1]).tolist()
            cv2.ellipse(logit, centre, rng.integers(3, 10, 2).tolist(), 0, 0, 360, 2.0, -1)
        full = cv2.resize(logit, (width, height), interpolation=cv2.INTER_LINEAR)
        ids[full > best] = number
        np.maximum(best, full, out=best)
    return ids


def corrected(
    prediction: UInt8[np.ndarray, "h w"], truth: UInt8[np.ndarray, "h w"], rng: np.random.Generator
) -> UInt8[np.ndarray, "h w"]:
    """The prediction, set right in some round places, in which no class gets lost."""
    result = prediction
    for _ in range(12):
        place = np.zeros(truth.shape, np.uint8)
        cv2.circle(place, rng.integers(0, truth.shape[::-1]).tolist(), 70, 1, -1)
        changed = np.where((place == 1) & (truth != IGNORE), truth, result)
        if np.bincount(changed.ravel(), minlength=IGNORE)[: len(CLASSES.names)].all():
            result = changed
    return result


def ask(tasks: int, url: str, project: str) -> Request:
    """What the stage would ask our annotator for."""
    orders = [Order(ROUND, key(n), NAME, CLASSES.name, 0.01 * (n + 1), 10.0, 0.5, "") for n in range(tasks)]
    pool = artifacts.load_manifest("pool").set_index("key", drop=False)
    annotate = Annotate(annotator=NAME, url=url, project=project)
    return Request(ROUND, orders, {}, pool, CLASSES, annotate, "shortfall")


# The codec


def codec(ids: UInt8[np.ndarray, "h w"]) -> dict[str, float]:
    """Milliseconds of all classes of one mask, to RLE and back, and the ratios."""
    from label_studio_sdk.converter.brush import decode_rle, mask2rle

    classes = range(len(CLASSES.names))
    height, width = ids.shape
    ways: dict[str, Callable[[], list[Any]]] = {
        "encode_ms": lambda: list(brush.encode_classes(ids, len(classes)).values()),
        "sdk_encode_ms": lambda: [mask2rle((ids == n).astype(np.uint8) * 255) for n in classes],
    }
    seconds, coded = alternating(ways)
    rles: list[list[int]] = coded["sdk_encode_ms"]  # as they come out of JSON
    if [rle.tolist() for rle in coded["encode_ms"]] != rles:
        raise AssertionError("the codecs write different RLEs")
    ways = {
        "decode_ms": lambda: [brush.decode(bytes(rle), height, width) for rle in rles],
        "sdk_decode_ms": lambda: [decode_rle(rle).reshape(height, width, 4)[..., 3] >= brush.OPAQUE for rle in rles],
    }
    more, decoded = alternating(ways)
    for number, ours, sdk in zip(classes, decoded["decode_ms"], decoded["sdk_decode_ms"], strict=True):
        if not (np.array_equal(ours, ids == number) and np.array_equal(ours, sdk)):
            raise AssertionError(f"the codecs read different masks of {CLASSES.names[number]}")
    times = {name: 1000 * value for name, value in (seconds | more).items()}
    ratios = {f"{what}_ratio": times[f"sdk_{what}_ms"] / times[f"{what}_ms"] for what in ("encode", "decode")}
    return {**ratios, **times, "rle_bytes": sum(map(len, rles))}


def alternating(ways: Mapping[str, Callable[[], list[Any]]]) -> tuple[dict[str, float], dict[str, list[Any]]]:
    """Median seconds of each way, and what it made."""
    seconds: dict[str, list[float]] = defaultdict(list)
    made = {}
    for _ in range(CODEC_REPEATS):
        for name, way in ways.items():
            start = time.perf_counter()
            made[name] = way()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in seconds.items()}, made


# End to end


class Clock:
    """Seconds of each phase, and of all phases in the server and on the way; bytes."""

    def __init__(self) -> None:
        self.parts = dict.fromkeys((*PHASES, "total", "server", "sent_mb", "received_mb"), 0.0)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Within it, requests of any httpx client are watched."""
        send = httpx.Client.send

        def watched(http: httpx.Client, request: httpx.Request, **more: Any) -> httpx.Response:
            began = time.perf_counter()
            answer = send(http, request, **more)
            answer.read()
            self.parts["server"] += time.perf_counter() - began
            self.parts["sent_mb"] += int(request.headers.get("Content-Length", 0)) / 1e6
            self.parts["received_mb"] += answer.num_bytes_downloaded / 1e6
            return answer

        start = time.perf_counter()
        with mock.patch.object(httpx.Client, "send", watched):
            yield
        self.parts[name] += time.perf_counter() - start
        self.parts["total"] += time.perf_counter() - start


def end_to_end(tasks: int, repeats: int, url: str) -> dict[str, list[dict[str, float]]]:
    """The parts of every run, by side."""
    import label_studio_sdk  # noqa: F401  # takes 5 s, which is not counted

    runs: dict[str, list[dict[str, float]]] = {"ours": [], "sdk": []}
    for repeat in range(repeats):
        for side, way in (("ours", by_us), ("sdk", by_sdk)):
            clock = Clock()
            masks = way(ask(tasks, url, f"{side} {repeat}"), clock.phase)
            for number in range(tasks):
                if not np.array_equal(masks.pop(key(number)), load_mask(paths.mask(key(number)))):
                    raise AssertionError(f"{side}: another mask came back for {key(number)}")
            runs[side].append(clock.parts)
            print(side, {name: round(value, 1) for name, value in clock.parts.items()}, flush=True)
    return runs


def by_us(request: Request, phase: Phase) -> Masks:
    """All of it by our code."""
    with phase("send"):
        if list(annotator.answers(request)):
            raise AssertionError("there are answers before anybody answered")
    with phase("answer"):
        answer(request)
    with phase("collect"):
        return {said.key: said.mask for said in annotator.answers(request) if isinstance(said, Answer)}


def answer(request: Request) -> None:
    """Annotate every task through our client."""
    server = Client(request.annotate.url)
    [project] = server.get("/api/projects", title=request.annotate.project)["results"]
    for task in all_tasks(server, project["id"]):
        mask = load_mask(paths.mask(task.key.removeprefix(f"{ROUND}/")))
        body = {"result": regions.prediction(mask, CLASSES), "lead_time": SECONDS}
        server.send("POST", f"/api/tasks/{task.id}/annotations/", body)
    server.close()


# Memory


def peak(tasks: int, url: str) -> float:
    """Peak resident MiB of a process that sends so many tasks and collects their answers one by one."""
    words = ["--tasks", str(tasks), "--peak", url, project := f"peak {tasks}"]
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.label_studio", *words],
        env=os.environ | {"PYTHONPATH": str(results.ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        answer(ask(tasks, url, project))
        said, _ = process.communicate("answered\n")
    if process.returncode:
        raise AssertionError(f"the process that sends and collects ended with {process.returncode}")
    return float(said.split()[-1])


def send_and_collect(request: Request) -> None:
    """Send, wait for a line on stdin, collect, and print this process's peak resident MiB."""
    for _ in annotator.answers(request):
        raise AssertionError("there are answers before anybody answered")
    print("sent", flush=True)
    sys.stdin.readline()
    if sum(isinstance(said, Answer) for said in annotator.answers(request)) != len(request.orders):
        raise AssertionError("not all answers came back")
    print(results.peak_mib())


if __name__ == "__main__":
    main()
