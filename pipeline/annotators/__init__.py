"""Where labels come from, by the name in `annotate.annotator`."""

from pipeline.annotators.contract import Annotator
from pipeline.annotators.oracle import oracle

ANNOTATORS: dict[str, Annotator] = {"oracle": oracle}
