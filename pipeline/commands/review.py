"""`python -m pipeline review`: has people look again at the labels that are most likely wrong.

The stage `audit` has ranked them (pipeline/evaluation/label_quality.py). Nothing is bought and nothing is changed here:
in Label Studio a tab lists the labels' tasks, and what people update there comes back as a correction, with no other
cost than its minutes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import ledger, paths
from pipeline.errors import UserError, counted, near
from pipeline.evaluation import suspects
from pipeline.params import Params

WORST = 5
"""Labels that are listed where nobody says how many."""


def run(params: Params, *, round_name: str | None, worst: int | None, keys: Sequence[str]) -> None:
    """Print the labels most likely wrong, or those called `keys`, and list their tasks in Label Studio.

    Args:
        params: all of params.yaml.
        round_name: that bought them; None for the last one audited.
        worst: how many; None for WORST.
        keys: of the labels, instead.

    Raises:
        UserError: a round, key or number is none that there is, or nobody can be asked.
    """
    if keys and worst is not None:
        raise UserError("--worst and keys of labels are two ways to say what to look at again: give one of them")
    if worst is not None and worst < 1:
        raise UserError(f"--worst is {worst}: at least one label has to be looked at again")
    name = _round(params, round_name)
    ranked = suspects.load(name).set_index("key")["sha256"].to_dict()
    for key in keys:
        if key not in ranked:
            raise UserError(
                f"{name} has no label {key!r} that was audited: {near(key, ranked)}{paths.quality(name)} has them all"
            )
    wanted = list(dict.fromkeys(keys)) or _as_audited(name, ranked)
    most = None if keys else worst or WORST
    by_oracle = {order.key for order in ledger.load().orders if order.annotator == "oracle"}
    if by_oracle.issuperset(wanted):
        _tell(name, wanted[:most])
        raise UserError(
            f"the labels of {name} are the oracle's, the known ones of a benchmark: there is nobody to look at them "
            f"again; to correct one by hand, edit its PNG in {paths.LABELS}, then `dvc repro -s -f annotate@{name}` "
            f"and `dvc repro`"
        )
    from pipeline.annotators.label_studio import second_look  # half a second, so only where it is needed

    asked = [key for key in wanted if key not in by_oracle]
    listed = second_look.list_tasks(params.annotate, ledger.classes(), params.by_regions, name, asked, most)
    _tell(name, listed.keys)
    for key in listed.gone if keys else ():
        print(f"{name}: {key} has no annotation in Label Studio, so nobody can correct it there")
    if listed.right:
        print(f"{name}: {counted(len(listed.right), 'label')} passed over, marked as ground truth")
    print(
        f"second look: {listed.link} lists {counted(len(listed.keys), 'task')}: open each, correct it and press "
        f"Update, or mark it as ground truth (the star) if it is right; then `dvc repro -s -f annotate@{name}` takes "
        f"the corrections, and `dvc repro` goes on from them"
    )


def _round(params: Params, round_name: str | None) -> str:
    """The round to look at, which was audited."""
    audited = [name for name in params.budget if paths.quality(name).is_file()]
    if round_name is not None and round_name not in params.budget:
        known = ", ".join(params.budget)
        raise UserError(f"unknown round {round_name!r}: the budget table in {paths.PARAMS} has {known}")
    if round_name is not None and round_name not in audited:
        raise UserError(f"the labels of {round_name} are not audited yet: run `dvc repro audit@{round_name}`")
    if not audited:
        raise UserError("no round's labels are audited yet, so nothing is known to be wrong: run `dvc repro`")
    return round_name or audited[-1]


def _as_audited(name: str, ranked: Mapping[str, str]) -> list[str]:
    """Those that were not corrected since the audit, which says nothing of the correction."""
    now = {delivery.key: delivery.sha256 for delivery in ledger.load().delivered(name)}
    left = [key for key, sha256 in ranked.items() if now.get(key) == sha256]
    if not left:
        raise UserError(f"all labels of {name} were corrected since they were audited: run `dvc repro` first")
    return left


def _tell(name: str, keys: Sequence[str]) -> None:
    """Print what is suspected in each label, and how far that can be trusted."""
    rows, areas = suspects.load(name).set_index("key"), suspects.load_areas(name)
    share = rows["suspected"].sum() / max(rows["pixels"].sum(), 1)
    print(
        f"{name}: judged by the model before it, which contradicts {100 * share:.0f}% of all labelled pixels: the "
        f"more it does, the more of the errors are its own"
    )
    for key in keys:
        print(f"{name}: {key}: {_sentence(rows.loc[key].to_dict(), areas.get(key, []))}")


def _sentence(row: Mapping[str, Any], areas: Sequence[Mapping[str, Any]]) -> str:
    if not areas:
        return f"quality {row['quality']:.2f}, nothing suspected"
    first, share = areas[0], row["suspected"] / row["pixels"]
    return (
        f"quality {row['quality']:.2f}, {100 * share:.0f}% of it suspected, most of all {first['given']!r} where the "
        f"model says {first['claim']!r}, x {first['left']} to {first['right']}, y {first['top']} to {first['bottom']}"
    )
