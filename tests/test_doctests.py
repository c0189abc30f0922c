"""The examples in docstrings are run: each says what its function gives."""

import doctest
import importlib
import re

import pytest

from tests.conftest import ROOT

FILES = [path for path in sorted((ROOT / "pipeline").rglob("*.py")) if re.search(r"^ *>>> ", path.read_text(), re.M)]
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES]


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted > 0
    assert found.failed == 0


def test_there_are_examples() -> None:
    assert len(MODULES) >= 5
