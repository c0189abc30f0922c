"""One trial of the fault study: a person labels two rounds; some phases are disturbed; what is wrong afterwards.

What is right is known without our code: the masks that the person drew, each unlike any other; the server's tasks,
asked by plain HTTP; the ledger as JSON; the files.
"""

import base64
import collections
import contextlib
import hashlib
import io
import itertools
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pipeline import artifacts, paths
from pipeline.annotators.label_studio import client
from pipeline.errors import UserError, WaitingForPeople
from pipeline.images.classes import CLASS_SETS
from pipeline.stages import annotate
from tests import fakes, repo
from tests.project import ROOT, Project
from tests.server.people import Person, regions
from tests.server.proxy import KILLS, SILENT, TIMEOUT, Fault, Proxy
from tests.server.studio import Studio, start_studio

NAMES = CLASS_SETS["cityscapes19"].names
IMAGES = 4
"""Budget of r01; r02 has minutes for two."""
PHASES = {"send": "r01", "collect": "r01", "replace": "r01", "correct": "r01", "next round": "r02"}
"""What can be disturbed, and in which round. `replace` sends one more image in place of a skipped one."""
WRONG = ("lost", "duplicate", "misassigned", "tracebacks", "stuck")
BY_ITSELF, SENTENCE, KILLED, TRACEBACK = "got through by itself", "said a sentence", "was killed", "traceback"
PATIENCE_SECONDS = 300.0


class Hit(NamedTuple):
    """A fault that has come about."""

    fault: Fault
    request: str
    outcome: str


class Bench:
    """What the trials share: the server, the proxy before it, the person, a project to copy."""

    def __init__(self, folder: Path, seed: int, trial: "type[Trial]") -> None:
        self.folder, self.rng, self.trial = folder, np.random.default_rng(seed), trial
        self.numbers = itertools.count()
        self.made = folder / "made"
        self.made.mkdir()
        trial.make(self.made)
        self.studio: Studio = start_studio(folder / "label_studio")
        self.person = Person(self.studio)
        self.proxy = Proxy(self.studio, self.rng)

    def close(self) -> None:
        """Stop the proxy and the server."""
        self.proxy.stop()
        self.person.http.close()
        self.studio.kill()


@contextlib.contextmanager
def bench(folder: Path, seed: int, trial: "type[Trial] | None" = None) -> Iterator[Bench]:
    """A server in `folder`, which is there and empty, for as long as the trials take: of whole images, or as given."""
    own = {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(folder / "site")}
    with mock.patch.dict(os.environ, own), mock.patch.object(client, "PAUSES", (0.0, 0.0)):
        os.environ.pop("DVC_EXP_NAME", None)
        logging.getLogger("dvc").setLevel(logging.WARNING)  # its advice on git
        made = Bench(folder, seed, trial or Trial)
        os.environ[client.KEY] = made.studio.token
        try:
            yield made
        finally:
            made.close()


class Trial:
    """Two rounds of whole images in a project of their own, here and in Label Studio.

    Attributes:
        found: What is wrong, by its name in WRONG.
        hits: The faults that have come about.
        requests: Those of the undisturbed run of each phase.
        tasks: What the server has, as of the last check.
        accepted: Labels that the server has accepted, corrections too.
        orphans: Uploaded pictures that belong to no task.
    """

    fields: tuple[str, ...] = ("image", "gain")
    """Of a task: addresses of what it shows."""

    def __init__(self, made: Bench, faults: Mapping[str, Fault]) -> None:
        self.bench, self.faults, self.title = made, faults, f"trial {next(made.numbers)}"
        self.folder = made.folder / self.title.replace(" ", "-")
        shutil.copytree(made.made, self.folder)
        self.project = Project(self.folder, variables={"PYTHONPATH": str(ROOT), client.KEY: made.studio.token})
        section = f"annotate: {{annotator: label_studio, url: '{made.proxy.url}', project: '{self.title}'}}"
        self.project.edit("annotate: {annotator: oracle, oracle_minutes: 4}", section)
        self.project.edit("images: 3", f"images: {IMAGES}")
        with contextlib.chdir(self.folder):
            self.pool = artifacts.load_manifest("pool", Path("pool")).set_index("key")
        self.keys = self.wanted(list(self.pool.index))
        self.tasks: list[dict[str, Any]] = []
        self.drawn: dict[str, list[UInt8[np.ndarray, "h w"]]] = {}
        self.annotations: dict[str, dict[str, Any]] = {}
        self.skipped: set[str] = set()
        self.found: dict[str, set[str]] = {name: set() for name in WRONG}
        self.hits: list[Hit] = []
        self.requests: dict[str, list[str]] = {}
        self.accepted = self.orphans = 0

    # What whole images have of their own

    @staticmethod
    def make(folder: Path) -> None:
        """The project that each trial has a copy of, with predictions for every image of the pool in both rounds."""
        repo.write(folder, pool=8)
        repo.initialise(folder)
        with contextlib.chdir(folder):
            pool = artifacts.load_manifest("pool")
            for name in ("r01", "r02"):
                repo.select(name, list(pool["key"]))
                repo.predict(name)

    def wanted(self, images: Sequence[str]) -> list[str]:
        """Keys of what is bought: five or more of r01, and from the sixth on those of r02."""
        return list(images)

    def choose(self, round_name: str, keys: Sequence[str]) -> None:
        """Write the round's selection."""
        repo.select(round_name, list(keys))

    def label(self, key: str, chance: np.random.Generator) -> tuple[UInt8[np.ndarray, "h w"], list[dict[str, Any]]]:
        """A mask that no other label has, and the result of whoever submits it."""
        coarse = chance.integers(0, len(NAMES), (fakes.SIZE[0] // 4, fakes.SIZE[1] // 4), np.uint8)
        mask = coarse.repeat(4, 0).repeat(4, 1)
        return mask, regions(mask, NAMES)

    def check_task(self, task: Mapping[str, Any], name: str, key: str) -> None:
        """See that a task shows its own image, gain map and prediction."""
        files = {"image": self.pool.at[key, "image"], "gain": paths.gain_picture(name, key)}
        for field, path in files.items():
            shown = self.bench.person.http.get(task["data"][field]).content
            if shown != (self.folder / path).read_bytes():
                self._find("misassigned", f"{name}/{key} has another {field} in Label Studio")
        sent = np.asarray(Image.open(io.BytesIO(base64.b64decode(task["meta"]["sent"]))))
        if not np.array_equal(sent, np.asarray(Image.open(self.folder / paths.prediction(name, key)))):
            self._find("misassigned", f"{name}/{key} was sent with another prediction")

    # What happens

    def play(self, last: str) -> "Trial":
        """All phases up to `last`, `collect` at least."""
        first, second, skipped, late, spare, *others = self.keys
        self._phase("send", [first, second, skipped, late])
        self._submit(first, second)
        self._skip(skipped)
        self._phase("collect", [first, second, late])
        if last not in ("send", "collect"):
            self._phase("replace", [first, second, late, spare])
        if last in ("correct", "next round"):
            self._submit(late, spare)
            self._submit(first)  # corrected after its delivery
            self._phase("correct", [first, second, late, spare])
        if last == "next round":
            self._phase("next round", others[:2])
            self._submit(*others[:2])
            self._undisturbed("r02")
        self.check_pictures()
        return self

    # Us

    def _phase(self, name: str, keys: Sequence[str]) -> None:
        """A disturbed run, if the phase has a fault, and one that is not disturbed.

        Args:
            name: of the phase.
            keys: what the round consists of then. A run that collects a skip takes the selection away, so that
                `dvc repro` makes a new one, as is done here.
        """
        round_name, fault, proxy = PHASES[name], self.faults.get(name), self.bench.proxy
        if name != "collect":
            self._select(round_name, keys)
        proxy.arm(fault)
        if fault is not None:
            outcome = self._killed(round_name) if fault.kind in KILLS else self._run(round_name, fault)
            proxy.settle()
            if proxy.server_is_dead:
                self.bench.studio.start()
            if proxy.hit:
                self.hits.append(Hit(fault, proxy.hit, outcome))
            proxy.arm(None)
            if not (self.folder / paths.selection(round_name)).is_file():
                self._select(round_name, keys)
        self._undisturbed(round_name)
        self.requests[name] = proxy.requests

    def _select(self, round_name: str, keys: Sequence[str]) -> None:
        with contextlib.chdir(self.folder):
            self.choose(round_name, keys)

    def _undisturbed(self, round_name: str) -> None:
        if self._run(round_name, None) != BY_ITSELF:
            self._find("stuck", f"{round_name}: {self.said}")
        self.check()

    def _run(self, round_name: str, fault: Fault | None) -> str:
        """The stage in this process; how it ended."""
        output, self.said = io.StringIO(), ""
        with (
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
            mock.patch.object(client, "TIMEOUT", TIMEOUT if fault and fault.kind in SILENT else client.TIMEOUT),
        ):
            given = repo.params()
            sections = {"roots": given.roots, "select": given.select, "score": given.score, "annotate": given.annotate}
            try:
                annotate.run(round_name, given.budget[round_name], **sections)
            except (UserError, WaitingForPeople) as error:
                self.said = str(error)
                if "\n" in self.said or not self.said:
                    self._find("tracebacks", f"not one line: {self.said!r}")
                return SENTENCE if isinstance(error, UserError) else BY_ITSELF
            except Exception as error:  # noqa: BLE001 - that there is none is what is measured
                self.said = f"{type(error).__name__}: {error}"
                self._find("tracebacks", self.said)
                return TRACEBACK
        return BY_ITSELF

    def _killed(self, round_name: str) -> str:
        """The stage in a process that the proxy kills."""
        log = self.folder.parent / f"{self.folder.name}-{time.monotonic_ns()}.log"
        process = self.project.start(sys.executable, "-m", "pipeline", "annotate", round_name, log=log)
        self.bench.proxy.victim = process
        status = process.wait(PATIENCE_SECONDS)
        self.said = log.read_text()
        if "Traceback" in self.said:
            self._find("tracebacks", self.said[-500:])
        return KILLED if status < 0 else BY_ITSELF if status in (0, 75) else SENTENCE

    # The person

    def _submit(self, *keys: str) -> None:
        """Label images, or correct what was labelled before, with a mask that no other label has."""
        for key in keys:
            masks = self.drawn.setdefault(key, [])
            chance = np.random.default_rng([len(masks), *key.encode()])
            mask, result = self.label(key, chance)
            if masks:
                self.bench.person.update(self.annotations[key], result=result)
            else:
                self.annotations[key] = self.bench.person.submit(self.task(key), result)
            self.accepted += 1
            masks.append(mask)

    def _skip(self, key: str) -> None:
        self.bench.person.skip(self.task(key))
        self.skipped.add(key)

    def task(self, key: str) -> dict[str, Any]:
        """The first task of an image."""
        return next(task for task in self.tasks if task["data"]["key"].endswith(f"/{key}"))

    # What is right

    def check(self) -> None:
        """Compare store, ledger and server with what the person did, now that a run has got through."""
        events: dict[str, list[dict[str, Any]]] = {"order": [], "delivery": [], "skip": []}
        for entry in self.project.ledger():
            events[entry["event"]].append(entry)
        latest = {entry["key"]: entry for entry in events["delivery"]}
        self._check_masks(latest)
        for key in self.skipped - {entry["key"] for entry in events["skip"]}:
            self._find("lost", f"{key} was skipped, which the ledger does not say")
        for path in self.folder.glob("data/rounds/*/labels.json"):
            for row in json.loads(path.read_text()):
                if latest.get(row["key"], {}).get("sha256") != row["sha256"]:
                    self._find("lost", f"{row['key']} has another mask in {path.parent.name}/labels.json")
        for what, every in {
            "ordered": [entry["key"] for entry in events["order"]],
            "delivered in one version": [(entry["key"], entry["version"]) for entry in events["delivery"]],
            "skipped in one version": [(entry["key"], entry["version"]) for entry in events["skip"]],
        }.items():
            for one, times in collections.Counter(every).items():
                if times > 1:
                    self._find("duplicate", f"{one} was {what} {times} times")
        bought = {entry["key"] for entry in events["order"] if entry["round"] == "r01"}
        if len(bought - {entry["key"] for entry in events["skip"]}) > IMAGES:
            self._find("duplicate", f"r01 has {len(bought)} orders")
        self._list_tasks()
        ordered = [f"{entry['round']}/{entry['key']}" for entry in events["order"]]
        times = collections.Counter(task["data"]["key"] for task in self.tasks)
        for name in {*ordered, *times}:
            if times[name] > 1:
                self._find("duplicate", f"{name} is {times[name]} times in Label Studio")
            if times[name] == 0:
                self._find("lost", f"{name} is ordered and not in Label Studio")
            if name not in ordered:
                self._find("lost", f"{name} is in Label Studio and not ordered")

    def _check_masks(self, latest: Mapping[str, Mapping[str, Any]]) -> None:
        cached = self._cached()
        for key, masks in self.drawn.items():
            path = self.folder / paths.mask(key)
            if key not in latest or not path.is_file():
                self._find("lost", f"{key} was labelled and is not here")
                continue
            stored, content = np.asarray(Image.open(path)), path.read_bytes()
            if any(np.array_equal(stored, old) for old in masks[:-1]):
                self._find("lost", f"{key} was corrected, but its old mask is here")
            elif not np.array_equal(stored, masks[-1]):
                self._find("misassigned", f"{key} has a mask that was not drawn for it")
            if latest[key]["sha256"] != hashlib.sha256(content).hexdigest():
                self._find("lost", f"{key} is here, but the ledger has another mask")
            if cached.get(path.name) != hashlib.md5(content).hexdigest():
                self._find("lost", f"{key} is here, but DVC's cache does not have this mask")
        for path in self.folder.glob("data/labels/*.png"):
            if path.stem not in self.drawn:
                self._find("misassigned", f"{path.stem} has a mask, but nobody labelled it")

    def _cached(self) -> dict[str, str]:
        """The masks that DVC has taken: MD5 by file name."""
        record, cache = self.folder / paths.LABELS_DVC, self.folder / ".dvc/cache/files/md5"
        if not record.is_file():
            return {}
        digest = record.read_text().partition("md5: ")[2].split()[0]
        rows = json.loads((cache / digest[:2] / digest[2:]).read_text())
        return {row["relpath"]: row["md5"] for row in rows if (cache / row["md5"][:2] / row["md5"][2:]).is_file()}

    def _list_tasks(self) -> None:
        """What the server has under this title, in however many projects."""
        call, self.tasks = self.bench.person.call, []
        for project in self._projects():
            about = {"project": project, "page_size": 1000, "fields": "all"}
            self.tasks += call("GET", "/api/tasks", params=about)["tasks"]

    def _projects(self) -> list[int]:
        listed = self.bench.person.call("GET", "/api/projects", params={"page_size": 1000, "title": self.title})
        return [project["id"] for project in listed["results"] if project["title"] == self.title]

    def check_pictures(self) -> None:
        """What the tasks show to the person."""
        for task in self.tasks:
            name, _, key = task["data"]["key"].partition("/")
            self.check_task(task, name, key)
        used = {task["data"][field].removeprefix("/data/") for task in self.tasks for field in self.fields}
        for project in self._projects():
            uploads = self.bench.person.call("GET", f"/api/projects/{project}/file-uploads", params={"all": "true"})
            self.orphans += sum(upload["file"] not in used for upload in uploads)

    def _find(self, name: str, what: str) -> None:
        faults = "; ".join(f"{fault.kind}, {fault.phase} {fault.ordinal}" for fault in self.faults.values())
        self.found[name].add(f"{what} [{self.title}: {faults}]")
