"""The tasks of a project: listing them, finding those of a round, deleting copies, reading annotations."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.annotators.contract import Request, Unreachable
from pipeline.annotators.label_studio.client import Client, NotFound
from pipeline.errors import UserError

PAGE = 500
MODEL_VERSION = "Regain"
"""Model version of all predictions, of every round: the label stream shows, and orders tasks by, only predictions whose
version is the project's `model_version`."""


class Task(NamedTuple):
    """A task of ours, with what the list of tasks says of it."""

    id: int
    key: str
    sha256: str
    """Of the image file that it shows."""
    annotated: int
    """Annotations, skips not counted."""
    skipped: int
    draft: bool


OPEN = ("total_annotations", "equal", "Number", 0)
NOT_SKIPPED = ("cancelled_annotations", "equal", "Number", 0)


def listed(
    server: Client,
    project: int,
    filters: Sequence[tuple[str, str, str, Any]],
    *,
    include: str = "id,data,predictions_score",
    ordering: str | None = None,
    page_size: int = PAGE,
) -> Iterator[Mapping[str, Any]]:
    """The first `page_size` tasks that pass all filters (column, operator, type, value)."""
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


def tasks_of_round(server: Client, project: int, request: Request) -> dict[str, list[Task]]:
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
        Unreachable: the server lists fewer than there are; to send the others again would make copies.
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
    """Ids of the tasks that somebody has begun and not submitted."""
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
    """The tasks of one image that remain after copies which nobody has touched are deleted from the server."""
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
    """Whether the task still exists and has no work in it; read again, since the list may be out of date."""
    try:
        now = server.get(f"/api/tasks/{task.id}", include="id,data,annotations,drafts")
    except NotFound:
        return False
    same = (now["data"].get("key"), now["data"].get("sha256")) == (task.key, task.sha256)
    return same and not now["annotations"] and not now["drafts"]


def read_tasks(server: Client, tasks: Sequence[Task]) -> Iterator[Mapping[str, Any]]:
    """The full JSON of these tasks, annotations included, without the predictions' regions."""
    for task in tasks:
        try:
            content = server.get(f"/api/tasks/{task.id}", include="id,data,meta,annotations")
        except NotFound:
            continue  # deleted since the list was read: the next run sends it again
        if (content["data"].get("key"), content["data"].get("sha256")) == (task.key, task.sha256):
            yield content  # else the number was given to another task since
