"""HTTP client of a Label Studio server: all calls that the loop makes go through it.

A request that reads is retried after a fault; one that creates is not, since it may have been carried out although its
response was lost, so the caller has to look first. Every fault ends as one sentence. Not label-studio-sdk: importing it
takes 5 s, it repeats lost POSTs, and it walks over every number of a mask in Python (docs/decisions/0007).
"""

import base64
import binascii
import json
import os
import socket
import ssl
import time
from collections.abc import Generator, Mapping
from typing import Any, Literal
from urllib.parse import urljoin

import httpx
import orjson

from pipeline.annotators.contract import Unreachable
from pipeline.annotators.label_studio import connection
from pipeline.errors import UserError

KEY = "LABEL_STUDIO_API_KEY"
TIMEOUT = 120.0
"""Read timeout for the server, seconds."""
SHOWN = 30.0
"""Read timeout for the host of a picture, seconds."""
CONNECT = 20.0
"""Connect timeout, seconds."""
PAUSES = (0.5, 2.0)
"""Seconds before a request that only reads is tried again."""
GATEWAY = (502, 503, 504)
"""Status codes of a proxy that does not reach the server."""
ACCESS_SECONDS = 200.0
"""Seconds after which an access token is renewed; the server accepts it for 300."""


Method = Literal["GET", "POST", "PATCH", "DELETE"]


class NotFound(UserError):
    """The server has no such thing."""


class NotShown(UserError):
    """An address that answers a browser with an error."""


class Elsewhere(UserError):
    """An address that cannot be reached from this machine; an annotator's browser may reach it."""


class Client:
    """A Label Studio server, as one user."""

    def __init__(self, url: str, key: str | None = None, *, transport: httpx.BaseTransport | None = None) -> None:
        """Connect to nothing yet.

        Args:
            url: the server's address.
            key: legacy token or personal access token; by default from the environment.
            transport: what carries the requests; by default the network.

        Raises:
            UserError: the address cannot be one, there is no key, or it is of a kind that does not last.
        """
        self.url = url.rstrip("/")
        self._key = (os.environ.get(KEY, "") if key is None else key).strip()
        self._personal = _is_personal(self._key, self.url)
        self._access, self._until = "", 0.0
        try:
            self._proxy = connection.proxy(httpx.URL(self.url))
        except httpx.InvalidURL as error:
            raise UserError(f"annotate.url is {url!r}, which is no address ({error}): write http://HOST:PORT") from None
        timeout = httpx.Timeout(TIMEOUT, connect=min(CONNECT, TIMEOUT))
        self._http = connection.connections(transport, base_url=self.url, timeout=timeout)
        self._answered = False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str, **params: Any) -> Any:
        """GET: the JSON of the response; retried twice if the server cannot be reached."""
        for pause in PAUSES:
            try:
                return self._call("GET", path, params=params)
            except Unreachable:
                time.sleep(pause)
        return self._call("GET", path, params=params)

    def send(self, method: Method, path: str, body: Any = None, **params: Any) -> Any:
        """POST, PATCH or DELETE, never retried: the JSON of the response. `body` may hold NumPy arrays.

        Raises:
            Unreachable: it may or may not have been carried out.
        """
        return self._call(method, path, params=params, body=body)

    def upload(self, path: str, files: Mapping[str, tuple[str, bytes]], **params: Any) -> Any:
        """POST files, by form field: (name, content). Never retried, as `send`."""
        return self._call("POST", path, params=params, files=files)

    def show(self, address: str) -> Generator[bytes]:
        """The bytes, as they arrive, of what a browser that is logged in to Label Studio gets from this address.

        The key is sent to this server only, also when it redirects elsewhere.

        Raises:
            NotShown: the address answers with an error.
            Unreachable: Label Studio does not answer, if the address is there.
            Elsewhere: another host does not answer from here.
        """
        url = urljoin(f"{self.url}/", address)
        own = url.startswith(f"{self.url}/")
        headers = self._headers() if own else {}
        try:
            with self._http.stream("GET", url, headers=headers, follow_redirects=True, timeout=SHOWN) as answer:
                if not answer.is_success:
                    raise NotShown(f"{url} answers with {answer.status_code}")
                yield from answer.iter_bytes()
        except httpx.InvalidURL as error:
            raise NotShown(f"{url} is no address ({error})") from None
        except httpx.HTTPError as error:
            asked = str(error.request.url)  # after redirects, which may lead to another host
            if asked.startswith(f"{self.url}/"):
                raise self._lost(error) from None
            raise Elsewhere(f"{asked} cannot be asked from here ({type(error).__name__}: {error})") from None

    def _call(
        self,
        method: Method,
        path: str,
        *,
        params: Mapping[str, Any],
        body: Any = None,
        files: Mapping[str, tuple[str, bytes]] | None = None,
    ) -> Any:
        what = f"{method} {path}"
        try:
            headers = self._headers()
            content = None
            if body is not None:
                content = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
                headers["Content-Type"] = "application/json"
            answer = self._http.request(method, path, params=params, headers=headers, content=content, files=files)
        except httpx.HTTPError as error:
            raise self._lost(error) from None
        return self._content(answer, what)

    def _headers(self) -> dict[str, str]:
        if not self._personal:
            return {"Authorization": f"Token {self._key}"}
        if time.monotonic() > self._until:
            try:
                answer = self._http.post("/api/token/refresh/", json={"refresh": self._key})
            except httpx.HTTPError as error:
                raise self._lost(error) from None
            self._access = str(self._content(answer, "POST /api/token/refresh/")["access"])
            self._until = time.monotonic() + ACCESS_SECONDS
        return {"Authorization": f"Bearer {self._access}"}

    def _lost(self, error: httpx.HTTPError) -> Unreachable:
        """The error for a request that failed on the way: which host, proxy or certificate is at fault."""
        why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        causes = list(connection.causes(error))
        host = httpx.URL(self.url).host
        for cause in causes:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return Unreachable(
                    f"{self.url} is not trusted ({cause.verify_message}): {connection.way_to_trust(cause, host)}"
                )
        if any("WRONG_VERSION_NUMBER" in str(cause) or "UNKNOWN_PROTOCOL" in str(cause) for cause in causes):
            return Unreachable(
                f"{self.url} does not speak https ({why}): write http:// in annotate.url, or give it the port that does"
            )
        if self._proxy is not None and isinstance(error, httpx.ProxyError | httpx.ConnectError | httpx.ConnectTimeout):
            return Unreachable(
                f"Label Studio at {self.url} cannot be reached, since the proxy {self._proxy} does not let us through "
                f"({why}): mend that, or if the server is reached without it, `export NO_PROXY={host}`"
            )
        if any(isinstance(cause, socket.gaierror) for cause in causes):
            return Unreachable(
                f"the host {host!r} of annotate.url is not known here ({why}): correct it, or bring this machine into "
                f"the network that knows it"
            )
        broken = isinstance(error, httpx.RemoteProtocolError | httpx.ReadError)
        if broken and not self._answered and self._proxy is None and connection.speaks_https(httpx.URL(self.url)):
            return Unreachable(f"{self.url} speaks https ({why}): write https:// in annotate.url")
        return Unreachable(
            f"Label Studio does not answer at {self.url} ({why}): start it (`python -m pipeline label-studio` starts "
            f"one here), or correct annotate.url; what is ordered stays ordered"
        )

    def _redirected(self, answer: httpx.Response, what: str) -> UserError:
        """The error for a redirect: an API call must be sent to the right address in the first place."""
        to = answer.url.join(answer.headers["location"])
        asked = answer.url.path.removeprefix(httpx.URL(self.url).path.rstrip("/"))
        home = to.copy_with(path=to.path.removesuffix(asked) or "/", query=None, fragment=None)
        if to.path.endswith(asked) and str(home).rstrip("/") != self.url:  # the same API, elsewhere
            return UserError(f"{self.url} sends us on to {str(home).rstrip('/')}: write that as annotate.url")
        there = str(to.copy_with(query=None, fragment=None, userinfo=b""))
        return Unreachable(
            f"{self.url} answers {what} with {answer.status_code} and sends us on to {there}, which is no API of Label "
            f"Studio's: if a log-in stands before it, have /api let through; else correct annotate.url"
        )

    def _content(self, answer: httpx.Response, what: str) -> Any:
        """The response's JSON; raises one sentence if it has none or is an error."""
        status = answer.status_code
        if status == httpx.codes.PROXY_AUTHENTICATION_REQUIRED:
            raise Unreachable(
                f"the proxy {self._proxy or 'before Label Studio'} wants a name and a password (407): write them into "
                f"its address, http://NAME:PASSWORD@HOST:PORT, or `export NO_PROXY={answer.url.host}` to do without it"
            )
        if self._proxy is not None and status in GATEWAY and not _is_json(answer):
            raise Unreachable(
                f"the proxy {self._proxy} answers {what} with {status} instead of Label Studio at {self.url}: try "
                f"again, or if the server is reached without it, `export NO_PROXY={answer.url.host}`"
            )
        if answer.is_redirect and "location" in answer.headers:
            raise self._redirected(answer, what)
        if status >= 500 or status in (408, 409, 429):
            raise Unreachable(f"Label Studio at {self.url} answers {what} with {status}: try again, or look at its log")
        if status == httpx.codes.NO_CONTENT:
            return None
        try:
            content = orjson.loads(answer.content)
        except orjson.JSONDecodeError:
            if status == httpx.codes.NOT_FOUND:
                raise NotFound(f"Label Studio at {self.url} has no {what}") from None
            raise Unreachable(
                f"{self.url} answers {what} with {status} and {len(answer.content)} bytes that are no JSON "
                f"({answer.text[:30]!r}): is annotate.url the address of Label Studio itself?{self._through()}"
            ) from None
        if answer.is_success:
            self._answered = True
            return content
        detail = _detail(content)
        if status == httpx.codes.UNAUTHORIZED:
            raise UserError(self._refused(detail))
        if status == httpx.codes.FORBIDDEN:
            raise UserError(
                f"Label Studio at {self.url} forbids {what} ({detail}): use the key of a user who may edit the project"
            )
        if status == httpx.codes.NOT_FOUND:
            raise NotFound(f"Label Studio at {self.url} has no {what} ({detail})")
        raise UserError(f"Label Studio at {self.url} refuses {what} with {status}: {detail}")

    def _through(self) -> str:
        return "" if self._proxy is None else f" The question went through the proxy {self._proxy}."

    def _refused(self, detail: str) -> str:
        kind = "personal access token" if self._personal else "legacy token"
        if "legacy token authentication has been disabled" in detail:
            way = "take a personal access token instead, or enable legacy tokens under Organization > API Tokens"
        else:
            way = "copy it anew"
        return (
            f"Label Studio at {self.url} refuses the {kind} in {KEY} ({detail}): {way}; keys are at "
            f"{self.url}/user/account"
        )


def _is_json(answer: httpx.Response) -> bool:
    try:
        orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        return False
    return True


def _is_personal(key: str, url: str) -> bool:
    """Whether the key is a personal access token (a JWT that is exchanged for access tokens), not a legacy token."""
    if not key:
        raise UserError(
            f"{KEY} is not set: copy a token from {url}/user/account and `export {KEY}=...`, or `source "
            f"data/label_studio/key.env` for the server of `python -m pipeline label-studio`"
        )
    if not key.isascii() or any(character.isspace() for character in key):
        raise UserError(f"{KEY} has characters that no key has: copy the token alone from {url}/user/account")
    parts = key.split(".")
    if len(parts) != 3:
        return False
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        kind = claims["token_type"]
    except (binascii.Error, ValueError, KeyError, TypeError):
        raise UserError(f"{KEY} looks like a personal access token but cannot be read: copy it anew") from None
    if kind != "refresh":
        raise UserError(
            f"{KEY} holds a token of type {kind!r}, which ends after five minutes: take a personal access token from "
            f"{url}/user/account"
        )
    return True


def _detail(content: Any) -> str:
    if isinstance(content, dict):
        content = content.get("validation_errors") or content.get("detail") or content
    return " ".join(str(content).split())[:300]
