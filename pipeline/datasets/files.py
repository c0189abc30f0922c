"""Which files of a data set belong together, by their names: one rule for every layout, for images and for masks.

A mask belongs to the image of the same name in the same sub-folder. Suffixes, capital letters, spaces at the ends and
the Unicode form (macOS takes letters and their accents apart) make no difference. What belongs to nothing is listed.
"""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pnm", ".gif", ".jp2", ".avif"),
)
"""Image files are known by these, in small or capital letters."""
LOSSLESS = (".png", ".bmp", ".dib", ".tif", ".tiff", ".pgm", ".pnm")
"""A mask with one of these is preferred to one of the same name in a format that changes ids."""
INTO = "~"
"""Stands in a key for the step into a sub-folder: fit for file names and addresses everywhere, and rare in names."""
LONGEST_KEY = 200
"""Bytes of a key. Files are called like it, with up to 40 bytes more; 255 is what file systems take."""


UNREAD = "have a suffix that is not read"
MISNAMED = "are not called as the layout has it"
WITHOUT_IMAGE = "are masks without an image"
OUTSIDE = "lie outside the layout's folders"
LEFT_BY_SYSTEMS = "are left by systems and editors"


_LEFT_BY_SYSTEMS = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "__macosx", "$recycle.bin")


class Sample(NamedTuple):
    """One image of a data set."""

    key: str
    """Unique in its set and fit for a file name."""
    image: Path
    mask: Path | None
    """None: the data set has no mask for this image."""


class Layout(NamedTuple):
    """Where a data set has its files, all sub-folders included. {split} is the part that is asked for."""

    images: str
    masks: str
    image_end: str = ""
    """File names of images are NAME + this + suffix."""
    mask_end: str = ""
    """The same for masks; files with another ending beside them are ignored."""
    other_end: str = ""
    """Of files beside the masks that would pass for masks, and are other kinds of labels: they are ignored, too."""
    folders_in_keys: bool = True
    """False: names are unique whatever the sub-folder."""


class Listing(NamedTuple):
    """What a data set has."""

    samples: list[Sample]
    """Sorted by key."""
    unused: dict[str, list[Path]]
    """Files that were not taken, by the reason."""


class _File(NamedTuple):
    path: Path
    folders: tuple[str, ...]
    """Below the layout's folder."""
    stem: str
    suffix: str


def listing(root: Path, layout: Layout, split: str) -> Listing:
    """Every image of a data set with its mask, and the files that belong to nothing.

    Raises:
        UserError: two images would have one key, an image has two masks, or a name is not fit for a key.
    """
    unused: dict[str, list[Path]] = defaultdict(list)
    images_at, masks_at = (_folder(root, part.format(split=split)) for part in (layout.images, layout.masks))
    images: list[_File] = []
    for file in _files(images_at, unused[LEFT_BY_SYSTEMS]):
        if file.suffix not in SUFFIXES:
            unused[UNREAD].append(file.path)
        elif _ends(file, layout.image_end):
            images.append(file)
        else:
            unused[MISNAMED].append(file.path)
    masks: dict[tuple[str, ...], list[_File]] = defaultdict(list)
    for file in _files(masks_at, unused[LEFT_BY_SYSTEMS]):
        if not _ends(file, layout.mask_end) or (layout.other_end and _ends(file, layout.other_end)):
            continue  # beside Cityscapes' labelIds lie its other kinds of labels
        if file.suffix in SUFFIXES:
            masks[_match(file, layout.mask_end)].append(file)
        else:
            unused[UNREAD].append(file.path)
    samples: dict[str, Sample] = {}
    for file in images:
        key = _key(file, layout)
        mask = _only(masks.pop(_match(file, layout.image_end), []), file.path)
        sample = Sample(key, file.path, mask)
        other = samples.setdefault(_fold(key), sample)
        if other is not sample:
            how = f"one name, {key!r}" if other.key == key else f"names that differ in capitals only, {key!r}"
            raise UserError(f"{other.image} and {file.path} have {how}: rename or remove one")
    unused[WITHOUT_IMAGE] += [file.path for files in masks.values() for file in files]
    unused[OUTSIDE] += _pictures_in(root)
    if "{split}" not in layout.images:  # else the other folders are those of other parts
        for folder in root.iterdir():
            ours = folder in (images_at, masks_at) or folder.name.startswith(".")
            if folder.is_dir() and not ours and os.access(folder, os.R_OK | os.X_OK):  # a disk has its lost+found
                unused[OUTSIDE] += _pictures_in(folder)
    found = sorted(samples.values(), key=lambda sample: sample.key)
    return Listing(found, {reason: sorted(paths) for reason, paths in unused.items() if paths})


def folders_in(folder: Path) -> list[str]:
    """The names of a folder's folders, sorted; for errors that say what there is."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


def unfit_for_windows(key: str) -> bool:
    """Whether Windows has no file of this name."""
    reserved = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
    return key.split(".")[0].lower() in reserved or any(letter in '<>:"\\|?*' for letter in key) or key.endswith(".")


def _pictures_in(folder: Path) -> list[Path]:
    """Pictures directly in a folder."""
    return [p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]


def _folder(root: Path, name: str) -> Path:
    """The folder of this name below the root, in whatever capitals; where there is none, as it is called."""
    path = root
    for part in Path(name).parts:
        exact = path / part
        alike = [p for p in sorted(path.iterdir()) if _fold(p.name) == _fold(part)] if path.is_dir() else []
        path = exact if exact.is_dir() or not alike else alike[0]
    return path


def _files(folder: Path, left: list[Path]) -> Iterator[_File]:
    for path in _walk(folder, left, set()):
        stem, dot, suffix = path.name.strip().rpartition(".")
        folders = tuple(map(_plain, path.relative_to(folder).parts[:-1]))
        yield _File(path, folders, _plain(stem if dot else suffix), f".{suffix.lower()}" if dot else "")


def _walk(folder: Path, left: list[Path], seen: set[tuple[int, int]]) -> Iterator[Path]:
    """All files; links are followed, but no folder twice. Links that lead nowhere are files, which cannot be read."""
    if not folder.is_dir():
        return
    try:
        state, entries = folder.stat(), sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read: {error.strerror or error}") from None
    if (state.st_dev, state.st_ino) in seen:
        return
    seen.add((state.st_dev, state.st_ino))
    for path in entries:
        if path.name.startswith(".") or path.name.lower() in _LEFT_BY_SYSTEMS:
            left.append(path)
        elif path.is_dir():
            yield from _walk(path, left, seen)
        else:
            yield path


def _ends(file: _File, end: str) -> bool:
    return file.stem.casefold().endswith(end.casefold()) and len(file.stem) > len(end)


def _match(file: _File, end: str) -> tuple[str, ...]:
    """The part of the path that an image and its mask have in common."""
    return (*map(_fold, file.folders), _fold(file.stem[: len(file.stem) - len(end)]))


def _key(file: _File, layout: Layout) -> str:
    stem = file.stem[: len(file.stem) - len(layout.image_end)].strip()
    key = INTO.join((*file.folders, stem)) if layout.folders_in_keys else stem
    try:
        size = len(key.encode())
    except UnicodeEncodeError:  # Linux takes any bytes as a name
        raise UserError(f"the name {str(file.path)!r} is not valid UTF-8: rename the file or its folder") from None
    if any(unicodedata.category(letter) == "Cc" for letter in key):
        raise UserError(f"the name {str(file.path)!r} holds a control character: rename the file or its folder")
    if size > LONGEST_KEY:
        raise UserError(
            f"the name of {file.path}, {key!r}, has {size} bytes, and files are called like it: shorten it, or the "
            f"names of its folders, to {LONGEST_KEY} bytes"
        )
    return key


def _only(masks: list[_File], image: Path) -> Path | None:
    """The mask of an image; one in a format that changes ids only if there is no other: reading refuses it."""
    chosen = [file for file in masks if file.suffix in LOSSLESS] or masks
    if len(chosen) > 1:
        raise UserError(f"{chosen[0].path} and {chosen[1].path} are both masks of {image}: remove one")
    return chosen[0].path if chosen else None


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip())


def _fold(name: str) -> str:
    return _plain(name).casefold()
