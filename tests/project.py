"""A throw-away copy of the whole project in a folder of its own, on a tiny demo town, run with the real DVC and git."""

import collections
import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import networkx
from dvc.repo import Repo

from pipeline.__main__ import main
from tests.forks import Forks

ROOT = Path(__file__).parent.parent

PARAMS = """\
# One line per round.
budget:
{budget}

launch: python -m pipeline
seed: {seed}

prepare:
  classes: cityscapes19
  town: {{source: 12, pool: 15, test: 5, size: [32, 64], seed: 3}}
  source: {{dataset: gta5, root: data/town/gta5}}
  pool: {{dataset: cityscapes, root: data/town/cityscapes, split: train}}
  test: {{dataset: cityscapes, root: data/town/cityscapes, split: val}}

model: {{name: small, size: [32, 64], width: 16}}
pretrain: {{steps: {steps}, batch: 4, lr: 2e-3}}
calibration: {{method: temperature, start: none}}
score: {{acquisition: shortfall, features: true}}
select: {{method: clue}}
annotate: {{annotator: oracle, oracle_minutes: 10}}
tune:
  likelihood: {{steps: {steps}, batch: 4, lr: 1e-3}}
  reward: {{steps: {steps}, lr: 2e-4}}
evaluate: {{calibration_bins: 15}}
report: {{panels: 20}}
compute: {{accelerator: cpu, processes: 1, batch: 4, workers: 0, checkpoint_seconds: 0}}
"""

BUDGET = ("{after: r00, images: 3}",)
"""What the rounds r01, ... buy."""


class Run(NamedTuple):
    """How a command ended and what it said."""

    status: int
    output: str

    @property
    def ran(self) -> list[str]:
        """The DVC stages whose command was run, in order, but for `settings`, which looks at every edit."""
        return re.findall(r"^Running stage '(?!settings')(.+?)'", self.output, re.MULTILINE)

    @property
    def restored(self) -> list[str]:
        """The DVC stages whose outputs came from the run cache, but for `settings`."""
        return re.findall(r"^Stage '(?!settings')(.+?)' is cached - skipping run", self.output, re.MULTILINE)


class Project(NamedTuple):
    """The throw-away project."""

    folder: Path
    threads: int | None = 1
    """Threads of each process; None for torch's own choice. One is quickest for networks as small as these."""
    variables: Mapping[str, str] = {}
    """More of the environment."""
    forks: Forks | None = None
    """What runs the stages and what `run` starts, in no time; None for processes started afresh."""

    def environment(self) -> dict[str, str]:
        """This process's environment without what would leak into the project, and with caches of its own."""
        home = self.folder.parent / f"{self.folder.name}-home"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "GIT_", "PYTEST_", "PYTHONDONTWRITE"))}
        first = [str(self.forks.bin)] if self.forks else []
        own = {
            "PATH": os.pathsep.join([*first, str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONUNBUFFERED": "1",
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(home / "site"),
            "DVC_GLOBAL_CONFIG_DIR": str(home / "global"),
            "DVC_SYSTEM_CONFIG_DIR": str(home / "system"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_SYSTEM": os.devnull,
            **{f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }
        threads = {"OMP_NUM_THREADS": str(self.threads)} if self.threads else {}
        return kept | own | threads | dict(self.variables)

    def start(self, *words: str, log: Path) -> "subprocess.Popen[bytes]":
        """Start a command in a session of its own; what it says goes to `log`."""
        with log.open("wb") as out:
            return subprocess.Popen(
                words,
                cwd=self.folder,
                env=self.environment(),
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def run(self, *words: str, timeout: float = 1200) -> Run:
        """Run a command to its end."""
        log = self.folder.parent / f"{self.folder.name}-{time.monotonic_ns()}.log"
        if self.forks and words[0] == sys.executable:
            words = (str(self.forks.bin / "python3"), *words[1:])
        process = self.start(*words, log=log)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise AssertionError(f"{words} did not end in {timeout:g} s: {log.read_text()[-3000:]}") from None
        return Run(process.returncode, log.read_text())

    def dvc(self, *words: str) -> Run:
        """Run `dvc WORDS`."""
        return self.run(sys.executable, "-m", "dvc", *words)

    def pipeline(self, *words: str) -> Run:
        """Run `python -m pipeline WORDS`."""
        return self.run(sys.executable, "-m", "pipeline", *words)

    def git(self, *words: str) -> str:
        """Run git, which must succeed, and return what it said."""
        done = self.run("git", *words)
        assert done.status == 0, done.output
        return done.output.strip()

    def repro(self, *words: str) -> Run:
        """Run `dvc repro WORDS`, which must succeed."""
        done = self.dvc("repro", *words)
        assert done.status == 0, done.output[-6000:]
        return done

    def stages(self, *commands: str) -> None:
        """Run stages such as `score r01` one after the other without DVC, which takes longer than they do."""
        for command in commands:
            done = self.pipeline(*command.split())
            assert done.status == 0, done.output

    def run_all(self) -> None:
        """Run the command of every stage in dvc.yaml once, in this process and without DVC."""
        with contextlib.chdir(self.folder):
            with Repo() as opened:
                commands = [stage.cmd for stage in networkx.dfs_postorder_nodes(opened.index.graph)]
            for command in commands:
                words = shlex.split(command, comments=True)
                assert words[:3] == ["python3", "-m", "pipeline"]
                assert main(words[3:]) == 0, command

    def commit(self, message: str) -> str:
        """Commit everything that git does not ignore; the commit's hash."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)
        return self.git("rev-parse", "HEAD")

    def edit(self, old: str, new: str) -> None:
        """Change params.yaml in one place."""
        path = self.folder / "params.yaml"
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in params.yaml"
        path.write_text(text.replace(old, new))

    def ledger(self) -> list[dict[str, Any]]:
        """The ledger's entries, read without the project's own code."""
        path = self.folder / "data/ledger.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def bought(self) -> list[dict[str, Any]]:
        """The ledger without the time of day."""
        return [{name: value for name, value in entry.items() if name != "at"} for entry in self.ledger()]

    def ordered(self, round_name: str | None = None) -> list[str]:
        """Keys in order of their orders, of one round or of all."""
        entries = [e for e in self.ledger() if e["event"] == "order"]
        return [e["key"] for e in entries if round_name in (None, e["round"])]

    def bought_twice(self) -> list[str]:
        """What was ordered more than once: keys, of regions IMAGE and number."""
        orders = [e for e in self.ledger() if e["event"] == "order"]
        paid = [e["key"] for e in orders]
        paid += [f"{e['key'].partition('@')[0]} {region}" for e in orders for region in e.get("regions", [])]
        return [one for one, times in collections.Counter(paid).items() if times > 1]

    def lost(self) -> list[str]:
        """Delivered masks that are absent or not what was delivered."""
        digests = {e["key"]: e["sha256"] for e in self.ledger() if e["event"] == "delivery"}
        return [k for k, digest in digests.items() if self.hashes([f"data/labels/{k}.png"]) != [digest]]

    def hashes(self, names: Sequence[str]) -> list[str | None]:
        """SHA-256 of files; None for one that is absent."""
        paths = [self.folder / name for name in names]
        return [hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else None for p in paths]

    def results(self) -> dict[str, str | None]:
        """Hashes of all that a run is for: labels, models, metrics, the report, DVC's own record of the labels."""
        data, names = self.folder / "data", ["data/labels.dvc"]
        for pattern in ("labels/*", "models/*/*", "metrics/*", "rounds/**/*.*"):
            names += [str(path.relative_to(self.folder)) for path in data.glob(pattern)]
        names += [str(path.relative_to(self.folder)) for path in (self.folder / "reports").rglob("*") if path.is_file()]
        return dict(zip(sorted(names), self.hashes(sorted(names)), strict=True))


def copy_code(code: Path, folder: Path) -> None:
    """Put the code of a project in the place of what is there, as `git pull` does; params.yaml stays."""
    shutil.rmtree(folder / "pipeline", ignore_errors=True)
    shutil.copytree(code / "pipeline", folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (
        "dvc.yaml",
        ".gitignore",
        ".gitattributes",
        ".dvcignore",
        ".dvc/config",
        ".dvc/page.html",
        ".dvc/.gitignore",
    ):
        if (code / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(code / name, folder / name)


def make(
    folder: Path,
    *,
    budget: Sequence[str] = BUDGET,
    seed: int = 1,
    steps: int = 6,
    threads: int | None = 1,
    code: Path = ROOT,
    forks: Forks | None = None,
) -> Project:
    """Copy the code of a project to `folder`, with a tiny town and a DVC remote beside it, and commit it."""
    copy_code(code, folder)
    lines = "\n".join(f"  r{number:02d}: {line}" for number, line in enumerate(budget, start=1))
    (folder / "params.yaml").write_text(PARAMS.format(budget=lines, seed=seed, steps=steps))
    project = Project(folder, threads, forks=forks)
    remote = folder.parent / f"{folder.name}-remote"
    project.git("init", "--quiet")
    assert project.dvc("remote", "add", "--force", "--default", "beside", str(remote)).status == 0
    project.commit("start")
    return project
