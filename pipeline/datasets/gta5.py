"""GTA5, "Playing for Data" (Richter et al., ECCV 2016): images/NNNNN.png and labels/NNNNN.png; it has no splits.

The masks are palette images (mode P) whose numbers are Cityscapes' labelIds. Some frames have masks of another size.
"""

from pipeline.datasets.files import Layout

EXPECTS = "images/NNNNN.png and labels/NNNNN.png (https://download.visinf.tu-darmstadt.de/data/from_games/)"
LAYOUT = Layout("images", "labels")
