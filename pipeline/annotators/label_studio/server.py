"""Installs, starts and stops a Label Studio server on this machine, for `python -m pipeline label-studio`.

It has a virtual environment of its own, because its pinned packages differ from ours, and listens on loopback only.
"""

import fcntl
import http.client
import importlib.util
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from pipeline import paths
from pipeline.errors import UserError

HOST = "127.0.0.1"
REQUIREMENTS = Path("requirements-label-studio.txt")
EMAIL = "regain@localhost"


PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR")
"""Variables of the user's environment that the server gets. No others: it reads any DEBUG, HOST or PORT as its own."""


PROGRAM = """
import ctypes, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: it ends when the thread that started it does
from label_studio.server import main
sys.exit(main())
"""


KEYMAP = '{"region:cycle": {"key": "space"}}'
"""Keys of the editor that differ from its own: the next region has alt+. there, which takes two hands."""


START_SECONDS = 600
"""Timeout of the start. The first one creates the database: 40 s to 60 s on two slow cores."""


class Login(NamedTuple):
    """The account that the first start creates."""

    email: str
    password: str
    token: str


class Server:
    """A running server.

    Attributes:
        url: Its address.
        login: Who may use it.
        process: The server's process, the leader of its own group.
    """

    def __init__(self, url: str, login: Login, process: "subprocess.Popen[bytes]") -> None:
        self.url, self.login, self.process = url, login, process

    def stop(self) -> None:
        """Terminate it, and kill it if it does not end."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill its whole process group."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def install() -> None:
    """Put Label Studio into its environment, unless it is there as the requirements file says.

    Raises:
        UserError: uv is not here, or could not do it.
    """
    venv, marker = paths.LABEL_STUDIO_VENV, paths.LABEL_STUDIO_VENV / "installed"
    if not REQUIREMENTS.is_file():
        raise UserError(f"{REQUIREMENTS} not found: run in the project's root")
    if marker.is_file() and marker.stat().st_mtime >= REQUIREMENTS.stat().st_mtime:
        return
    if importlib.util.find_spec("uv") is None:
        raise UserError("uv is not in this Python: run `pip install --require-hashes -r requirements-uv.txt`")
    print(f"installing Label Studio into {venv} (once, about 1 GB)", flush=True)
    uv = [sys.executable, "-m", "uv"]
    for command in (
        [*uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(venv)],
        [*uv, "pip", "sync", "--python", str(venv), "--require-hashes", str(REQUIREMENTS)],
    ):
        if subprocess.run(command, check=False).returncode:
            raise UserError(f"Label Studio could not be installed into {venv}: see uv's words above, then run again")
    marker.touch()


def environment(data: Path, media: Path, login: Login) -> dict[str, str]:
    """The settings of the server as environment variables (docs.humansignal.com/guide/start).

    Args:
        data: Where it keeps its database and uploads.
        media: The folder under which it may read images that tasks name.
        login: The user that the first start makes.
    """
    return {
        "HOME": str(data.absolute()),  # it leaves a file in ~/.config
        "LABEL_STUDIO_BASE_DATA_DIR": str(data.absolute()),
        "LABEL_STUDIO_USERNAME": login.email,
        "LABEL_STUDIO_PASSWORD": login.password,
        "LABEL_STUDIO_USER_TOKEN": login.token,
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",  # heeded by the first start only
        "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(media.absolute()),
        "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
        "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
        "LABEL_STUDIO_SENTRY_DSN": "",
        "LABEL_STUDIO_FRONTEND_SENTRY_DSN": "",
        "LABEL_STUDIO_LOG_LEVEL": "INFO",
        "LABEL_STUDIO_EDITOR_KEYMAP": KEYMAP,
    }


def start(data: Path, port: int, venv: Path = paths.LABEL_STUDIO_VENV) -> Server:
    """Start a server and wait until it answers. For the main thread: under Linux it ends with the thread.

    Args:
        data: Its folder, made by the first start: `key.env`, `server/` (database, uploads), `media/`, `server.log`.
        port: Where it listens, on 127.0.0.1 only.
        venv: Where Label Studio is installed.

    Raises:
        UserError: the port or the folder is in use, or the server ends before it answers or refuses its own key.
    """
    if not 0 < port < 65536:
        raise UserError(f"port {port} is no port: choose one from 1024 to 65535 with --port")
    server, media, url = data / "server", data / "media", f"http://{HOST}:{port}"
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (data / "lock").open("a+") as lock:
        _lock(lock.fileno(), data)
        _check_free(port)
        login = _login(data)
        server.mkdir(mode=0o700, exist_ok=True)
        media.mkdir(exist_ok=True)
        with (data / "server.log").open("wb") as log:
            words = ["start", "--no-browser", "--internal-host", HOST, "--port", str(port)]
            inherited = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
            try:
                process = subprocess.Popen(
                    [str(venv.absolute() / "bin/python"), "-I", "-u", "-c", PROGRAM, *words],
                    cwd=server,
                    env=inherited | environment(server, media, login),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for us, who then stop it
                    pass_fds=[lock.fileno()],  # it holds the lock for as long as it lives, whatever happens to us
                )
            except OSError as error:
                raise UserError(f"{venv} is not whole ({error}): remove it and run again") from None
        started = Server(url, login, process)
        try:
            lock.truncate(0)
            lock.write(f"process {process.pid}, {url}")
            lock.flush()
            _wait(started, port, data)
        except BaseException:
            started.kill()
            raise
    return started


def _lock(descriptor: int, data: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = (data / "lock").read_text() or "just started"
        raise UserError(f"Label Studio runs on {data} already ({holder}): use that one, or stop it") from None


def _check_free(port: int) -> None:
    """Label Studio itself would move to another port without a word."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(
                f"port {port} cannot be had ({error.strerror}; `lsof -i :{port}` names the program that has it): "
                f"choose another with --port, such as --port {port + 1}"
            ) from None


def _login(data: Path) -> Login:
    """The account from `key.env`; at the first start a new one, written there."""
    path = data / "key.env"
    if path.is_file():
        text = path.read_text()
        found = [re.search(rf"{name}[:=] ?(\S+)$", text, re.MULTILINE) for name in ("email", "password", "API_KEY")]
        values = [match[1] for match in found if match]
        if len(values) != len(Login._fields):
            raise UserError(f"{path} is not whole: put it back, or move {data} away to start anew")
        return Login(*values)
    if (data / "server/label_studio.sqlite3").exists():
        raise UserError(f"{path} not found beside the database that it opens: put it back, or move {data} away")
    login = Login(EMAIL, secrets.token_urlsafe(12), secrets.token_hex(20))
    part = path.with_name(".key.env.part")
    part.touch(mode=0o600)
    part.write_text(
        "# The Label Studio of this project; keep it to yourself. `source` this file before `dvc repro`.\n"
        f"# email: {login.email}\n# password: {login.password}\nexport LABEL_STUDIO_API_KEY={login.token}\n"
    )
    part.replace(path)
    return login


def _wait(started: Server, port: int, data: Path) -> None:
    """Wait until the server that we have started, not another on this port, accepts its user's key."""
    log, deadline = data / "server.log", time.monotonic() + START_SECONDS
    while f"Starting development server at {started.url}/" not in log.read_text(errors="replace"):  # said once bound
        if started.process.poll() is not None:
            raise UserError(f"Label Studio ended while it started ({last_line(log)}): {log} says more")
        if time.monotonic() > deadline:
            raise UserError(f"Label Studio did not start in {START_SECONDS} s ({last_line(log)}): {log} says more")
        time.sleep(0.1)
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    try:
        connection.request("GET", "/api/current-user/whoami", headers={"Authorization": f"Token {started.login.token}"})
        status = connection.getresponse().status
    except OSError as error:
        raise UserError(f"Label Studio does not answer at {started.url} ({error}): {log} says more") from None
    finally:
        connection.close()
    if status != http.HTTPStatus.OK:
        raise UserError(
            f"Label Studio refuses the key in {data / 'key.env'} (HTTP {status}): "
            f"put the file back that belongs to this database, or move {data} away to start anew"
        )


def last_line(log: Path) -> str:
    """The last line of a log that is not empty."""
    return (log.read_text(errors="replace").strip().splitlines() or ["without a word"])[-1]
