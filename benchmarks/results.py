"""docs/results/NAME.json: raw rows with command, commit and machine, and a Markdown table beside them. Time, memory."""

import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"


def load(name: str) -> dict[str, Any]:
    """What an earlier run of the benchmark has written; nothing if there was none."""
    path = RESULTS / f"{name}.json"
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return content


def save(name: str, content: Mapping[str, Any], table: Sequence[Mapping[str, Any]]) -> None:
    """Write the numbers, how they were made, and the table."""
    words = [os.path.relpath(word, ROOT) if word.startswith("/") else word for word in sys.argv[1:]]
    made = {
        "command": " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *words]),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain", "-uno") else ""),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {_memory()} GiB, {platform.machine()}, "
        f"Python {platform.python_version()}, torch {version('torch')}",
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    temporary = RESULTS / f".{name}.json"
    temporary.write_text(json.dumps({"made": made, **content}, indent=1, allow_nan=False) + "\n")
    temporary.replace(RESULTS / f"{name}.json")
    lines = [f"# {name}", "", f"`{made['command']}` at {made['commit']}, {made['date']}, {made['machine']}.", ""]
    if table:
        heads = list(table[0])
        lines += [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        lines += [f"| {' | '.join(str(row[head]) for head in heads)} |" for row in table]
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")


def peak_mib() -> float:
    """The most memory that this process has held, in MiB.

    Not getrusage: its peak is never less than what the process that started this one held by then.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def timed(run: Callable[[], None]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _memory() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
