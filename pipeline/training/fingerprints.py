"""Fingerprints: one hash of all that a training's result depends on; a checkpoint with another one is not resumed.

Left out is what the result does not depend on: settings that say where and not what, the files' places, images that
are not trained on.
"""

import ast
import functools
import hashlib
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pipeline import storage

if TYPE_CHECKING:
    import pandas as pd

PACKAGE = Path(__file__).parent.parent
LIBRARIES = (
    "torch",
    "torchvision",
    "segmentation-models-pytorch",
    "albumentations",
    "opencv-python-headless",
    "numpy",
)
"""Libraries that compute: another version of one may round, initialise or augment differently."""


def of(*parts: Any) -> str:
    """Hash of the parts, in their order; a path stands for its file's content, anything else for its `repr`."""
    values = [storage.sha256(part) if isinstance(part, Path) else repr(part) for part in parts]
    return hashlib.sha256("\n".join(values).encode()).hexdigest()


def libraries() -> list[str]:
    """Name and version of each of the libraries that compute."""
    return [f"{name} {version(name)}" for name in LIBRARIES]


def code(module: str, without: Collection[str] = ()) -> str:
    """Hash of a module's source and of all of this package that it imports, comments included.

    Args:
        module: e.g. `pipeline.stages.tune`.
        without: modules that are left out, with what only they import.
    """
    return of(sorted(sources(module, without).items()))


def sources(module: str, without: Collection[str] = ()) -> dict[str, bytes]:
    """By name, the source of a module and of all modules of this package that it imports; arguments as `code`."""
    found: dict[str, bytes] = {}
    ahead = _with_packages([module])
    while ahead:
        name = ahead.pop()
        path = _source(name)
        if path is not None and name not in found and name not in without:
            found[name] = path.read_bytes()
            ahead += _imports(found[name])
    return found


def _source(module: str) -> Path | None:
    """The file of a module of this package; None for anything else."""
    first, *rest = module.split(".")
    if first != PACKAGE.name:
        return None
    path = PACKAGE.joinpath(*rest)
    files = (path / "__init__.py", path.with_suffix(".py"))
    return next((file for file in files if file.is_file()), None)


@functools.cache  # the reward's fingerprint asks for the same sources as likelihood's
def _imports(source: bytes) -> tuple[str, ...]:
    """Dotted names that a module's source imports; some of them are names in a module, not modules."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(_with_packages(names))


def _with_packages(names: Iterable[str]) -> list[str]:
    """The modules and the packages that they lie in, whose `__init__` Python runs as well."""
    return [".".join(parts[:end]) for parts in (name.split(".") for name in names) for end in range(1, len(parts) + 1)]


def rows(manifest: "pd.DataFrame") -> str:
    """Hash of what a manifest says of its images, in their order; not of where their files lie."""
    return of(manifest.drop(columns=["image", "mask"]).to_csv(index=False))


def weights(state: Mapping[str, Tensor]) -> str:
    """Hash of a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
