"""IDD-Lite, 7 classes of Indian roads (Varma et al., WACV 2019): leftImg8bit/<split>/<drive>/, gtFine/<split>/<drive>/.

The splits are `train` and `val`; `test` comes without masks. Frames of different drives may have one name.
"""

from pipeline.datasets.files import Layout

EXPECTS = (
    "leftImg8bit/<split>/<drive>/*_image.jpg and, where there are labels, gtFine/<split>/<drive>/*_label.png "
    "(https://idd.insaan.iiit.ac.in, IDD-Lite)"
)
LAYOUT = Layout("leftImg8bit/{split}", "gtFine/{split}", "_image", mask_end="_label", other_end="_inst_label")
