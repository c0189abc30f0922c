"""Processor seconds until a stage begins: what a fresh process spends on imports, best of three.

Of every stage, what `pipeline/__main__.py` imports for it; of `status` the whole command. `of_torch` is what
`import torch` alone takes, 0 for what does without (tests/test_start.py). Threads as by default.

    python -m benchmarks.start
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import results
from pipeline.stages import NETWORK, STAGES

RUNS = 3


def seconds(words: Sequence[str], folder: Path) -> float:
    """User and system seconds of `python WORDS` in a folder: the least of RUNS."""

    def once() -> float:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(results.ROOT)},
            stdout=subprocess.DEVNULL,
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, words)
        return used.ru_utime + used.ru_stime

    return min(once() for _ in range(RUNS))


def main() -> None:
    """Measure, and write docs/results/start.json."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "params.yaml").write_bytes((results.ROOT / "params.yaml").read_bytes())
        torch = seconds(["-c", "import torch"], folder)
        rows = {"status": {"cpu_seconds": round(seconds(["-m", "pipeline", "status"], folder), 2), "of_torch": 0.0}}
        for stage in STAGES:
            code = f"import sys, pipeline.__main__, pipeline.stages.{stage}"
            rows[stage] = {
                "cpu_seconds": round(seconds(["-c", code], folder), 2),
                "of_torch": round(torch if stage in NETWORK else 0.0, 2),
            }
            print(stage, rows[stage])
    results.save("start", rows, [{"command": name, **row} for name, row in rows.items()])


if __name__ == "__main__":
    main()
