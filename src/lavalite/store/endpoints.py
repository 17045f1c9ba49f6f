"""Addresses of store members as people write them: `n01`, `n01:2379`, `https://[fd00::1]:2379`."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

DEFAULT_PORT = 2379


@dataclass(slots=True, frozen=True)
class Endpoint:
    """One member. `host` is a name, an IPv4 or an IPv6 address without brackets."""

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


def parse_endpoint(text: str, *, tls: bool = False) -> Endpoint:
    """`text` as an endpoint; without a scheme it is TLS if `tls`. Raises ValueError with a sentence."""
    sentence = f"{text!r} is not an endpoint. Write HOST:PORT, https://HOST:PORT or https://[IPV6]:PORT."
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = ("https" if tls else "http"), text
    if scheme not in ("http", "https"):
        raise ValueError(sentence)
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(sentence) from None
    if (
        not host
        or parts.path.strip("/")
        or parts.query
        or parts.username
        or (rest.count(":") > 1 and "[" not in rest)
    ):
        raise ValueError(sentence)
    return Endpoint(host, port or DEFAULT_PORT, scheme == "https")


def parse_endpoints(texts: list[str] | tuple[str, ...], *, tls: bool = False) -> list[Endpoint]:
    """All of `texts`. Raises ValueError where one is no endpoint, none is given, or TLS is mixed with plain."""
    endpoints = [parse_endpoint(text, tls=tls) for text in texts]
    if not endpoints:
        raise ValueError("No endpoint is given. Name at least one, such as n01:2379.")
    if len({endpoint.tls for endpoint in endpoints}) > 1:
        raise ValueError("Some endpoints are https and some are not. Use one kind for all.")
    return endpoints
