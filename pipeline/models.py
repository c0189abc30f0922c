"""Segmentation networks by name: uint8 RGB images in, logits of the same height and width out.

`small` is ours, small enough to train from scratch on two cores. Encoder-decoders come from segmentation-models-pytorch
(any of its encoders), DeepLabV3 and LR-ASPP from torchvision.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pipeline.errors import UserError, choose

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet statistics of RGB in [0, 1], as every ImageNet encoder expects them."""


class Network(nn.Module):
    """Normalises images, pads them to what the body can halve, and brings its logits to the input's size."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, multiple: int) -> None:
        super().__init__()
        self.body = body
        self.multiple = multiple
        self.register_buffer("mean", 255 * torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n c h w"]:
        """Logits at the images' size, for any size."""
        height, width = images.shape[-2:]
        x = (images - self.mean) / self.std
        x = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
        logits = self.body(x)
        if isinstance(logits, dict):  # torchvision
            logits = logits["out"]
        if logits.shape[-2:] != x.shape[-2:]:
            logits = F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)
        cropped: Tensor = logits[..., :height, :width]
        return cropped


def _unit(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Small(nn.Module):
    """Four stages at strides 2 to 16, summed top-down as in a feature pyramid (Lin et al. 2017), read at stride 2."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        widths = [width // 4, width // 2, width, 2 * width]
        self.stages = nn.ModuleList(
            nn.Sequential(_unit(before, after, stride=2), _unit(after, after))
            for before, after in zip([3, *widths], widths, strict=False)
        )
        self.context = _unit(widths[-1], widths[-1])
        self.laterals = nn.ModuleList(nn.Conv2d(w, widths[1], 1) for w in widths)
        self.smooth = _unit(widths[1], widths[1])
        self.head = nn.Conv2d(widths[1], classes, 1)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c h2 w2"]:
        """Logits at half the input's size; the input's sides are multiples of 16."""
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        features[-1] = self.context(x)
        top = self.laterals[-1](features[-1])
        for lateral, feature in zip(self.laterals[-2::-1], features[-2::-1], strict=True):
            top = lateral(feature) + F.interpolate(top, scale_factor=2.0, mode="bilinear", align_corners=False)
        logits: Tensor = self.head(self.smooth(top))
        return logits


Build = Callable[[int, str, str | None, int], Network]
"""(classes, encoder, weights, width) -> network."""


def _small(classes: int, encoder: str, weights: str | None, width: int) -> Network:
    if weights is not None:
        raise UserError(f"model.weights is {weights!r}, but `small` has no encoder to load them into: set it to null")
    return Network(Small(classes, width), multiple=16)


def _smp(architecture: str, options: Callable[[int], dict[str, Any]]) -> Build:
    def build(classes: int, encoder: str, weights: str | None, width: int) -> Network:
        import segmentation_models_pytorch as smp  # slow to import, and only these models need it
        import timm

        of_timm = encoder.startswith("tu-") and timm.is_model(encoder.removeprefix("tu-"))
        if encoder not in smp.encoders.get_encoder_names() and not of_timm:
            known = ", ".join(smp.encoders.get_encoder_names())
            raise UserError(f"unknown model.encoder {encoder!r}: choose one of {known}, or tu-<name> for one of timm's")
        download = weights if weights == "imagenet" else None
        try:
            body = smp.create_model(architecture, encoder, encoder_weights=download, classes=classes, **options(width))
        except ValueError as error:
            raise UserError(f"model {architecture} with encoder {encoder!r} and width {width}: {error}") from None
        if weights not in (None, "imagenet"):
            _load(body.encoder, weights, lambda state: state)
        return Network(body, multiple=32)

    return build


def _torchvision(name: str) -> Build:
    def build(classes: int, encoder: str, weights: str | None, width: int) -> Network:
        from torchvision.models import segmentation

        download = "DEFAULT" if weights == "imagenet" else None
        body = segmentation.__dict__[name](weights=None, weights_backbone=download, num_classes=classes, aux_loss=False)
        if weights not in (None, "imagenet"):
            _load(body.backbone, weights, _as_backbone)
        return Network(body, multiple=1)

    return build


def _as_backbone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A classifier's state dict as its backbone names it: no `features.` in front, no classifier."""
    kept = {k.removeprefix("features."): v for k, v in state.items()}
    return {k: v for k, v in kept.items() if not k.startswith(("fc.", "classifier."))}


def _load(encoder: nn.Module, weights: str | None, rename: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = Path(str(weights))
    if not path.is_file():
        raise UserError(f"model.weights {weights!r} not found: give the file of a state dict, `imagenet`, or null")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError):
        raise UserError(f"model.weights {weights!r} is cut short or no file of torch.save: fetch it again") from None
    if not isinstance(state, dict):
        raise UserError(f"model.weights {weights!r} holds a {type(state).__name__}: give the file of a state dict")
    try:
        encoder.load_state_dict(rename(state))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"model.weights {weights!r} do not fit the encoder: {reason}") from None


MODELS: dict[str, Build] = {
    "small": _small,
    "fpn": _smp("fpn", lambda w: {"decoder_pyramid_channels": 2 * w, "decoder_segmentation_channels": w}),
    "unet": _smp("unet", lambda w: {"decoder_channels": (4 * w, 2 * w, w, w // 2, w // 4)}),
    "deeplabv3plus": _smp("deeplabv3plus", lambda w: {"decoder_channels": w}),
    "segformer": _smp("segformer", lambda w: {"decoder_segmentation_channels": w}),
    **{
        name: _torchvision(name)
        for name in (
            "lraspp_mobilenet_v3_large",
            "deeplabv3_mobilenet_v3_large",
            "deeplabv3_resnet50",
            "deeplabv3_resnet101",
        )
    },
}


def build(name: str, *, classes: int, encoder: str, weights: str | None, width: int, rng: torch.Generator) -> Network:
    """A network with fresh weights drawn from `rng`, except for what `weights` gives the encoder.

    Raises:
        UserError: unknown name or encoder, or weights that are missing or do not fit.
    """
    with torch.random.fork_rng(devices=[]):  # torch's initialisers know the global generator only
        torch.manual_seed(int(torch.randint(2**62, (), generator=rng)))
        network = choose("model", MODELS, name)(classes, encoder, weights, width)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # MobileNetV3's 0.01 is too slow for trainings of a few hundred steps
    return network.to(memory_format=torch.channels_last)  # a quarter faster on the CPU, and what tensor cores want
