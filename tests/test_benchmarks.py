"""Benchmarks may use the tests' tools, never the other way round, and each of them still starts."""

import ast
import subprocess
import sys
from pathlib import Path

from tests.project import ROOT

START = """
import contextlib, importlib, io, sys
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        importlib.import_module(f"benchmarks.{name}").main()
    assert said.getvalue().startswith("usage: "), name
"""


def imported(path: Path) -> set[str]:
    """The first part of every module that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
    return found


def test_no_test_imports_a_benchmark() -> None:
    files = sorted((ROOT / "tests").rglob("*.py"))
    assert len(files) > 80
    assert [path.name for path in files if "benchmarks" in imported(path)] == []


def test_every_benchmark_says_what_it_takes() -> None:
    names = [path.stem for path in (ROOT / "benchmarks").glob("*.py") if "def main()" in path.read_text()]
    assert len(names) > 15
    subprocess.run([sys.executable, "-c", START, *names], cwd=ROOT, check=True)
