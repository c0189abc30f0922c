"""A second look at labels that are there: a tab of the project's page that lists exactly their tasks.

In Label Studio, a task that has an annotation is never given out again. Whoever opens it from the list finds the
annotation, and Update makes a new version of it, which `annotate` takes as a correction.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipeline.annotators.label_studio import projects
from pipeline.annotators.label_studio.client import Client
from pipeline.annotators.label_studio.tasks import Task, all_tasks, read_tasks
from pipeline.errors import UserError
from pipeline.images.classes import ClassSet
from pipeline.params import Annotate


class Listed(NamedTuple):
    """What a tab lists."""

    link: str
    """Where it is."""
    keys: list[str]
    """Of the labels whose tasks it lists, in the order wanted."""
    right: list[str]
    """Of those passed over, since an annotation of theirs is marked as ground truth."""
    gone: list[str]
    """Of those of which there is no annotation in Label Studio."""


def list_tasks(
    annotate: Annotate,
    classes: ClassSet,
    by_regions: bool,
    round_name: str,
    wanted: Sequence[str],
    most: int | None,
) -> Listed:
    """Make the round's tab, or change the one there, so that it lists the tasks of the first `most` labels wanted.

    Args:
        annotate: where Label Studio is, and which project.
        classes: that the project has to have.
        by_regions: whether people answer for regions there, instead of painting.
        round_name: that bought the labels.
        wanted: their keys.
        most: how many, passing over what is marked as ground truth; None for all, marked or not.

    Raises:
        UserError: the server cannot be asked, or has none of the tasks.
    """
    server = Client(annotate.url)
    try:
        project = projects.existing(server, annotate, classes, by_regions)
        where = f"the project {annotate.project!r} at {server.url}"
        if project is None:
            raise UserError(f"there is no project {annotate.project!r} at {server.url}: set annotate.url and .project")
        found = _Found([], [], [])
        tasks = {task.key: task for task in all_tasks(server, project) if task.annotated}
        for key in wanted:
            if len(found.tasks) == most:
                break
            task = tasks.get(f"{round_name}/{key}")
            if task is None:
                found.gone.append(key)
            elif most is not None and _is_right(server, task):
                found.right.append(key)
            else:
                found.tasks.append(task)
        if not found.tasks:
            why = f"{len(found.right)} marked as ground truth, {len(found.gone)} without an annotation there"
            raise UserError(f"{where} has no task of {round_name} to look at again ({why}): name labels by their KEY")
        link = f"{server.url}/projects/{project}/data?tab={_tab(server, project, round_name, found.tasks)}"
        keys = [task.key.removeprefix(f"{round_name}/") for task in found.tasks]
        return Listed(link, keys, found.right, found.gone)
    finally:
        server.close()


class _Found(NamedTuple):
    tasks: list[Task]
    right: list[str]
    gone: list[str]


def _is_right(server: Client, task: Task) -> bool:
    """Whether somebody has marked an annotation of the task as ground truth."""
    return any(one.get("ground_truth") for read in read_tasks(server, [task]) for one in read["annotations"])


def _tab(server: Client, project: int, round_name: str, tasks: Sequence[Task]) -> int:
    """The id of the tab that lists these tasks."""
    items = [{"filter": "filter:tasks:id", "operator": "equal", "type": "Number", "value": task.id} for task in tasks]
    title = f"Second look {round_name}"
    data = {**projects.TAB, "title": title, "ordering": [], "filters": {"conjunction": "or", "items": items}}
    for old in _tabs(server, project, title):  # in its place: a changed tab keeps what its filters were
        server.send("DELETE", f"/api/dm/views/{old}", project=project)
    return int(server.send("POST", "/api/dm/views", {"project": project, "data": data})["id"])


def _tabs(server: Client, project: int, title: str) -> Iterator[int]:
    for view in server.get("/api/dm/views", project=project):
        if view["data"].get("title") == title:
            yield int(view["id"])
