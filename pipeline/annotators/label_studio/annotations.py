"""From the annotations of one image to its answer: a label, a skip, or a reason why it is held back. No I/O."""

import base64
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from pipeline.annotators.contract import Answer, HeldBack, Request, Skipped
from pipeline.annotators.label_studio import region_answers, regions
from pipeline.annotators.label_studio.regions import Refused
from pipeline.images.classes import IGNORE, ClassSet
from pipeline.params import Annotate

UNKNOWN = "unknown"
"""Stands for the author of an annotation who is no longer in Label Studio."""
MOST_SECONDS = 1e7
"""Four months: nobody takes longer over one image."""


def pack(sent: UInt8[np.ndarray, "h w"]) -> str:
    """A mask as text, for a task's `meta`: a PNG in base64."""
    return base64.b64encode(cv2.imencode(".png", sent)[1].tobytes()).decode()


def unpack(text: Any) -> UInt8[np.ndarray, "h w"] | None:
    """The mask that `pack` has written; None for any other text."""
    try:
        data = base64.b64decode(text, validate=True)
    except (TypeError, ValueError):
        return None
    mask: np.ndarray | None = None
    with contextlib.suppress(cv2.error):  # raised instead of None for no bytes, and for a size that cannot be
        mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return mask if mask is not None and mask.ndim == 2 and mask.dtype == np.uint8 else None


class Sent(NamedTuple):
    """What a task was sent with, and how what comes back is read."""

    mask: UInt8[np.ndarray, "h w"]
    """IGNORE where nothing was sent along."""
    read: Callable[[Any, ClassSet], UInt8[np.ndarray, "h w"]]
    """From a result to a mask; raises Refused."""


def sent(meta: Any) -> Sent | None:
    """What a task's `meta` says; None if it does not."""
    if not isinstance(meta, dict):
        return None
    asked = region_answers.unpack(meta.get("regions"))
    if asked is not None:
        return Sent(asked.sent, lambda result, classes: region_answers.mask(result, asked, classes))
    mask = unpack(meta.get("sent"))
    return None if mask is None else Sent(mask, lambda result, classes: regions.mask(result, mask, classes))


class Work(NamedTuple):
    """One person's annotation of one image, as a mask."""

    who: str
    person: str
    """The same for one person's annotations; each unknown author counts as somebody else."""
    mask: UInt8[np.ndarray, "h w"]
    sent: UInt8[np.ndarray, "h w"]
    seconds: float
    truth: bool
    """Marked as ground truth: it counts before all others."""
    at: datetime
    version: str


def come_to(
    key: str, tasks: Iterable[Mapping[str, Any]], request: Request, classes: ClassSet
) -> Iterator[Answer | Skipped | HeldBack]:
    """Yield the answer, skips and labels held back that all annotations of one image amount to.

    Args:
        key: of the image.
        tasks: the tasks that show it (one, unless somebody made a copy) with `meta` and `annotations`, as JSON.
        request: of the round.
        classes: those that can be painted.
    """
    size = (int(request.pool.at[key, "height"]), int(request.pool.at[key, "width"]))
    done: list[Work | Skipped] = []
    held: list[HeldBack] = []
    for task in tasks:
        given = sent(task["meta"])
        if given is None or given.mask.shape != size:
            held.append(HeldBack(key, f"task {task['id']} has lost the prediction that was sent with it: delete it"))
            continue
        for annotation in task["annotations"]:
            try:
                done.append(_work(key, annotation, given, request.annotate, classes))
            except Refused as reason:
                held.append(HeldBack(key, f"annotation {annotation.get('id')} of task {task['id']}: {reason}"))
    works = [one for one in done if isinstance(one, Work)]
    skips = [one for one in done if isinstance(one, Skipped)]
    yield from _decide(key, works, skips, held, request)


def _work(
    key: str, annotation: Mapping[str, Any], given: Sent, annotate: Annotate, classes: ClassSet
) -> Work | Skipped:
    """One annotation read as a mask, or as a skip.

    Raises:
        Refused: it is not a person's, or cannot be a mask, or needs another look.
    """
    seconds, who = annotation.get("lead_time"), _author(annotation.get("completed_by"))
    at = _time(annotation.get("updated_at"))
    if at is None:
        raise Refused(f"it does not say who made it and when ({who!r}, {annotation.get('updated_at')!r}): delete it")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= MOST_SECONDS:
        raise Refused(
            f"its time is {seconds!r} seconds, so a program made it, not a person: open it, check it and press Update, "
            "or delete it"
        )
    seconds = float(seconds)
    version = f"{annotation.get('id')}@{annotation['updated_at']}"
    if annotation.get("was_cancelled"):
        return Skipped(key, seconds / 60, who, version)
    mask, truth = given.read(annotation.get("result"), classes), bool(annotation.get("ground_truth"))
    why = regions.held_back(
        mask, given.mask, seconds, min_seconds=annotate.min_seconds, max_share=annotate.max_share, classes=classes
    )
    if why and not truth:
        raise Refused(f"{why}; if it is right, mark it as ground truth (the star)")
    person = f"annotation {annotation.get('id')}" if who == UNKNOWN else who
    return Work(who, person, mask, given.mask, seconds, truth, at, version)


def _author(made_by: Any) -> str:
    """A user's e-mail address or number; UNKNOWN if the user was deleted, of whom nothing is left."""
    who = made_by.get("email") or made_by.get("id") if isinstance(made_by, dict) else made_by
    if who is None or who == "":
        return UNKNOWN
    if isinstance(who, bool) or not isinstance(who, str | int):
        raise Refused(f"it says that {who!r} made it, who is nobody: delete it")
    return str(who)


def _decide(
    key: str, works: Sequence[Work], skips: Sequence[Skipped], held: Sequence[HeldBack], request: Request
) -> Iterator[Answer | Skipped | HeldBack]:
    """What several annotations amount to: ground truth; else, of enough people, as `annotate.several` says."""
    known = request.known.get(key)
    latest = {work.person: work for work in sorted(works, key=lambda work: work.at)}
    people = sorted(latest.values(), key=lambda work: work.at)
    truths = sorted((work for work in works if work.truth), key=lambda work: work.at)
    enough = len({*latest, *(skip.annotator for skip in skips)}) >= request.annotate.annotators_per_image
    if truths or (people and enough):
        chosen = truths[-1] if truths else people[-1]
        masks = [work.mask for work in people]
        majority = request.annotate.several == "majority" and not truths and len(people) > 1
        mask = regions.majority(masks) if majority else chosen.mask
        answer = Answer(
            key=key,
            mask=mask,
            minutes=sum(work.seconds for work in works) / 60,
            annotator=", ".join(sorted(work.who for work in people)) if majority else chosen.who,
            changed=None if (chosen.sent == IGNORE).all() else regions.changed(mask, chosen.sent),
            agreement=regions.agreement(masks) if len(masks) > 1 else None,
            version=chosen.version,
            agreed=regions.agreed(masks, len(request.classes.names)) if len(masks) > 1 else (),
        )
        if known is None or _is_newer(answer.version, known):
            yield answer
    elif known is None and skips and not people and enough:
        yield max(skips, key=lambda skip: skip.version.rpartition("@")[2])._replace(
            minutes=sum(skip.minutes for skip in skips)
        )
    elif known is None:
        yield from held


def _is_newer(version: str, known: str) -> bool:
    """Whether an annotation was changed since the one on record; a restored database holds older ones.

    A version without a time was not made in Label Studio.
    """
    now, then = (_time(one.rpartition("@")[2]) for one in (version, known))
    return now is not None and then is not None and now > then


def _time(text: Any) -> datetime | None:
    try:
        at = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return at if at.tzinfo else None
