"""Segmentation networks by name: uint8 RGB images in, logits of the same height and width out.

`small` is ours, small enough to train from scratch on two cores. Encoder-decoders come from segmentation-models-pytorch
(any of its encoders), DeepLabV3 and LR-ASPP from torchvision.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.errors import UserError, choose, near
from pipeline.networks.network import Network, Parts
from pipeline.networks.weights import fetched, load


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


Build = Callable[[int, str, str | None, int], nn.Module]
"""(classes, encoder, weights, width) -> body."""


class Architecture(NamedTuple):
    """One line of `MODELS`: how the body of a network is built, and what its modules are called."""

    body: Build
    multiple: int
    """Height and width of the body's input are padded to multiples of this number."""
    parts: Parts


def _small(classes: int, encoder: str, weights: str | None, width: int) -> nn.Module:
    if weights is not None:
        raise UserError(f"model.weights is {weights!r}, but `small` has no encoder to load them into: set it to null")
    return Small(classes, width)


def _smp(architecture: str, options: Callable[[int], dict[str, Any]]) -> Architecture:
    def build(classes: int, encoder: str, weights: str | None, width: int) -> nn.Module:
        import segmentation_models_pytorch as smp  # slow to import, and only these models need it
        import timm

        name = encoder.removeprefix("tu-")
        of_timm = encoder.startswith("tu-") and timm.is_model(name)
        if encoder not in smp.encoders.get_encoder_names() and not of_timm:
            known = smp.encoders.get_encoder_names()
            hint = near(encoder, (f"tu-{each}" for each in timm.list_models()) if encoder != name else known)
            raise UserError(
                f"unknown model.encoder {encoder!r}: {hint}choose one of {', '.join(known)}, or tu-<name> for one of "
                "timm's"
            )
        download = _imagenet(encoder, of_timm) if weights == "imagenet" else nullcontext()
        pretrained = (True if of_timm else weights) if weights == "imagenet" else None
        try:
            with download:
                body = smp.create_model(
                    architecture, encoder, encoder_weights=pretrained, classes=classes, **options(width)
                )
        except (ValueError, KeyError, NotImplementedError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"model {architecture} with encoder {encoder!r} and width {width}: {reason}: take "
                "another model.encoder or model.width"
            ) from None
        if weights not in (None, "imagenet"):
            load(body.encoder, str(weights))
        made: nn.Module = body
        return made

    return Architecture(build, 32, Parts(("segmentation_head",), encoder="encoder", middle="encoder"))


def _imagenet(encoder: str, of_timm: bool) -> AbstractContextManager[None]:
    """Inside, ImageNet weights of one of segmentation-models-pytorch's encoders are fetched."""
    import huggingface_hub
    import timm
    from segmentation_models_pytorch.encoders import encoders

    file, revision = "model.safetensors", None
    if of_timm:
        trained = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
        repository = trained.hf_hub_id if trained else None
    else:
        trained = encoders[encoder]["pretrained_settings"].get("imagenet")
        repository, revision = (trained["repo_id"], trained["revision"]) if trained else (None, None)
    if not repository:
        raise UserError(
            f"model.weights is imagenet, but there are none of {encoder!r}: set it to null or to the path of a file, "
            "or take another model.encoder"
        )
    there = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision)
    url = huggingface_hub.hf_hub_url(repository, file, revision=revision)
    return fetched(encoder, url, cached=isinstance(there, str))


def _torchvision(name: str, head: tuple[str, ...], middle: str | None) -> Architecture:
    def build(classes: int, encoder: str, weights: str | None, width: int) -> nn.Module:
        from torchvision import models
        from torchvision.models import segmentation

        backbone = name.split("_", 1)[1]
        download: AbstractContextManager[None] = nullcontext()
        if weights == "imagenet":
            url = models.get_model_weights(backbone)["DEFAULT"].url
            there = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
            download = fetched(backbone, url, cached=there.is_file())
        trained = "DEFAULT" if weights == "imagenet" else None
        with download:
            body = segmentation.__dict__[name](
                weights=None, weights_backbone=trained, num_classes=classes, aux_loss=False
            )
        if weights not in (None, "imagenet"):
            load(body.backbone, str(weights))
        made: nn.Module = body
        return made

    return Architecture(build, 1, Parts(head, encoder="backbone", middle=middle))


MODELS: dict[str, Architecture] = {
    "small": Architecture(_small, 16, Parts(("head",), middle="stages.2")),
    "fpn": _smp("fpn", lambda w: {"decoder_pyramid_channels": 2 * w, "decoder_segmentation_channels": w}),
    "unet": _smp("unet", lambda w: {"decoder_channels": (4 * w, 2 * w, w, w // 2, w // 4)}),
    "deeplabv3plus": _smp("deeplabv3plus", lambda w: {"decoder_channels": w}),
    "segformer": _smp("segformer", lambda w: {"decoder_segmentation_channels": w}),
    **{
        name: _torchvision(name, head, middle)  # the middle is where torchvision puts its own auxiliary head
        for name, head, middle in (
            ("lraspp_mobilenet_v3_large", ("classifier.low_classifier", "classifier.high_classifier"), None),
            ("deeplabv3_mobilenet_v3_large", ("classifier.4",), "backbone.4"),
            ("deeplabv3_resnet50", ("classifier.4",), "backbone.layer3"),
            ("deeplabv3_resnet101", ("classifier.4",), "backbone.layer3"),
        )
    },
}


def build(name: str, *, classes: int, encoder: str, weights: str | None, width: int, rng: torch.Generator) -> Network:
    """A network with fresh weights drawn from `rng`, except for what `weights` gives the encoder.

    Raises:
        UserError: unknown name or encoder, or weights that are missing or do not fit.
    """
    chosen = choose("model", MODELS, name)
    with _drawn_from(rng):
        single = [other for other, model in MODELS.items() if len(model.parts.head) == 1]
        network = Network(chosen.body(classes, encoder, weights, width), chosen.multiple, chosen.parts, single)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # MobileNetV3's 0.01 is too slow for trainings of a few hundred steps
    return network.to(memory_format=torch.channels_last)  # a quarter faster on the CPU, and what tensor cores want


@contextmanager
def _drawn_from(rng: torch.Generator) -> Iterator[None]:
    """Fresh weights come from `rng`: torch's initialisers know the global generator only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=rng)))
        yield


@contextmanager
def auxiliary_head(network: Network, rng: torch.Generator) -> Iterator[None]:
    """Gives a network a second head for as long as it trains: deep supervision (Lee et al. 2015; PSPNet, Zhao 2017).

    It reads features in the middle of the network, so that the layers before it are told by a short way what to
    learn: 3x3 and 1x1 convolutions as in torchvision's FCNHead. It is gone afterwards, so saved weights are the same
    with and without it.

    Args:
        network: its `forward` takes `auxiliary=True` inside.
        rng: draws the head's weights.

    Raises:
        UserError: the model has no place for one.
    """
    if network.parts.middle is None:
        known = ", ".join(name for name, model in MODELS.items() if model.parts.middle)
        raise UserError(f"this model has no auxiliary head: set auxiliary to 0, or model.name to one of {known}")
    mode, device = network.training, network.mean.device
    with torch.no_grad():  # run once to read off how many channels the middle has: it differs from encoder to encoder
        logits, features = network.eval()._with_middle(torch.zeros(1, 3, 64, 64, device=device))
    network.train(mode)
    classes, channels = logits.shape[1], features.shape[1]
    with _drawn_from(rng):
        head = nn.Sequential(_unit(channels, channels // 4), nn.Conv2d(channels // 4, classes, 1))
    network.auxiliary = head.to(device).to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        network.auxiliary = None
