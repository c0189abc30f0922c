"""A trial of the network on this machine, in seconds: finds what would stop the stages after hours.

The network is built with its weights; one tiny batch goes forward and backward in the precision and on the accelerator
that the stages will use. Nothing is written, and no process but this one is started.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline import faults
from pipeline.errors import UserError
from pipeline.gain.scorer import start_scorer
from pipeline.images.classes import ClassSet
from pipeline.networks import machine, saved
from pipeline.networks.calibration import NONE
from pipeline.networks.devices import Devices
from pipeline.networks.network import Network
from pipeline.params import Params
from pipeline.training import loop, optimiser, reward_tuning
from pipeline.training.batches import Batch
from pipeline.training.likelihood import likelihood_loss, with_auxiliary_head
from pipeline.training.optimiser import AdamW

ENOUGH = 2
"""Images of the tiny batch on the CPU; a GPU gets as many as a process trains on, to show whether they fit."""


def run(params: Params, classes: ClassSet) -> list[str]:
    """Run the trial, print one line that says what was tried, and return what is wrong, one sentence each."""
    problems: list[str] = []

    @contextmanager
    def told() -> Iterator[None]:
        try:
            yield
        except UserError as error:
            problems.append(str(error))
        except (MemoryError, RuntimeError, OSError) as error:
            if (said := faults.sentence(error, "pretrain", params)) is None:
                raise
            problems.append(said)

    if params.tune.reward.steps:
        with told():
            reward_tuning.check(params.tune.reward, classes)
    with told():
        machine.check(params.compute)
    if problems:
        return problems
    network = None
    with told():
        network = saved.new_network(params.model, classes, torch.Generator().manual_seed(params.seed))
        network.values_per_channel(params.model.size)
    if network is None or problems:
        return problems
    processes = params.compute.processes
    for knob, settings in (("pretrain", params.pretrain), ("tune.likelihood", params.tune.likelihood)):
        with told():
            loop.check_batch(network, params.model, settings.batch, processes, f"{knob}.batch")
    with told():
        start_scorer("r01", "r00", network, NONE, params.score, seed=params.seed, rounds=0)
        if params.score.features:
            network.last_layer()
    if not problems:
        with told():
            print(_step(network, params, classes))
    return problems


def _step(network: Network, params: Params, classes: ClassSet) -> str:
    """One training step as `pretrain` does it; returns the line to print."""
    settings, compute = params.pretrain, params.compute
    devices = Devices.start(compute.model_copy(update={"processes": 1}))
    share = max(1, settings.batch // compute.processes)
    count = share if devices.device.type != "cpu" else min(share, ENOUGH)
    rng = torch.Generator().manual_seed(params.seed)
    size = (count, *params.model.size)
    batch = Batch.of_one_group(
        torch.randint(0, 256, (count, 3, *params.model.size), generator=rng, dtype=torch.uint8).to(devices.device),
        torch.randint(0, len(classes.names), size, generator=rng, dtype=torch.uint8).to(devices.device),
    )
    weights = torch.ones(len(classes.names), device=devices.device)
    begun = time.monotonic()
    with with_auxiliary_head(network, settings, params.seed):
        groups = optimiser.parameter_groups(
            network,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            lr_encoder=settings.lr_encoder,
            lr_head=settings.lr_head,
            decay_norms=settings.decay_norms,
        )
        wrapped, optimizer, scaler = devices.wrap(network), AdamW(groups), devices.scaler()
        network.train()
        loss = likelihood_loss(weights, settings)(wrapped, batch, loop.step_rng(params.seed, 0, devices), {})
        scaler.scale(loss.value).backward()
        scaler.step(optimizer)
    value = float(loss.value.detach())  # waits for a GPU
    if value != value or abs(value) == float("inf"):
        raise UserError(
            f"compute.precision is {compute.precision}, in which the first loss is {value}: set it to 32-true"
        )
    return (
        f"model: {params.model.name} at {params.model.size[0]}x{params.model.size[1]}, one step of {count} images on "
        f"{devices.device.type} in {compute.precision}: {time.monotonic() - begun:.1f} s"
    )
