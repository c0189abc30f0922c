"""Cityscapes (Cordts et al., CVPR 2016): leftImg8bit/<split>/<city>/ and gtFine/<split>/<city>/.

The masks are the `labelIds`, not the `labelTrainIds`: the official download has only the former.
"""

from pathlib import Path

from pipeline.datasets.reading import Sample, existing, images_in

EXPECTS = (
    "leftImg8bit/<split>/<city>/*_leftImg8bit.png and, where there are labels, "
    "gtFine/<split>/<city>/*_gtFine_labelIds.png (https://www.cityscapes-dataset.com/downloads/)"
)
_IMAGE = "_leftImg8bit"


def find(root: Path, split: str) -> list[Sample]:
    """The images of a split (`train`, `val`, ...), whatever their city; masks may be absent."""
    folder = root / "leftImg8bit" / split
    samples = []
    for city in sorted(folder.iterdir()) if folder.is_dir() else ():
        for path in images_in(city):
            if path.stem.endswith(_IMAGE):
                key = path.stem.removesuffix(_IMAGE)
                mask = root / "gtFine" / split / city.name / f"{key}_gtFine_labelIds.png"
                samples.append(Sample(key, path, existing(mask)))
    return samples
