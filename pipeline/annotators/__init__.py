"""Annotators by their name in `annotate.annotator`: `label_studio` (people) and `oracle` (a benchmark's labels)."""

from collections.abc import Iterator

from pipeline.annotators import oracle
from pipeline.annotators.contract import Annotator, Answer, HeldBack, Request, Skipped


def _label_studio(request: Request) -> Iterator[Answer | Skipped | HeldBack]:
    from pipeline.annotators.label_studio import annotator  # its HTTP client, which the oracle does without

    return annotator.answers(request)


ANNOTATORS: dict[str, Annotator] = {"label_studio": _label_studio, "oracle": oracle.answers}
