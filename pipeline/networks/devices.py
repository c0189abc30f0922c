"""The device of this process, its precision, and all communication between the processes of a run (collectives).

A thin layer over torch.distributed: gloo between CPUs, nccl between GPUs. Under torchrun the processes are torchrun's;
otherwise the first one starts the others, each with the same command line.
"""

import atexit
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but a name of its C++ part

from pipeline.networks import machine
from pipeline.params import Compute

T = TypeVar("T")

MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
PATIENCE = timedelta(minutes=30)
"""Timeout of a collective: the other processes may still be reading or writing."""
GRACE_SECONDS = 5.0
"""Once one process has failed, the others have so long to end by themselves."""
ENDING_SECONDS = 60.0
"""The first process, once it is done, waits so long for each other one; on a busy machine, ending takes seconds."""


CPU = torch.device("cpu")


@dataclass(frozen=True)
class Devices:
    """One process's view of the run: its device, its precision, its rank, and the collectives."""

    device: torch.device = CPU
    """This process's."""
    precision: str = "32-true"
    """As in `compute.precision`."""
    rank: int = 0
    """Number of this process, from 0, on all machines."""
    processes: int = 1
    """On all machines."""

    @classmethod
    def start(cls, compute: Compute) -> "Devices":
        """Set up device, precision and processes as `compute` says; under torchrun, join the processes it has started.

        Raises:
            UserError: this machine has not what `compute` asks for.
        """
        machine.check(compute)
        here, machines = machine.world(compute)
        kind = machine.kind(compute)
        place = int(os.environ.get("LOCAL_RANK", 0))
        device = CPU if kind == "cpu" else torch.device(kind, place)
        if kind == "cuda":
            torch.cuda.set_device(device)
        if here * machines == 1:
            return cls(device, compute.precision)
        if not distributed.is_initialized():
            if "OMP_NUM_THREADS" not in os.environ:  # the processes share the cores
                torch.set_num_threads(max(1, torch.get_num_threads() // here))
            _join(device, place, here)
        devices = cls(device, compute.precision, distributed.get_rank(), distributed.get_world_size())
        devices.say(f"Starting with {devices.processes} processes ({distributed.get_backend()})")
        return devices

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def say(self, sentence: str) -> None:
        """Print the sentence once, from the first process."""
        if self.is_first:
            print(sentence)

    def autocast(self) -> AbstractContextManager[Any]:
        """The autocast context of the run's precision; the weights stay float32."""
        dtype = MIXED.get(self.precision)
        return torch.autocast(self.device.type, dtype=dtype) if dtype else nullcontext()

    def scaler(self) -> Any:
        """A GradScaler, which keeps gradients in the range of float16; in other precisions it changes nothing.

        Typed Any: by its annotations it takes torch's own optimisers only, in truth any with `param_groups`, `step`.
        """
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "16-mixed")

    def wrap(self, network: nn.Module) -> Callable[..., Any]:
        """The network on this device, to be trained: float32 results, gradients averaged over processes."""
        network.to(self.device)
        parallel = network
        if self.processes > 1:
            ids = None if self.device.type == "cpu" else [self.device]
            parallel = nn.parallel.DistributedDataParallel(network, device_ids=ids)

        def forward(*arguments: Any, **options: Any) -> Any:
            with self.autocast():
                results = parallel(*arguments, **options)
            return results.float() if isinstance(results, Tensor) else tuple(result.float() for result in results)

        return forward

    def total(self, share: Tensor) -> Tensor:
        """All-reduce: the sum of all processes' tensors, on the CPU."""
        if self.processes == 1:
            return share.cpu()
        summed = share.to(self.device, copy=True)
        distributed.all_reduce(summed)
        return summed.cpu()

    def gather(self, share: Tensor, total: int) -> Tensor:
        """All-gather of rows that were dealt round-robin, in order, on the CPU: (rows here, ...) -> (total, ...)."""
        rows = -(-total // self.processes)
        padded = torch.zeros((rows, *share.shape[1:]), dtype=share.dtype)
        padded[: len(share)] = share
        if self.processes == 1:
            return padded
        padded = padded.to(self.device)
        everyone = [torch.empty_like(padded) for _ in range(self.processes)]
        distributed.all_gather(everyone, padded)
        return torch.stack(everyone).cpu().transpose(0, 1).flatten(0, 1)[:total]

    def everyone(self, value: T) -> list[T]:
        """All-gather of Python objects: every process's value, by rank; they may differ in size."""
        values = [value] * self.processes
        if self.processes > 1:
            distributed.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until every process has come here."""
        if self.processes > 1:
            distributed.barrier(device_ids=None if self.device.type == "cpu" else [self.device.index])


def _join(device: torch.device, place: int, here: int) -> None:
    """Become one of the processes, and start the others if nobody else has."""
    backend, bound = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    if distributed.is_torchelastic_launched():
        distributed.init_process_group(backend, timeout=PATIENCE, device_id=bound)
    else:
        port = int(os.environ["MASTER_PORT"]) if place else 0  # 0: any that is free
        store = TCPStore("127.0.0.1", port, here, is_master=not place, wait_for_workers=False)
        if not place:
            _start_others(here, store.port)
        distributed.init_process_group(backend, None, PATIENCE, here, place, store, device_id=bound)
    if backend == "nccl":
        atexit.register(distributed.destroy_process_group)


def _start_others(here: int, port: int) -> None:
    others: list[subprocess.Popen[bytes]] = []
    over = threading.Event()

    def watch(place: int, process: "subprocess.Popen[bytes]") -> None:
        if (status := process.wait()) and not over.is_set():  # the rest would wait for it
            time.sleep(GRACE_SECONDS)  # what all of them have met, each says itself, and ends
            print(f"process {place} of {here} has ended with status {status}, so all do", file=sys.stderr)
            for other in others:
                other.kill()
            os._exit(1)

    def end() -> None:
        for process in others:
            try:
                process.wait(ENDING_SECONDS)
            except subprocess.TimeoutExpired:
                over.set()
                process.kill()

    for place in range(1, here):
        variables = {**os.environ, "LOCAL_RANK": str(place), "MASTER_PORT": str(port)}
        others.append(subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=variables))
    for place, process in enumerate(others, start=1):
        threading.Thread(target=watch, args=(place, process), daemon=True).start()
    atexit.register(end)
