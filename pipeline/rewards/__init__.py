"""Rewards: how good a labelling is, against the truth. Higher is better; the truth scores highest.

A reward is *additive statistics of images, and the value of their sum*. So one image, a batch, the batches of several
processes and a running pool that forgets are one code path: sum the statistics, then take the value. Pixels whose truth
is IGNORE are in no statistic, and a reward without any labelled pixel is not defined (NaN).

    pooled_miou      mean over the classes with K_c. > 0 of IoU_c = K_cc / (K_c. + K_.c - K_cc)
                     Everingham et al. 2015, "The PASCAL Visual Object Classes Challenge: A Retrospective"
    weighted_iou     sum w_c IoU_c / sum w_c over the same classes
    dice             mean over the same classes of 2 K_cc / (K_c. + K_.c)
                     Dice 1945, "Measures of the Amount of Ecologic Association Between Species"
    pixel_accuracy   sum_c K_cc / sum K
                     Long et al. 2015, "Fully Convolutional Networks for Semantic Segmentation"
    expected_cost    - sum_tp costs_tp K_tp / sum K
                     Elkan 2001, "The Foundations of Cost-Sensitive Learning"
    image_miou       mean over images of their own mIoU
                     Csurka et al. 2013, "What is a good evaluation measure for semantic segmentation?"
    boundary_f1      how well the classes' boundaries agree: Csurka et al. 2013
    object_recall    share of the connected areas that are found
    detection        boxes around connected areas: Pinto et al. 2023, pipeline/rewards/detection.py

where K is the confusion matrix: K_tp pixels of true class t were labelled p. A *count reward* is a function of K alone,
so the effect of relabelling one pixel can be computed exactly and cheaply (pipeline/estimators/counterfactual.py). K,
like every other statistic, may hold fractions.
"""

from functools import partial

from pipeline.rewards import boundaries, counts, detection, objects
from pipeline.rewards.contract import CountReward, Entry, Reward, RewardFunction, Settings
from pipeline.rewards.counts import count

__all__ = ["REWARDS", "CountReward", "Entry", "Reward", "RewardFunction", "Settings", "count"]

REWARDS: dict[str, Entry] = {
    "pooled_miou": Entry(lambda settings: counts.pooled(settings, counts.pooled_miou)),
    "weighted_iou": Entry(
        lambda settings: counts.pooled(settings, partial(counts.weighted_iou, weights=settings.weights)),
        needs_weights=True,
    ),
    "dice": Entry(lambda settings: counts.pooled(settings, counts.dice)),
    "pixel_accuracy": Entry(lambda settings: counts.pooled(settings, counts.pixel_accuracy)),
    "expected_cost": Entry(
        lambda settings: counts.pooled(settings, partial(counts.expected_cost, costs=settings.costs))
    ),
    "image_miou": Entry(counts.image_miou),
    "boundary_f1": Entry(boundaries.boundary_f1),
    "object_recall": Entry(objects.object_recall),
    "detection": Entry(detection.detection, needs_weights=True),
}
