"""Training by likelihood: class-weighted cross-entropy as a loss of the loop, with mixing and auxiliary head."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from pipeline import paths
from pipeline.errors import UserError, choose
from pipeline.images.classes import ClassSet
from pipeline.networks import architectures
from pipeline.networks.devices import Devices
from pipeline.networks.network import Network
from pipeline.params import Compute, Training
from pipeline.training import augmentation, losses
from pipeline.training.batches import Batch
from pipeline.training.loop import Loss, LossFunction, Plan, State


def likelihood_loss(
    weights: Float[Tensor, "c"], settings: Training, shares: Sequence[float] = (), devices: Devices | None = None
) -> LossFunction:
    """Class-weighted cross-entropy as a loss of the loop, with hard pixels, auxiliary head and mixing of `settings`.

    The mean over the processes is the loss of the whole batch, however unevenly its labels are dealt to them. Every
    process mixes images and mines hard pixels within its own part.

    Args:
        weights: of the classes.
        settings: of the training.
        shares: of the loss, of each of the batch's groups, whose losses are averaged over its own labelled pixels.
            Without any, all labelled pixels count alike.
        devices: None: one process.
    """
    mix = choose("mix", augmentation.MIXES, settings.mix)

    def divisor(counts: Tensor) -> Tensor:
        if devices is None or devices.processes == 1:
            return losses.at_least_one(counts)
        everywhere = losses.at_least_one(devices.total(counts)).to(counts.device)
        return everywhere / devices.processes  # the gradients are averaged over processes

    def loss(network: Callable[..., Any], batch: Batch, generator: torch.Generator, state: State) -> Loss:
        step = int(state.get("step", 0))
        kept = losses.kept_share(step, settings.hard_pixels_ramp * settings.steps, settings.hard_pixels)
        images, targets = mix(*batch, generator)

        def value(logits: Tensor) -> Tensor:
            each = [
                share
                * losses.cross_entropy(
                    logits,
                    masks,
                    weights,
                    poly1=settings.poly1,
                    kept=kept,
                    domains=[(of_loss, groups == group) for group, of_loss in enumerate(shares)],
                    divisor=divisor,
                )
                for share, masks, groups in targets
            ]
            return torch.stack(each).sum()

        after = {"step": torch.tensor(step + 1)}
        if not settings.auxiliary:
            return Loss(value(network(images)), {}, after)
        logits, in_the_middle = network(images, auxiliary=True)
        auxiliary = value(in_the_middle)
        return Loss(value(logits) + settings.auxiliary * auxiliary, {"auxiliary": auxiliary}, after)

    return loss


def class_weights(
    pixels: Float64[np.ndarray, " c"], settings: Training, classes: ClassSet, section: str
) -> Float32[Tensor, " c"]:
    """The weights of `losses.class_weights`; an error names `section` of params.yaml.

    Raises:
        UserError: a class has no pixel, and there is no smoothing.
    """
    absent = [name for name, count in zip(classes.names, pixels, strict=True) if not count]
    if absent and not settings.class_smooth:
        raise UserError(
            f"{section}.class_smooth is 0, but no labelled pixel is of {absent[0]!r}, which would weigh infinitely "
            "much: set it above 0, say to 0.05"
        )
    return losses.class_weights(torch.from_numpy(pixels), settings.class_smooth)


def with_auxiliary_head(network: Network, settings: Training, seed: int) -> AbstractContextManager[None]:
    """A context in which the network has the auxiliary head, if `settings` give that head's loss a weight."""
    if not settings.auxiliary:
        return nullcontext()
    return architectures.auxiliary_head(network, torch.Generator().manual_seed(seed))


def likelihood_plan(settings: Training, name: str, seed: int, compute: Compute, fingerprint: str) -> Plan:
    """The loop's plan of a training by likelihood, from its section of params.yaml."""
    return Plan(
        name=name,
        steps=settings.steps,
        lr=settings.lr,
        warmup=settings.warmup,
        power=settings.power,
        weight_decay=settings.weight_decay,
        seed=seed,
        frozen=False,
        checkpoint=paths.checkpoint(name.replace(" ", "-")),
        checkpoint_seconds=compute.checkpoint_seconds,
        fingerprint=fingerprint,
        lr_encoder=settings.lr_encoder,
        lr_head=settings.lr_head,
        decay_norms=settings.decay_norms,
        clip=settings.clip,
    )
