"""Whether this machine has the accelerators, precision and processes that the section `compute` asks for."""

import os

import torch

from pipeline.errors import UserError
from pipeline.params import Compute


def world(compute: Compute) -> tuple[int, int]:
    """(processes on this machine, machines), as `compute` says; under torchrun, as its environment says."""
    if not torch.distributed.is_torchelastic_launched():
        return compute.processes, 1
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    return here, int(os.environ["WORLD_SIZE"]) // here


def check(compute: Compute) -> None:
    """Check, before anything is started, that this machine can do what `compute` asks for.

    Raises:
        UserError: it lacks the accelerator, enough of them, or the precision.
    """
    processes, _ = world(compute)
    device = kind(compute)
    if device == "cuda":
        gpus = torch.cuda.device_count()
        if processes > gpus:
            raise UserError(
                f"{_processes(compute)} is {processes}, but torch sees {gpus} GPU{'s' * (gpus > 1)} here, and each "
                f"process needs one: set it to {gpus}, or compute.accelerator to cpu"
            )
        if compute.precision == "bf16-mixed" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UserError(
                f"compute.precision is bf16-mixed, which the GPU {torch.cuda.get_device_name()} does not do: "
                "set it to 16-mixed or 32-true"
            )
    if device == "mps" and processes > 1:
        raise UserError(f"{_processes(compute)} is {processes}, but mps is one device: set it to 1")
    if device == "cpu" and compute.precision == "16-mixed":
        raise UserError(
            f"compute.precision is 16-mixed, which needs a GPU, and compute.accelerator {compute.accelerator} is the "
            "CPU here: set precision to bf16-mixed or 32-true"
        )


def kind(compute: Compute) -> str:
    """The type of device that `compute.accelerator` means on this machine: cuda, mps or cpu.

    Raises:
        UserError: this machine has none.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    asked = compute.accelerator
    if asked in ("auto", "gpu"):
        asked = "mps" if mps else "cuda" if cuda or asked == "gpu" else "cpu"
    if asked == "cuda" and not cuda:
        why = "torch sees no GPU here" if torch.version.cuda else f"this torch ({torch.__version__}) is without CUDA"
        raise UserError(
            f"compute.accelerator is {compute.accelerator}, but {why}: set it to auto or cpu"
            + (
                ", or see whether `nvidia-smi` lists a GPU and CUDA_VISIBLE_DEVICES hides none"
                * bool(torch.version.cuda)
            )
        )
    if asked == "mps" and not mps:
        raise UserError("compute.accelerator is mps, but this is no Mac whose GPU torch can use: set it to auto or cpu")
    return asked


def _processes(compute: Compute) -> str:
    return "compute.processes" if not torch.distributed.is_torchelastic_launched() else "--nproc-per-node of torchrun"
