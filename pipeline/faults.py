"""Sentences for faults of the machine: out of memory or disk, a DataLoader worker or another process that has died."""

import errno

from pipeline.params import Params

READER = ("is killed by signal", "exited unexpectedly", "</torch_", "shared memory", "DataLoader timed out")
"""Parts of torch's messages for a dead worker. Errors raised in one have `Caught ... in DataLoader worker`."""
DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota of the disk is used up",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EMFILE: "too many files are open",
}
"""Errors of the operating system that a user can do something about."""


def sentence(error: BaseException, command: str, settings: Params | None) -> str | None:
    """A sentence for the user if the error is a fault of the machine; None for any other, which stays a traceback.

    Recognised by its message, as neither torch nor the system has a type for most of them.
    """
    text = " ".join(str(error).split())
    if settings is not None:
        if _out_of_memory(error, text):
            return _memory(text, command, settings)
        if isinstance(error, RuntimeError) and any(words in text for words in READER):
            return _reader(text, settings)
        if isinstance(error, RuntimeError) and ("by peer" in text or "remote process exited" in text):
            return "another process of this training has stopped, and says above or below why: see there, run it again"
    if isinstance(error, OSError) and error.errno in DISK:
        where = f" ({error.filename})" if error.filename else ""
        return f"{DISK[error.errno]}{where}: make room or see to its rights, then run it again; what is done stays done"
    return None


def _out_of_memory(error: BaseException, text: str) -> bool:
    cpu = "DefaultCPUAllocator" in text or "not enough memory" in text
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and (cpu or "out of memory" in text.lower())
    )


def _memory(text: str, command: str, settings: Params) -> str:
    """Advice for a stage that ran out of memory: the key of params.yaml that makes it need less."""
    size, compute = settings.model.size, settings.compute
    knob, batch = {
        "pretrain": ("pretrain.batch", settings.pretrain.batch),
        "tune": ("tune.likelihood.batch", settings.tune.likelihood.batch),
    }.get(command, ("compute.batch", compute.batch))
    device = "GPU" if "cuda" in text.lower() or "mps" in text.lower() else "machine"
    less = ", or compute.precision to bf16-mixed" if device == "GPU" and compute.precision == "32-true" else ""
    return (
        f"the memory of this {device} is too small: lower {knob} ({batch}), compute.workers ({compute.workers}) or "
        f"model.size ({list(size)}){less}; run it again and it goes on"
    )


def _reader(text: str, settings: Params) -> str:
    if "timed out" in text:
        return f"an image could not be read in time ({text[:120]}): see whether the disk of the images answers"
    return (
        "a process that reads images was killed, by the system for want of memory probably, or of shared memory "
        f"(/dev/shm, 64 MB in a container: `--shm-size 8g`): set compute.workers ({settings.compute.workers}) lower, 0 "
        "reads without, and run it again: it goes on from its last checkpoint"
    )
