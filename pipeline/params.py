"""The sections of params.yaml as frozen, closed types; pipeline/params_file.py reads them.

The members of every family are named here a second time, since to import the families takes seconds; so a misspelt name
is refused by every command. So is what a member needs. tests/contracts/ hold each list of names against its family.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipeline import paths
from pipeline.errors import near


def _whole(value: Any) -> Any:
    """`1e3` is a float to YAML and a count to people."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
NotAll = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[Whole, Field(ge=1)]
FromZero = Annotated[Whole, Field(ge=0)]
Parts = Annotated[Whole, Field(ge=1, le=64)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """A section of params.yaml: frozen, closed, strict."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


DatasetName = Literal["gta5", "cityscapes", "camvid", "folder"]


class Data(Section):
    """Where a set of images lies and in which layout."""

    dataset: DatasetName
    """Layout: gta5, cityscapes, camvid or folder."""
    root: str
    """Folder, relative to the working directory or absolute."""
    split: str = "train"
    """Which part of the layout; layouts without splits ignore it."""


class Town(Section):
    """The rendered demo town: how much of it to draw."""

    source: Count
    """Images of the game look, in the GTA5 layout."""
    pool: Count
    """Images of the camera look to buy from, in the Cityscapes layout (train)."""
    test: Count
    """Images of the camera look to measure on, in the Cityscapes layout (val)."""
    size: tuple[Count, Count]
    """Height and width of every image, pixels."""
    seed: Seed
    """Another seed is another town."""


class Prepare(Section):
    """What the loop runs on."""

    classes: str
    """Class set: cityscapes19, camvid11, or the path of a class list (CSV: id, name, red, green, blue)."""
    source: Data
    """Labelled synthetic images."""
    pool: Data
    """Unlabelled target images that may be bought. Masks found here are read by the oracle annotator only."""
    test: Data
    """Labelled target images, for measuring only."""
    size_mismatch: Literal["error", "skip"] = "error"
    """What to do with an image whose mask has another size (GTA5 has some)."""
    town: Town | None = None
    """Draws the demo town into data/town first; leave out with real data."""


ModelName = Literal[
    "small",
    "fpn",
    "unet",
    "deeplabv3plus",
    "segformer",
    "lraspp_mobilenet_v3_large",
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
]
ANY_ENCODER = ("fpn", "unet", "deeplabv3plus", "segformer")
"""Models whose encoder can be chosen."""
ENCODERS = [
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x4d",
    "resnext101_32x8d",
    "resnext101_32x16d",
    "resnext101_32x32d",
    "resnext101_32x48d",
    "dpn68",
    "dpn68b",
    "dpn92",
    "dpn98",
    "dpn107",
    "dpn131",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "senet154",
    "se_resnet50",
    "se_resnet101",
    "se_resnet152",
    "se_resnext50_32x4d",
    "se_resnext101_32x4d",
    "densenet121",
    "densenet169",
    "densenet201",
    "densenet161",
    "inceptionresnetv2",
    "inceptionv4",
    "efficientnet-b0",
    "efficientnet-b1",
    "efficientnet-b2",
    "efficientnet-b3",
    "efficientnet-b4",
    "efficientnet-b5",
    "efficientnet-b6",
    "efficientnet-b7",
    "mobilenet_v2",
    "xception",
    "timm-efficientnet-b0",
    "timm-efficientnet-b1",
    "timm-efficientnet-b2",
    "timm-efficientnet-b3",
    "timm-efficientnet-b4",
    "timm-efficientnet-b5",
    "timm-efficientnet-b6",
    "timm-efficientnet-b7",
    "timm-efficientnet-b8",
    "timm-efficientnet-l2",
    "timm-tf_efficientnet_lite0",
    "timm-tf_efficientnet_lite1",
    "timm-tf_efficientnet_lite2",
    "timm-tf_efficientnet_lite3",
    "timm-tf_efficientnet_lite4",
    "timm-skresnet18",
    "timm-skresnet34",
    "timm-skresnext50_32x4d",
    "mit_b0",
    "mit_b1",
    "mit_b2",
    "mit_b3",
    "mit_b4",
    "mit_b5",
    "mobileone_s0",
    "mobileone_s1",
    "mobileone_s2",
    "mobileone_s3",
    "mobileone_s4",
]
"""Of segmentation-models-pytorch; `tu-<name>` is one of timm's."""


class Model(Section):
    """The segmentation network."""

    name: ModelName
    """small; unet, fpn, deeplabv3plus or segformer with any encoder; one of torchvision's: lraspp_..., deeplabv3_..."""
    size: tuple[Count, Count]
    """Height and width that images are resized to before they enter the network, pixels."""
    encoder: str = "mobilenet_v2"
    """Encoder of unet, fpn, deeplabv3plus and segformer, by its name in segmentation-models-pytorch."""
    weights: str | None = None
    """Encoder weights: a file of a state dict (torch.save or safetensors; of the encoder or of a network that has it),
    `imagenet` to download them, or null for none."""
    width: Annotated[Whole, Field(ge=4)] = 64
    """Channels of the decoder (of the whole network for `small`: its first stage has a quarter)."""

    @model_validator(mode="after")
    def _encoder_is_known(self) -> "Model":
        if self.name in ANY_ENCODER and self.encoder not in ENCODERS and not self.encoder.startswith("tu-"):
            raise ValueError(
                f"encoder is {self.encoder!r}: {near(self.encoder, ENCODERS)}choose one of {', '.join(ENCODERS)}, or "
                "tu-<name> for one of timm's"
            )
        if self.name == "small" and self.weights is not None:
            raise ValueError(
                f"weights is {self.weights!r}, but `small` has no encoder to load them into: set it to null"
            )
        return self


PRESETS: dict[str, dict[str, Any]] = {
    "none": {"scale": (1.0, 1.0), "flip": 0.0, "colour": 0.0, "blur": 0.0, "noise": 0.0},
    "light": {"scale": (0.9, 1.1), "flip": 0.5, "colour": 0.1, "blur": 0.0, "noise": 0.0},
    "standard": {},  # the defaults of the fields
    "strong": {"scale": (0.5, 2.0), "flip": 0.5, "colour": 0.5, "blur": 0.5, "noise": 0.5},  # DeepLab's zoom
}
"""What the fields of `augment` are where params.yaml does not say."""


class Augment(Section):
    """Random changes of training images. 0 switches one off."""

    preset: Literal["none", "light", "standard", "strong"] = "standard"
    """Where the other fields start from: none of them, a few, the defaults below, or wide ranges of them all."""
    scale: tuple[Positive, Positive] = (0.75, 1.5)
    """Smallest and largest random zoom before a crop to the model's size."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    colour: Share = 0.3
    """Strength of random brightness, contrast, saturation (share) and hue (a tenth of it)."""
    blur: Share = 0.2
    """Probability of a slight Gaussian blur."""
    noise: Share = 0.2
    """Probability of sensor noise."""

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        filled = PRESETS.get(str(given.get("preset")), {}) | given
        if isinstance(filled.get("scale"), list):  # no longer JSON, where a list may be a tuple
            filled["scale"] = tuple(filled["scale"])
        return filled

    @model_validator(mode="after")
    def _scale_rises(self) -> "Augment":
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale goes from {self.scale[0]} down to {self.scale[1]}: put the smaller zoom first")
        return self


class Training(Section):
    """One training by likelihood: class-weighted cross-entropy."""

    steps: FromZero
    """Optimiser steps."""
    batch: Count
    """Images per step, over all processes."""
    lr: Positive
    """Peak learning rate of AdamW."""
    warmup: Share = 0.05
    """Share of the steps with a linearly rising rate (slow start)."""
    power: NotNegative = 0.9
    """Exponent of the polynomial decay after the warm-up (DeepLab)."""
    weight_decay: NotNegative = 0.01
    """AdamW's decoupled weight decay."""
    class_smooth: NotNegative = 0.05
    """Class weights w_c = 1/(n_c + class_smooth * sum n), scaled to mean 1. Larger is closer to equal weights."""
    lr_encoder: Positive = 1.0
    """Factor on the encoder's rate; below 1 spares an encoder that comes trained. Only for models that have one."""
    lr_head: Positive = 1.0
    """Factor on the last layer's rate: DeepLab's last_layer_gradient_multiplier, there 10 for new classes."""
    decay_norms: bool = True
    """Whether biases and norms decay as well; false as in CSAIL's semantic-segmentation-pytorch."""
    clip: NotNegative = 0.0
    """Largest norm of the gradient, longer ones are shortened to it (Pascanu et al. 2013); 0 never shortens."""
    hard_pixels: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of a batch's pixels that are learnt from, those with the largest losses (DeepLab's top_k_percent)."""
    hard_pixels_ramp: Share = 0.0
    """Share of the steps over which that falls linearly from 1 to hard_pixels (DeepLab's hard_example_mining_step)."""
    poly1: NotNegative = 0.0
    """Poly-1: cross-entropy + poly1 * (1 - p of the true class), Leng et al. 2022, "PolyLoss"."""
    auxiliary: NotNegative = 0.0
    """Weight of the loss of a second head in the middle of the network while it trains (PSPNet, CSAIL: 0.4)."""
    mix: Literal["none", "mixup", "classmix"] = "none"
    """Images of a batch mixed with each other: blended (Zhang et al. 2018), or half of the classes of one pasted on
    another (Olsson et al. 2021)."""
    augment: Augment = Augment()


RewardName = Literal[
    "pooled_miou",
    "weighted_iou",
    "dice",
    "pixel_accuracy",
    "expected_cost",
    "image_miou",
    "boundary_f1",
    "object_recall",
    "detection",
]
EstimatorName = Literal["counterfactual", "reinforce", "ppo", "soft_iou", "lovasz", "reward_weighted"]
NOT_OF_COUNTS = ("boundary_f1", "object_recall", "detection")
"""Rewards that are more than counts of pixels."""
OF_MIOU = ("pooled_miou", "image_miou")
NEEDS_COUNTS = ("counterfactual", "soft_iou")
"""Estimators that cannot raise a reward of NOT_OF_COUNTS."""
NEEDS_MIOU = ("lovasz",)
"""Estimators that can only raise one of OF_MIOU."""
NEEDS_SAMPLES = ("reinforce", "ppo")
"""Estimators that learn from sampled labellings, so that samples, baseline and credit concern them."""
ANY = "any"
"""In `tune.reward.costs`: every label but the right one."""
WITHOUT_CREDIT = ("image_miou", "detection")
"""Rewards that cannot say which pixel earned them."""


class Reward(Section):
    """The reward stage of `tune`."""

    reward: RewardName = "pooled_miou"
    """What is raised; docs/reward.md says what each is for."""
    estimator: EstimatorName = "counterfactual"
    """counterfactual, reinforce, ppo, soft_iou, lovasz or reward_weighted."""
    steps: FromZero
    """Optimiser steps; 0 leaves the stage out."""
    lr: Positive
    """Peak learning rate of AdamW."""
    lr_end: Share = 0.0
    """Share of the peak that the rate falls to. The slides' best, 1e-4 to 1e-6: lr 1e-4, lr_end 0.01."""
    cross_entropy: NotNegative = 0.5
    """Weight of the class-weighted cross-entropy kept as an anchor."""
    kl: NotNegative = 0.0
    """Weight of KL(p || p of the likelihood model), say 0.02; that model then runs along: half more time."""
    clip: NotNegative = 0.0
    """Longest gradient (L2 norm); longer ones are shortened to it. 0 is no limit."""
    memory: Share = 0.9
    """How much of the running pool statistics is kept from one step to the next."""
    tolerance: FromZero = 2
    """Pixels at the network's size by which a boundary may be off (boundary_f1)."""
    overlap: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of an object's pixels that must be found (object_recall)."""
    costs: dict[str, dict[str, NotNegative]] = {}
    """true class -> label (or `any`) -> cost of that confusion; 1 if not given (expected_cost)."""
    samples: Count = 2
    """Labellings drawn per image and step (reinforce, ppo)."""
    baseline: Literal["none", "two_sample", "leave_one_out", "other_images", "rolling_mean"] = "leave_one_out"
    """What a sampled labelling's reward is held against (reinforce, ppo)."""
    credit: Literal["image", "local"] = "local"
    """One advantage for all labels of an image, or for each pixel that of its surroundings (reinforce, ppo)."""
    unit: Literal["pixel", "patch", "superpixel"] = "pixel"
    """What has one label of its own while it is rewarded."""
    patch: Count = 8
    """Pixels across a patch or superpixel, at the network's size."""
    epochs: Count = 1
    """Steps on the same batch and sample (ppo)."""
    clip_ratio: Positive = 0.2
    """Farthest that a probability's ratio to the sampling policy's counts from 1 (ppo)."""
    validate_every: Count = 10
    """Steps between two looks at the held-out images (tune.held_out); the best weights are kept."""
    patience: FromZero = 0
    """Looks without improvement after which the stage stops early; 0 never does."""

    def clash(self) -> str | None:
        """Why the estimator cannot raise the reward; the estimators themselves say the same once they are asked."""
        if self.estimator in NEEDS_COUNTS and self.reward in NOT_OF_COUNTS:
            return f"{self.estimator} needs a reward of pixel counts: take reinforce or ppo for this one"
        if self.estimator in NEEDS_MIOU and self.reward not in OF_MIOU:
            return f"{self.estimator} is made for pooled_miou and image_miou: take another estimator for this reward"
        if self.estimator not in NEEDS_SAMPLES:
            return None
        if self.samples < 2 and self.baseline in ("two_sample", "leave_one_out"):
            return f"the baseline {self.baseline} needs at least 2 samples, not {self.samples}"
        if self.credit == "image":
            return None
        if self.reward in WITHOUT_CREDIT:
            return "this reward knows no local credit: set credit to image"
        if self.unit != "pixel" and self.reward in NOT_OF_COUNTS:
            return "local credit of this reward is by pixels: set unit to pixel, or credit to image"
        if self.baseline in ("other_images", "rolling_mean"):
            return f"the baseline {self.baseline} knows no local credit: take leave_one_out, or set credit to image"
        return None


class Calibration(Section):
    """What makes the model's confidence match its accuracy; fitted beside every model."""

    method: Literal["temperature", "vector"] = "temperature"
    """temperature: one for all classes; vector: a scale and a bias of every class, held to the temperature."""
    start: Literal["none", "source"] = "none"
    """On what the source model is calibrated: nothing, or held-out source images. Later models are calibrated on the
    labels that came back."""


AcquisitionName = Literal[
    "shortfall", "evpi", "gain", "entropy", "margin", "least_confidence", "ripu", "bald", "random"
]
IN_POINTS = ("shortfall", "evpi", "gain")
"""Those whose gains are in mIoU points, so that their level can be compared with what was realised."""


class Score(Section):
    """How gain is predicted, and of what."""

    acquisition: AcquisitionName = "shortfall"
    """What of an image is its gain: in mIoU points shortfall, evpi or their blend gain; the others to compare."""
    unit: Literal["image", "block"] = "image"
    """What is scored, chosen, labelled and paid for as one. Once something is bought, it stays."""
    blocks: tuple[Parts, Parts] = (2, 2)
    """Of unit block: rows and columns of equal height and width that every image is cut into, in label pixels."""
    smooth: NotNegative = 0.01
    """Share of all unions that is added to every class's union, so that absent classes do not dominate."""
    calibrate: bool = True
    """Whether probabilities are calibrated by what was fitted beside the model (section calibration)."""
    minutes_per_image: Positive = 10.0
    """Predicted minutes of an image until labels with measured minutes have come back; then they are fitted to. Of a
    block its share of the image."""
    members: Count = 4
    """Of the posterior, for evpi, gain and bald: last layers that are each blind to other features."""
    dropout: NotAll = 0.2
    """Share of the features to which a member is blind."""
    blend_end: Share = 0.3
    """Of gain: the share of the shortfall in it, 1 in the first round, falls to this; the rest is evpi."""
    blend_rounds: Count = 3
    """Rounds over which it falls."""
    features: bool = False
    """Whether vectors of every image are written too, for methods of selection that look for different images. Not of
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
"""Those that compare images by `score.features`."""


class Select(Section):
    """How a round's images are drawn."""

    method: SelectionMethod = "draw"
    """draw: in proportion to gain (Gumbel top-k on log gain); best_first: the highest gains; class_stratified: random,
    as many for every class; class_balanced: the highest gains, balanced over classes. By features (score.features):
    coreset, badge, clue, coverage (what covers the pool's gain), drawn_coverage (the same by chance), representative
    (what the pool's images resemble most, weighted by gain), learning_curve (what adds most to the labels of
    the classes that can still be taught)."""
    start: SelectionMethod | None = None
    """The method of the first purchase, for which there is only the source model; none: as `method`."""
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
    url: str = "http://127.0.0.1:8080"
    """Where Label Studio is. Its key comes from the environment: LABEL_STUDIO_API_KEY."""
    project: Annotated[str, Field(min_length=3, max_length=50)] = "Regain"
    """Title of the project in Label Studio; created if there is none, found again by this title."""
    images: str = "upload"
    """upload: images are sent to Label Studio; local_files: it reads them from `media`; or an address with {key}."""
    media: str = "data/label_studio/media"
    """Document root of Label Studio's local files, as seen from here; for `images: local_files`."""
    annotators_per_image: Count = 1
    """So many different people label each image."""
    several: Literal["latest", "majority"] = "latest"
    """Which label counts if there are several and none is marked as ground truth; majority leaves ties unlabelled."""
    min_seconds: NotNegative = 2.0
    """A prediction that is submitted unchanged within this time needs another look."""
    max_share: Share = 0.98
    """So does a label in which one class newly covers more than this share of the image."""

    @model_validator(mode="after")
    def _images_is_a_way(self) -> "Annotate":
        if self.images not in ("upload", "local_files") and "{key}" not in self.images:
            raise ValueError(
                f"images is {self.images!r}: write upload, local_files, or an address with {{key}} for the image's key"
            )
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url is {self.url!r}: write the address of Label Studio, http://HOST:PORT")
        return self


class Tune(Section):
    """Training on the labels bought so far."""

    likelihood: Training
    source_share: NotAll = 0.25
    """Share of every batch that is replayed from the source; where blocks are bought, of its labelled pixels. However
    large, every process learns from a bought label in every step."""
    held_out: NotAll = 0.0
    """Share of the labelled pool images that neither step learns from: they choose the reward stage's best weights."""
    reward: Reward


class Evaluate(Section):
    """Measuring on the test set."""

    calibration_bins: Count = 15
    """Bins of the expected calibration error."""
    decode: Literal["argmax", "expected_iou"] = "argmax"
    """Which labels `miou` is of: the most probable ones, or those of highest expected IoU (Nowozin 2014)."""
    decode_images: Count = 100
    """Images of the pool, spread evenly over it, on whose probabilities the latter are fitted; no label is needed."""


class Report(Section):
    """Tables and pictures."""

    panels: FromZero = 20
    """Sample panels drawn per round, at most, highest gain first."""


class Compute(Section):
    """On what the training and scoring run. Not tracked by DVC: it says where, not what."""

    accelerator: Literal["auto", "cpu", "cuda", "gpu", "mps"] = "auto"
    """auto takes a GPU if there is one; gpu is cuda or mps."""
    processes: Count = 1
    """Processes on this machine, each with one device; under torchrun its own number counts."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Arithmetic; mixed precision changes results slightly."""
    batch: Count = 8
    """Images per forward pass when scoring and measuring, per process."""
    workers: FromZero = 1
    """Background processes that read and augment images, per process."""
    checkpoint_seconds: NotNegative = 30.0
    """How often an unfinished training is saved."""


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


class Roots(NamedTuple):
    """The folders of the data on this machine; the manifests' paths begin there."""

    source: Path
    pool: Path
    test: Path


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
        """The folders alone, for stages to which the rest of `prepare` is in the manifests."""
        return Roots(Path(self.prepare.source.root), Path(self.prepare.pool.root), Path(self.prepare.test.root))

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
"""What a stage may read without declaring it in dvc.yaml: it says where and how, not what."""
