"""The one training loop: steps, schedule, precision, devices, log, checkpoint and resume. The loss is an argument.

A step's randomness comes from (seed, step) alone, and the checkpoint holds all that the loop carries from one step to
the next; so a training that was killed and resumed ends bit for bit where an undisturbed one ends (on the CPU).
"""

import io
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pipeline import storage, streams
from pipeline.errors import UserError
from pipeline.networks.devices import Devices
from pipeline.networks.network import Network
from pipeline.params import Compute, Model
from pipeline.training import fingerprints, optimiser
from pipeline.training.batches import Batch
from pipeline.training.optimiser import AdamW

State = dict[str, Tensor]
"""Tensors that a loss carries from step to step, such as running counts.

Entries called `own_...` belong to this process's part of the batch. The checkpoint is written by the first process, so
where there are several processes a resumed training starts without these entries, and the loss must do without them.
"""


class Loss(NamedTuple):
    """What a loss function returns: the value to minimise, terms for the log, and its state for the next step."""

    value: Tensor
    terms: Mapping[str, Tensor]
    state: State


LossFunction = Callable[[Callable[[Tensor], Tensor], Batch, torch.Generator, State], Loss]
"""(network, batch, generator of this step, state of the last step) -> loss."""


class Plan(NamedTuple):
    """The settings of one training."""

    name: str
    """Shown on the progress bar and in errors, e.g. `tune r02 likelihood`."""
    steps: int
    lr: float
    """Peak rate of AdamW."""
    warmup: float
    """Share of the steps with a linearly rising rate."""
    power: float
    """Exponent of the polynomial decay afterwards."""
    weight_decay: float
    seed: int
    frozen: bool
    """Whether the network stays in evaluation mode: batch norm keeps its statistics, dropout is off."""
    checkpoint: Path
    checkpoint_seconds: float
    fingerprint: str
    """Hash of all that the result depends on (`fingerprint`): a checkpoint of another one is not resumed."""
    end: float = 0.0
    """Share of the peak rate that the decay leads to."""
    lr_encoder: float = 1.0
    """Factor on the rate of the encoder."""
    lr_head: float = 1.0
    """Factor on the rate of the last layer."""
    decay_norms: bool = True
    """Whether weight decay also applies to biases and norms."""
    clip: float = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    validate_every: int = 0
    """Steps between two validations; 0 validates at the start and at the end only."""
    patience: int = 0
    """Early stopping after so many validations in a row without a new best; 0 never stops early."""


class Best(NamedTuple):
    """The best validation so far."""

    value: float
    """The highest value; of several equal ones the first."""
    weights: State
    """The network's weights at that validation."""
    missed: int
    """Validations since then."""


LOG_EVERY = 10
"""Steps between two rows of the log, and two checks that the loss is finite."""


def rate(step: int, steps: int, warmup: float, power: float, end: float = 0.0) -> float:
    """Share of the peak rate: slow start, then polynomial decay to the share `end` (Chen et al. 2017, DeepLab).

    >>> [round(rate(s, 10, 0.2, 1.0), 3) for s in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.125]
    """
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return float(end + (1 - end) * (1 - (step - rising) / max(1, steps - rising)) ** power)


def fit(
    devices: Devices,
    network: Network,
    batches: Callable[[int], Iterator[Batch]],
    loss: LossFunction,
    plan: Plan,
    validate: Callable[[Network], float] | None = None,
) -> list[dict[str, float]]:
    """Train `network` in place and return the log.

    With `validate`, the network is left with the weights of the highest validation. The start is validated as well, so
    that a training never ends below where it started, as far as validation can tell.

    Args:
        devices: their precision and processes are used.
        network: on any device; it is left on this process's device.
        batches: step to start with -> one batch per step, this process's part of it.
        loss: called once a step.
        plan: how long, how fast, and where the checkpoint lies: an unfinished training is resumed from it, a finished
            one is loaded from it, until the caller deletes it.
        validate: measures the network, higher is better. It may leave it in either mode, must not change its weights,
            depends on nothing that a restart would change, and returns the same value in every process.

    Returns:
        One row per `LOG_EVERY` steps: step, lr, loss and the loss's terms. A validated step has a row in any case,
        with `validation` in it; that of the start has nothing else.

    Raises:
        UserError: the loss, a weight or a validation is not finite, or the model lacks a part that the plan names.
    """
    optimizer = new_optimizer(network, plan)
    wrapped, scaler = devices.wrap(network), devices.scaler()
    network.train(not plan.frozen)
    first, state, log, best = _resume(devices, network, optimizer, scaler, plan)
    if validate and best is None:
        best = _better(None, _measured(validate, network, plan, 0), network)
        log.append({"step": 0.0, "validation": best.value})
    saved = time.monotonic()
    bar = tqdm(total=plan.steps, initial=first, desc=plan.name, unit="step", disable=None if devices.is_first else True)
    stream = batches(first)
    for step in range(first, plan.steps):
        if _is_over(best, plan):
            break
        batch = next(stream)
        generator = step_rng(plan.seed, step, devices)
        factor = rate(step, plan.steps, plan.warmup, plan.power, plan.end)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        with torch.random.fork_rng(devices=[devices.device] if devices.device.type == "cuda" else []):
            # For dropout, which can only use the global generator.
            torch.manual_seed(streams.seed_of(plan.seed, "dropout", step, devices.rank))
            result = loss(wrapped, batch, generator, state)
        scaler.scale(result.value).backward()
        if plan.clip:  # a gradient that is not finite is left to the checks below, which have a sentence for it
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(network.parameters(), plan.clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        state = result.state
        bar.update()
        done, last = step + 1, step + 1 == plan.steps
        looks = validate is not None and (last or _every(plan.validate_every, done))
        if looks or last or _every(LOG_EVERY, done):
            row = {"loss": float(result.value.detach()), **{k: float(v.detach()) for k, v in result.terms.items()}}
            _check_finite(row, plan, done)
            if validate and looks:
                row["validation"] = _measured(validate, network, plan, done)
                best = _better(best, row["validation"], network)
            log.append({"step": float(done), "lr": plan.lr * factor, **row})
            bar.set_postfix({k: f"{v:.4g}" for k, v in row.items()})
        over = last or _is_over(best, plan)
        if devices.is_first and (over or time.monotonic() - saved > plan.checkpoint_seconds):
            _save(network, None if over else optimizer, scaler, plan, done, state, log, best)
            saved = time.monotonic()
    bar.close()
    broken = [name for name, weight in network.named_parameters() if not weight.isfinite().all()]
    if broken:
        raise UserError(f"{plan.name}: the weights {broken[0]} are not finite: lower its lr ({plan.lr:g})")
    if best is not None:
        network.load_state_dict(best.weights)
    return log


def new_optimizer(network: Network, plan: Plan) -> AdamW:
    """The optimiser of a plan, with the rates and decays that it gives the parts of the network.

    Raises:
        UserError: the model lacks a part that the plan names.
    """
    groups = optimiser.parameter_groups(
        network,
        lr=plan.lr,
        weight_decay=plan.weight_decay,
        lr_encoder=plan.lr_encoder,
        lr_head=plan.lr_head,
        decay_norms=plan.decay_norms,
    )
    return AdamW(groups)


def _every(period: int, done: int) -> bool:
    return period > 0 and done % period == 0


def _measured(validate: Callable[[Network], float], network: Network, plan: Plan, done: int) -> float:
    mode = network.training
    value = float(validate(network))
    network.train(mode)
    _check_finite({"validation": value}, plan, done)
    return value


def _better(best: Best | None, value: float, network: Network) -> Best:
    if best is not None and value <= best.value:
        return best._replace(missed=best.missed + 1)
    return Best(value, {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}, 0)


def _is_over(best: Best | None, plan: Plan) -> bool:
    return best is not None and 0 < plan.patience <= best.missed


def step_rng(seed: int, step: int, devices: Devices) -> torch.Generator:
    """The generator of one step of one process."""
    return torch.Generator(devices.device).manual_seed(streams.seed_of(seed, "step", step, devices.rank))


def _check_finite(row: Mapping[str, float], plan: Plan, done: int) -> None:
    for name, value in row.items():
        if not abs(value) < float("inf"):
            raise UserError(f"{plan.name}: {name} is {value} at step {done}: lower its lr ({plan.lr:g})")


def _save(
    network: Network,
    optimizer: AdamW | None,
    scaler: Any,
    plan: Plan,
    step: int,
    state: State,
    log: list[dict[str, float]],
    best: Best | None,
) -> None:
    """Write a checkpoint: all state of the loop, or, without an optimizer, the result of a finished training."""
    buffer = io.BytesIO()
    content = {
        "fingerprint": plan.fingerprint,
        "step": step,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict() if optimizer else None,
        "precision": scaler.state_dict(),
        "state": state,
        "log": log,
        "best": best._asdict() if best else None,
    }
    torch.save(content, buffer)
    storage.write(plan.checkpoint, buffer.getvalue())


def _resume(
    devices: Devices, network: Network, optimizer: AdamW, scaler: Any, plan: Plan
) -> tuple[int, State, list[dict[str, float]], Best | None]:
    """Load the checkpoint, if there is one: next step, the loss's state, the log so far, the best validation."""
    if not plan.checkpoint.is_file():
        return 0, {}, [], None
    content = torch.load(plan.checkpoint, map_location=devices.device, weights_only=True)
    if content["fingerprint"] != plan.fingerprint:
        devices.say(
            f"{plan.name}: {plan.checkpoint} was made with other settings, data, code or versions; starting anew"
        )
        return 0, {}, [], None
    network.load_state_dict(content["network"])
    scaler.load_state_dict(content["precision"])
    if content["optimizer"] is None:
        devices.say(f"{plan.name}: nothing that it depends on has changed, so it is taken from {plan.checkpoint}")
    else:
        optimizer.load_state_dict(content["optimizer"])
        devices.say(f"{plan.name}: resumed at step {content['step']} of {plan.steps}")
    best = Best(**content["best"]) if content["best"] else None
    alone = devices.processes == 1
    state = {name: value for name, value in content["state"].items() if alone or not name.startswith("own_")}
    return content["step"], state, content["log"], best


def check_batch(network: Network, model: Model, batch: int, processes: int, knob: str) -> None:
    """Check, before a training, that batch norm gets enough images of a batch in every process.

    Args:
        network: that will be trained.
        model: the section that describes it.
        batch: images per step, over all processes.
        processes: of all machines.
        knob: the key of params.yaml that gives `batch`.

    Raises:
        UserError: it gets too few, or the model does not take images of its size.
    """
    if batch < processes:
        raise UserError(
            f"{knob} is {batch}, which leaves some of {processes} processes without an image: raise it to {processes} "
            "or more, or lower compute.processes"
        )
    if batch // processes == 1 and network.values_per_channel(model.size) == 1:
        share = "" if processes == 1 else f", over {processes} processes,"
        raise UserError(
            f"{knob} is {batch}{share} and {model.name} at {list(model.size)} has a batch norm that sees one value per "
            f"image, which a single image does not let it normalise: set {knob} to {2 * processes} or more"
        )


def fingerprint(devices: Devices, compute: Compute, *parts: Any) -> str:
    """Hash of what a training depends on: the parts, the precision and number of processes, the libraries' versions."""
    how = (compute.precision, devices.device.type, devices.processes)
    return fingerprints.of(fingerprints.libraries(), how, *parts)
