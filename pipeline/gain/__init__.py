"""Acquisitions: from class probabilities to the gain expected from labelling a pixel, a class in an image, or an image.

One pass over the pool sums a few statistics per image and class; the gains follow from those small tables, so that
scoring a pool costs one forward pass. Higher gain = label first. The *claim* of a pixel is its argmax class.

In mIoU points:

    shortfall         what the pooled mIoU lacks because claims are wrong, to first order
    evpi              expected value of perfect information: the part that knowing the true model would bring
    gain              evpi + blend (shortfall - evpi): from what is missing to what can be learnt, as rounds go by

Baselines, a mean over the image's pixels in the unit of their own score, split by the argmax class:

    entropy           Shannon 1948; nats
    margin            1 - highest + second highest probability: Scheffer et al. 2001
    least_confidence  1 - highest probability: Lewis and Gale 1994; Culotta and McCallum 2005
    ripu              entropy times impurity of the 3 x 3 region around a pixel: Xie et al., CVPR 2022
    bald              mutual information of a pixel's class and the members: Houlsby et al. 2011; Gal et al. 2017; nats
    random            the same score for every image

`evpi`, `gain` and `bald` need the probabilities of each dropout-ensemble member (`Posterior`), the others only the
network's own.
"""

from pipeline.gain import information, shortfall, uncertainty
from pipeline.gain.contract import Acquisition, Entry, Posterior, Probabilities, Settings, Units, Worth
from pipeline.gain.information import annealed
from pipeline.gain.shortfall import expected_iou, observe_truth, oracle, predicted_miou, worth

__all__ = [
    "ACQUISITIONS",
    "Acquisition",
    "Entry",
    "Posterior",
    "Probabilities",
    "Settings",
    "Units",
    "Worth",
    "annealed",
    "expected_iou",
    "observe_truth",
    "oracle",
    "predicted_miou",
    "worth",
]

ACQUISITIONS: dict[str, Entry] = {
    "shortfall": Entry(shortfall.shortfall, in_points=True),
    "evpi": Entry(information.evpi, needs_members=True, needs_worth=True, in_points=True),
    "gain": Entry(information.gain, needs_members=True, needs_worth=True, in_points=True),
    "entropy": Entry(uncertainty.of_pixels(uncertainty.entropy)),
    "margin": Entry(uncertainty.of_pixels(uncertainty.margin)),
    "least_confidence": Entry(uncertainty.of_pixels(uncertainty.least_confidence)),
    "ripu": Entry(uncertainty.of_pixels(uncertainty.ripu)),
    "bald": Entry(uncertainty.of_members(uncertainty.bald), needs_members=True),
    "random": Entry(uncertainty.of_pixels(uncertainty.alike)),
}
