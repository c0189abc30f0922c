"""What a round says of every region that may be bought: its gain, its size, its guess, and what an answer costs."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

from pipeline import paths, storage
from pipeline.errors import UserError


class RegionScores(NamedTuple):
    """What a round says of the m regions that may be bought, image by image; m = 0 unless score.unit is region."""

    image: Int64[np.ndarray, " m"]
    """The image's row in the scores."""
    region: Int64[np.ndarray, " m"]
    """Its number in the image's map."""
    pixels: Int64[np.ndarray, " m"]
    """Its pixels, at least one, at the network's size."""
    gain: Float64[np.ndarray, " m"]
    """Sum of the gain of its pixels."""
    parts: Float32[np.ndarray, "m c"]
    """The gain split by class."""
    claim: UInt8[np.ndarray, " m"]
    """Its commonest argmax class."""
    price: Float64[np.ndarray, " 2"]
    """Predicted minutes to open an image, and per answer."""

    @classmethod
    def none(cls) -> "RegionScores":
        """Of no region, where the unit is another."""
        whole, real = np.zeros(0, np.int64), np.zeros(0)
        return cls(whole, whole, whole, real, np.zeros((0, 0), np.float32), np.zeros(0, np.uint8), np.zeros(2))

    @property
    def in_force(self) -> bool:
        """Whether the unit is region, though none may be left."""
        return bool(self.price[0] > 0)

    def only(self, kept: Bool[np.ndarray, " m"]) -> "RegionScores":
        """Those of some regions."""
        return self._replace(**{name: getattr(self, name)[kept] for name in self._fields if name != "price"})


def save(round_name: str, scores: RegionScores) -> None:
    """Write the gains of regions."""
    _check(paths.region_scores(round_name), scores)
    storage.save_arrays(paths.region_scores(round_name), scores._asdict())


def load(round_name: str) -> RegionScores:
    """The gains of regions; of none where the unit is another."""
    path = paths.region_scores(round_name)
    scores = RegionScores(*storage.load_arrays(path, RegionScores._fields, paths.maker("score", round_name)))
    _check(path, scores)
    return scores


def _check(path: Path, scores: RegionScores) -> None:
    m = len(scores.region)
    kinds = [(array.shape[0], array.ndim, array.dtype.name) for array in scores]
    flat = [(m, 1, kind) for kind in ("int64", "int64", "int64", "float64")]
    if kinds != [*flat, (m, 2, "float32"), (m, 1, "uint8"), (2, 1, "float64")]:
        raise UserError(f"{path}: scores of {m} regions have the lengths, dimensions and types {kinds}: make it again")
    for name, array in zip(RegionScores._fields, scores, strict=True):
        if not (np.isfinite(array) & (array >= 0)).all():
            raise UserError(f"{path}: a value in {name} is not finite, or below 0: make it again")
    if (np.diff(scores.image) < 0).any():
        raise UserError(f"{path}: its regions are not in the order of their images: make it again")
