"""Python programs that begin as forks of one process, which has imported the packages already.

Most of what a loop of small stages costs is imports, the same ones again and again. A program started here is a process
of its own with its own folder, environment, output and modules of the project: only what is installed is there at the
start. Who starts it, starts a client: a `python3` that asks the server, waits and ends as the program ended. When the
client is killed, the program is. Forks of one server hash strings alike; those of another one do not. For Linux.

Run as a file, this is the server.
"""

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import NoReturn

PACKAGES = (
    *("albumentations", "dvc.cli.parser", "dvc.repo", "httpx", "matplotlib.pyplot", "networkx", "pandas", "pydantic"),
    *("ruamel.yaml", "scipy.optimize", "scipy.stats", "segmentation_models_pytorch", "torch._dynamo", "torchvision"),
)
"""What takes long to import."""

CLIENT = """\
#!{python} -IS
import json, os, socket, sys
words = sys.argv[1:]
if words[:2] not in (["-m", "pipeline"], ["-m", "dvc"]):
    os.execv({python!r}, [{python!r}, *words])
watched, mine = os.pipe()
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = {{"module": words[1], "words": words[2:], "folder": os.getcwd(), "environment": dict(os.environ)}}
    socket.send_fds(server, [json.dumps(request).encode() + b"\\n"], [0, 1, 2, watched])
    said = b""
    while part := server.recv(16):
        said += part
sys.exit(int(said) if said else "the process was killed")
"""
"""A program other than these two is the real python's."""


class Forks:
    """A running server.

    Attributes:
        bin: A folder with its clients, `python` and `python3`, for PATH.
    """

    def __init__(self, folder: Path) -> None:
        self.bin, address = folder / "bin", str(folder / "socket")
        self.bin.mkdir(parents=True)
        for name in ("python", "python3"):
            client = self.bin / name
            client.write_text(CLIENT.format(python=sys.executable, address=address))
            client.chmod(0o755)
        own = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, address],
            env=os.environ | own,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def stop(self) -> None:
        """End the server when all that it has started has ended."""
        with self._process:  # closes its standard input
            pass


def serve(address: str) -> None:
    """Import the packages, then fork a program for each request, until standard input is closed."""
    for name in PACKAGES:
        importlib.import_module(name)
    gc.freeze()  # the collector's marks would copy every page that it shares with the forks
    assert threading.active_count() == 1, "a fork has only one thread"
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        listener.bind(address)
        listener.listen()
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        print("ready", flush=True)
        while all(key.fileobj is listener for key, _ in selector.select()):
            connection, _ = listener.accept()
            if os.fork() == 0:
                break
            connection.close()
            reap(os.WNOHANG)
        else:
            reap(0)
            return
    program(connection)


def reap(how: int) -> None:
    """Take notice of all children that have ended; with 0, wait for the others too."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, how)[0]:
            pass


def program(connection: socket.socket) -> NoReturn:
    """Be what is asked for, to the end; the client is told the exit status."""
    os.setsid()
    text, (*standard, watched), *_ = socket.recv_fds(connection, 1 << 16, 4)
    die_with(watched)
    while not text.endswith(b"\n"):
        text += connection.recv(1 << 16)
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
        os.close(descriptor)
    request = json.loads(text)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[0], sys.argv = request["folder"], ["", *request["words"]]
    status = 1
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = 0 if end.code is None else end.code if isinstance(end.code, int) else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 (as the interpreter does, of whatever it is)
        traceback.print_exc()
    # As multiprocessing ends its processes: what the server has imported is not taken apart.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(str(status).encode())
    os._exit(status)


def die_with(watched: int) -> None:
    """Have the system kill this process and all of its group when nobody holds the other end of a pipe any more."""
    fcntl.fcntl(watched, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(watched, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(watched, fcntl.F_SETFL, fcntl.fcntl(watched, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([watched], [], [], 0)[0]:  # it was gone before
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    serve(sys.argv[1])
    os._exit(0)
