"""Connections to a Label Studio server: proxies and certificates of the environment, loopback addresses."""

import contextlib
import importlib.util
import ipaddress
import os
import socket
import ssl
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx

from pipeline.errors import UserError


class Proxy(NamedTuple):
    """A proxy that an environment variable names."""

    variable: str
    """HTTP_PROXY, HTTPS_PROXY or ALL_PROXY."""
    url: str
    """With its password."""

    def __str__(self) -> str:
        """Its address without the password, and the variable that names it."""
        url = httpx.URL(self.url)
        return f"{url.scheme}://{url.host}{f':{url.port}' if url.port else ''} ({self.variable})"


def proxy(url: httpx.URL) -> Proxy | None:
    """The environment's proxy for an address; None if it is reached without one.

    Read here and not by httpx, which sends loopback through a proxy, takes no network in NO_PROXY and fails at some
    IPv6 addresses there.

    Raises:
        UserError: the variable holds no address of a proxy that we can use.
    """
    found = urllib.request.getproxies()
    kind = next((kind for kind in (url.scheme, "all") if found.get(kind)), None)
    if kind is None or _without_proxy(url, found.get("no", "")):
        return None
    variable, text = f"{kind.upper()}_PROXY", found[kind]
    way = f"write http://HOST:PORT there, or `export NO_PROXY={url.host}` to do without it"
    try:
        address = httpx.URL(text if "://" in text else f"http://{text}")
    except httpx.InvalidURL as error:
        raise UserError(f"the environment variable {variable} is no address of a proxy ({error}): {way}") from None
    if address.scheme in ("socks5", "socks5h"):
        if importlib.util.find_spec("socksio") is None:
            raise UserError(
                f"{variable} names a SOCKS proxy, {address.scheme}://{address.host}, for which the package socksio is "
                f"needed and not installed: {way}"
            )
    elif address.scheme not in ("http", "https") or not address.host:
        raise UserError(f"{variable} names no proxy of a kind that is known here ({address.scheme}://): {way}")
    return Proxy(variable, str(address))


def _without_proxy(url: httpx.URL, no_proxy: str) -> bool:
    """Whether an address is reached directly: this machine always, others as NO_PROXY says.

    Names there stand for themselves and for all that end in them, with a port for that one only; numbers may be
    networks (10.0.0.0/8).
    """
    host, port, number = url.host, url.port or {"http": 80, "https": 443}.get(url.scheme), _address(url.host)
    if host == "localhost" or host.endswith(".localhost") or (number is not None and number.is_loopback):
        return True
    for entry in (each.strip().lower() for each in no_proxy.split(",")):
        name, _, only = entry.rpartition(":")
        if name and only.isdecimal() and _network(entry) is None:
            if int(only) != port:
                continue
            entry = name
        network, name = _network(entry.replace("[", "").replace("]", "")), entry.removeprefix("*").removeprefix(".")
        inside = number is not None and network is not None and number in network
        if entry == "*" or inside or (name and (host == name or host.endswith(f".{name}"))):
            return True
    return False


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def connections(transport: httpx.BaseTransport | None = None, **more: Any) -> httpx.Client:
    """A client that reaches every host by its `proxy`, and heeds SSL_CERT_FILE and SSL_CERT_DIR.

    Raises:
        UserError: the certificates cannot be used.
    """
    return httpx.Client(transport=transport or Routes(), trust_env=False, **more)


class Routes(httpx.BaseTransport):
    """A transport that picks the proxy by host: pictures may lie on other hosts than Label Studio."""

    def __init__(self) -> None:
        """Connect to nothing yet.

        Raises:
            UserError: the certificates that the environment names cannot be read.
        """
        try:
            self._trusted = httpx.create_ssl_context()
        except OSError as error:  # an ssl.SSLError is one
            name = "SSL_CERT_FILE" if os.environ.get("SSL_CERT_FILE") else "SSL_CERT_DIR"
            raise UserError(
                f"{name} is {os.environ.get(name)!r}, where no certificates can be read ({error}): name a PEM file, or "
                f"`unset {name}`"
            ) from None
        self._ways: dict[str | None, httpx.HTTPTransport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request directly or by the environment's proxy for its host."""
        through = proxy(request.url)
        way = None if through is None else through.url
        if way not in self._ways:
            self._ways[way] = httpx.HTTPTransport(verify=self._trusted, proxy=way)
        return self._ways[way].handle_request(request)

    def close(self) -> None:
        """Close all connections."""
        for transport in self._ways.values():
            transport.close()


def way_to_trust(error: ssl.SSLCertVerificationError, host: str) -> str:
    """Advice for a certificate that cannot be verified, by OpenSSL's error number (X509_V_ERR_...)."""
    if error.verify_code in (9, 10):
        return "its certificate is not valid today: have it renewed, or set this machine's clock"
    if error.verify_code in (62, 64):
        return f"its certificate is for another name than {host!r}: write the name that it is for into annotate.url"
    given = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
    known = f"; {given} does not hold it" if given else ""
    return (
        "`export SSL_CERT_FILE=FILE.pem` with its certificate, or that of the authority that signed it, and run again"
        + known
    )


def speaks_https(url: httpx.URL) -> bool:
    """Whether there is TLS behind the port of an http address. Nothing is sent, so no certificate is looked at."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with contextlib.suppress(OSError), socket.create_connection((url.host, url.port or 80), timeout=5) as plain:
        context.wrap_socket(plain).close()
        return True
    return False


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and the chain of errors that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
