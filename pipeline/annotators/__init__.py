"""Where labels come from, by the name in `annotate.annotator`."""

from pipeline.annotators import oracle
from pipeline.annotators.contract import Annotator
from pipeline.annotators.label_studio import annotator

ANNOTATORS: dict[str, Annotator] = {"label_studio": annotator.answers, "oracle": oracle.answers}
