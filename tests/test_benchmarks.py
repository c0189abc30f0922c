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


CLAIMS = """
from benchmarks.study import claim

new = {seed: 1 + seed / 10 for seed in range(21, 26)}
other = {seed: 2 - seed / 20 for seed in range(21, 26)}


def refused(why, differences):
    found = claim(differences)
    assert not found.shown and found.text.startswith("not shown: ") and why in found.text, found


# Means over both pools are 2.025, 2.05, ..., 2.125: mean 2.075, and t(.975, 4) = 2.776 times .0395 / 5 ** .5.
found = claim({"camvid": new, "idd": other})
assert found.shown and found.text == "+2.08 ± 0.05 on the mean of camvid and idd, 5 seeds", found
refused("one pool only (camvid)", {"camvid": new})
refused("one pool only (camvid), and 2 paired seeds, 5 are needed", {"camvid": {21: 9.0, 22: 9.0}})
refused("one pool only (none), and 0 paired", {})
refused("town is there to design on", {"camvid": new, "town": other})
refused("camvid_0001TP is there to design on", {"camvid_0001TP": new, "idd": other})
refused("4 paired seeds on every pool, 5 are needed", {"camvid": new, "idd": {s: other[s] for s in range(21, 25)}})
refused("seed 11 is older than 21", {pool: new | {11: 3.0} for pool in ("camvid", "idd")})
refused("+0.00", {"camvid": new, "idd": {seed: -value for seed, value in new.items()}})
noisy = {21: 9.0, 22: -3.0, 23: 1.0, 24: 0.0, 25: 2.0}
refused("+1.80 ± 5.51 on the mean", {"camvid": noisy, "idd": noisy})
"""


def test_a_number_that_the_protocol_does_not_cover_is_not_called_a_claim() -> None:
    subprocess.run([sys.executable, "-c", CLAIMS], cwd=ROOT, check=True)


CLICKS = """
import numpy as np
from benchmarks import clicks

whole = {"unit": "image", "images": 8, "openings": 8, "clicks": 0}
regions = {"unit": "region", "images": 50, "openings": 64, "clicks": 3584}
assert clicks.minutes_by(whole, (5.0, 2.5, 20.0)) == 160
assert abs(clicks.minutes_by(regions, (5.0, 2.5, 20.0)) - (64 * 5 + 3584 * 2.5) / 60) < 1e-9
assert clicks.minutes_by(whole, (5.0, 2.5, 90.0)) == 720

# Of one run only the end counts; runs of other steps, seeds without a partner and budgets that one side lacks do not.
def row(method, seed, minutes, steps, miou, run_steps=900):
    return dict(method=method, seed=seed, run_minutes=minutes, steps=steps, run_steps=run_steps, miou=miou)

rows = [row("a", 21, 160, 450, 0.9), row("a", 21, 160, 900, 0.50), row("a", 21, 40, 900, 0.30)]
rows += [row("b", 21, 160, 900, 0.45), row("b", 21, 40, 900, 0.31), row("b", 21, 640, 900, 0.99)]
rows += [row("b", 22, 160, 900, 0.45), row("a", 23, 160, 900, 0.45)]
rows += [row("b", 21, 160, 400, 0.99, 400)]
curves = clicks.curves_of(rows)
assert curves["a, 900 steps"][21] == {40: 30, 160: 50}, curves
found = clicks.paired(curves, "a, 900 steps", "b, 900 steps")
assert list(found) == [21] and abs(found[21] - 2) < 1e-9, found
assert clicks.area({40: 30.0, 80: 40.0, 640: 40.0}) == (35 + 3 * 40) / 4
assert clicks.area({160: 41.0}) == 41

assert clicks.same_steps("b", "a, 400 steps") == "b, 400 steps"

# A region of a pixel between those that are picked is gone, and the others are numbered without a gap.
cut = np.array([[0, 0, 2, 2], [0, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]], np.uint16)
small = clicks.at(np.kron(cut, np.ones((2, 2), np.uint16)), (4, 4))
assert small.tolist() == cut.tolist() and small.dtype == np.uint16
cut[1, 1] = 0
assert clicks.at(cut, (2, 2)).tolist() == [[0, 1], [2, 3]]
"""


def test_minutes_areas_and_shrunken_maps_of_the_study_by_clicks() -> None:
    subprocess.run([sys.executable, "-c", CLICKS], cwd=ROOT, check=True)
