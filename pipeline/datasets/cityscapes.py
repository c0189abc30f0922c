"""Cityscapes (Cordts et al., CVPR 2016): leftImg8bit/<split>/<city>/ and gtFine/<split>/<city>/.

The masks are the `labelIds`, not the `labelTrainIds`: the official download has only the former. Names begin with the
city, so that keys need not.
"""

from pipeline.datasets.files import Layout

EXPECTS = (
    "leftImg8bit/<split>/<city>/*_leftImg8bit.png and, where there are labels, "
    "gtFine/<split>/<city>/*_gtFine_labelIds.png (https://www.cityscapes-dataset.com/downloads/)"
)
LAYOUT = Layout(
    "leftImg8bit/{split}", "gtFine/{split}", "_leftImg8bit", mask_end="_gtFine_labelIds", folders_in_keys=False
)
