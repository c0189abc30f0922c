"""Whether this python has what Regain needs. Imports nothing else: it must run where nothing is installed."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

REQUIRED = {
    "albumentations", "cv2", "dvc", "httpx", "huggingface_hub", "jaxtyping", "label_studio_sdk", "matplotlib",
    "numpy", "orjson", "pandas", "PIL", "pydantic", "ruamel", "safetensors", "scipy",
    "segmentation_models_pytorch", "skimage", "timm", "torch", "torchvision", "tqdm",
}  # fmt: skip
"""Import names of the dependencies in pyproject.toml."""


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """A context for imports: a dependency that this python lacks becomes one sentence and exit status 1.

    `dvc` called by its path (an IDE's button, cron) finds the system's python, where nothing of ours is installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in REQUIRED:
            raise
        sys.exit(f"{sys.executable} has no package {name!r}: {_way_out()}")


def _way_out() -> str:
    if Path(sys.prefix) == Path(".venv").absolute():
        return "run `make .venv/installed`, which brings .venv up to date"
    return "run `source .venv/bin/activate` (`make .venv/installed` makes .venv if there is none), then this again"
