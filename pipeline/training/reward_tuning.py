"""Tuning for the reward: the training loop's loss, the sum of an estimator's loss, cross-entropy and KL.

It logs the reward, and how noisy its gradient is: spread of the advantages, cosine between half batches.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline import estimators, rewards
from pipeline.errors import UserError, choose
from pipeline.estimators import ESTIMATORS, Estimate, Problem, Rollout, units
from pipeline.images.claims import highest
from pipeline.images.classes import IGNORE, ClassSet
from pipeline.images.items import Item
from pipeline.networks import inference
from pipeline.networks.devices import Devices
from pipeline.networks.inference import Output
from pipeline.networks.network import Network
from pipeline.params import ANY, Compute, Model, Reward
from pipeline.rewards import REWARDS, RewardFunction
from pipeline.training import loop, losses
from pipeline.training.batches import Batch
from pipeline.training.loop import Loss, LossFunction, State

OWN = tuple(f"own_{name}" for name in Rollout._fields)
"""Names, in the loss's state, of the rollout that PPO has drawn for this process's part of the batch."""


def reward_function(settings: Reward, weights: Tensor, classes: ClassSet) -> RewardFunction:
    """The reward that `tune.reward` names, made with its settings.

    Raises:
        UserError: the reward, or a class that has a cost, is unknown.
    """
    ids = {name: number for number, name in enumerate(classes.names)}
    costs = 1 - torch.eye(len(ids), dtype=torch.float64)
    for true, by_label in settings.costs.items():
        row = choose("class in tune.reward.costs", ids, true)
        for label, cost in sorted(by_label.items(), key=lambda one: one[0] != ANY):  # what is named counts
            costs[row, slice(None) if label == ANY else choose("class in tune.reward.costs", ids, label)] = cost
        costs[row, row] = 0
    numbers = rewards.Settings(len(ids), weights.double().cpu(), costs, settings.tolerance, settings.overlap)
    return choose("tune.reward.reward", REWARDS, settings.reward).make(numbers)


def held_out_reward(
    devices: Devices, reward: RewardFunction, items: Sequence[Item], model: Model, compute: Compute
) -> Callable[[Network], float]:
    """A function from a network to the reward of its argmax labels on labelled pool images that it is not trained on.

    Raises:
        UserError: when it is called, nothing in their labels can be rewarded.
    """

    def validate(network: Network) -> float:
        statistics = nothing(reward)  # there may be fewer images than processes
        for out in inference.outputs(devices, network, items, model.size, compute, "held out"):
            statistics = statistics + seen(reward, out, model.size)
        value = float(reward.value(devices.total(statistics)).total)
        if math.isnan(value):
            raise UserError(
                f"tune.held_out: the labels of the {len(items)} images that are held out ({items[0].key!r}, ...) have "
                "nothing to reward: hold out more, or 0 for none"
            )
        return value

    return validate


def nothing(reward: RewardFunction) -> Tensor:
    """The statistics of an empty set of images: zeros."""
    unlabelled = torch.full((1, 1, 1), IGNORE, dtype=torch.uint8)
    return reward.statistics(unlabelled, unlabelled)[0]


def seen(reward: RewardFunction, out: Output, size: tuple[int, int]) -> Tensor:
    """The reward's statistics of a batch's argmax labels at the network's size, the size at which `tune` rewards."""
    truth = inference.small_masks(out.batch, size).to(out.logits.device)
    return reward.statistics(highest(out.logits)[1], truth).sum(0).cpu()


def loss_function(
    settings: Reward,
    reward: RewardFunction,
    weights: Tensor,
    network: Network,
    anchor: Network | None,
    devices: Devices,
) -> LossFunction:
    """The reward stage's loss: the estimator's, plus cross-entropy and KL that hold the model near likelihood.

    Args:
        settings: estimator and the anchors' weights.
        reward: what is tuned for.
        weights: of the classes in the cross-entropy.
        network: the one that is tuned, for the cosine between half batches in the log.
        anchor: the frozen likelihood model; None without the KL.
        devices: sums the statistics over processes.
    """
    parameters = [weight for weight in network.parameters() if weight.requires_grad]

    def ask(batch: Batch, memory: Tensor, generator: torch.Generator) -> Problem:
        return _problem(settings, reward, batch, memory, generator)

    def loss(tuned: Callable[[Tensor], Tensor], batch: Batch, generator: torch.Generator, state: State) -> Loss:
        logits = tuned(batch.images)
        step = int(state.get("step", torch.zeros(())))
        memory = state["memory"] if state else torch.zeros_like(reward.statistics(batch.masks, batch.masks)[0])
        problem = ask(batch, memory, generator)
        if step % settings.epochs and all(name in state for name in OWN):
            problem = problem._replace(rollout=Rollout(*(state[name] for name in OWN)))
        estimate = _estimate(settings, logits, problem)
        cross_entropy = losses.cross_entropy(logits, batch.masks, weights)
        terms = {
            "reward_std": estimate.reward_std,
            "advantage_std": estimate.advantage_std,
            "cross_entropy": cross_entropy,
        }
        if not estimate.reward.isnan():  # the crops of a first batch may all be without labels: no reward, no error
            terms["reward"] = estimate.reward
        total = estimate.loss + settings.cross_entropy * cross_entropy
        if anchor is not None:
            with torch.no_grad(), devices.autocast():  # in the tuned network's precision: no difference but the weights
                before = anchor(batch.images)
            terms["kl"] = losses.kl(logits, before, batch.masks != IGNORE)
            total = total + settings.kl * terms["kl"]
        if (step + 1) % loop.LOG_EVERY == 0:
            terms["entropy"] = losses.entropy(logits.detach(), batch.masks != IGNORE)
            # DDP gives gradients by `backward` only; the baseline of other images needs two images in each half.
            if devices.processes == 1 and len(logits) >= 4:
                halves = (slice(None, len(logits) // 2), slice(len(logits) // 2, None))
                shares = [
                    _estimate(settings, logits[half], ask(batch.part(half), memory, generator)).loss for half in halves
                ]
                terms["gradient_cosine"] = _cosine(shares, parameters)
        kept = {"step": torch.tensor(step + 1), "memory": memory}
        if estimate.rollout is not None:
            kept |= dict(zip(OWN, estimate.rollout, strict=True))
        if problem.rollout is None:  # the memory counts every drawn labelling once
            kept["memory"] = settings.memory * memory + devices.total(estimate.statistics).to(memory.device)
        return Loss(total, terms, kept)

    return loss


def check(settings: Reward, classes: ClassSet) -> None:
    """Call the estimator once, on two small random images, so that what it refuses is known before any training.

    Raises:
        UserError: the reward and the estimator do not go together, or not with these settings.
    """
    rng = torch.Generator().manual_seed(0)
    c, size = len(classes.names), (2, 16, 16)
    reward = reward_function(settings, torch.ones(c), classes)
    images = torch.randint(0, 256, (2, 3, *size[1:]), generator=rng, dtype=torch.uint8)
    batch = Batch.of_one_group(images, torch.randint(0, c, size, generator=rng, dtype=torch.uint8))
    memory = torch.zeros_like(reward.statistics(batch.masks, batch.masks)[0])
    _estimate(settings, torch.randn(2, c, *size[1:], generator=rng), _problem(settings, reward, batch, memory, rng))


def _problem(
    settings: Reward, reward: RewardFunction, batch: Batch, memory: Tensor, generator: torch.Generator
) -> Problem:
    return Problem(batch.masks, reward, memory, generator, UNITS[settings.unit](batch.images, settings.patch))


def _estimate(settings: Reward, logits: Tensor, problem: Problem) -> Estimate:
    how = estimators.Settings(settings.samples, settings.baseline, settings.credit, settings.clip_ratio)
    try:
        return choose("tune.reward.estimator", ESTIMATORS, settings.estimator).make(how)(logits, problem)
    except ValueError as error:  # a combination of settings that it refuses: the user's mistake
        raise UserError(f"tune.reward: estimator {settings.estimator} with reward {settings.reward}: {error}") from None


UNITS: dict[str, Callable[[Tensor, int], Tensor | None]] = {
    "pixel": lambda *_: None,
    "patch": lambda images, side: units.patches(images[:, 0], side),
    "superpixel": units.superpixels,
}


def _cosine(shares: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Cosine between the gradients of two half batches: 1 is all signal, 0 is all noise."""
    one, other = (
        torch.cat([part.flatten() for part in torch.autograd.grad(share, parameters, retain_graph=True)])
        for share in shares
    )
    return torch.cosine_similarity(one, other, dim=0)
