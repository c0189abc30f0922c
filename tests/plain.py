"""The rewards a second time, written from their descriptions in plain loops, for comparison."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pipeline.images.classes import IGNORE

Pixel = tuple[int, int]
Box = tuple[float, float, float, float]


def pixels(*maps: np.ndarray) -> Iterator[tuple[int, ...]]:
    """The values of the maps at every pixel that the last one does not ignore."""
    for values in zip(*(each.ravel().tolist() for each in maps), strict=True):
        if values[-1] != IGNORE:
            yield values


def confusion(labelling: np.ndarray, truth: np.ndarray, classes: int) -> list[list[int]]:
    counts = [[0] * classes for _ in range(classes)]
    for label, true in pixels(labelling, truth):
        counts[true][label] += 1
    return counts


def of_present_classes(
    counts: list[list[int]], score: Callable[[int, int, int], float], weights: Sequence[float]
) -> float:
    """Weighted mean of score(right, true, labelled) over the classes that the truth holds."""
    scores = {}
    for c, row in enumerate(counts):
        if sum(row):
            scores[c] = score(row[c], sum(row), sum(each[c] for each in counts))
    return sum(weights[c] * scores[c] for c in scores) / sum(weights[c] for c in scores)


def iou(right: int, true: int, labelled: int) -> float:
    return right / (true + labelled - right)


def dice(right: int, true: int, labelled: int) -> float:
    return 2 * right / (true + labelled)


def cost(labelling: np.ndarray, truth: np.ndarray, costs: Sequence[Sequence[float]]) -> float:
    paid = [costs[true][label] for label, true in pixels(labelling, truth)]
    return -sum(paid) / len(paid)


def boundary(labels: np.ndarray, ignored: np.ndarray, c: int) -> list[Pixel]:
    height, width = labels.shape
    found = []
    for row, col in np.ndindex(height, width):
        if labels[row, col] != c or ignored[row, col]:
            continue
        around = [(row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)]
        inside = [(r, k) for r, k in around if 0 <= r < height and 0 <= k < width and not ignored[r, k]]
        if any(labels[place] != c for place in inside):
            found.append((row, col))
    return found


def near(some: list[Pixel], others: list[Pixel], tolerance: int) -> int:
    """How many of some have one of the others within the tolerance."""
    return sum(any(max(abs(r - s), abs(c - d)) <= tolerance for s, d in others) for r, c in some)


def boundary_f1(labelling: np.ndarray, truth: np.ndarray, classes: int, tolerance: int) -> float:
    scores = []
    for c in range(classes):
        hit = labelled = met = true = 0
        for labels, truth_labels in zip(labelling, truth, strict=True):
            ignored = truth_labels == IGNORE
            ours, theirs = boundary(labels, ignored, c), boundary(truth_labels, ignored, c)
            hit, labelled = hit + near(ours, theirs, tolerance), labelled + len(ours)
            met, true = met + near(theirs, ours, tolerance), true + len(theirs)
        if true:
            precision, recall = (hit / labelled if labelled else 0), met / true
            scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0)
    return sum(scores) / len(scores)


def areas(labels: np.ndarray, ignored: np.ndarray) -> list[tuple[int, set[Pixel]]]:
    """Class and pixels of every connected area, by flood fill."""
    left = {place for place in np.ndindex(labels.shape) if not ignored[place]}
    found = []
    while left:
        start = left.pop()
        area, border = {start}, [start]
        while border:
            row, col = border.pop()
            for r in (row - 1, row, row + 1):
                for c in (col - 1, col, col + 1):
                    if (r, c) in left and labels[r, c] == labels[start]:
                        left.remove((r, c))
                        area.add((r, c))
                        border.append((r, c))
        found.append((int(labels[start]), area))
    return found


def object_recall(labelling: np.ndarray, truth: np.ndarray, overlap: float) -> float:
    found: dict[int, list[bool]] = {}
    for labels, truth_labels in zip(labelling, truth, strict=True):
        for c, area in areas(truth_labels, truth_labels == IGNORE):
            right = sum(labels[place] == c for place in area)
            found.setdefault(c, []).append(right / len(area) >= overlap)
    return sum(sum(each) / len(each) for each in found.values()) / len(found)


def boxes(labels: np.ndarray, ignored: np.ndarray) -> list[tuple[int, Box]]:
    """Class and bounding box of every connected area, sorted."""
    found = []
    for c, area in areas(labels, ignored):
        rows, columns = [row for row, _ in area], [col for _, col in area]
        found.append((c, (float(min(rows)), float(min(columns)), float(max(rows) + 1), float(max(columns) + 1))))
    return sorted(found)


def box_iou(first: Box, second: Box) -> float:
    high = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    wide = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    sizes = [abs((box[2] - box[0]) * (box[3] - box[1])) for box in (first, second)]
    return high * wide / (sizes[0] + sizes[1] - high * wide + 1e-9)


def detection(
    predicted: list[tuple[int, Box]], true: list[tuple[int, Box]], weights: Sequence[float], threshold: float
) -> tuple[float, int, float, list[float]]:
    """Reward, number of matches, penalty, and the IoU of every predicted box, for one threshold."""
    claims: dict[int, list[tuple[float, int]]] = {}
    overlaps = [0.0] * len(predicted)
    for i, (c, box) in enumerate(predicted):
        best, target = 0.0, None
        for j, (d, other) in enumerate(true):
            overlap = box_iou(box, other)
            if c == d and overlap > threshold and overlap > best:
                best, target = overlap, j
        if target is not None:
            claims.setdefault(target, []).append((best, i))
            overlaps[i] = best
    gained = sum(weights[true[j][0]] for j in claims)
    penalty = 0.0
    for rivals in claims.values():
        winner = max(rivals, key=lambda rival: (rival[0], -rival[1]))
        penalty += sum(weights[predicted[i][0]] for overlap, i in rivals if (overlap, i) != winner)
    return gained - 0.3 * penalty, len(claims), penalty, overlaps
