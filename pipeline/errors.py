"""The two ways a command ends early. Both are sentences for the person at the keyboard, never tracebacks."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(Exception):
    """Bad input: one sentence that names the thing, its value and the next step. Exit code 1."""


class WaitingForPeople(Exception):
    """Nothing is wrong: labels are still being made. Exit code 75 (EX_TEMPFAIL)."""


def choose(family: str, members: Mapping[str, T], name: str) -> T:
    """Look a member of a family up by name; an unknown name is answered with the known ones."""
    if name not in members:
        raise UserError(f"unknown {family} {name!r}: {near(name, members)}choose one of {', '.join(members)}")
    return members[name]


def counted(number: int, thing: str) -> str:
    """A number with its noun: 1 label, 2 labels."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def near(name: object, known: Iterable[str]) -> str:
    """`did you mean ...? ` for a name that is nearly one of the known ones, else nothing.

    >>> near("shortfal", ["shortfall", "entropy"])
    "did you mean 'shortfall'? "
    """
    by_small = {each.lower(): each for each in known}
    small = str(name).lower()
    found = difflib.get_close_matches(small, by_small, n=2, cutoff=0.7)
    found = found or [each for each in by_small if len(small) > 1 and each.startswith(small)]
    return f"did you mean {' or '.join(repr(by_small[each]) for each in found)}? " if 0 < len(found) < 4 else ""
