"""The sections `model`, `calibration` and `compute`: the network, and where it runs."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.errors import near
from pipeline.params.section import Count, FromZero, NotNegative, Section, Whole

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
"""Encoders of segmentation-models-pytorch; `tu-<name>` is one of timm's."""


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


class Calibration(Section):
    """What makes the model's confidence match its accuracy; fitted beside every model."""

    method: Literal["temperature", "vector"] = "temperature"
    """temperature: one for all classes; vector: a scale and a bias of every class, held to the temperature."""
    start: Literal["none", "source"] = "none"
    """What the source model is calibrated on: nothing, or held-out source images. Later models are calibrated on the
    labels that came back."""


class Compute(Section):
    """Hardware and processes for training and scoring. Not tracked by DVC: it says where, not what."""

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
