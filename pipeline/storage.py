"""Atomic writing and checked reading of bytes, CSV tables, JSON and arrays; the only file that knows these formats."""

import csv
import errno
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

TEXT_COLUMNS = ("key", "name", "image", "mask", "sha256", "mask_sha256", "method")
"""Columns that hold text even where it looks like a number."""


def write(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically: the whole file or none of it.

    Raises:
        UserError: the disk is full or the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")  # always the same: the next run overwrites what a killed one left
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)  # noqa: PTH105
            folder = os.open(path.parent, os.O_RDONLY)  # the new name, too, must outlive a power cut
            os.fsync(folder)
            os.close(folder)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left on the disk for {path} ({len(data)} bytes): free some and run again"
            ) from None
        raise UserError(f"{path} cannot be written ({error.strerror}): mend that and run again") from error


def missing(path: Path, maker: str) -> UserError:
    """The error for a file that is missing; `maker` is the DVC stage that makes it."""
    return UserError(f"{path} not found: run `dvc pull` if it was made elsewhere, or `dvc repro {maker}` to make it")


def damaged(path: Path, reason: str, maker: str) -> UserError:
    """The error for a file that cannot be read; `maker` is the DVC stage that makes it."""
    reason = reason.replace("`", "'")  # some libraries' words; in ours, what stands in these marks can be run
    return UserError(
        f"{path} is not whole ({reason}): run `dvc repro -s -f {maker}` to make it again, then `dvc repro`"
    )


def save_table(path: Path, frame: "pd.DataFrame", columns: Sequence[str]) -> None:
    """Write a table as CSV, atomically.

    Raises:
        UserError: as `check_table`, or the place cannot be written.
    """
    check_table(path, frame, columns)
    text = frame.to_csv(index=False, lineterminator="\n", float_format="%.9g")
    write(path, text.encode())


def load_table(path: Path, columns: Sequence[str], maker: str) -> "pd.DataFrame":
    """Read a table; `maker` is the DVC stage that makes the file.

    Raises:
        UserError: it is not there, not whole, or as `check_table`.
    """
    if not path.is_file():
        raise missing(path, maker)
    import pandas as pd

    try:
        frame = pd.read_csv(path, dtype=dict.fromkeys(TEXT_COLUMNS, str), keep_default_na=False, na_values={})
    except ValueError as error:  # pandas' errors of parsing are ValueErrors
        raise damaged(path, " ".join(str(error).split()), maker) from None
    check_table(path, frame, columns, maker)
    return frame


def check_table(path: Path, frame: "pd.DataFrame", columns: Sequence[str], maker: str = "") -> None:
    """Check a table's columns, keys (its first column) and numbers.

    Raises:
        UserError: a column is missing, a key stands twice, or a number is none or not finite.
    """
    import pandas as pd

    check_columns(path, frame.columns, columns, maker)
    keys = frame[columns[0]]
    if keys.duplicated().any():
        twice = keys[keys.duplicated()].iloc[0]
        raise UserError(f"{path}: the key {twice!r} stands twice")
    for column in columns:
        if column not in TEXT_COLUMNS and not pd.api.types.is_numeric_dtype(frame[column]):
            raise UserError(f"{path}: the column {column} holds something that is no number")
    numbers = frame.select_dtypes("number").to_numpy(dtype=float)
    if not np.isfinite(numbers).all():
        row = int(np.argwhere(~np.isfinite(numbers))[0][0])
        raise UserError(f"{path}: a value of {keys.iloc[row]!r} is not finite")


def check_columns(path: Path, has: Collection[str], columns: Sequence[str], maker: str) -> None:
    """Check that a table has these columns; raises UserError."""
    if lacking := [column for column in columns if column not in has]:
        how = f"run `dvc repro -s -f {maker}` to make it again, then `dvc repro`" if maker else "make it again"
        raise UserError(f"{path} lacks the columns {', '.join(lacking)}: it was not written by this version; {how}")


def load_class_table(path: Path, columns: Sequence[str]) -> dict[Any, tuple[Any, ...]]:
    """The rows by their first column; all columns but `name` are whole numbers.

    Without pandas, which takes long to import: every command reads such a table.
    """
    if not path.is_file():
        raise missing(path, "prepare")
    rows: dict[Any, tuple[Any, ...]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            has = reader.fieldnames or ()
            lines = list(reader)  # whole, before anything is said of its columns
        check_columns(path, has, columns, "prepare")
        for number, row in enumerate(lines, start=2):
            if None in row or None in row.values():
                raise ValueError(f"line {number} has another number of columns")
            values = tuple(row[column] if column == "name" else int(row[column]) for column in columns)
            if values[0] in rows:
                raise UserError(f"{path}: the key {values[0]!r} stands twice")
            rows[values[0]] = values[1:]
    except (ValueError, csv.Error) as error:
        raise damaged(path, str(error), "prepare") from None
    return rows


def save_json(path: Path, content: Any) -> None:
    """Write indented JSON; a number that is not finite is an error."""
    write(path, (json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())


def load_json(path: Path, maker: str) -> Any:
    """Read JSON; `maker` is the DVC stage that makes the file."""
    if not path.is_file():
        raise missing(path, maker)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise damaged(path, str(error), maker) from None


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays, atomically."""
    buffer = io.BytesIO()
    np.savez(buffer, **dict(arrays))  # type: ignore[arg-type] # it takes any name but its own option
    write(path, buffer.getvalue())


def load_arrays(path: Path, names: Sequence[str], maker: str) -> list[np.ndarray]:
    """Read arrays by their names; `maker` is the DVC stage that makes the file."""
    if not path.is_file():
        raise missing(path, maker)
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            return [content[name] for name in names]
    except (ValueError, LookupError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise damaged(path, " ".join(str(error).split())[:80], maker) from None


def read_bytes(path: Path) -> bytes:
    """The file's bytes.

    Raises:
        UserError: there is no such file, or it may not be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path} is a link to {path.readlink()}, where nothing is: fetch that file") from None
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
