"""Real Label Studio servers for tests and benchmarks, started in seconds from a database that was made once."""

import contextlib
import fcntl
import hashlib
import os
import random
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from pipeline import paths
from pipeline.annotators.label_studio import server
from pipeline.annotators.label_studio.server import Server
from tests.conftest import ROOT

VENV = ROOT / paths.LABEL_STUDIO_VENV
DATABASE = "server/label_studio.sqlite3"


class Studio:
    """A server on a folder and a port of its own; it can be stopped or killed, and started again on both.

    Attributes:
        folder: What `python -m pipeline label-studio` has as data/label_studio.
        media: The document root of its local files.
        url, token, email, password: Where it is and who may use it; they stay the same over restarts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.media, self.port = folder, folder / "media", free_port()
        self.url = f"http://{server.HOST}:{self.port}"
        self._server: Server | None = None
        self.start()

    def start(self) -> None:
        """Start it, again or for the first time, and wait until it answers."""
        assert self._server is None, "it runs already"
        self._server = server.start(self.folder, self.port, VENV)
        self.email, self.password, self.token = self._server.login

    def stop(self) -> None:
        """Stop it as Ctrl-C would; nothing happens if it does not run."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def kill(self) -> None:
        """SIGKILL, in the middle of whatever it does."""
        if self._server is not None:
            self._server.kill()
            self._server = None

    def snapshot(self, to: Path) -> None:
        """Copy the database to the file `to` as it is now; the server may run."""
        own, copy = (contextlib.closing(sqlite3.connect(path)) for path in (self.folder / DATABASE, to))
        with own as source, copy as target:
            source.backup(target)

    def restore(self, source: Path) -> None:
        """Put the database of a snapshot in place of the stopped server's."""
        assert self._server is None, "stop it first"
        (self.folder / f"{DATABASE}-journal").unlink(missing_ok=True)  # of a killed server: it is not the snapshot's
        shutil.copy2(source, self.folder / DATABASE)


def start_studio(folder: Path) -> Studio:
    """A server on the new folder `folder`, without a project yet. The caller, in its main thread, stops it."""
    copy_template(folder)
    return Studio(folder)


def copy_template(folder: Path) -> None:
    """Make `folder` the data folder of a server that has been started once and stopped."""
    if not (VENV / "installed").is_file():
        raise AssertionError(f"Label Studio is not in {VENV.name}: run `make test`, which installs it")
    with _alone(VENV / "template.lock"):
        shutil.copytree(_template(), folder)


def _template() -> Path:
    """The folder that all copies come from, made by a first start of what is under test."""
    made_of = [ROOT / server.REQUIREMENTS, Path(server.__file__)]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in made_of)).hexdigest()[:16]
    template, part = VENV / f"template-{digest}", VENV / "template.part"
    if not template.is_dir():
        for old in VENV.glob("template[-.]*/"):
            shutil.rmtree(old)
        server.start(part, free_port(), VENV).stop()
        part.rename(template)
    return template


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time: the workers of pytest-xdist all want the template at once."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def free_port() -> int:
    """A port that nobody has, below those that the system gives to clients: a restarted server finds it free."""
    chance = random.Random(os.urandom(8))
    while True:
        port = chance.randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((server.HOST, port))
            return port
