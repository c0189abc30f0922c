"""Reads params.yaml into `params.Params`. Every mistake becomes one sentence; an unknown key names the known ones."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pipeline import paths
from pipeline.errors import UserError, near
from pipeline.params import Params, Section
from pipeline.repository import MARK


def load(path: Path = paths.PARAMS) -> Params:
    """Read params.yaml.

    Raises:
        UserError: the file is missing, is not YAML, or has an unknown key, a wrong type or a broken budget table.
    """
    return parse(read_yaml(path), str(path))


def read_yaml(path: Path) -> Any:
    """The file's content as dicts and lists, read as DVC reads it (YAML 1.2: `1e-4` is a number)."""
    try:
        return YAML(typ="safe", pure=True).load(path)
    except FileNotFoundError:
        raise UserError(f"{path} not found in {Path.cwd()}: run in the project's root") from None
    except DuplicateKeyError as error:
        key = str(error.problem).split('"')[1] if '"' in str(error.problem) else str(error.problem)
        raise UserError(f"{path}: the key {key!r} stands twice; remove one of them") from None
    except YAMLError as error:
        if f"\n{MARK}" in "\n" + path.read_text(encoding="utf-8", errors="replace"):
            raise UserError(
                f"{path} holds the marks of a git merge ({MARK.strip()}): edit it so that it holds what both sides need"
            ) from None
        raise UserError(f"{path} is not valid YAML: {_where(error, path)}{' '.join(str(error).split())}") from None


def _where(error: YAMLError, path: Path) -> str:
    """The line of a YAML error, with advice if it is a common mistake."""
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return ""
    number, problem = error.problem_mark.line, str(error.problem)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    line = lines[number].strip() if number < len(lines) else ""
    hint = ""
    if "\t" in (lines[number] if number < len(lines) else ""):
        hint = "it has a tab, where YAML wants spaces; "
    elif "expected ',' or '}'" in problem:
        hint = "a comma between two keys is missing, or a } at the end; "
    return f"line {number + 1}, `{line}`: {hint}" if line else hint


def parse(raw: Any, name: str) -> Params:
    """Validate what `read_yaml` returned; errors call the file `name`."""
    if not isinstance(raw, dict):
        what = "is empty" if raw is None else f"is {_written(raw)}"
        raise UserError(f"{name} {what}, not an object with the sections {', '.join(Params.model_fields)}")
    budget = raw.get("budget")
    for key in budget if isinstance(budget, dict) else ():
        if not isinstance(key, str):  # DVC would silently make no stages for such a round
            raise UserError(f"{name}: budget: the round name {key!r} is a {type(key).__name__}; name it r{key!s:0>2}")
    try:
        # Through JSON: strict, but a list may be a tuple, and what YAML takes for a date may be a name.
        return Params.model_validate_json(json.dumps(_given(raw, Params), default=str))
    except ValidationError as error:
        told = dict.fromkeys(_sentence(name, dict(e)) for e in error.errors())
        raise UserError("; ".join(told)) from None


def _given(raw: Any, section: type[Section]) -> Any:
    """`raw` without the keys that have nothing after the colon: YAML reads null, people mean the default."""
    if not isinstance(raw, dict):
        return raw
    kept = {}
    for key, value in raw.items():
        inner = _sections(section.model_fields[key].annotation) if key in section.model_fields else []
        if value is not None or key not in section.model_fields:
            kept[key] = _given(value, inner[0]) if inner else value
    return kept


def _sections(annotation: Any) -> list[type[Section]]:
    """The section types in a field's annotation."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return [part for part in parts if isinstance(part, type) and issubclass(part, Section)]


def _sentence(name: str, error: Mapping[str, Any]) -> str:
    location = error["loc"]
    where, value = ".".join(str(part) for part in location), error["input"]
    if error["type"] == "extra_forbidden":
        known = _keys_beside(location)
        return f"{name}: unknown key {where!r}: {near(location[-1], known)}known here: {', '.join(known)}"
    if error["type"] == "missing" and not isinstance(location[-1], int):
        return f"{name}: {where!r} is missing"
    if error["type"] == "value_error":
        message = error["msg"].removeprefix("Value error, ")
        return f"{name}: {where}: {message}" if where else f"{name}: {message}"
    if isinstance(location[-1], int):  # a number too few, or one of a list that is wrong
        where = ".".join(str(part) for part in location[:-1])
    if error["type"] in WANTED:
        wanted = WANTED[error["type"]](error.get("ctx", {}))
    else:
        wanted = error["msg"][0].lower() + error["msg"][1:]
    return f"{name}: {where} is {_written(value)}: {_advice(value, error)}{wanted}"


def _written(value: Any) -> str:
    """A value as YAML writes it."""
    if value is None:
        return "null"
    return repr(value).lower() if isinstance(value, bool) else repr(value)


def _advice(value: Any, error: Mapping[str, Any]) -> str:
    """Advice: what the person who wrote this value probably meant."""
    kind = error["type"]
    if kind == "literal_error":
        return near(value, _names(error["ctx"]))
    if kind == "bool_type" and str(value).lower() in ("yes", "no", "on", "off"):
        return "YAML 1.2 knows true and false only; "
    if kind in ("int_type", "float_type") and isinstance(value, str) and _is_number(value):
        return "take the quotes away; "
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _names(context: Mapping[str, Any]) -> list[str]:
    return [part.strip("' ") for part in str(context["expected"]).replace(" or ", ", ").split(",")]


def _whole_number(context: Mapping[str, Any]) -> str:
    return "give a whole number (an integer)"


WANTED: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "literal_error": lambda context: f"choose one of {context['expected']}",
    "int_type": _whole_number,
    "int_parsing": _whole_number,
    "int_from_float": _whole_number,
    "float_type": lambda _: "give a number",
    "float_parsing": lambda _: "give a number",
    "finite_number": lambda _: "give a finite number",
    "bool_type": lambda _: "write true or false",
    "string_type": lambda _: "give a text, in quotes if it looks like a number",
    "string_too_short": lambda context: f"give at least {context['min_length']} letters",
    "string_too_long": lambda context: f"give at most {context['max_length']} letters",
    "greater_than_equal": lambda context: f"give {context['ge']:g} or more",
    "greater_than": lambda context: f"give more than {context['gt']:g}",
    "less_than_equal": lambda context: f"give {context['le']:g} or less",
    "less_than": lambda context: f"give less than {context['lt']:g}",
    "missing": lambda _: "two numbers are wanted, as in [512, 1024]",
    "tuple_type": lambda _: "two numbers are wanted, as in [512, 1024]",
    "too_long": lambda context: f"give {context['max_length']} numbers, as in [512, 1024]",
    "model_type": lambda _: "a section is wanted: keys with values, indented below it or as {key: value, ...}",
    "dict_type": lambda _: "a table is wanted: keys with values, indented below it or as {key: value, ...}",
}
"""By pydantic's type of error, what to write instead."""


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
