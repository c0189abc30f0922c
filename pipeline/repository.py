"""Queries to git: whether this is a repository, the history of a file in all branches, unfinished merges."""

import os
import subprocess
from pathlib import Path

from pipeline.errors import UserError

MARK = "<<<<<<< "
"""How the first line of an unresolved conflict starts."""


def check() -> None:
    """Raise if the project lies in no git repository, where DVC would stop without saying why.

    Looks for `.git` itself: git also refuses repositories of other owners, where DVC works.

    Raises:
        UserError: a downloaded ZIP, for instance.
    """
    here = Path.cwd()
    inside = "GIT_DIR" in os.environ or any((folder / ".git").exists() for folder in (here, *here.parents))
    config = Path(".dvc/config")
    if config.is_file() and not inside and "no_scm" not in config.read_text(encoding="utf-8"):
        raise UserError(f"{here} is no git repository, which DVC needs: run `git init` here, then go on")


def git(*words: str, ok: tuple[int, ...] = (0,)) -> str:
    """The standard output of a git command.

    Raises:
        UserError: git is not installed, or fails.
    """
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError:
        raise UserError("git is not installed: install it, then run this again") from None
    if done.returncode not in ok:
        raise UserError(f"`git {words[0]}` failed ({' '.join(done.stderr.split())}): mend that, then run this again")
    return done.stdout


def added(path: Path, *revisions: str) -> list[str]:
    """Every line that a commit of `revisions`, or of what was merged into them, added to a file; oldest first."""
    # Without --full-history git leaves out a branch of whose file a merge took nothing.
    how = ("--full-history", "-m", "--reverse", "--format=", "--patch", "--unified=0", "--text")
    text = git("log", *how, "--no-ext-diff", "--no-textconv", "--no-color", *revisions, "--", path.as_posix())
    return [line[1:] for line in text.split("\n") if line.startswith("+") and not line.startswith("+++ ")]


def has_commits() -> bool:
    """Whether the repository has a commit."""
    return bool(git("rev-parse", "--quiet", "--verify", "HEAD", ok=(0, 1)))


def sides(path: Path) -> list[str]:
    """Our and their version of a file, in an unfinished merge where they differ; else an empty list."""
    stages = [line.split()[2] for line in git("ls-files", "--unmerged", "--", path.as_posix()).splitlines()]
    return [git("show", f":{stage}:./{path.as_posix()}") for stage in stages if stage in ("2", "3")]


def marked() -> list[Path]:
    """Tracked files that hold conflict markers."""
    return [Path(name) for name in git("grep", "-z", "-l", "-I", "-e", f"^{MARK}", ok=(0, 1)).split("\0") if name]


def first_side(text: str) -> str:
    """A text with conflict markers, resolved to our side."""
    kept, part = [], ""
    for line in text.splitlines(keepends=True):
        if line.startswith(MARK):
            part = "ours"
        elif part and line.startswith(("||||||| ", "=======")):
            part = "theirs"  # or what both were before
        elif part and line.startswith(">>>>>>> "):
            part = ""
        elif part != "theirs":
            kept.append(line)
    return "".join(kept)
