"""The annotator `label_studio`: sends images with the model's predicted labels to correct, and collects the results.

A task is known by its `data.key`, `ROUND/KEY`, never by its number: numbers are used again after a deletion. What is
missing is sent, what is there is left alone, so a lost answer or a second run makes no second task. The prediction is
kept in the task (`meta`), so that any clone of the project, at any time, compares with what people really saw.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from pipeline import artifacts, ledger
from pipeline.annotators.contract import Answer, HeldBack, Request, Skipped, Unreachable
from pipeline.annotators.label_studio import addresses, annotations, projects, region_answers, region_tasks, regions
from pipeline.annotators.label_studio.client import Client
from pipeline.annotators.label_studio.tasks import MODEL_VERSION, Task, all_tasks, read_tasks, tasks_of_round
from pipeline.errors import UserError
from pipeline.images.classes import IGNORE, ClassSet
from pipeline.ledger.entries import Order
from pipeline.params import Annotate

BATCH = 10
"""Images per import: 4 MB of regions at 2048x1024."""
ATTEMPTS = 3
"""Attempts to send the tasks that are missing, before they are left to the next run."""


def answers(request: Request) -> Iterator[Answer | Skipped | HeldBack]:
    """Send what is not there yet, then yield what people have done.

    Raises:
        Unreachable: the server does not answer; another run goes on from here.
        UserError: the key, the project or its labels are not what they should be.
    """
    classes = request.classes
    server = Client(request.annotate.url)
    try:
        if all(order.key in request.known for order in request.orders):  # only corrections, if any
            project = projects.existing(server, request.annotate, classes, request.by_regions)
            if project is None:
                return
            tasks = tasks_of_round(server, project, request)
        else:
            project = projects.prepared(server, request.annotate, classes, request.by_regions)
            projects.set_up(server, project, request, classes)
            tasks = _send_missing(server, project, request, classes)
            if projects.name_predictions_alike(server, project):
                projects.set_up(server, project, request, classes, model_version=MODEL_VERSION)
            if not request.again:
                _check_stream(server, project, request, tasks)
        for order in request.orders:
            said = [task for task in tasks.get(order.key, ()) if task.annotated or task.skipped]
            if said:
                yield from annotations.come_to(order.key, read_tasks(server, said), request, classes)
    finally:
        server.close()


def _check_stream(server: Client, project: int, request: Request, tasks: Mapping[str, Sequence[Task]]) -> None:
    """Warn if annotators do not get the most valuable image of the round first, with the model's own labels."""
    untouched = [
        order
        for order in request.orders
        if order.key not in request.known
        and not any(task.annotated or task.skipped for task in tasks.get(order.key, ()))
    ]
    first = projects.next_task(server, project) if untouched else None
    if first is None:
        return
    best = max(untouched, key=lambda order: order.gain)
    where = f"the label stream of {server.url}/projects/{project}"
    given, name = first["data"].get("key"), f"{request.round_name}/{best.key}"
    if first["predictions_score"] is None:
        print(
            f"warning: {where} gives out {given!r} without the model's own labels: look at Settings > Annotation there"
        )
    elif given not in [f"{order.round}/{order.key}" for order in untouched if order.gain == best.gain]:
        print(f"warning: {where} gives out {given!r} first, though {name!r} is worth most: is there other work in it?")


def _send_missing(server: Client, project: int, request: Request, classes: ClassSet) -> dict[str, list[Task]]:
    """All tasks of the round by image key, after what was missing has been sent."""
    attempt = 0
    while True:
        tasks = tasks_of_round(server, project, request)
        missing = [order for order in request.orders if order.key not in request.known and order.key not in tasks]
        if not missing:
            return tasks
        missing.sort(key=lambda order: -order.gain)
        attempt += 1
        scores = _scores(request)
        try:
            for start in range(0, len(missing), BATCH):
                _send_batch(server, project, missing[start : start + BATCH], request, classes, scores)
        except Unreachable:  # it may have arrived all the same: look what is there
            if attempt == ATTEMPTS:
                raise
            time.sleep(attempt)


def _scores(request: Request) -> dict[str, float]:
    """By key, the prediction score that orders the label stream, which gives out the lowest score first.

    Within a round 0 is the pool's highest gain, 1 no gain; the scores of a later round lie below those of earlier ones.
    """
    rounds = list(dict.fromkeys(entry.round for entry in ledger.load().entries))
    place = rounds.index(request.round_name) if request.round_name in rounds else len(rounds)
    gains = [*artifacts.load_scores(request.round_name)["gain"], *(order.gain for order in request.orders)]
    highest = max(gains) or 1.0
    return {order.key: 1 - order.gain / highest - place for order in request.orders}


def _send_batch(
    server: Client,
    project: int,
    orders: Sequence[Order],
    request: Request,
    classes: ClassSet,
    scores: Mapping[str, float],
) -> None:
    places = addresses.PLACES.get(request.annotate.images, addresses.address)(
        server, project, [order.key for order in orders], request
    )
    body = []
    for order, (image, gain) in zip(orders, places, strict=True):
        sent = artifacts.load_prediction(order.round, order.key)
        row = request.pool.loc[order.key]
        if sent.shape != (row["height"], row["width"]):
            raise UserError(
                f"the prediction of {order.key!r} is {sent.shape[0]}x{sent.shape[1]}, its image "
                f"{row['height']}x{row['width']}: run `dvc repro -s -f predict@{order.round}`, then `dvc repro`"
            )
        data = {"image": image, "key": f"{order.round}/{order.key}", "sha256": row["sha256"]}
        if gain is not None:
            data["gain"] = gain
        meta, result = _start(order, sent, request, classes)
        prediction = {"model_version": MODEL_VERSION, "score": scores[order.key], "result": result}
        body.append({"data": data, "meta": meta, "predictions": [prediction]})
    server.send("POST", f"/api/projects/{project}/import", body)


def _start(
    order: Order, predicted: UInt8[np.ndarray, "h w"], request: Request, classes: ClassSet
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A task's `meta`, from which its answers are read, and the regions that the editor shows first."""
    if request.by_regions:
        asked = region_tasks.questions(order, predicted, request)
        return {"regions": region_answers.pack(asked)}, region_answers.prediction(asked, classes)
    sent = predicted if request.annotate.start == "model" else np.full_like(predicted, IGNORE)
    return {"sent": annotations.pack(sent)}, regions.prediction(sent, classes)


class Progress(NamedTuple):
    """How many tasks of one round Label Studio has, by their state."""

    sent: int
    started: int
    """Not submitted, but with a draft."""
    done: int
    skipped: int


def progress(annotate: Annotate, rounds: Iterable[str]) -> dict[str, Progress]:
    """How far the annotators are with each round.

    Raises:
        UserError: the server cannot be asked.
    """
    server = Client(annotate.url)
    try:
        found = projects.find_project(server, annotate.project)
        tasks = list(all_tasks(server, int(found["id"]))) if found is not None else []
    finally:
        server.close()
    result = {}
    for name in rounds:
        ours = [task for task in tasks if task.key.startswith(f"{name}/")]
        done = sum(task.annotated > 0 for task in ours)
        skipped = sum(task.skipped > 0 and not task.annotated for task in ours)
        started = sum(task.draft and not task.annotated for task in ours)
        result[name] = Progress(len(ours), started, done, skipped)
    return result
