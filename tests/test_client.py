import http.server
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest

from pipeline.annotators import client
from pipeline.annotators.client import Client, NotFound
from pipeline.annotators.contract import Unreachable
from pipeline.errors import UserError

HTML = b"<html><body>Log in</body></html>"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the test says, and keeps what it was asked."""

    answers: ClassVar[list[tuple[int, bytes]]] = []
    asked: ClassVar[list[tuple[str, str, bytes]]] = []
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append((f"{self.command} {self.path}", self.headers["Authorization"] or "", body))
        status, content = self.answers.pop(0)
        if status == 0:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) + (100 if status == 299 else 0)))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = status == 299

    do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


Says = Callable[..., str]


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Iterator[Says]:
    """Start a server with these answers; its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(client, "PAUSES", (0.0, 0.0))

    def start(*answers: tuple[int, bytes]) -> str:
        Handler.answers[:], Handler.asked[:] = answers, []
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    server.shutdown()
    server.server_close()
    thread.join()


def call(url: str, do: Callable[[Client], Any]) -> Any:
    server = Client(url, "ab" * 20)
    try:
        return do(server)
    finally:
        server.close()


@pytest.mark.parametrize(
    ("answer", "kind", "sentence"),
    [
        ((500, b"{}"), Unreachable, r"answers POST /api/x with 500: try again, or look at its log"),
        ((503, HTML), Unreachable, r"with 503"),
        ((429, b"{}"), Unreachable, r"with 429"),
        ((200, HTML), Unreachable, r"200 and 32 bytes that are no JSON .*is annotate.url the address of Label Studio"),
        ((302, b""), Unreachable, r"302 and 0 bytes that are no JSON"),
        ((0, b""), Unreachable, r"does not answer at http://127.0.0.1:\d+ \(RemoteProtocolError.*stays ordered"),
        ((299, b"{"), Unreachable, r"does not answer .*RemoteProtocolError"),
        ((404, HTML), NotFound, r"has no POST /api/x"),
        ((404, b'{"detail": "No Task"}'), NotFound, r"has no POST /api/x \(No Task\)"),
        ((401, b'{"detail": "Invalid token."}'), UserError, r"refuses the legacy token .*Invalid token.*copy it anew"),
        ((403, b'{"detail": "no"}'), UserError, r"forbids POST /api/x \(no\): use the key of a user who may edit"),
        ((400, b'{"validation_errors": {"data": ["bad"]}}'), UserError, r"refuses POST /api/x with 400: .*bad"),
        ((418, b"[1]"), UserError, r"refuses POST /api/x with 418"),
    ],
)
def test_every_fault_is_one_sentence_and_what_creates_is_sent_once(
    says: Says, answer: tuple[int, bytes], kind: type[UserError], sentence: str
) -> None:
    url = says(answer)
    with pytest.raises(UserError, match=sentence) as caught:
        call(url, lambda server: server.send("POST", "/api/x", {"a": 1}))
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert len(Handler.asked) == 1


def test_reading_is_tried_again_and_arrays_are_sent_as_numbers(says: Says) -> None:
    url = says((500, b""), (0, b""), (200, b'{"a": [1]}'))
    assert call(url, lambda server: server.get("/api/x", page=2)) == {"a": [1]}
    assert [asked[0] for asked in Handler.asked] == ["GET /api/x?page=2"] * 3
    url = says((503, b""), (503, b""), (503, b""))
    with pytest.raises(Unreachable):
        call(url, lambda server: server.get("/api/x"))
    url = says((404, b"{}"))
    with pytest.raises(NotFound):  # no use in asking again
        call(url, lambda server: server.get("/api/x"))
    url = says((204, b""))
    assert call(url, lambda server: server.send("PATCH", "/api/x", {"rle": np.array([0, 255], np.uint8)})) is None
    assert Handler.asked == [("PATCH /api/x", f"Token {'ab' * 20}", b'{"rle":[0,255]}')]


def test_nobody_there() -> None:
    with pytest.raises(Unreachable, match=r"does not answer at http://127.0.0.1:9 .*python -m pipeline label-studio"):
        call("http://127.0.0.1:9", lambda server: server.send("POST", "/api/x"))


@pytest.mark.parametrize("url", ["http://127.0.0.1:80a0", "http://[::1", "http://x\u2028y"])
def test_address_that_cannot_be_one_is_named(url: str) -> None:
    with pytest.raises(
        UserError, match=r"annotate\.url is .* which is no address .*: write http://HOST:PORT"
    ) as caught:
        call(url, lambda server: server.get("/api/x"))
    assert type(caught.value) is UserError  # in mode `wait`, too, there is nothing to wait for
