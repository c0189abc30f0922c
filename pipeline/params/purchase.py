"""The sections `score`, `select`, `annotate` and `budget`: what is bought, and from whom."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.params.section import Count, NotAll, NotNegative, Parts, Positive, Section, Share

AcquisitionName = Literal[
    "shortfall", "evpi", "gain", "entropy", "margin", "least_confidence", "ripu", "bald", "random"
]
IN_POINTS = ("shortfall", "evpi", "gain")
"""Acquisitions whose gains are in mIoU points, so that predicted and realised gains can be compared in level."""


class Score(Section):
    """How gain is predicted, and for which units: images or blocks."""

    acquisition: AcquisitionName = "shortfall"
    """What predicts the gain: in mIoU points shortfall, evpi or their blend gain; the others are baselines."""
    unit: Literal["image", "block", "region"] = "image"
    """What is scored, chosen, labelled and paid for as one. Once something is bought, it stays."""
    blocks: tuple[Parts, Parts] = (2, 2)
    """Of unit block: rows and columns of equal height and width that every image is cut into, in label pixels."""
    region_scale: Positive = 60.0
    """Of unit region: larger gives larger regions (pipeline/images/region_maps.py)."""
    region_smallest: Count = 40
    """Of unit region: pixels of the smallest region, where an image is cut."""
    seconds_to_open: Positive = 5.0
    """Of unit region: predicted seconds until an image is open, until labels with measured minutes have come back."""
    seconds_per_answer: Positive = 2.5
    """Of unit region: the same for the answer to one region."""
    smooth: NotNegative = 0.01
    """Share of all unions that is added to every class's union, so that absent classes do not dominate."""
    calibrate: bool = True
    """Whether probabilities are calibrated by what was fitted beside the model (section calibration)."""
    minutes_per_image: Positive = 10.0
    """Predicted minutes of an image until labels with measured minutes have come back; then they are fitted to. Of a
    block its share of the image."""
    members: Count = 4
    """Size of the dropout ensemble for evpi, gain and bald: last layers that each ignore some of the features."""
    dropout: NotAll = 0.2
    """Share of the features that each member ignores."""
    blend_end: Share = 0.3
    """Of gain: the share of the shortfall in it, 1 in the first round, falls to this; the rest is evpi."""
    blend_rounds: Count = 3
    """Rounds over which it falls."""
    features: bool = False
    """Whether feature vectors of every image are written too, for the selection methods that compare images. Not for
    blocks."""

    @model_validator(mode="after")
    def _no_features_of_blocks(self) -> "Score":
        if self.unit == "block" and self.features:
            raise ValueError(
                "features is true and unit is block, but features are of whole images: set features: false, and a "
                "select.method that needs none (draw, best_first, class_stratified or class_balanced)"
            )
        return self

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns that images are cut into; None where they are whole."""
        return self.blocks if self.unit == "block" else None


SelectionMethod = Literal[
    "draw",
    "best_first",
    "class_stratified",
    "class_balanced",
    "coreset",
    "badge",
    "clue",
    "coverage",
    "drawn_coverage",
    "representative",
    "learning_curve",
]
BY_FEATURES = ("coreset", "badge", "clue", "coverage", "drawn_coverage", "representative", "learning_curve")
"""Selection methods that compare images by `score.features`."""


class Select(Section):
    """How a round's images are drawn."""

    method: SelectionMethod = "draw"
    """draw: in proportion to gain (Gumbel top-k on log gain); best_first: the highest gains; class_stratified: random,
    as many for every class; class_balanced: the highest gains, balanced over classes. By features (score.features):
    coreset, badge, clue, coverage (what covers the pool's gain), drawn_coverage (the same by chance), representative
    (what the pool's images resemble most, weighted by gain), learning_curve (what adds most to the labels of
    the classes that can still be taught). Shipped is clue; the default stays draw, so that a project whose params.yaml
    lacks the key goes on as it began."""
    start: SelectionMethod | None = None
    """The method of the first purchase, for which there is only the source model; null: as `method`."""
    regions: Literal["draw", "best_first", "random"] = "draw"
    """Of unit region, which regions of a chosen image are asked about; draw: in proportion to gain."""
    regions_per_image: Count | None = 56
    """How many regions of a chosen image are asked about, at most; null: as many as bring most gain per minute, opening
    the image included (with short training that measured worse: docs/clicks.md)."""
    power: NotNegative = 1.0
    """Exponent on the gain: 0 is uniform, large is best first (draw, drawn_coverage)."""
    uniform_share: Share = 0.1
    """Share of the drawing probability that is spread evenly, so that every image can be drawn (draw,
    drawn_coverage)."""
    fallback: bool = True
    """Whether a round is drawn class-stratified instead if the last audit found no signal in the score."""


class Annotate(Section):
    """Where labels come from. Not tracked by DVC: switching it re-runs nothing and re-buys nothing."""

    annotator: Literal["label_studio", "oracle"] = "oracle"
    """label_studio: people; oracle: the known labels of a benchmark."""
    mode: Literal["stop", "wait"] = "stop"
    """stop: exit while people work and continue at the next `dvc repro`; wait: block with a progress bar."""
    oracle_minutes: Positive = 10.0
    """Minutes that the oracle books for every image; for a block its share of the image."""
    oracle_seconds_to_open: Positive = 5.0
    """Seconds that the oracle books for opening an image of whose regions some are asked about."""
    oracle_seconds_per_answer: Positive = 2.5
    """And for the answer to each region."""
    oracle_purity: Share = 0.6
    """The oracle answers *mixed* (no label) for a region of which its commonest class covers a smaller share."""
    cost_per_hour: Positive | None = None
    """What an hour of annotators' time costs, in any currency, for `budget --reach`; null: no money is shown."""
    url: str = "http://127.0.0.1:8080"
    """Where Label Studio is. Its key comes from the environment: LABEL_STUDIO_API_KEY."""
    project: Annotated[str, Field(min_length=3, max_length=50)] = "Regain"
    """Title of the project in Label Studio; created if there is none, found again by this title."""
    images: str = "upload"
    """upload: images are sent to Label Studio; local_files: it reads them from `media`; or an address with {key}."""
    media: str = "data/label_studio/media"
    """Document root of Label Studio's local files, as seen from here; for `images: local_files`."""
    by: Literal["brush", "regions"] = "brush"
    """How whole images and blocks are labelled. brush: by painting; regions: cut into at most 150 regions, of which
    people correct those whose class is wrong. Of unit region it is always by regions."""
    start: Literal["model", "empty"] = "model"
    """What people start from. model: the model's own labels, to be corrected; empty: nothing, so that nobody is led."""
    annotators_per_image: Count = 1
    """So many different people label each image."""
    several: Literal["latest", "majority"] = "latest"
    """Which label counts if there are several and none is marked as ground truth; majority leaves ties unlabelled."""
    min_seconds: NotNegative = 2.0
    """A prediction that is submitted unchanged within this time needs another look."""
    max_share: Share = 0.98
    """So does a label in which one class newly covers more than this share of the image."""

    def oracle_minutes_of(self, share: float, regions: int = 0) -> float:
        """Minutes that the oracle books for this share of an image; or for so many regions of one, and opening it."""
        if not regions:
            return self.oracle_minutes * share
        return (self.oracle_seconds_to_open + regions * self.oracle_seconds_per_answer) / 60

    @model_validator(mode="after")
    def _images_is_a_way(self) -> "Annotate":
        if self.images not in ("upload", "local_files") and "{key}" not in self.images:
            raise ValueError(
                f"images is {self.images!r}: write upload, local_files, or an address with {{key}} for the image's key"
            )
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url is {self.url!r}: write the address of Label Studio, http://HOST:PORT")
        return self


class BudgetLine(Section):
    """One purchase: after which round, and how much, in images or in annotator minutes."""

    after: str
    """The round whose model it starts from; the first starts from r00."""
    images: Count | None = None
    """Images to buy; blocks, each counted as one, if score.unit is block."""
    minutes: Positive | None = None
    """Or minutes of annotators' time to spend, by the clock (docs/decisions/0014)."""

    @model_validator(mode="after")
    def _one_unit(self) -> "BudgetLine":
        if (self.images is None) == (self.minutes is None):
            raise ValueError("give either images or minutes")
        return self

    def __str__(self) -> str:
        """The amount with its unit."""
        amount, unit = (self.images, "image") if self.images is not None else (self.minutes, "minute")
        return f"{amount:g} {unit}{'' if amount == 1 else 's'}"
