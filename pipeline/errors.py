"""The two ways a command ends early. Both are sentences for the person at the keyboard, never tracebacks."""

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(Exception):
    """Bad input: one sentence that names the thing, its value and the next step. Exit code 1."""


class WaitingForPeople(Exception):
    """Nothing is wrong: labels are still being made. Exit code 75 (EX_TEMPFAIL)."""


def choose(family: str, members: Mapping[str, T], name: str) -> T:
    """Look a member of a family up by name; an unknown name is answered with the known ones."""
    if name not in members:
        raise UserError(f"unknown {family} {name!r}: choose one of {', '.join(members)}")
    return members[name]


def counted(number: int, thing: str) -> str:
    """How many there are, in words: 1 label, 2 labels."""
    return f"{number} {thing}{'' if number == 1 else 's'}"
