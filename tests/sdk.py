"""Label Studio's own brush codec, the second implementation that ours is compared with."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np


def _load() -> ModuleType:
    """By its file: to import the whole SDK takes five seconds, and the codec needs nothing of it."""
    package = importlib.util.find_spec("label_studio_sdk")
    assert package is not None
    assert package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "converter/brush.py"
    spec = importlib.util.spec_from_file_location("label_studio_sdk_converter_brush", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_BRUSH = _load()


def encode(mask: np.ndarray) -> bytes:
    """Of a boolean mask."""
    return bytes(_BRUSH.mask2rle(mask.astype(np.uint8) * 255))


def encode_values(values: np.ndarray) -> bytes:
    """Of a picture's bytes, four per pixel."""
    return bytes(_BRUSH.encode_rle(values))


def decode(rle: bytes, height: int, width: int) -> np.ndarray:
    """Fails in its own ways on what is no RLE."""
    mask: np.ndarray = _BRUSH.decode_rle(rle).reshape(height, width, 4)[..., 3] >= 128
    return mask
