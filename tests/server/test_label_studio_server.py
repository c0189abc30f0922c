"""The command itself, in a project of its own; its first start is the one that makes the template (studio.py)."""

import base64
import contextlib
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pipeline import paths
from pipeline.annotators.label_studio import server
from pipeline.errors import UserError
from tests import repo
from tests.conftest import ROOT
from tests.server.studio import DATABASE, VENV, copy_template, free_port

PATIENCE = 600.0
"""Seconds for anything, on a busy machine; a start takes 4 s on an idle one."""

# What Label Studio would take for its own settings: the first would end it, the third make wrong links.
STRAY = {"DEBUG": "nonsense", "PORT": "9", "HOST": "http://elsewhere", "LABEL_STUDIO_BASE_DATA_DIR": "/nowhere"}


class Command:
    """`python -m pipeline label-studio` in a folder."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.url, self.data = folder, f"http://127.0.0.1:{port}", folder / paths.LABEL_STUDIO
        self.words = [sys.executable, "-m", "pipeline", "label-studio", "--port", str(port)]
        self.environment = os.environ | STRAY | {"PYTHONPATH": str(ROOT)}
        self.log = folder / "said.txt"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def said(self) -> str:
        return self.log.read_text()

    @property
    def token(self) -> str:
        found = re.search(r"^export LABEL_STUDIO_API_KEY=(\S+)$", (self.data / "key.env").read_text(), re.MULTILINE)
        assert found
        return found[1]

    @property
    def server(self) -> int:
        """The server's process, which is not the command's."""
        return int((self.data / "lock").read_text().split(",")[0].removeprefix("process "))

    def api(self, method: str, call: str, **content: object) -> dict[str, object]:
        headers = {"Authorization": f"Token {self.token}"}
        with httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=60) as client:
            answer = client.request(method, call, json=content or None)
        assert answer.is_success, answer.text
        return dict(answer.json())

    def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.words, cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(lambda: "Ctrl-C stops it" in self.said or self.process.poll() is not None, "it did not start")
        assert self.process.poll() is None, self.said

    def end(self, number: signal.Signals) -> int:
        """Send a signal to the command alone; its exit status."""
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(number)
        return process.wait(PATIENCE)

    def refused(self) -> str:
        """What it says when it does not start: one sentence."""
        done = subprocess.run(
            self.words,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == 1, done.stdout
        assert done.stderr.startswith("label-studio: ")
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr


def wait_until(happened, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def project(folder: Path, port: int) -> Command:
    folder.mkdir(exist_ok=True)
    (folder / "params.yaml").write_text(repo.PARAMS)
    for name in (server.REQUIREMENTS, paths.LABEL_STUDIO_VENV):
        (folder / name).symlink_to(ROOT / name)
    return Command(folder, port)


def alive(process: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, 0)
        return True
    return False


def listens(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as client:
        return client.connect_ex((host, port)) == 0


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    made = project(tmp_path_factory.mktemp("server"), free_port())
    made.data.parent.mkdir()
    copy_template(made.data)
    yield made
    if made.process is not None:
        made.end(signal.SIGTERM)


@pytest.fixture
def running(command: Command) -> Command:
    if command.process is None:
        command.start()
    return command


def test_what_it_prints_lets_a_person_and_a_program_in(running: Command) -> None:
    found = re.search(rf"at {running.url}: log in as (\S+) with password (\S+)$", running.said, re.MULTILINE)
    assert found, running.said
    email, password = found.groups()
    assert "source data/label_studio/key.env" in running.said
    assert f"annotator: label_studio, url: {running.url}" in running.said
    sourced = subprocess.check_output(
        ["sh", "-c", ". data/label_studio/key.env; echo $LABEL_STUDIO_API_KEY"], cwd=running.folder, text=True
    )
    assert sourced.strip() == running.token
    assert running.api("GET", "/api/current-user/whoami")["email"] == email
    with httpx.Client(base_url=running.url, trust_env=False, timeout=60) as client:
        client.get("/user/login/")
        form = {"email": email, "password": password, "csrfmiddlewaretoken": client.cookies["csrftoken"]}
        assert client.post("/user/login/", data=form | {"password": "wrong"}).status_code == 200  # the form again
        assert client.get("/api/projects").status_code == 401
        assert client.post("/user/login/", data=form).status_code == 302
        assert client.get("/api/projects").status_code == 200


def test_strangers_stay_outside(running: Command) -> None:
    port = int(running.url.rpartition(":")[2])
    assert listens(port)
    assert not listens(port, "127.0.0.2")  # as a server on 0.0.0.0 would
    assert httpx.get(f"{running.url}/api/projects", trust_env=False, timeout=60).status_code == 401
    with httpx.Client(base_url=running.url, trust_env=False, timeout=60) as client:
        client.get("/user/signup/")
        form = {"email": "e@example.org", "password": "12345678", "csrfmiddlewaretoken": client.cookies["csrftoken"]}
        assert client.post("/user/signup/", data=form).status_code == 403  # without a link from somebody inside
    assert (running.data / "key.env").stat().st_mode & 0o777 == 0o600
    assert all((running.data / name).stat().st_mode & 0o777 == 0o700 for name in (".", "server"))
    assert running.token not in running.said
    ignored = ["git", "check-ignore", "--no-index", "data/label_studio/key.env", ".venv-label-studio/x"]
    assert len(subprocess.check_output(ignored, cwd=ROOT).split()) == 2


def test_local_files_are_served_from_its_own_folder_only(running: Command) -> None:
    images = running.data / "media/images"
    images.mkdir(exist_ok=True)
    (images / "a.png").write_bytes(b"a")
    made = running.api("POST", "/api/projects", title="files")["id"]
    storage = {"project": made, "use_blob_urls": True}
    running.api("POST", "/api/storages/localfiles", path=str(images), **storage)
    headers = {"Authorization": f"Token {running.token}"}
    url = f"{running.url}/data/local-files/?d=images/a.png"
    answer = httpx.get(url, headers=headers, trust_env=False, timeout=60)
    assert (answer.status_code, answer.content) == (200, b"a")
    with pytest.raises(AssertionError, match="LOCAL_FILES_DOCUMENT_ROOT"):
        running.api("POST", "/api/storages/localfiles", path=str(running.folder), **storage)


def test_second_server_on_the_same_data_is_refused(running: Command) -> None:
    second = Command(running.folder, free_port())
    expected = f"Label Studio runs on data/label_studio already (process {running.server}, {running.url}): use that one"
    assert expected in second.refused()
    assert alive(running.server)


def test_taken_port_is_refused(running: Command, tmp_path: Path) -> None:
    port = int(running.url.rpartition(":")[2])
    error = project(tmp_path / "other", port).refused()
    assert f"port {port} cannot be had (Address already in use; `lsof -i :{port}` names" in error
    assert f"--port {port + 1}" in error


def test_ctrl_c_ends_it_and_the_next_start_finds_all_again(running: Command) -> None:
    title, token, server = "kept over restarts", running.token, running.server
    running.api("POST", "/api/projects", title=title)
    assert running.end(signal.SIGINT) == 0
    assert running.said.splitlines()[-1] == "Label Studio is stopped"
    assert not alive(server)
    running.start()
    assert running.token == token
    assert running.server != server
    assert title in str(running.api("GET", "/api/projects")["results"])


def test_server_does_not_outlive_a_killed_command(running: Command) -> None:
    server, port = running.server, int(running.url.rpartition(":")[2])
    assert running.end(signal.SIGKILL) == -signal.SIGKILL
    wait_until(lambda: not listens(port), f"process {server} still listens")


@pytest.fixture
def stopped(tmp_path: Path) -> Command:
    """A project whose server was started once."""
    made = project(tmp_path, free_port())
    made.data.parent.mkdir()
    copy_template(made.data)
    return made


def test_server_that_cannot_start_is_quoted(stopped: Command) -> None:
    (stopped.data / DATABASE).write_bytes(b"no database " * 1000)
    assert "(django.db.utils.DatabaseError: file is not a database): data/label_studio/server.log" in stopped.refused()
    assert not alive(stopped.server)


def test_key_of_another_database_is_refused(stopped: Command) -> None:
    key = stopped.data / "key.env"
    key.write_text(key.read_text().replace(stopped.token, "0" * 40))
    assert "Label Studio refuses the key in data/label_studio/key.env (HTTP 401)" in stopped.refused()
    assert not alive(stopped.server)


def test_key_that_is_lost_or_cut_short_is_not_made_up_anew(stopped: Command) -> None:
    key = stopped.data / "key.env"
    key.write_text(key.read_text()[:100])
    with pytest.raises(UserError, match=r"key\.env is not whole: put it back"):
        server.start(stopped.data, free_port(), VENV)
    key.unlink()
    with pytest.raises(UserError, match=r"key\.env not found beside the database that it opens"):
        server.start(stopped.data, free_port(), VENV)
    assert not key.exists()


def test_environment_that_is_not_whole_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"venv is not whole \(.*No such file.*\): remove it and run again"):
        server.start(tmp_path / "data", free_port(), tmp_path / "venv")


@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_what_is_no_port_is_refused(port: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"port {port} is no port"):
        server.start(tmp_path / "data", port, VENV)
    assert not (tmp_path / "data").exists()


def wheel(folder: Path, version: str) -> str:
    """Write a tiny package; its line of a requirements file."""
    path = folder / f"tiny-{version}-py3-none-any.whl"
    files = {
        "tiny.py": f"VERSION = {version!r}\n",
        f"tiny-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n",
        f"tiny-{version}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"tiny-{version}.dist-info/RECORD"
    lines = []
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        lines.append(f"{name},sha256={digest},{len(text)}\n")
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, record: "".join([*lines, f"{record},,\n"])}.items():
            archive.writestr(name, text)
    return f"tiny @ {path.as_uri()} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def test_installs_what_the_file_says_once_and_anew_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version() -> str:
        words = [paths.LABEL_STUDIO_VENV / "bin/python", "-c", "import tiny; print(tiny.VERSION)"]
        return subprocess.check_output(words, text=True).strip()

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"requirements-label-studio.txt not found: run in the project's root"):
        server.install()
    server.REQUIREMENTS.write_text(wheel(tmp_path, "1.0"))
    server.install()
    assert version() == "1.0"
    assert capsys.readouterr().out == "installing Label Studio into .venv-label-studio (once, about 1 GB)\n"
    server.install()
    assert capsys.readouterr().out == ""
    marker = paths.LABEL_STUDIO_VENV / "installed"
    os.utime(marker, (0, 0))
    good = wheel(tmp_path, "2.0")
    server.REQUIREMENTS.write_text(re.sub("sha256:.*", f"sha256:{'0' * 64}", good))
    with pytest.raises(UserError, match=r"could not be installed into \.venv-label-studio: see uv's words above"):
        server.install()
    assert marker.stat().st_mtime == 0  # so that the next run tries again
    server.REQUIREMENTS.write_text(good)
    server.install()
    assert version() == "2.0"
