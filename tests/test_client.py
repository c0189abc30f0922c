import http.server
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest

from pipeline.annotators.contract import Unreachable
from pipeline.annotators.label_studio import client, connection
from pipeline.annotators.label_studio.client import Client, NotFound
from pipeline.errors import UserError

HTML = b"<html><body>Log in</body></html>"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the test says, and keeps what it was asked."""

    answers: ClassVar[list[tuple[int, bytes]]] = []
    asked: ClassVar[list[tuple[str, str, bytes]]] = []
    location: ClassVar[list[str]] = []
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append((f"{self.command} {self.path}", self.headers["Authorization"] or "", body))
        status, content = self.answers.pop(0)
        if status == 0:
            self.close_connection = True
            return
        self.send_response(status)
        for location in self.location:
            self.send_header("Location", location)
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
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)

    def start(*answers: tuple[int, bytes]) -> str:
        Handler.answers[:], Handler.asked[:], Handler.location[:] = answers, [], []
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


# the network around


def sentence(url: str) -> str:
    """What is said of a call that must fail."""
    with pytest.raises(UserError) as caught:
        call(url, lambda server: server.get("/api/x"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


Encrypted = Callable[..., tuple[str, Path]]


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[Encrypted]:
    """Start a server that speaks https and answers [1], with a certificate for these names; address and certificate."""
    running: list[tuple[http.server.ThreadingHTTPServer, threading.Thread]] = []

    def start(names: str = "IP:127.0.0.1", days: int = 2) -> tuple[str, Path]:
        key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
        words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-days", str(days)]
        words += ["-keyout", str(key), "-out", str(certificate), "-addext", f"subjectAltName={names}"]
        subprocess.run(words, check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        Handler.answers[:], Handler.asked[:], Handler.location[:] = [(200, b"[1]")] * 9, [], []
        server = Quiet(("127.0.0.1", 0), Handler)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((server, thread))
        return f"https://127.0.0.1:{server.server_port}", certificate

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()


class Quiet(http.server.ThreadingHTTPServer):
    """Says nothing of clients that turn away."""

    def handle_error(self, *_: object) -> None:
        pass


@pytest.mark.usefixtures("says")
def test_certificate_that_is_not_trusted_is_named_with_what_helps(
    encrypted: Encrypted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url, certificate = encrypted()
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    assert "is not trusted (self-signed certificate): `export SSL_CERT_FILE=FILE.pem`" in sentence(url)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert call(url, lambda server: server.get("/api/x")) == [1]
    assert "is for another name than 'localhost'" in sentence(url.replace("127.0.0.1", "localhost"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "absent.pem"))
    assert f"SSL_CERT_FILE is '{tmp_path}/absent.pem', where no certificates can be read" in sentence(url)


def test_https_to_http_and_the_other_way_round_are_told(says: Says, encrypted: Encrypted) -> None:
    url = says(*[(200, b"[1]")] * 9)
    assert "does not speak https" in sentence(url.replace("http:", "https:"))
    url, _ = encrypted()
    assert f"{url.replace('https', 'http')} speaks https" in sentence(url.replace("https", "http"))


@pytest.mark.parametrize(
    ("location", "says_so", "kind"),
    [
        ("https://ls.test/api/x", "sends us on to https://ls.test: write that as annotate.url", UserError),
        ("https://ls.test/label/api/x?a=b", "on to https://ls.test/label: write that as annotate.url", UserError),
        ("/user/login/?next=/api/x", "/user/login/, which is no API of Label Studio's: if a log-in", Unreachable),
        ("https://sso.test/?token=geheim", "sends us on to https://sso.test/, which is no API", Unreachable),
    ],
)
def test_redirect_says_where_to(says: Says, location: str, says_so: str, kind: type[UserError]) -> None:
    url = says(*[(302, b"")] * 3)
    Handler.location[:] = [location]
    with pytest.raises(UserError) as caught:
        call(url, lambda server: server.get("/api/x"))
    assert says_so in str(caught.value)
    assert type(caught.value) is kind
    assert "geheim" not in str(caught.value)


@pytest.mark.usefixtures("says")
def test_host_that_nobody_knows_is_named() -> None:
    assert "the host 'nobody.invalid' of annotate.url is not known here" in sentence("http://nobody.invalid:8080")


@pytest.mark.parametrize(
    ("answer", "says_so"),
    [
        ((407, HTML), "the proxy http://127.0.0.1:{port} (HTTP_PROXY) wants a name and a password (407)"),
        ((502, HTML), "the proxy http://127.0.0.1:{port} (HTTP_PROXY) answers GET /api/x with 502 instead of"),
        ((200, HTML), "The question went through the proxy http://127.0.0.1:{port} (HTTP_PROXY)."),
        ((500, b"{}"), "Label Studio at http://ls.test answers GET /api/x with 500"),
    ],
)
def test_proxy_that_does_not_let_us_through_is_named_without_its_password(
    says: Says, answer: tuple[int, bytes], says_so: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = says(*[answer] * 3)
    monkeypatch.setenv("HTTP_PROXY", address.replace("http://", "http://ann:geheim@"))
    said = sentence("http://ls.test")
    assert says_so.format(port=address.rpartition(":")[2]) in said
    assert "geheim" not in said
    assert Handler.asked[0][0] == "GET http://ls.test/api/x"  # so it was the proxy that was asked


@pytest.mark.usefixtures("says")
@pytest.mark.parametrize(
    ("variable", "value", "says_so"),
    [
        ("HTTP_PROXY", "http://ann:geheim@127.0.0.1:9", "since the proxy http://127.0.0.1:9 (HTTP_PROXY) does not let"),
        ("http_proxy", "127.0.0.1:9", "since the proxy http://127.0.0.1:9 (HTTP_PROXY) does not let us through"),
        ("ALL_PROXY", "socks4://127.0.0.1:9", "ALL_PROXY names no proxy of a kind that is known here (socks4://)"),
        ("ALL_PROXY", "http://127.0.0.1:9a", "the environment variable ALL_PROXY is no address of a proxy"),
    ],
)
def test_proxy_that_cannot_be_used_is_named(
    variable: str, value: str, says_so: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    said = sentence("http://ls.test")
    assert says_so in said
    assert "NO_PROXY=ls.test" in said
    assert "geheim" not in said


@pytest.mark.usefixtures("says")
def test_socks_without_its_package_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "ALL_PROXY names a SOCKS proxy, socks5://127.0.0.1, for which the package socksio" in sentence("http://a.b")


def test_other_hosts_are_reached_by_their_own_way(says: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    """Label Studio is on this machine, a picture is elsewhere, behind the proxy."""
    url = says((200, b"[1]"), (200, b"[2]"))
    monkeypatch.setenv("HTTP_PROXY", url)
    with connection.connections() as http:
        assert [http.get(f"{url}/api/x").json(), http.get("http://pictures.test/a.png").json()] == [[1], [2]]
    assert [asked[0] for asked in Handler.asked] == ["GET /api/x", "GET http://pictures.test/a.png"]


@pytest.mark.parametrize("url", ["http://127.0.0.1", "http://localhost:8080", "http://127.9.9.9", "http://[::1]:8080"])
def test_this_machine_is_reached_without_a_proxy(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert connection.proxy(httpx.URL(url)) is None


@pytest.mark.parametrize(
    ("no_proxy", "direct", "through"),
    [
        ("*", ["http://a.b", "https://10.0.0.1"], []),
        ("10.0.0.0/8, fe80::/10, ::1", ["http://10.2.3.4", "http://[fe80::5]"], ["http://11.0.0.1", "http://a.b"]),
        ("[fe80::5],10.1.1.1", ["http://[fe80::5]", "http://10.1.1.1"], ["http://[fe80::6]", "http://10.1.1.11"]),
        ("corp.test", ["http://corp.test", "http://ls.corp.test:8080"], ["http://notcorp.test", "http://corp.test.x"]),
        (".corp.test,*.lab.test", ["http://ls.corp.test", "http://a.lab.test"], ["http://other.test"]),
        ("LS.test:8080", ["http://ls.test:8080"], ["http://ls.test", "http://ls.test:80"]),
        ("", [], ["http://a.b"]),
    ],
)
def test_no_proxy_takes_names_networks_and_ports(
    no_proxy: str, direct: list[str], through: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert [url for url in direct if connection.proxy(httpx.URL(url)) is not None] == []
    assert [url for url in through if connection.proxy(httpx.URL(url)) is None] == []
