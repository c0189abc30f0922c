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
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from pipeline.errors import UserError, choose, near
from pipeline.weights import fetched, load

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet statistics of RGB in [0, 1], as every ImageNet encoder expects them."""


class Parts(NamedTuple):
    """The modules of a body that a training may treat apart, by their names in it."""

    head: tuple[str, ...] = ()
    """The last layer: what makes logits of features."""
    encoder: str | None = None
    middle: str | None = None
    """What an auxiliary head reads: this module's features, or the last but one of several."""


class Grid(NamedTuple):
    """What enters and leaves the last layer, on its grid of cells, which may be coarser than the pixels."""

    features: Float[Tensor, "n d h2 w2"]
    logits: Float[Tensor, "n c h2 w2"]
    rows: Int64[Tensor, " h"]
    """The row of cells in which every row of the images' pixels lies; cells that only pad them appear nowhere."""
    cols: Int64[Tensor, " w"]


class Network(nn.Module):
    """Normalises images, pads them to what the body can halve, and brings its logits to the input's size."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, multiple: int, parts: Parts | None = None) -> None:
        super().__init__()
        self.body = body
        self.multiple = multiple
        self.parts = parts or Parts()
        self.auxiliary: nn.Module | None = None
        self.register_buffer("mean", 255 * torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(STD).view(3, 1, 1), persistent=False)
        for layer in self._last_layers():
            layer.register_forward_hook(_apart)

    def forward(
        self, images: UInt8[Tensor, "n 3 h w"], auxiliary: bool = False
    ) -> Float[Tensor, "n c h w"] | tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
        """Logits at the images' size, for any size; with `auxiliary`, those of the auxiliary head as well."""
        height, width = images.shape[-2:]
        x = (images - self.mean) / self.std
        x = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")

        def sized(logits: Tensor) -> Tensor:
            if logits.shape[-2:] != x.shape[-2:]:
                logits = F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)
            return logits[..., :height, :width]

        if not auxiliary:
            return sized(_logits(self.body(x)))
        if self.auxiliary is None:
            raise AssertionError("there is an auxiliary head inside `auxiliary_head` only")
        logits, features = self._with_middle(x)
        return sized(logits), sized(self.auxiliary(features))

    def _with_middle(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Tensor, Tensor]:
        """The body's logits, and the features on its way to them that an auxiliary head reads."""
        seen: list[Any] = []
        middle = self.body.get_submodule(str(self.parts.middle))
        handle = middle.register_forward_hook(lambda *call: seen.append(call[-1]))
        logits = _logits(self.body(x))
        handle.remove()
        features: Tensor = seen[0] if isinstance(seen[0], Tensor) else seen[0][-2]
        return logits, features

    def values_per_channel(self, size: tuple[int, int]) -> int:
        """The fewest values that a batch norm is given by one image: 1 cannot be normalised while training.

        Raises:
            UserError: the model does not take images of this size.
        """
        seen: list[int] = []
        norms = [module for module in self.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        handles = [
            norm.register_forward_pre_hook(lambda _, given: seen.append(given[0][:, 0].numel())) for norm in norms
        ]
        mode = self.training
        image = torch.zeros(1, 3, *size, dtype=torch.uint8, device=self.mean.device)
        try:
            with torch.inference_mode():  # in evaluation mode, which leaves the statistics as they are
                self.eval()(image)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"model.size is {list(size)}, which this model cannot take: {reason}: choose another size or model"
            ) from None
        finally:
            for handle in handles:
                handle.remove()
            self.train(mode)
        return min(seen, default=2)

    def last_layer(self) -> nn.Conv2d:
        """The one convolution that makes logits of features.

        Raises:
            UserError: the model has several.
        """
        layers = self._last_layers()
        if len(layers) != 1:
            known = ", ".join(name for name, model in MODELS.items() if len(model.parts.head) == 1)
            raise UserError(
                f"this model has {len(layers)} last layers, and members and features need one: set model.name to one "
                f"of {known}, or score.acquisition to one without members and score.features to false"
            )
        return layers[0]

    def _last_layers(self) -> list[nn.Conv2d]:
        heads = [self.body.get_submodule(name) for name in self.parts.head]
        return [layer for head in heads for layer in head.modules() if isinstance(layer, nn.Conv2d)]

    def with_grid(self, images: UInt8[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n c h w"], Grid]:
        """Logits as from `forward`, and what enters and leaves the last layer on the way to them.

        Raises:
            UserError: as `last_layer`.
        """
        seen: list[Any] = []
        handle = self.last_layer().register_forward_hook(lambda *call: seen.append(call[1:]))
        logits = self(images)
        handle.remove()
        (features,), made = seen[0]

        def cells(pixels: int, across: int) -> Int64[Tensor, " pixels"]:
            """The cell in which every pixel's middle lies; the cells span the padded image."""
            padded = pixels + -pixels % self.multiple
            return (2 * torch.arange(pixels, device=made.device) + 1) * across // (2 * padded)

        height, width = images.shape[-2:]
        # A copy of the logits: without upsampling, those of `forward` are the same memory.
        grid = Grid(
            features.float(),
            made.to(torch.float32, copy=True),
            cells(height, made.shape[2]),
            cells(width, made.shape[3]),
        )
        return logits, grid

    def thinned(self, members: int, dropout: float, rng: torch.Generator) -> Float[Tensor, "k c d kh kw"]:
        """Weights of so many last layers, each blind to a random share of the features: members of a posterior.

        Dropout at the time of prediction samples from an approximate posterior of the weights: Gal and Ghahramani 2016,
        "Dropout as a Bayesian Approximation", here of the last layer's weights alone. A member is blind to the same
        features everywhere and in every image, so it is one network, images are compared under the same members, and
        all of them cost one convolution.

        Args:
            members: how many.
            dropout: probability of a feature to be dropped; the others are scaled up by 1 / (1 - dropout).
            rng: draws what is dropped, on the CPU.

        Raises:
            UserError: as `last_layer`.
        """
        weight = self.last_layer().weight
        kept = torch.rand(members, 1, weight.shape[1], 1, 1, generator=rng) >= dropout
        return weight.detach() * kept.to(weight.device) / (1 - dropout)

    def by_members(
        self, features: Float[Tensor, "n d h2 w2"], weights: Float[Tensor, "k c d kh kw"]
    ) -> Float[Tensor, "k n c h2 w2"]:
        """Logits of thinned last layers, on the grid of `with_grid`."""
        layer, (members, classes) = self.last_layer(), weights.shape[:2]
        bias = None if layer.bias is None else layer.bias.repeat(members)
        made = F.conv2d(features, weights.flatten(0, 1).to(features), bias, layer.stride, layer.padding, layer.dilation)
        logits: Tensor = made.reshape(len(made), members, classes, *made.shape[2:]).transpose(0, 1)
        return logits


def _apart(layer: nn.Module, given: object, logits: Tensor) -> Tensor:
    """Where nothing is trained, the last layer leaves the pixels of a class side by side, not the classes of a pixel.

    Before the logits grow to the image's size that costs little, and softmax then takes a quarter of the time on the
    CPU. The loss wants them as they come.
    """
    return logits if layer.training else logits.contiguous()


def _logits(output: Any) -> Tensor:
    logits: Tensor = output["out"] if isinstance(output, dict) else output  # a dict is torchvision's
    return logits


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
    """How a network is made."""

    body: Build
    multiple: int
    """Of which number the sides of the body's input are multiples."""
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
        network = Network(chosen.body(classes, encoder, weights, width), chosen.multiple, chosen.parts)
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
    with torch.no_grad():  # what comes out of the middle is seen, not worked out: it differs from encoder to encoder
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


def parameter_groups(
    network: Network, *, lr: float, weight_decay: float, lr_encoder: float, lr_head: float, decay_norms: bool
) -> list[dict[str, Any]]:
    """The network's parameters as groups of an optimiser: every parameter is in one of them.

    Args:
        network: with its parts named.
        lr: peak rate.
        weight_decay: of every group that decays.
        lr_encoder: factor on the encoder's rate (an encoder that comes trained: less than 1).
        lr_head: factor on the last layer's rate (DeepLab's last-layer gradient multiplier: 10).
        decay_norms: whether biases and norms decay too, that is all vectors (CSAIL's semantic-segmentation-pytorch
            leaves them out).

    Returns:
        One group per rate and decay, in the order of `network.parameters()`; `peak` is its own rate.

    Raises:
        UserError: a factor is given for a part that the model has not.
    """
    if lr_encoder != 1 and network.parts.encoder is None:
        known = ", ".join(name for name, model in MODELS.items() if model.parts.encoder)
        raise UserError(
            f"lr_encoder is {lr_encoder:g}, but this model has no encoder: set it to 1, or model.name to one of {known}"
        )
    encoder = f"body.{network.parts.encoder}."
    head = tuple(f"body.{name}." for name in network.parts.head)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        factor = lr_encoder if name.startswith(encoder) else lr_head if name.startswith(head) else 1.0
        decay = weight_decay if decay_norms or parameter.ndim > 1 else 0.0
        group = {"params": [], "lr": lr * factor, "peak": lr * factor, "weight_decay": decay}
        groups.setdefault((factor, decay), group)["params"].append(parameter)
    return list(groups.values())
