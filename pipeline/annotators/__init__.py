"""Annotators by their name in `annotate.annotator`: `label_studio` (people) and `oracle` (a benchmark's labels)."""

from pipeline.annotators import oracle
from pipeline.annotators.contract import Annotator
from pipeline.annotators.label_studio import annotator

ANNOTATORS: dict[str, Annotator] = {"label_studio": annotator.answers, "oracle": oracle.answers}
