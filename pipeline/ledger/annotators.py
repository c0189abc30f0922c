"""What every annotator has done in every round: labels, minutes, how much was changed, and how far several agree."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from pipeline.ledger.entries import Delivery, Ledger, Skip


def rows(book: Ledger, pixels: Mapping[str, int], names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each round and annotator: of every label the latest delivery, and the skips.

    Args:
        book: the ledger.
        pixels: by key, how many pixels the label is of, to take the share of those that were changed.
        names: of the classes.

    Returns:
        round, annotator, labels, skipped, minutes (as counted, skips included), minutes_median (of a label), changed
        (share of the pixels that differ from the prediction which was sent along), agreement (mean share of pixels on
        which several annotators agree) and `agreement_<class>` (IoU between them, pooled); None where nothing is known.
    """
    latest = {(one.round, one.key): one for one in book.deliveries if one.key not in book.removed}
    done: list[Delivery | Skip] = [*latest.values(), *(one for one in book.entries if isinstance(one, Skip))]
    groups: dict[tuple[str, str], list[Delivery | Skip]] = {}
    for one in sorted(done, key=lambda one: (one.round, one.annotator)):
        groups.setdefault((one.round, one.annotator), []).append(one)
    counted = {name: _counted(book, name) for name, _ in groups}
    return [
        {"round": name, "annotator": who} | _row(several, counted[name], pixels, names)
        for (name, who), several in groups.items()
    ]


def _counted(book: Ledger, round_name: str) -> dict[tuple[str, float], float]:
    """By key and measured minutes, what counts of those that are not counted in full."""
    return {(one.key, one.minutes): one.counted for one in book.spending(round_name).held_back}


def _row(
    done: Sequence[Delivery | Skip],
    counted: Mapping[tuple[str, float], float],
    pixels: Mapping[str, int],
    names: Sequence[str],
) -> dict[str, Any]:
    labels = [one for one in done if isinstance(one, Delivery)]
    minutes = {id(one): counted.get((one.key, one.minutes), one.minutes) for one in done}
    compared = [(one.changed, pixels[one.key]) for one in labels if one.changed is not None and one.key in pixels]
    shares = [one.agreement for one in labels if one.agreement is not None]
    agreed = [one.agreed for one in labels if one.agreed]
    iou = {name: _iou([of[number] for of in agreed]) for number, name in enumerate(names)}
    return {
        "labels": len(labels),
        "skipped": len(done) - len(labels),
        "minutes": float(sum(minutes.values())),
        "minutes_median": median(minutes[id(one)] for one in labels) if labels else None,
        "changed": sum(some for some, _ in compared) / sum(of for _, of in compared) if compared else None,
        "agreement": sum(shares) / len(shares) if shares else None,
        **{f"agreement_{name}": value for name, value in iou.items()},
    }


def _iou(counts: Sequence[tuple[int, int]]) -> float | None:
    """Intersection over union of pixel counts, pooled; None where there is nothing."""
    both, either = (sum(of[side] for of in counts) for side in (0, 1))
    return both / either if either else None
