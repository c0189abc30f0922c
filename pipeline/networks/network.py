"""The wrapper that every architecture is used through: uint8 RGB images in, logits of the same height and width out."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from pipeline.errors import UserError

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


class Cells(NamedTuple):
    """What enters and leaves the last layer, whose cells may be coarser than the pixels."""

    features: Float[Tensor, "n d h2 w2"]
    logits: Float[Tensor, "n c h2 w2"]
    rows: Int64[Tensor, " h"]
    """The row of cells in which every row of the images' pixels lies; cells that only pad them appear nowhere."""
    cols: Int64[Tensor, " w"]


class Network(nn.Module):
    """Normalises images, pads them to a multiple of the body's stride, and resizes its logits to the images' size."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, multiple: int, parts: Parts | None = None, single: Sequence[str] = ()) -> None:
        super().__init__()
        self.single = tuple(single)
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
        """The body's logits, and the features in its middle that an auxiliary head reads."""
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
            raise UserError(
                f"this model has {len(layers)} last layers, and members and features need one: set model.name to one "
                f"of {', '.join(self.single)}, or score.acquisition to one without members and score.features to false"
            )
        return layers[0]

    def _last_layers(self) -> list[nn.Conv2d]:
        heads = [self.body.get_submodule(name) for name in self.parts.head]
        return [layer for head in heads for layer in head.modules() if isinstance(layer, nn.Conv2d)]

    def with_cells(self, images: UInt8[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n c h w"], Cells]:
        """Logits as from `forward`, and what enters and leaves the last layer on the way to them.

        Raises:
            UserError: as `last_layer`.
        """
        seen: list[Any] = []
        handle = self.last_layer().register_forward_hook(lambda *call: seen.append(call[1:]))
        logits = self(images)
        handle.remove()
        (features,), made = seen[0]

        def places(pixels: int, across: int) -> Int64[Tensor, " pixels"]:
            """The cell in which every pixel's middle lies; the cells span the padded image."""
            padded = pixels + -pixels % self.multiple
            return (2 * torch.arange(pixels, device=made.device) + 1) * across // (2 * padded)

        height, width = images.shape[-2:]
        # A copy of the logits: without upsampling, those of `forward` are the same memory.
        return logits, Cells(
            features.float(),
            made.to(torch.float32, copy=True),
            places(height, made.shape[2]),
            places(width, made.shape[3]),
        )

    def thinned(self, members: int, dropout: float, rng: torch.Generator) -> Float[Tensor, "k c d kh kw"]:
        """Weights of a dropout ensemble: last layers that each ignore a random share of the features.

        Dropout at the time of prediction samples from an approximate posterior of the weights: Gal and Ghahramani 2016,
        "Dropout as a Bayesian Approximation", here of the last layer's weights alone. A member ignores the same
        features everywhere and in every image, so it is one network, images are compared under the same members, and
        all of them cost one convolution.

        Args:
            members: size of the ensemble, k.
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
        """Logits of each dropout-ensemble member, on the cells of `with_cells`."""
        layer, (members, classes) = self.last_layer(), weights.shape[:2]
        bias = None if layer.bias is None else layer.bias.repeat(members)
        made = F.conv2d(features, weights.flatten(0, 1).to(features), bias, layer.stride, layer.padding, layer.dilation)
        logits: Tensor = made.reshape(len(made), members, classes, *made.shape[2:]).transpose(0, 1)
        return logits


def _apart(layer: nn.Module, given: object, logits: Tensor) -> Tensor:
    """In eval mode return contiguous NCHW instead of channels_last.

    Softmax over C then takes a quarter of the time on the CPU, and the copy is cheap before the logits are upsampled.
    In training the loss is faster in channels_last.
    """
    return logits if layer.training else logits.contiguous()


def _logits(output: Any) -> Tensor:
    logits: Tensor = output["out"] if isinstance(output, dict) else output  # a dict is torchvision's
    return logits
