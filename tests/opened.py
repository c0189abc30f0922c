"""Which files of a project a piece of code really opens, by Python's own audit events.

Not seen are what C++ code opens by itself, what other processes open (git is asked what a file was in other branches),
and whether a file exists. What DVC does in this process is left out: its index looks at every folder.
"""

import contextlib
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

DVC = ("dvc", "dvc_data", "dvc_objects", "dulwich", "pygit2", "scmrepo")
CHANGES = {"os.rename": 1, "os.remove": 0, "os.rmdir": 0, "shutil.rmtree": 0}
"""Which argument of an audit event is the path that was changed."""
LISTS = ("os.listdir", "os.scandir")
_PART = re.compile(r"\.([^/]+)\.part$")
"""A file until it is whole."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Opened:
    """Paths relative to a folder.

    Attributes:
        read: Files read and folders listed, each with the sets of modules of `pipeline` that were at work.
        written: Files written or removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.read: dict[str, set[frozenset[str]]] = defaultdict(set)
        self.written: set[str] = set()

    def note(self, path: Any, *, written: bool) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a file that is open already
        name = os.path.relpath(os.fsdecode(path), self.folder)
        modules = frozenset(_modules(sys._getframe(2)))
        if name.startswith("..") or any(module.partition(".")[0] in DVC for module in modules):
            return
        if written:
            self.written.add(_PART.sub(r"\1", name))
        else:
            self.read[name].add(frozenset(module for module in modules if module.startswith("pipeline")))


_current: Opened | None = None


def _modules(frame: FrameType | None) -> Iterator[str]:
    while frame is not None:
        yield frame.f_globals.get("__name__", "")
        frame = frame.f_back


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _current is None:
        return
    if event == "open":
        if not (isinstance(args[0], str | os.PathLike) and Path(args[0]).is_dir()):  # to flush it, which lists nothing
            _current.note(args[0], written=bool(args[2] & WRITING))
    elif event in LISTS:
        _current.note(args[0], written=False)
    elif event in CHANGES:
        _current.note(args[CHANGES[event]], written=True)


sys.addaudithook(_hook)  # there is no way to take one away


@contextlib.contextmanager
def recorded(folder: Path) -> Iterator[Opened]:
    """What is opened below a folder, which is the working directory, until the end."""
    global _current
    _current = Opened(folder)
    try:
        yield _current
    finally:
        _current = None
