"""The project in Label Studio: creating and finding it, checking its labels, and setting it up for a round."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline import artifacts
from pipeline.annotators.contract import Request, Unreachable
from pipeline.annotators.label_studio import addresses, editor
from pipeline.annotators.label_studio.client import Client
from pipeline.annotators.label_studio.region_answers import WITHOUT_CLASS
from pipeline.annotators.label_studio.tasks import MODEL_VERSION, NOT_SKIPPED, OPEN, PAGE, listed
from pipeline.errors import UserError
from pipeline.images import blocks
from pipeline.images.classes import ClassSet
from pipeline.params import IN_POINTS, Annotate

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
"""Settings of the project that the loop relies on; they are restored if somebody has changed them."""
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


def prepared(server: Client, annotate: Annotate, classes: ClassSet, by_regions: bool) -> int:
    """The id of the project of this title, created if there is none, after checking its labels.

    Raises:
        UserError: as of `existing`.
    """
    config = editor.label_config_of_regions(classes) if by_regions else editor.label_config(classes)
    for _ in range(2):  # after making one, look again: a second clone may have made one at the same time
        found = existing(server, annotate, classes, by_regions)
        if found is not None:
            return found
        made = server.send(
            "POST",
            "/api/projects",
            {
                "title": annotate.project,
                "label_config": config,
                "maximum_annotations": annotate.annotators_per_image,
                **SETTINGS,
            },
        )
        server.send("POST", "/api/dm/views", {"project": made["id"], "data": TAB})
    raise Unreachable(f"the project {annotate.project!r} was made at {server.url} but is not there: try again")


def existing(server: Client, annotate: Annotate, classes: ClassSet, by_regions: bool) -> int | None:
    """The id of the project, checked; None if there is none yet.

    Raises:
        UserError: it is for other classes, or for the brush instead of regions, or the other way round; or a class is
            called like one of the answers that are no class.
    """
    if by_regions and (taken := set(classes.names) & set(WITHOUT_CLASS)):
        raise UserError(
            f"a class is called {min(taken)!r}, which is what people answer where no class is right: rename it in "
            f"prepare.classes, or label with the brush"
        )
    found = find_project(server, annotate.project)
    return None if found is None else _check_labels(server, found, annotate, classes, by_regions)


def find_project(server: Client, title: str) -> Mapping[str, Any] | None:
    """The oldest project of exactly this title."""
    found, page = [], 1
    while True:
        answer = server.get("/api/projects", title=title, page=page, page_size=PAGE, include="id,title,label_config")
        found += [project for project in answer["results"] if project["title"] == title]
        if not answer["next"]:
            break
        page += 1
    return min(found, key=lambda project: int(project["id"]), default=None)


def _check_labels(
    server: Client, project: Mapping[str, Any], annotate: Annotate, classes: ClassSet, by_regions: bool
) -> int:
    tag, other = (editor.REGIONS, editor.BRUSHES) if by_regions else (editor.BRUSHES, editor.REGIONS)
    names, config = editor.painted_names(project["label_config"], tag), project["label_config"]
    where = f"the project {annotate.project!r} at {server.url}/projects/{project['id']}"
    if names is None and editor.painted_names(config, other) is not None:
        there, here = ("the brush", "regions") if by_regions else ("regions", "the brush")
        raise UserError(
            f"{where} is made for labels by {there}, and these are by {here}: give annotate.project another name, or "
            f"set annotate.by and score.unit back"
        )
    expected = (*classes.names, *(WITHOUT_CLASS if by_regions else ()))
    if names is None or set(names) != set(expected):
        lacking = ", ".join(repr(name) for name in expected if name not in (names or ())) or "nothing"
        more = ", ".join(repr(name) for name in names or () if name not in expected) or "nothing"
        raise UserError(
            f"the labels of {where} are not those of "
            f"prepare.classes (lacking: {lacking}; unknown: {more}): put them back there under Settings > Labeling "
            f"Interface, or give annotate.project another name"
        )
    return int(project["id"])


def _wanted(annotate: Annotate) -> dict[str, Any]:
    """The settings that the project should have in every round."""
    return {**SETTINGS, "maximum_annotations": annotate.annotators_per_image}  # params.yaml may have been edited since


def _differing(project: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that are not as wanted; those that this version of Label Studio does not have are left out."""
    return {name: value for name, value in wanted.items() if name in project and project[name] != value}


def set_up(server: Client, project: int, request: Request, classes: ClassSet, **more: str) -> None:
    """Set the project's settings and instruction to the round's, and print what somebody else had changed in them."""
    there = server.get(f"/api/projects/{project}")
    changes = _differing(there, _wanted(request.annotate) | more)
    for name, value in changes.items():
        print(f"{request.annotate.project}: {name} was {there[name]!r} in Label Studio, and is set to {value!r}")
    told = instruction(request, classes)
    before = there["expert_instruction"] or ""
    if not editor.says_the_same(before, told):
        if editor.is_edited(before, told):
            print(f"{request.annotate.project}: the instruction was edited in Label Studio, and is set to the round's")
        changes["expert_instruction"] = told
    if changes:
        server.send("PATCH", f"/api/projects/{project}", changes)


def name_predictions_alike(server: Client, project: int) -> bool:
    """Rename the model version of open tasks' predictions (`before r01`, say), so that the label stream shows them.

    Returns:
        Whether there is any prediction under our name; the project takes no other.
    """
    names = set(server.get(f"/api/projects/{project}/model-versions"))
    if names == {MODEL_VERSION}:
        return True
    renamed = False
    other = ("predictions_model_versions", "not_contains", "List", [MODEL_VERSION])
    for task in listed(server, project, [OPEN, other], include="id,data"):
        if isinstance(task["data"].get("key"), str) and isinstance(task["data"].get("sha256"), str):
            for prediction in server.get("/api/predictions", task=task["id"]):
                server.send("PATCH", f"/api/predictions/{prediction['id']}/", {"model_version": MODEL_VERSION})
                renamed = True
    return renamed or MODEL_VERSION in names


def next_task(server: Client, project: int) -> Mapping[str, Any] | None:
    """The task without an annotation that the label stream gives out first; None if it gives none.

    Not by asking the stream itself: a task that it gives out is locked for a day for whoever asked. The list of tasks
    can be put in the same order: it has the same predictions' scores, none where the stream shows no prediction.
    """
    first = listed(server, project, [OPEN, NOT_SKIPPED], ordering="tasks:predictions_score", page_size=1)
    return next(first, None)


def instruction(request: Request, classes: ClassSet) -> str:
    """The round's instruction for annotators, as HTML."""
    orders = [order for order in request.orders if order.key not in request.known]
    scores = artifacts.load_scores(request.round_name).set_index("key")
    columns = [f"gain_{name}" for name in classes.names]
    keys = [blocks.image_of(order.key) if blocks.is_of_regions(order.key) else order.key for order in orders]
    gains = scores.reindex(index=keys, columns=columns).sum()
    expected_points = sum(order.gain for order in orders) if request.acquisition in IN_POINTS else None
    worth = expected_points, dict(zip(classes.names, gains, strict=True))
    write = editor.instruction_of_regions if request.by_regions else editor.instruction
    return write(request.round_name, len(orders), *worth, classes, with_guesses=request.annotate.start == "model")


def check(annotate: Annotate, classes: ClassSet, by_regions: bool = False) -> str:
    """A sentence that says which user the key belongs to and whether there is a project.

    Raises:
        UserError: the server does not answer or refuses the key, or the project has other labels.
    """
    server = Client(annotate.url)
    try:
        who = server.get("/api/current-user/whoami")["email"]
        project = existing(server, annotate, classes, by_regions)
    finally:
        server.close()
    there = "will be made" if project is None else f"is there, {server.url}/projects/{project}"
    return f"Label Studio at {server.url}, as {who}: the project {annotate.project!r} {there}"


def concerns(annotate: Annotate, classes: ClassSet, by_regions: bool = False) -> list[str]:
    """What in the project, if there is one, would mislead annotators, one sentence each.

    Raises:
        UserError: as of `check`.
    """
    server = Client(annotate.url)
    try:
        project = existing(server, annotate, classes, by_regions)
        return [] if project is None else list(_concerns(server, project, annotate))
    finally:
        server.close()


def _concerns(server: Client, project: int, annotate: Annotate) -> Iterator[str]:
    there, title = server.get(f"/api/projects/{project}"), annotate.project
    for name, value in _differing(there, _wanted(annotate)).items():
        yield f"the project {title!r} has {name} {there[name]!r} instead of {value!r}: the next send sets it back"
    controls = ", ".join(map(repr, editor.other_controls(there["label_config"])))
    if controls:
        yield f"the project {title!r} asks for more than labels ({controls}): those answers are passed over"
    keyless = ", ".join(map(repr, editor.keyless_names(there["label_config"])))
    if keyless:
        yield (
            f"the labels {keyless} of the project {title!r} have no hotkey, so that the editor gives them those of its "
            f'tools: add hotkey="{editor.NO_KEY}" to them there under Settings > Labeling Interface > Code'
        )
    first = next_task(server, project)
    if first is not None and isinstance(first["data"].get("sha256"), str):
        if first["predictions_score"] is None:
            yield (
                f"the project {title!r} gives out {first['data'].get('key')!r} without the model's own labels: `dvc "
                f"repro` sets its model_version ({there['model_version']!r}) back"
            )
        fault = addresses.fault(server, first["data"])
        if fault is not None:
            yield f"annotators of the project {title!r} do not see the picture of {first['data'].get('key')!r}: {fault}"
