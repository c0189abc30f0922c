"""The sections of params.yaml as frozen, closed types; pipeline/params_file.py reads them.

The names of the members of every family, and what members need, stand here a second time, because importing the
families takes seconds: so every command refuses a misspelt name. tests/contracts/ compare each list with its family.
"""

from pathlib import Path
from typing import Literal, get_args

from pydantic import model_validator

from pipeline import paths
from pipeline.params.data import SPLITS, Data, Prepare, Roots, Town
from pipeline.params.model import ENCODERS, Calibration, Compute, Model
from pipeline.params.purchase import BY_FEATURES, IN_POINTS, Annotate, BudgetLine, Score, Select, SelectionMethod
from pipeline.params.section import Count, FromZero, Points, Section, Seed
from pipeline.params.training import (
    ANY,
    NEEDS_COUNTS,
    NEEDS_MIOU,
    NEEDS_SAMPLES,
    NOT_OF_COUNTS,
    OF_MIOU,
    PRESETS,
    WITHOUT_CREDIT,
    Augment,
    Reward,
    Training,
    Tune,
)

__all__ = [
    "ANY",
    "BY_FEATURES",
    "ENCODERS",
    "IN_POINTS",
    "NEEDS_COUNTS",
    "NEEDS_MIOU",
    "NEEDS_SAMPLES",
    "NOT_OF_COUNTS",
    "OF_MIOU",
    "PRESETS",
    "SPLITS",
    "UNTRACKED",
    "WITHOUT_CREDIT",
    "Annotate",
    "Augment",
    "BudgetLine",
    "Calibration",
    "Compute",
    "Data",
    "Evaluate",
    "Model",
    "Params",
    "Prepare",
    "Report",
    "Reward",
    "Roots",
    "Score",
    "Section",
    "Select",
    "Town",
    "Training",
    "Tune",
]


class Evaluate(Section):
    """Measuring on the test set."""

    calibration_bins: Count = 15
    """Bins of the expected calibration error."""
    decode: Literal["argmax", "expected_iou"] = "argmax"
    """Which labels `miou` is of: the most probable ones, or those of highest expected IoU (Nowozin 2014)."""
    decode_images: Count = 100
    """For expected_iou: images of the pool, evenly spread, on which the decoder is fitted; it needs no labels."""


class Report(Section):
    """Tables and pictures."""

    panels: FromZero = 20
    """Sample panels drawn per round, at most, highest gain first."""
    reach: Points | None = None
    """The mIoU to be reached, in points: status, summary and curve say what it takes (docs/decisions/0024)."""


class Params(Section):
    """All of params.yaml."""

    launch: str = "python -m pipeline"
    """How the stages that use the network start; `torchrun --nproc-per-node 4 -m pipeline` for 4 GPUs."""
    seed: Seed
    """Another seed is another run: initial weights, batches, augmentation, draws."""
    budget: dict[str, BudgetLine]
    """One line per round."""
    prepare: Prepare
    model: Model
    pretrain: Training
    calibration: Calibration = Calibration()
    score: Score = Score()
    select: Select = Select()
    annotate: Annotate = Annotate()
    tune: Tune
    evaluate: Evaluate = Evaluate()
    report: Report = Report()
    compute: Compute = Compute()

    @property
    def roots(self) -> "Roots":
        """Only the folders of `prepare`; stages take the rest from the manifests."""
        return Roots(Path(self.prepare.source.root), Path(self.prepare.pool.root), Path(self.prepare.test.root))

    @property
    def by_regions(self) -> bool:
        """Whether people answer for regions in the editor, instead of painting."""
        return self.score.unit == "region" or self.annotate.by == "regions"

    @model_validator(mode="after")
    def _rounds_form_one_chain(self) -> "Params":
        previous = paths.SOURCE_ROUND
        for name, line in self.budget.items():
            if name == paths.SOURCE_ROUND or not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"budget: {name!r} is no name for a round; use r01, r02, ...")
            if line.after != previous:
                raise ValueError(
                    f"budget: {name} comes after {line.after!r}, but the line before it is {previous!r}; "
                    f"write `{name}: {{after: {previous}, ...}}`"
                )
            previous = name
        return self

    @model_validator(mode="after")
    def _reward_and_estimator_go_together(self) -> "Params":
        reward = self.tune.reward
        if reward.steps and (why := reward.clash()):
            raise ValueError(f"tune.reward: estimator {reward.estimator} with reward {reward.reward}: {why}")
        return self

    @model_validator(mode="after")
    def _selection_has_what_it_compares(self) -> "Params":
        for field in ("method", "start"):
            method = getattr(self.select, field)
            if method not in BY_FEATURES:
                continue
            without = ", ".join(name for name in get_args(SelectionMethod) if name not in BY_FEATURES)
            if self.score.unit == "block":
                raise ValueError(
                    f"select.{field} is {method}, which compares features, and score.unit is block, of which there are "
                    f"none: choose one of {without}"
                )
            if not self.score.features:
                raise ValueError(
                    f"select.{field} is {method}, which compares features, and there are none: set score.features: "
                    f"true, or select.{field} to one of {without}"
                )
        if self.score.unit == "block" and self.annotate.images not in ("upload", "local_files"):
            raise ValueError(
                f"annotate.images is {self.annotate.images!r}, where no blocks are: set it to upload or local_files"
            )
        return self


UNTRACKED = ("annotate", "compute", "roots")
"""Sections that a stage may read without declaring them in dvc.yaml: they say where and how to work, not what on."""
