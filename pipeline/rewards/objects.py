"""The reward `object_recall`, and objects of a label map: 8-connected components of every class.

A label map does not separate two cars that touch, so objects are areas rather than instances.
"""

from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, UInt8
from torch import Tensor

from pipeline.images.classes import IGNORE
from pipeline.rewards.contract import Labels, Reward, RewardFunction, Settings, masked, on_cpu, refuse_nonsense, share


class Objects(NamedTuple):
    """The objects of one label map, class by class."""

    ids: Int64[np.ndarray, "h w"]
    """The object that a pixel belongs to, -1 where the map is IGNORE."""
    labels: Int64[np.ndarray, " k"]
    """The class of every object."""
    boxes: Int64[np.ndarray, "k 4"]
    """Its bounding box: y, x of the first pixel, y, x after the last one."""


def find(labels: UInt8[np.ndarray, "h w"]) -> Objects:
    """The objects of one label map; IGNORE makes none."""
    ids = np.full(labels.shape, -1, np.int64)
    numbers, boxes, found = [np.zeros(0, np.int64)], [np.zeros((0, 4), np.int64)], 0
    for number in np.setdiff1d(labels, [IGNORE]):
        mask = labels == number
        areas, table = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)[1:3]
        ids[mask] = areas[mask] - 1 + found  # OpenCV's component 0 is the background
        left, top, width, height, _ = table[1:].T.astype(np.int64)
        boxes.append(np.stack([top, left, top + height, left + width], axis=1))
        numbers.append(np.full(len(left), number, np.int64))
        found += len(left)
    return Objects(ids, np.concatenate(numbers), np.concatenate(boxes))


def object_recall(settings: Settings) -> RewardFunction:
    """Share of the true objects that are found, mean over the classes that have any, in [0, 1]: recall over the set.

    An object is a connected area of one class in the truth (`find`). It is found if at least the share
    `overlap` of its pixels is labelled with its class. Small objects count as much as large ones; false alarms cost
    nothing, so a class that is everywhere has recall 1. Terms: `recall`, by class. The statistics of a class are its
    found objects and its objects. Objects are searched for on the CPU.
    """
    refuse_nonsense(settings)
    c = settings.classes

    def found(labelling: UInt8[np.ndarray, "h w"], true: Objects) -> Bool[np.ndarray, " k"]:
        inside = true.ids >= 0
        own = true.ids[inside]
        sizes = np.bincount(own, minlength=len(true.labels))
        right = np.bincount(own, labelling[inside] == true.labels[own], minlength=len(true.labels))
        return np.asarray(right / sizes >= settings.overlap)

    def statistics(labelling: Labels, truth: UInt8[Tensor, "n h w"]) -> Float64[Tensor, "n s"]:
        rows = []
        for labels, truth_labels in on_cpu(masked(labelling, truth, c), truth):
            true = find(truth_labels)
            hits = np.bincount(true.labels, found(labels, true), minlength=c)
            rows.append(np.stack([hits, np.bincount(true.labels, minlength=c)], axis=1).ravel())
        return torch.from_numpy(np.stack(rows)).double().to(truth.device)

    def value(statistics: Float64[Tensor, "*batch s"]) -> Reward:
        hits, all_objects = statistics.reshape(*statistics.shape[:-1], c, 2).unbind(-1)
        recall = share(hits, all_objects)
        return Reward(recall.sum(-1) / (all_objects > 0).sum(-1), {"recall": recall})

    def credit(
        labelling: Labels, truth: UInt8[Tensor, "n h w"], weights: Float64[Tensor, " s"]
    ) -> Float64[Tensor, "n h w"]:
        of_class = weights.reshape(c, 2)[:, 0].cpu().numpy()
        maps = []
        for labels, truth_labels in on_cpu(masked(labelling, truth, c), truth):
            true = find(truth_labels)
            of_object = of_class[true.labels] * found(labels, true)
            maps.append(np.append(of_object, 0)[true.ids])  # the id of IGNORE is -1, which takes the last: 0
        return torch.from_numpy(np.stack(maps)).to(weights)

    return RewardFunction(statistics, value, lambda statistics: statistics[..., 1::2].sum(-1), credit=credit)
