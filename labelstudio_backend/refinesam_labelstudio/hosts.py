"""Which addresses may be fetched: the server's own, hosts on a list, and public ones that the server redirects to."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from refinesam import ImageError

__all__ = ["check_peer", "check_public", "host_of", "origin_of", "without_query"]

DEFAULT_PORTS = {"http": 80, "https": 443}


def origin_of(url: str) -> str:
    """Return "scheme://host" of an http(s) address in lower case, with the port where it isn't the default.

    Raises:
        ImageError: another scheme, no host, or a user name in the address.

    >>> origin_of("HTTPS://Label.example.org:443/data/1.png")
    'https://label.example.org'
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ImageError(f"{url!r} is no address ({error}): give one like https://label.example.org.") from error
    if parts.scheme not in DEFAULT_PORTS or not host or "@" in parts.netloc:
        raise ImageError(
            f"{without_query(url)!r} can't be used: an address with http or https, a host and no user name is needed, "
            "like https://label.example.org."
        )
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}" + ("" if port in (None, DEFAULT_PORTS[parts.scheme]) else f":{port}")


def host_of(url: str) -> str:
    """Return "host", or "host:port" where the port isn't the scheme's default: what a list of hosts is compared with.

    Raises:
        ImageError: as `origin_of`.
    """
    return origin_of(url).partition("://")[2]


def without_query(url: str) -> str:
    """Return an address fit for a message: a query may hold a signature that gives access, and a data URI is long."""
    return url.partition("?")[0][:200]


def check_public(url: str) -> None:
    """Raise ImageError unless every address that the URL's host name stands for is a public one."""
    host = urlsplit(url).hostname or ""
    try:
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise ImageError(f"The host {host!r} can't be found ({error}): check its name and the network.") from error
    for address in addresses:
        check_peer(host, address)


def check_peer(host: str, address: str) -> None:
    """Raise ImageError unless an IP address, which a host was found at, is a public one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    if not (mapped or ip).is_global or (mapped or ip).is_multicast:
        raise ImageError(
            f"{host!r} is at the private address {address}: nothing is fetched there unless it was allowed. If the "
            "images are meant to come from it, add it to the allowed hosts."
        )
