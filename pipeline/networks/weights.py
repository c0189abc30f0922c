"""Pretrained weights for an encoder: downloaded by name, or taken out of a checkpoint file."""

import argparse
import pickle
import struct
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError  # comes with segmentation-models-pytorch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.errors import UserError

PATIENCE = 10.0
"""Seconds within which a server must answer; the libraries' own retries would go on for minutes."""
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "encoder", "backbone", "module")
"""Keys under which trainings keep a state dict beside their epoch, optimiser and so on, most telling first."""
OPENINGS = {
    b"<": "is a web page (a login or an error, probably)",
    b"version https://git-lfs": "is a pointer of Git LFS: `git lfs pull` fetches the file itself",
    b"\x89HDF": "is of Keras (HDF5)",
}
"""How files begin that are often taken for weights."""
UNREADABLE = (
    *(RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, ImportError),
    *(EOFError, struct.error, pickle.UnpicklingError, SafetensorError),
)
"""What a reader raises that takes any bytes for a pickle."""
SCALAR: Any = np.float64(0).__reduce__()[0]
NUMBERS: list[Any] = [
    *(np.dtype, SCALAR, (SCALAR, "numpy.core.multiarray.scalar")),
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)),
]
"""Beside tensors, trainings keep the command line (in a Namespace) and the best score (of NumPy): harmless to read."""


@contextmanager
def fetched(what: str, url: str, cached: bool) -> Iterator[None]:
    """A context in which a library may download `url`; a failure becomes one sentence, after seconds.

    Args:
        what: whose weights they are.
        url: of the file, for the person who has to download it by other means.
        cached: whether the file is on this machine already, so that no server needs to answer.

    Raises:
        UserError: it cannot be downloaded.
    """
    try:
        if not cached:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE):
                pass
        yield
    except OSError as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(
            f"model.weights is imagenet, but those of {what} are not here and cannot be fetched ({reason}): run this "
            f"once with internet, or fetch {url} elsewhere and set model.weights to the path of the file; null trains "
            "without"
        ) from None


def load(encoder: nn.Module, weights: str) -> None:
    """Load the file `weights` into an encoder, and say what was taken.

    The file is a state dict of the encoder, or of a network that has such an encoder: of any prefix (DDP's `module.`,
    Lightning's `model.encoder.`), alone or beside what else a training keeps, of torch.save or safetensors.

    Raises:
        UserError: there is no such file, it holds no such weights, or several networks have them.
    """
    state = _flat(read(Path(weights)), weights)
    own = encoder.state_dict()
    prefix = _prefix(state, own, weights)
    taken = {name: state[prefix + name] for name in own if prefix + name in state}
    left = [name for name in state if name.startswith(prefix) and name.removeprefix(prefix) not in own]
    parts = {name.split(".")[0] for name in own}
    if more := [name for name in left if name.removeprefix(prefix).split(".")[0] in parts]:
        raise UserError(
            f"model.weights {weights!r} has layers that this encoder has not ({more[0]} and {len(more) - 1} more): "
            "they are another encoder's; set model.encoder to it, or take other weights"
        )
    for name, tensor in taken.items():
        if tensor.shape != own[name].shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(own[name].shape)}"
            raise UserError(
                f"model.weights {weights!r} do not fit the encoder: {prefix + name} is {shapes}; set model.encoder to "
                "the one that they are of"
            )
        if not tensor.isfinite().all():
            raise UserError(f"model.weights {weights!r}: {prefix + name} is not finite: take an earlier checkpoint")
    encoder.load_state_dict(taken, strict=False)  # nothing lacks but counters that old files have not
    below = f" ({prefix}*)" if prefix else ""
    print(f"model.weights {weights}: {len(taken)} tensors taken{below}, {len(state) - len(taken)} left")


def read(path: Path) -> Any:
    """The content of a file of weights, as torch.save or safetensors has written it.

    Raises:
        UserError: there is no such file, or it is of another kind, cut short, or can only be read by running its code.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace, *NUMBERS]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            f"model.weights '{path}' not found in {Path.cwd()}: give the file of a state dict, `imagenet`, or null"
        ) from None
    except OSError as error:
        raise UserError(
            f"model.weights '{path}' cannot be read: {error.strerror}: give the file of a state dict"
        ) from None
    except UNREADABLE as error:
        raise UserError(f"model.weights '{path}' {_trouble(head, error)}") from None


def _trouble(head: bytes, error: Exception) -> str:
    """What is wrong with a file that torch will not open."""
    for opening, what in OPENINGS.items():
        if head.lstrip().startswith(opening):
            return f"{what}: fetch the file of weights itself"
    if "TorchScript" in str(error):
        return "is a TorchScript program: give a file of torch.save(network.state_dict(), path)"
    if "Unsupported global" in str(error) or "Unsupported class" in str(error):
        return (
            "holds a whole pickled network or other objects, not tensors alone, and opening it would run code that it "
            "brings along: if you trust it, save torch.load(path, weights_only=False).state_dict() and give that file"
        )
    return "is cut short, or no file of torch.save or safetensors: fetch it again"


def _flat(content: Any, weights: str) -> dict[str, Tensor]:
    """The state dict in what was read."""
    if not isinstance(content, Mapping):
        raise UserError(f"model.weights {weights!r} holds a {type(content).__name__}: give the file of a state dict")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    inner = [name for name, value in content.items() if isinstance(value, Mapping) and _holds_tensors(value)]
    named = [name for name in WRAPPERS if name in inner]
    if named and len(tensors) < 2:
        return _flat(content[named[0]], weights)
    if len(inner) == 1 and not tensors:
        return _flat(content[inner[0]], weights)
    if not tensors:
        found = ", ".join(map(repr, list(content)[:8])) or "nothing"
        raise UserError(f"model.weights {weights!r} holds {found}, and no state dict that could be meant: give one")
    return tensors


def _holds_tensors(value: Mapping[Any, Any]) -> bool:
    return any(
        isinstance(name, str) and (isinstance(each, Tensor) or (isinstance(each, Mapping) and _holds_tensors(each)))
        for name, each in value.items()
    )


def _prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor], weights: str) -> str:
    """What stands before every name of the encoder's in the state."""
    needed = [name for name in own if not name.endswith("num_batches_tracked")]  # files of old torch lack it
    first = needed[0]
    starts = [name.removesuffix(first) for name in state if name == first or name.endswith(f".{first}")]
    fits = [start for start in starts if all(start + name in state for name in needed)]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise UserError(
            f"model.weights {weights!r} holds {len(fits)} encoders, {' and '.join(repr(each) for each in fits)}: save "
            "the one that is meant alone, as a state dict"
        )
    best = max(["", *starts], key=lambda start: sum(start + name in state for name in needed))
    lacking = [best + name for name in needed if best + name not in state]
    raise UserError(
        f"model.weights {weights!r} do not fit the encoder: {len(lacking)} of its {len(needed)} tensors are not in the "
        f"file, {lacking[0]!r} for one (it has {', '.join(list(state)[:3])}, ...): set model.encoder to the one that "
        "they are of"
    )
