"""The label store data/labels: adding it to DVC, and checking it against the ledger."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo

from pipeline import paths
from pipeline.errors import UserError, counted
from pipeline.ledger import JOIN
from pipeline.ledger.entries import Ledger
from pipeline.repository import MARK


@contextlib.contextmanager
def opened() -> Iterator[Repo]:
    """A context with DVC's repository opened in this process: a hundredth of the time of starting `dvc`.

    Raises:
        UserError: DVC cannot do something that is asked of it while this is open.
    """
    try:
        with Repo() as repo:
            repo.scm_context.quiet = True  # or its advice on `git add` comes once per label
            yield repo
    except DvcException as error:
        raise _not_taken(str(error)) from None


@contextlib.contextmanager
def adding() -> Iterator[Callable[[], None]]:
    """A context that gives `dvc add data/labels` as a function."""
    with opened() as repo:
        yield lambda: add(repo)


def add(repo: Repo) -> None:
    """`dvc add data/labels`, if anything has come back yet.

    Raises:
        UserError: the disk is full, or data/labels.dvc is not whole.
    """
    if not paths.LABELS.is_dir():
        return
    try:
        # Relinking would remove masks for a moment, before data/labels.dvc records them.
        repo.add(str(paths.LABELS), relink=False)
    except OSError as error:  # a full disk
        raise _not_taken(str(error)) from None
    except KeyError as error:  # DVC checks only the file's syntax
        raise _not_taken(f"{paths.LABELS_DVC} lacks {error}") from None


def _not_taken(reason: str) -> UserError:
    reason = " ".join(reason.replace("`", "'").split())
    marked = [path for path in (paths.LABELS_DVC, Path("dvc.lock")) if path.is_file() and MARK in path.read_text()]
    way_out = f"run {JOIN}, which settles the merge in {marked[0]}" if marked else "mend that"
    return UserError(f"`dvc add {paths.LABELS}` failed ({reason}): {way_out}, then `dvc repro` goes on from here")


def check(book: Ledger) -> None:
    """Check, before anything is bought, that ledger and label store hold the same labels.

    Raises:
        UserError: a label that is paid for is missing, or there is one that nobody ordered.
    """
    lacking = [key for key in dict.fromkeys(d.key for d in book.deliveries) if not paths.mask(key).is_file()]
    if lacking:
        raise UserError(
            f"{paths.LABELS} lacks {counted(len(lacking), 'label')} of those paid for, {lacking[0]!r} first: "
            f"in a fresh clone run `dvc pull {paths.LABELS_DVC}`, after a git merge {JOIN}; then `dvc repro`"
        )
    ordered = {entry.key for entry in book.entries}
    strangers = sorted(path.stem for path in paths.LABELS.glob("[!.]*.png") if path.stem not in ordered)
    if strangers:
        raise UserError(
            f"{paths.LABELS} holds {counted(len(strangers), 'label')} that {paths.LEDGER} does not know, "
            f"{strangers[0]!r} first: after a git merge run {JOIN}, at an older commit "
            f"`dvc checkout {paths.LABELS_DVC}`, after `git stash` `git stash pop`; a file of your own "
            f"move out of {paths.LABELS}"
        )
