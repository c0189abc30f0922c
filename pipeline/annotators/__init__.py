"""Where labels come from, by the name in `annotate.annotator`."""

from pipeline.annotators import label_studio, oracle
from pipeline.annotators.contract import Annotator

ANNOTATORS: dict[str, Annotator] = {"label_studio": label_studio.answers, "oracle": oracle.answers}
