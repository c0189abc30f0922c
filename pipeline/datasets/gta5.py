"""GTA5, "Playing for Data" (Richter et al., ECCV 2016): images/NNNNN.png and labels/NNNNN.png.

The masks are palette images (mode P) whose numbers are Cityscapes' labelIds. Some frames have masks of another size.
"""

from pathlib import Path

from pipeline.datasets.reading import Sample, existing, images_in

EXPECTS = "images/NNNNN.png and labels/NNNNN.png (https://download.visinf.tu-darmstadt.de/data/from_games/)"


def find(root: Path, split: str) -> list[Sample]:
    """All frames; the layout has no splits."""
    return [Sample(path.stem, path, existing(root / "labels" / path.name)) for path in images_in(root / "images")]
