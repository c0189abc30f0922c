"""The sections `pretrain` and `tune`: training by likelihood, and for the reward."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.params.section import Count, FromZero, NotAll, NotNegative, Positive, Section, Share

PRESETS: dict[str, dict[str, Any]] = {
    "none": {"scale": (1.0, 1.0), "flip": 0.0, "colour": 0.0, "blur": 0.0, "noise": 0.0},
    "light": {"scale": (0.9, 1.1), "flip": 0.5, "colour": 0.1, "blur": 0.0, "noise": 0.0},
    "standard": {},  # the defaults of the fields
    "strong": {"scale": (0.5, 2.0), "flip": 0.5, "colour": 0.5, "blur": 0.5, "noise": 0.5},  # DeepLab's zoom
}
"""Defaults of the fields of `augment`, by preset."""


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
    """Share of a batch's labelled pixels that are trained on, those with the largest losses (DeepLab's
    top_k_percent)."""
    hard_pixels_ramp: Share = 0.0
    """Part of the steps over which that share falls linearly from 1 to hard_pixels (DeepLab's
    hard_example_mining_step)."""
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
"""Estimators that can only raise a reward of OF_MIOU."""
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
    """Decay of the running pool statistics: the share of them that is kept from one step to the next."""
    tolerance: FromZero = 2
    """Pixels at the network's size by which a boundary may be off (boundary_f1)."""
    overlap: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of an object's pixels that must be found (object_recall)."""
    costs: dict[str, dict[str, NotNegative]] = Field(default={})
    """true class -> label (or `any`) -> cost of that confusion; 1 if not given (expected_cost)."""
    samples: Count = 2
    """Labellings drawn per image and step (reinforce, ppo)."""
    baseline: Literal["none", "two_sample", "leave_one_out", "other_images", "rolling_mean"] = "leave_one_out"
    """What is subtracted from a sampled labelling's reward (reinforce, ppo)."""
    credit: Literal["image", "local"] = "local"
    """One advantage for all labels of an image, or for each pixel that of its surroundings (reinforce, ppo)."""
    unit: Literal["pixel", "patch", "superpixel"] = "pixel"
    """What has one label of its own while it is rewarded."""
    patch: Count = 8
    """Pixels across a patch or superpixel, at the network's size."""
    epochs: Count = 1
    """Steps on the same batch and sample (ppo)."""
    clip_ratio: Positive = 0.2
    """The ratio of a probability to the sampling policy's is clipped to 1 - this ... 1 + this (ppo)."""
    validate_every: Count = 10
    """Steps between two validations on the held-out images (tune.held_out); the best weights are kept."""
    patience: FromZero = 0
    """Validations without improvement after which the stage stops early; 0 never does."""

    def clash(self) -> str | None:
        """Why the estimator cannot raise the reward, or None; the estimators themselves refuse the same."""
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


class Tune(Section):
    """Training on the labels bought so far."""

    likelihood: Training
    source_share: NotAll = 0.25
    """Share of every batch that is replayed from the source, and of the likelihood's loss, however few pixels of the
    target are labelled. However large, every process learns from a bought label in every step."""
    held_out: NotAll = 0.0
    """Share of the labelled pool images that neither step trains on: they choose the reward stage's best weights."""
    reward: Reward
