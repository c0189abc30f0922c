"""`python -m pipeline budget`: writes the budget table for a total, or says what it takes to reach an mIoU.

Comments in params.yaml stay.
"""

import io
import math
import re
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from pipeline import artifacts, ledger, paths, storage
from pipeline.errors import UserError, counted
from pipeline.evaluation import planner
from pipeline.evaluation.curve import LEVEL
from pipeline.evaluation.planner import Plan
from pipeline.ledger.entries import Ledger
from pipeline.params import Params
from pipeline.params_file import parse

ROUNDS = 5
"""Rounds in which what is planned is bought: Mahmood et al. 2022 come closest with about five, planning anew each."""


def run(params: Params, *, unit: str, total: float, rounds: int) -> None:
    """Spread `total` images or minutes over `rounds` rounds; rounds that have ordered already stay as they are.

    Raises:
        UserError: less is asked for than is spent, or than one per round.
    """
    if total <= 0 or rounds <= 0:
        raise UserError(
            f"budget: {total:g} {unit} in {counted(rounds, 'round')} is nothing to spend: give numbers above 0"
        )
    book = ledger.load()
    begun = [name for name in params.budget if book.ordered(name)]
    amounts = [getattr(params.budget[name], unit) for name in begun]
    if None in amounts:
        other = begun[amounts.index(None)]
        raise UserError(f"budget: {other} was bought as {params.budget[other]}: give the total in that unit")
    left, lines = total - sum(amounts), rounds - len(begun)
    if lines < 0 or left < lines or (lines == 0 and left > 0):
        raise UserError(
            f"budget: {counted(len(begun), 'round')} took {sum(amounts):g} {unit} already; {total:g} {unit} in "
            f"{counted(rounds, 'round')} leaves {left:g} for {counted(lines, 'round')}: ask for more"
        )
    yaml = YAML()
    yaml.width = 4096  # never re-wrap a line
    document = yaml.load(paths.PARAMS)
    table = document["budget"]
    for name in [name for name in table if name not in begun]:
        del table[name]
    previous = begun[-1] if begun else paths.SOURCE_ROUND
    for amount in _split(left, lines, whole=unit == "images"):
        name = _after(previous)
        table[name] = CommentedMap({"after": previous, unit: amount})
        table[name].fa.set_flow_style()
        previous = name
    text = io.StringIO()
    yaml.dump(document, text)
    parse(YAML(typ="safe", pure=True).load(text.getvalue()), str(paths.PARAMS))
    storage.write(paths.PARAMS, text.getvalue().encode())
    for name, line in table.items():
        print(f"{name}: {dict(line)}{'  (ordered already)' if name in begun else ''}")


def _split(total: float, parts: int, *, whole: bool) -> list[Any]:
    """`total` in equal parts; whole ones differ by at most one, larger first; else the last part takes the rounding."""
    if not whole:
        part = round(total / parts, 2)
        return [part] * (parts - 1) + [round(total - part * (parts - 1), 6)] if parts else []
    return [int(total) // parts + (part < int(total) % parts) for part in range(parts)]


def _after(name: str) -> str:
    """The next round's name: r09 -> r10."""
    number = re.search(r"\d+$", name)
    if number is None:
        raise UserError(f"budget: the round {name!r} has no number at its end: name the next one in {paths.PARAMS}")
    return f"{name[: number.start()]}{int(number[0]) + 1:0{len(number[0])}d}"


class Measured(NamedTuple):
    """A round that bought something and was measured."""

    round: str
    labels: int
    """All there were, of this round and those before."""
    minutes: float
    """All that those took."""
    miou_points: float


class Goal(NamedTuple):
    """What it takes to reach an mIoU."""

    said: str
    """A sentence."""
    rounds: list[Measured]
    plan: Plan | None
    """In minutes; None if it is reached, or cannot be told."""


def goal(params: Params, target_points: float) -> Goal:
    """What the measured rounds say of a target."""
    rounds, name = [], f"{target_points:g} mIoU points"
    for each in params.budget:
        if paths.metrics(each).is_file() and paths.labels(each).is_file():
            rows = artifacts.load_labels(each)
            minutes = float(sum(row["minutes"] for row in rows))
            rounds.append(Measured(each, len(rows), minutes, 100 * artifacts.load_miou_share(each)))
    rounds = [one for one in rounds if one.minutes > 0]
    if rounds and rounds[-1].miou_points >= target_points:
        return Goal(f"{name} are reached: {rounds[-1].round} measured {rounds[-1].miou_points:.1f}", rounds, None)
    if len(rounds) < planner.LEAST:
        return Goal(
            f"what {name} take cannot be told yet: {counted(len(rounds), 'round')} with labels measured, and a curve "
            f"needs {planner.LEAST}; buy small rounds until there are as many, then ask again",
            rounds,
            None,
        )
    try:
        found = planner.plan(
            planner.fit([one.minutes for one in rounds], [one.miou_points for one in rounds]), target_points
        )
    except ValueError as error:
        return Goal(f"what {name} take cannot be told: {error}; look at {paths.ROUNDS_TABLE} first", rounds, None)
    never = f"never with a probability of {found.never:.2f}"
    if math.isinf(found.low):
        said = f"{name} are not to be expected of more labels: {never}"
    elif math.isinf(found.expected):
        said = f"{name}: {never}, else at least {_about(found.low)} minutes in all"
    elif math.isinf(found.high):
        said = f"{name}: about {_about(found.expected)} minutes in all, at least {_about(found.low)}, {never}"
    else:
        said = (
            f"{name}: about {_about(found.expected)} minutes in all, {_about(found.low)} to {_about(found.high)} with "
            f"a probability of {LEVEL:g}"
        )
    return Goal(f"{said}; {_about(rounds[-1].minutes)} so far", rounds, found)


def reach(params: Params, *, target_points: float, rounds: int | None) -> None:
    """Print what it takes to reach an mIoU: minutes, labels, money, and the lines of the budget that buy it.

    Raises:
        UserError: the target is no mIoU in points, or `rounds` leaves none to buy in.
    """
    if not 1 <= target_points <= 100:
        raise UserError(f"budget: {target_points:g} is no mIoU in points: give 1 to 100, as in --reach 55")
    found, book = goal(params, target_points), ledger.load()
    print(found.said)
    if found.plan is None:
        return
    ends = {name: end for name, end in found.plan.ends.items() if math.isfinite(end)}
    beyond = f"{target_points:g} is beyond all of them, " if ends and target_points > max(ends.values()) else ""
    levels = ", ".join(f"{name} {end:.0f}" for name, end in ends.items())
    print(f"where the curves level off: {levels}; {beyond}only the logarithm never does")
    if math.isinf(found.plan.expected):
        print(
            "labels alone are a bad bet: try a larger network (model), more steps (tune), or a lower target; or buy "
            "another round and ask again"
        )
        return
    last, unit = found.rounds[-1], "block" if params.score.unit == "block" else "image"
    minutes_each = last.minutes / last.labels
    begun = [name for name in params.budget if book.ordered(name)]
    spent = sum((spending := book.spending(name)).measured + spending.out for name in begun)
    low, more, high = (max(0.0, amount - spent) for amount in found.plan[:3])
    if not more:
        print(f"{begun[-1]} is bought and may do: run `dvc repro`, and ask again when it is measured")
        return
    most = f"to {_about(high)}" if math.isfinite(high) else "or more"
    print(
        f"that is about {_about(more)} minutes more ({_about(low)} {most}), "
        f"{counted(math.ceil(more / minutes_each), unit)} at {minutes_each:.3g} minutes"
        + (f"; {more / 60 * cost:.0f} at {cost:g} an hour" if (cost := params.annotate.cost_per_hour) else "")
    )
    _say_lines(params, begun, more, math.ceil(more / minutes_each), rounds, _left(params, book))


def _say_lines(params: Params, begun: list[str], minutes: float, labels: int, rounds: int | None, left: float) -> None:
    """Print the budget lines for what is to be bought more, in the unit of the last one."""
    whole = params.budget[begun[-1]].images is not None
    if labels > left:
        print(f"the pool has only {left:g} left: more images there, or a lower target")
        minutes, labels = minutes * left / labels, int(left)
    if not labels:
        return
    parts = rounds - len(begun) if rounds is not None else min(ROUNDS, labels)
    if not 0 < parts <= labels:
        raise UserError(
            f"budget: {rounds} rounds with {len(begun)} bought leave {parts} for {labels} labels: "
            f"give {len(begun) + 1} to {len(begun) + labels}"
        )
    unit, more = ("images", float(labels)) if whole else ("minutes", float(math.ceil(minutes)))
    first = f"{_after(begun[-1])}: {{after: {begun[-1]}, {unit}: {_split(more, parts, whole=whole)[0]:g}}}"
    print(f"in {counted(parts, 'round')}, planned anew after each since few rounds tell little; the next line: {first}")
    amounts = [getattr(params.budget[name], unit) for name in begun]
    if None not in amounts:
        total, lines = sum(amounts) + more, len(begun) + parts
        print(f"or all of them: `python -m pipeline budget --{unit} {total:.10g} --rounds {lines}`")


def _left(params: Params, book: Ledger) -> float:
    """Units of the pool that nobody has ordered; infinite where that is not known, or regions are the unit."""
    if params.score.unit == "region" or not paths.manifest("pool").is_file():
        return math.inf
    each = math.prod(params.score.grid or (1,))
    return float(len(artifacts.load_manifest("pool")) * each - len({order.key for order in book.orders}))


def _about(number: float) -> str:
    """Two digits: more would claim too much.

    >>> _about(1234.5), _about(0.456)
    ('1200', '0.46')
    """
    return f"{float(f'{number:.2g}'):.12g}"
