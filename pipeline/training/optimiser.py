"""AdamW (Loshchilov and Hutter 2019) in torch's functional form, which holds all of the arithmetic.

`torch.optim.AdamW` calls the same function. What is left out is its base class, whose constructor imports
`torch._dynamo`, a compiler that nothing here uses and that takes seconds to import (docs/decisions/0020).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from pipeline.errors import UserError
from pipeline.networks.architectures import MODELS
from pipeline.networks.network import Network


class AdamW:
    """Bit for bit the steps of `torch.optim.AdamW` with its default betas; it can load that optimiser's state."""

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        """Take groups with `params`, `lr` and `weight_decay`; the rate may be changed before every step."""
        self.param_groups = list(groups)
        self.moments: dict[int, dict[str, Tensor]] = {}
        """Moments and step count of each parameter that has had a gradient, by its number through all groups."""

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        first = 0
        for group in self.param_groups:
            used = [(first + place, one) for place, one in enumerate(group["params"]) if one.grad is not None]
            first += len(group["params"])
            moments = [self.moments.get(number) or self._begin(number, one) for number, one in used]
            adamw(
                [one for _, one in used],
                [one.grad for _, one in used],
                [moment["exp_avg"] for moment in moments],
                [moment["exp_avg_sq"] for moment in moments],
                [],
                [moment["step"] for moment in moments],
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=1e-8,
                maximize=False,
            )

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for group in self.param_groups:
            for one in group["params"]:
                one.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Moments and step counts, for the checkpoint."""
        return {"state": self.moments}

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Restore a `state_dict`, of this class or of `torch.optim.AdamW`."""
        # The count of steps stays on the CPU, where reading it does not wait for the GPU.
        self.moments = {number: {**one, "step": one["step"].cpu()} for number, one in content["state"].items()}

    def _begin(self, number: int, one: Tensor) -> dict[str, Tensor]:
        zero = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(one), "exp_avg_sq": torch.zeros_like(one)}
        self.moments[number] = zero
        return zero


def parameter_groups(
    network: Network, *, lr: float, weight_decay: float, lr_encoder: float, lr_head: float, decay_norms: bool
) -> list[dict[str, Any]]:
    """The network's parameters as groups for the optimiser: every parameter is in exactly one.

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
        UserError: a factor is given for a part that the model does not have.
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
