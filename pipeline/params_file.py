"""Reading params.yaml: an unknown key is an error that names the known ones, every mistake is one sentence."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from pipeline import paths
from pipeline.errors import UserError
from pipeline.params import Params, Section
from pipeline.repository import MARK


def load(path: Path = paths.PARAMS) -> Params:
    """Read params.yaml.

    Raises:
        UserError: the file is missing, is not YAML, or has an unknown key, a wrong type or a broken budget table.
    """
    return parse(read_yaml(path), str(path))


def read_yaml(path: Path) -> Any:
    """The file as plain dicts and lists, read as DVC reads it (YAML 1.2: `1e-4` is a number)."""
    try:
        return YAML(typ="safe", pure=True).load(path)
    except FileNotFoundError:
        raise UserError(f"{path} not found in {Path.cwd()}: run in the project's root") from None
    except DuplicateKeyError as error:
        key = str(error.problem).split('"')[1] if '"' in str(error.problem) else str(error.problem)
        raise UserError(f"{path}: the key {key!r} stands twice; remove one of them") from None
    except YAMLError as error:
        if f"\n{MARK}" in "\n" + path.read_text(encoding="utf-8"):
            raise UserError(
                f"{path} holds the marks of a git merge ({MARK.strip()}): edit it so that it holds what both sides need"
            ) from None
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def parse(raw: Any, name: str) -> Params:
    """Check what was read; `name` is how errors call it."""
    budget = raw.get("budget") if isinstance(raw, dict) else None
    for key in budget if isinstance(budget, dict) else ():
        if not isinstance(key, str):  # DVC would make no stages of such a round, without a word
            raise UserError(f"{name}: budget: the round name {key!r} is a {type(key).__name__}; name it r{key!s:0>2}")
    try:
        # Through JSON: strict, but a list may be a tuple, and what YAML takes for a date may be a name.
        return Params.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        raise UserError("; ".join(_sentence(name, dict(e)) for e in error.errors())) from None


def _sentence(name: str, error: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _keys_beside(error["loc"])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{name}: unknown key {where!r}: {hint}known here: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{name}: {where!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    if where and error["type"] != "value_error":
        return f"{name}: {where} is {error['input']!r}: {message[0].lower()}{message[1:]}"
    return f"{name}: {where}: {message}" if where else f"{name}: {message}"


def _keys_beside(location: tuple[Any, ...]) -> list[str]:
    section: Any = Params
    for part in location[:-1]:
        if isinstance(section, type) and issubclass(section, Section):
            section = section.model_fields[str(part)].annotation
        else:
            section = get_args(section)[-1]  # dict[str, BudgetLine]
        if not isinstance(section, type) and type(None) in get_args(section):
            section = get_args(section)[0]  # Town | None
    return list(section.model_fields)
