"""`python -m pipeline budget`: writes the budget table for a total. Comments in params.yaml stay."""

import io
import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from pipeline import ledger, paths, storage
from pipeline.errors import UserError, counted
from pipeline.params import Params
from pipeline.params_file import parse


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
