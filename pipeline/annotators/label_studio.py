"""People who label in Label Studio: sends images with the model's own labels to correct, collects what they make of it.

A task is known by its `data.key`, `ROUND/KEY`, never by its number: numbers are used again after a deletion. What is
missing is sent, what is there is left alone, so a lost answer or a second run makes no second task. The prediction that
was sent travels with the task (`meta.sent`), so that any clone, at any time, compares with what people really saw.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pipeline import artifacts, ledger
from pipeline.annotators import annotations, images, interface, regions
from pipeline.annotators.client import Client, NotFound
from pipeline.annotators.contract import Answer, HeldBack, Request, Skipped, Unreachable
from pipeline.errors import UserError
from pipeline.labels import ClassSet
from pipeline.ledger import Order
from pipeline.params import IN_POINTS, Annotate

PAGE = 500
BATCH = 10
"""Images per import: 4 MB of regions at 2048x1024."""
ATTEMPTS = 3
"""So often what is missing is looked for and sent, before it is left to the next run."""
MODEL_VERSION = "Regain"
"""What all predictions are called, those of every round: the label stream shows, and puts in order, only those that are
called as the project's `model_version` says."""
SETTINGS = {
    "show_instruction": True,
    "sampling": "Uncertainty sampling",  # lowest score of the prediction first
    "show_collab_predictions": True,
    "reveal_preannotations_interactively": False,
    "enable_empty_annotation": False,
    "show_skip_button": True,
    "skip_queue": "IGNORE_SKIPPED",  # another image comes in its place
    "show_overlap_first": False,
    "overlap_cohort_percentage": 100,
}
"""Of the project: what the loop counts on, whoever has changed it since."""
TAB = {
    "title": "Most valuable first",
    "ordering": ["tasks:predictions_score"],
    "hiddenColumns": {
        name: ["tasks:inner_id", "tasks:annotations_ids", "tasks:annotations_results", "tasks:predictions_results"]
        for name in ("explore", "labeling")  # all the regions of all rows
    },
}
"""How the project's page lists the tasks. A browser that was not here before and opens `?labeling=1` directly, without
Label All Tasks, is given the tasks in this order."""


class Task(NamedTuple):
    """A task of ours, as the list of tasks tells."""

    id: int
    key: str
    sha256: str
    """Of the image file that it shows."""
    annotated: int
    """Annotations, skips not counted."""
    skipped: int
    draft: bool


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
            project = _existing(server, request.annotate, classes)
            if project is None:
                return
            tasks = _of_round(server, project, request)
        else:
            project = _project(server, request.annotate, classes)
            _set(server, project, request, classes)
            tasks = _send_missing(server, project, request, classes)
            if _name_predictions_alike(server, project):
                _set(server, project, request, classes, model_version=MODEL_VERSION)
            _check_stream(server, project, request, tasks)
        for order in request.orders:
            said = [task for task in tasks.get(order.key, ()) if task.annotated or task.skipped]
            if said:
                yield from annotations.come_to(order.key, _read(server, said), request, classes)
    finally:
        server.close()


# The project


def _project(server: Client, annotate: Annotate, classes: ClassSet) -> int:
    """The project of this title, made if there is none; its labels are ours."""
    for _ in range(2):  # after making one, look again: a second clone may have made one at the same time
        found = _existing(server, annotate, classes)
        if found is not None:
            return found
        made = server.send(
            "POST",
            "/api/projects",
            {
                "title": annotate.project,
                "label_config": interface.label_config(classes),
                "maximum_annotations": annotate.annotators_per_image,
                **SETTINGS,
            },
        )
        server.send("POST", "/api/dm/views", {"project": made["id"], "data": TAB})
    raise Unreachable(f"the project {annotate.project!r} was made at {server.url} but is not there: try again")


def _existing(server: Client, annotate: Annotate, classes: ClassSet) -> int | None:
    found = _find_project(server, annotate.project)
    return None if found is None else _check_labels(server, found, annotate, classes)


def _find_project(server: Client, title: str) -> Mapping[str, Any] | None:
    """The oldest project of exactly this title."""
    found, page = [], 1
    while True:
        answer = server.get("/api/projects", title=title, page=page, page_size=PAGE, include="id,title,label_config")
        found += [project for project in answer["results"] if project["title"] == title]
        if not answer["next"]:
            break
        page += 1
    return min(found, key=lambda project: int(project["id"]), default=None)


def _check_labels(server: Client, project: Mapping[str, Any], annotate: Annotate, classes: ClassSet) -> int:
    names = interface.painted_names(project["label_config"])
    if names is None or set(names) != set(classes.names):
        lacking = ", ".join(repr(name) for name in classes.names if name not in (names or ())) or "nothing"
        more = ", ".join(repr(name) for name in names or () if name not in classes.names) or "nothing"
        raise UserError(
            f"the labels of the project {annotate.project!r} at {server.url}/projects/{project['id']} are not those of "
            f"prepare.classes (lacking: {lacking}; unknown: {more}): put them back there under Settings > Labeling "
            f"Interface, or give annotate.project another name"
        )
    return int(project["id"])


def _wanted(annotate: Annotate) -> dict[str, Any]:
    """Settings of the project that stay over the rounds."""
    return {**SETTINGS, "maximum_annotations": annotate.annotators_per_image}  # params.yaml may have been edited since


def _differing(project: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that are not as they should be. What this Label Studio does not know is none."""
    return {name: value for name, value in wanted.items() if name in project and project[name] != value}


def _set(server: Client, project: int, request: Request, classes: ClassSet, **more: str) -> None:
    """Give the project what the round needs, and say what was changed since the last time."""
    there = server.get(f"/api/projects/{project}")
    changes = _differing(there, _wanted(request.annotate) | more)
    for name, value in changes.items():
        print(f"{request.annotate.project}: {name} was {there[name]!r} in Label Studio, and is set to {value!r}")
    told = _instruction(request, classes)
    before = there["expert_instruction"] or ""
    if not interface.says_the_same(before, told):
        if interface.is_edited(before, told):
            print(f"{request.annotate.project}: the instruction was edited in Label Studio, and is set to the round's")
        changes["expert_instruction"] = told
    if changes:
        server.send("PATCH", f"/api/projects/{project}", changes)


# The label stream: what annotators are given next


def _name_predictions_alike(server: Client, project: int) -> bool:
    """Open tasks that were sent under another name (`before r01`, say) are shown with their predictions, too.

    Returns:
        Whether there is any prediction under our name; the project takes no other.
    """
    names = set(server.get(f"/api/projects/{project}/model-versions"))
    if names == {MODEL_VERSION}:
        return True
    renamed = False
    other = ("predictions_model_versions", "not_contains", "List", [MODEL_VERSION])
    for task in _listed(server, project, [_OPEN, other], include="id,data"):
        if isinstance(task["data"].get("key"), str) and isinstance(task["data"].get("sha256"), str):
            for prediction in server.get("/api/predictions", task=task["id"]):
                server.send("PATCH", f"/api/predictions/{prediction['id']}/", {"model_version": MODEL_VERSION})
                renamed = True
    return renamed or MODEL_VERSION in names


def _next(server: Client, project: int) -> Mapping[str, Any] | None:
    """The task without an annotation that the label stream gives out first; None if it gives none.

    The stream itself cannot be asked: what it gives out is locked for a day, for whoever asks. Its order can: the list
    of tasks has the same predictions' scores, none where the stream shows no prediction.
    """
    first = _listed(server, project, [_OPEN, _NOT_SKIPPED], ordering="tasks:predictions_score", page_size=1)
    return next(first, None)


def _check_stream(server: Client, project: int, request: Request, tasks: Mapping[str, Sequence[Task]]) -> None:
    """Warn if annotators do not get the most valuable image of the round first, with the model's own labels."""
    untouched = [
        order
        for order in request.orders
        if order.key not in request.known
        and not any(task.annotated or task.skipped for task in tasks.get(order.key, ()))
    ]
    first = _next(server, project) if untouched else None
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


_OPEN = ("total_annotations", "equal", "Number", 0)
_NOT_SKIPPED = ("cancelled_annotations", "equal", "Number", 0)


def _listed(
    server: Client,
    project: int,
    filters: Sequence[tuple[str, str, str, Any]],
    *,
    include: str = "id,data,predictions_score",
    ordering: str | None = None,
    page_size: int = PAGE,
) -> Iterator[Mapping[str, Any]]:
    """Tasks that pass all filters (column, operator, type, value): the first `page_size` of them."""
    items = [
        {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}
        for column, operator, kind, value in filters
    ]
    query: dict[str, Any] = {"filters": {"conjunction": "and", "items": items}}
    if ordering is not None:
        query["ordering"] = [ordering]
    answer = server.get(
        "/api/tasks", project=project, page=1, page_size=page_size, query=json.dumps(query), include=include
    )
    yield from answer["tasks"]


# Sending


def _send_missing(server: Client, project: int, request: Request, classes: ClassSet) -> dict[str, list[Task]]:
    """All tasks of the round by image key, after what was missing has been sent."""
    attempt = 0
    while True:
        tasks = _of_round(server, project, request)
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
    """By key, what puts the images in order for the label stream, which gives out the lowest first.

    From 0 for the highest gain of the round's pool to 1; a later round lies below all that is left of those before.
    """
    rounds = list(dict.fromkeys(entry.round for entry in ledger.load().entries))
    place = rounds.index(request.round_name) if request.round_name in rounds else len(rounds)
    gains = [*artifacts.load_scores(request.round_name)["gain"], *(order.gain for order in request.orders)]
    highest = max(gains) or 1.0
    return {order.key: 1 - order.gain / highest - place for order in request.orders}


def _of_round(server: Client, project: int, request: Request) -> dict[str, list[Task]]:
    """The tasks of the round, by image key."""
    prefix, tasks = f"{request.round_name}/", dict[str, list[Task]]()
    for task in all_tasks(server, project):
        key = task.key.removeprefix(prefix)
        if task.key.startswith(prefix) and key in request.pool.index:
            if task.sha256 != request.pool.at[key, "sha256"]:
                raise UserError(
                    f"task {task.id} of the project {request.annotate.project!r} at {server.url} is called "
                    f"{task.key!r} but shows another image: give annotate.project a name of its own"
                )
            tasks.setdefault(key, []).append(task)
    return {key: _without_copies(server, same) for key, same in tasks.items()}


def all_tasks(server: Client, project: int) -> Iterator[Task]:
    """Every task of a project that is of ours, without its regions.

    Raises:
        Unreachable: the server lists fewer than there are; whoever sent the others again would make copies.
    """
    number = int(server.get(f"/api/projects/{project}", include="task_number")["task_number"])
    if not number:
        return  # the list of none is a 404
    # Not /api/tasks: to list an annotated task there, the server reads all its regions, which takes 50 ms at 2048x1024.
    # All in one: this list is in the order of the last change, so that between two pages a task could slip through.
    include = "id,data,total_annotations,cancelled_annotations"
    listed = server.get(f"/api/projects/{project}/tasks/", page_size=-1, include=include)
    if len(listed) < number:
        raise Unreachable(
            f"Label Studio at {server.url} lists {len(listed)} of the {number} tasks of project {project}: try again, "
            f"and if that stays so, have TASK_API_PAGE_SIZE_MAX raised there"
        )
    drafts = _with_drafts(server, project)
    for task in listed:
        key, sha256 = task["data"].get("key"), task["data"].get("sha256")
        if isinstance(key, str) and isinstance(sha256, str):
            counts = int(task["total_annotations"] or 0), int(task["cancelled_annotations"] or 0)
            yield Task(int(task["id"]), key, sha256, *counts, task["id"] in drafts)


def _with_drafts(server: Client, project: int) -> set[int]:
    """Numbers of the tasks that somebody has begun and not submitted."""
    item = {"filter": "filter:tasks:draft_exists", "operator": "equal", "type": "Boolean", "value": True}
    query = json.dumps({"filters": {"conjunction": "and", "items": [item]}})
    drafts, page, total = set[int](), 1, 1
    while len(drafts) < total:
        answer = server.get("/api/tasks", project=project, page=page, page_size=PAGE, query=query, include="id")
        if not answer["tasks"]:
            break
        page, total = page + 1, int(answer["total"])
        drafts |= {int(task["id"]) for task in answer["tasks"]}
    return drafts


def _without_copies(server: Client, same: list[Task]) -> list[Task]:
    """A task that was imported twice: copies that nobody has touched go, before somebody labels the image again."""
    if len(same) == 1:
        return same
    touched = [task for task in same if task.annotated or task.skipped or task.draft]
    kept = touched or [min(same)]
    for task in same:
        if task in kept:
            continue
        if _is_untouched(server, task):
            print(f"{task.key} is {len(same)} times in Label Studio: task {task.id} is deleted, nobody has touched it")
            server.send("DELETE", f"/api/tasks/{task.id}/")
        else:
            kept.append(task)  # the next look sees what is in it
    return kept


def _is_untouched(server: Client, task: Task) -> bool:
    """Whether it is still this task, and without any work: since the list was read, time has passed."""
    try:
        now = server.get(f"/api/tasks/{task.id}", include="id,data,annotations,drafts")
    except NotFound:
        return False
    same = (now["data"].get("key"), now["data"].get("sha256")) == (task.key, task.sha256)
    return same and not now["annotations"] and not now["drafts"]


def _send_batch(
    server: Client,
    project: int,
    orders: Sequence[Order],
    request: Request,
    classes: ClassSet,
    scores: Mapping[str, float],
) -> None:
    addresses = images.PLACES.get(request.annotate.images, images.address)(
        server, project, [order.key for order in orders], request
    )
    body = []
    for order, (image, gain) in zip(orders, addresses, strict=True):
        sent = artifacts.load_prediction(order.round, order.key)
        row = request.pool.loc[order.key]
        if sent.shape != (row["height"], row["width"]):
            raise UserError(
                f"the prediction of {order.key!r} is {sent.shape[0]}x{sent.shape[1]}, its image "
                f"{row['height']}x{row['width']}: run `dvc repro -s -f predict@{order.round}`, then `dvc repro`"
            )
        data = {"image": image, "gain": gain, "key": f"{order.round}/{order.key}", "sha256": row["sha256"]}
        prediction = {
            "model_version": MODEL_VERSION,
            "score": scores[order.key],
            "result": regions.prediction(sent, classes),
        }
        body.append({"data": data, "meta": {"sent": annotations.pack(sent)}, "predictions": [prediction]})
    server.send("POST", f"/api/projects/{project}/import", body)


def _instruction(request: Request, classes: ClassSet) -> str:
    orders = [order for order in request.orders if order.key not in request.known]
    scores = artifacts.load_scores(request.round_name).set_index("key")
    columns = [f"gain_{name}" for name in classes.names]
    gains = scores.reindex(index=[order.key for order in orders], columns=columns).sum()
    expected_points = sum(order.gain for order in orders) if request.acquisition in IN_POINTS else None
    per_class = dict(zip(classes.names, gains, strict=True))
    return interface.instruction(request.round_name, len(orders), expected_points, per_class, classes)


# Collecting


def _read(server: Client, tasks: Sequence[Task]) -> Iterator[Mapping[str, Any]]:
    """Everything that the server has of these tasks but the regions that were sent."""
    for task in tasks:
        try:
            content = server.get(f"/api/tasks/{task.id}", include="id,data,meta,annotations")
        except NotFound:
            continue  # deleted since the list was read; the next run sends it again
        if (content["data"].get("key"), content["data"].get("sha256")) == (task.key, task.sha256):
            yield content  # else the number was given to another task since


# How far they are


def check(annotate: Annotate, classes: ClassSet) -> str:
    """Who we are there, and whether there is a project, in words.

    Raises:
        UserError: the server does not answer or refuses the key, or the project has other labels.
    """
    server = Client(annotate.url)
    try:
        who = server.get("/api/current-user/whoami")["email"]
        project = _existing(server, annotate, classes)
    finally:
        server.close()
    there = "will be made" if project is None else f"is there, {server.url}/projects/{project}"
    return f"Label Studio at {server.url}, as {who}: the project {annotate.project!r} {there}"


def concerns(annotate: Annotate, classes: ClassSet) -> list[str]:
    """What in the project, if there is one, annotators would be misled by; one sentence each.

    Raises:
        UserError: as of `check`.
    """
    server = Client(annotate.url)
    try:
        project = _existing(server, annotate, classes)
        return [] if project is None else list(_concerns(server, project, annotate))
    finally:
        server.close()


def _concerns(server: Client, project: int, annotate: Annotate) -> Iterator[str]:
    there, title = server.get(f"/api/projects/{project}"), annotate.project
    for name, value in _differing(there, _wanted(annotate)).items():
        yield f"the project {title!r} has {name} {there[name]!r} instead of {value!r}: the next send sets it back"
    controls = ", ".join(map(repr, interface.other_controls(there["label_config"])))
    if controls:
        yield f"the project {title!r} asks for more than labels ({controls}): those answers are passed over"
    keyless = ", ".join(map(repr, interface.keyless_names(there["label_config"])))
    if keyless:
        yield (
            f"the labels {keyless} of the project {title!r} have no hotkey, so that the editor gives them those of its "
            f'tools: add hotkey="{interface.NO_KEY}" to them there under Settings > Labeling Interface > Code'
        )
    first = _next(server, project)
    if first is not None and isinstance(first["data"].get("sha256"), str):
        if first["predictions_score"] is None:
            yield (
                f"the project {title!r} gives out {first['data'].get('key')!r} without the model's own labels: `dvc "
                f"repro` sets its model_version ({there['model_version']!r}) back"
            )
        fault = images.fault(server, first["data"])
        if fault is not None:
            yield f"annotators of the project {title!r} do not see the picture of {first['data'].get('key')!r}: {fault}"


class Progress(NamedTuple):
    """Tasks of one round, as Label Studio has them."""

    sent: int
    started: int
    """Not done, but with a draft."""
    done: int
    skipped: int


def progress(annotate: Annotate, rounds: Iterable[str]) -> dict[str, Progress]:
    """How far the annotators are with each round.

    Raises:
        UserError: the server cannot be asked.
    """
    server = Client(annotate.url)
    try:
        found = _find_project(server, annotate.project)
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
