"""A proxy before a Label Studio server that disturbs one chosen request, or kills either side at it."""

import contextlib
import http.client
import os
import re
import signal
import socket
import socketserver
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple

import numpy as np

from pipeline.annotators.label_studio.server import HOST
from tests.server.studio import Studio

TIMEOUT = 5.0
"""The client's patience, in seconds, where a fault of SILENT is to come; all other requests must be answered in it."""
PATIENCE = 300.0
"""Seconds for anything else, on a busy machine."""
PAGE = b"<!DOCTYPE html>\n<html><title>Sign in</title>\n<body>Please sign in</body></html>\n"
HTML = (("Content-Type", "text/html"),)
JSON = (("Content-Type", "application/json"),)
OVERLOADED = (500, 502, 503, 429)


class Fault(NamedTuple):
    """What is to happen, and when."""

    kind: str
    """One of KINDS."""
    phase: str
    ordinal: int
    """To the n-th request of the phase's first run, counted from 1."""


class Answer(NamedTuple):
    """Of the server."""

    status: int
    content: bytes
    headers: Sequence[tuple[str, str]]


class Call(BaseHTTPRequestHandler):
    """One connection of the client and the request on it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "Proxy"

    def handle(self) -> None:
        """Until either side ends the connection."""
        with contextlib.suppress(ConnectionError, http.client.HTTPException):
            super().handle()

    def take(self) -> None:
        """Read a request and do with it what is due."""
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.take(self)

    do_GET = do_POST = do_PATCH = do_DELETE = take  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

    def forward(self) -> Answer:
        """Let the server carry the request out."""
        connection = http.client.HTTPConnection(HOST, self.server.studio.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            headers = {name: value for name, value in self.headers.items() if name not in ("Connection", "Host")}
            connection.request(self.command, self.path, self.body or None, headers)
            answer = connection.getresponse()
            content = answer.read()
        dropped = ("Connection", "Content-Length", "Transfer-Encoding")
        return Answer(answer.status, content, [pair for pair in answer.getheaders() if pair[0] not in dropped])

    def forward_half(self) -> None:
        """Let the server see half of the request and then a reset connection."""
        lines = [f"{self.command} {self.path} HTTP/1.1", *(f"{n}: {v}" for n, v in self.headers.items()), "", ""]
        head = "\r\n".join(lines).encode("latin-1")
        part = head + self.body[: len(self.body) // 2] if self.body else head[: len(head) // 2]
        with socket.create_connection((HOST, self.server.studio.port), timeout=PATIENCE) as connection:
            connection.sendall(part)
            time.sleep(0.05)  # so that it is read before the reset takes it away
            _reset_on_close(connection)

    def answer(
        self, status: int, content: bytes, headers: Sequence[tuple[str, str]], length: int | None = None
    ) -> None:
        """Answer the client; `length` is what the head says of the content."""
        lines = [f"HTTP/1.1 {status} {http.client.responses[status]}", *(f"{name}: {value}" for name, value in headers)]
        lines.append(f"Content-Length: {len(content) if length is None else length}")
        self.wfile.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + content)

    def drop(self) -> None:
        """End the connection without an answer."""
        raise ConnectionAbortedError

    def disconnect(self) -> None:
        """Reset the connection at once, although the request goes on."""
        _reset_on_close(self.connection)
        os.close(self.connection.detach())


def _reset_on_close(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Proxy(socketserver.ThreadingTCPServer):
    """Passes every request on but the one that is to be disturbed.

    Attributes:
        url: Where it listens.
        studio: The server behind it.
        rng: Draws moments and variants.
        victim: Our process, for the fault that kills it.
        requests: Since it was armed, without the numbers in them.
        hit: The request that was disturbed, if one was.
        deleted: So many requests deleted something, ever.
        server_is_dead: A fault has killed the server; whoever armed the proxy starts it again.
    """

    daemon_threads = True

    def __init__(self, studio: Studio, rng: np.random.Generator) -> None:
        super().__init__((HOST, 0), Call)
        self.url = f"http://{HOST}:{self.server_address[1]}"
        self.studio, self.rng = studio, rng
        self.victim: subprocess.Popen[bytes] | None = None
        self._changed = threading.Condition()
        self._busy = self.deleted = 0
        self.arm(None)
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def arm(self, fault: Fault | None) -> None:
        """Count from 1 again; disturb the request that the fault names."""
        self.fault, self.hit, self.server_is_dead = fault, "", False
        self.requests: list[str] = []

    def take(self, call: Call) -> None:
        """Carry one request out, or what the fault makes of it."""
        with self._changed:
            self._busy += 1
            self.deleted += call.command == "DELETE"
            self.requests.append(re.sub(r"\d+", "N", f"{call.command} {call.path.partition('?')[0]}"))
            fault = self.fault if self.fault is not None and len(self.requests) == self.fault.ordinal else None
            if fault is not None:
                self.hit = self.requests[-1]
        try:
            if fault is None:
                call.answer(*call.forward())
            else:
                KINDS[fault.kind](call)
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def settle(self) -> None:
        """Wait until nothing is on its way any more."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._busy == 0, PATIENCE), "a request does not end"

    def kill_victim(self) -> None:
        """SIGKILL to our process."""
        assert self.victim is not None
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(self.victim.pid, signal.SIGKILL)

    def kill_server(self) -> None:
        """SIGKILL to the server."""
        self.server_is_dead = True
        self.studio.kill()

    def stop(self) -> None:
        """Listen no more."""
        self.shutdown()
        self._thread.join()
        self.server_close()


def _dropped(call: Call) -> None:
    call.disconnect()
    call.drop()


def _answer_lost(call: Call) -> None:
    call.forward()
    call.drop()


def _overloaded(call: Call) -> None:
    call.answer(int(call.server.rng.choice(OVERLOADED)), PAGE, HTML)


def _done_then_500(call: Call) -> None:
    call.forward()
    call.answer(500, PAGE, HTML)


def _cut_short(call: Call) -> None:
    """Half of it, or nothing, in a connection that ends too early, or as if that were all."""
    status, content, headers = call.forward()
    part = content[: int(call.server.rng.choice([0, len(content) // 2]))]
    call.answer(status, part, headers, len(content) if call.server.rng.integers(2) else None)
    call.drop()


def _half_request(call: Call) -> None:
    call.forward_half()
    call.disconnect()
    call.drop()


def _late(call: Call) -> None:
    """The client has given up, told or by its patience, and has perhaps sent it anew when the server gets it."""
    told = call.server.rng.integers(2)
    if told:
        call.disconnect()
    time.sleep(call.server.rng.uniform(0.1, 2) + (0 if told else TIMEOUT))
    call.forward()
    call.drop()


def _slow_answer(call: Call) -> None:
    call.forward()
    time.sleep(TIMEOUT + 0.5)
    call.drop()


def _login_page(call: Call) -> None:
    call.answer(200, PAGE, HTML)


def _unauthorized(call: Call) -> None:
    bodies = ((PAGE, HTML), (b'{"detail": "Invalid token."}', JSON))
    call.answer(401, *bodies[call.server.rng.integers(2)])


def _not_found(call: Call) -> None:
    call.answer(404, PAGE, HTML)


def _we_are_killed(call: Call) -> None:
    """Before the server gets it, after it has, or at what we do with the answer."""
    moment = call.server.rng.integers(3)
    if moment:
        answer = call.forward()
        if moment == 2:
            call.answer(*answer)
            time.sleep(call.server.rng.uniform(0, 0.1))
    call.server.kill_victim()
    call.drop()


def _server_is_killed(call: Call) -> None:
    """While it is at work on the request, or when it is done and its answer on the way."""
    killer = threading.Timer(call.server.rng.uniform(0, 0.15), call.server.kill_server)
    killer.start()
    try:
        call.forward()
    finally:
        killer.join()
    call.drop()


KINDS: dict[str, Callable[[Call], None]] = {
    "connection reset": _dropped,
    "carried out, answer lost": _answer_lost,
    "500, 502, 503 or 429": _overloaded,
    "carried out, then 500": _done_then_500,
    "answer cut short": _cut_short,
    "half a request": _half_request,
    "carried out after we gave up": _late,
    "answer later than the timeout": _slow_answer,
    "200 with a login page": _login_page,
    "401": _unauthorized,
    "404 with a page": _not_found,
    "we are killed": _we_are_killed,
    "server is killed": _server_is_killed,
}
SILENT = ("carried out after we gave up", "answer later than the timeout")
"""Nothing may be answered until the client gives up."""
KILLS = ("we are killed",)
"""What needs a process of its own."""
