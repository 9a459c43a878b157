"""Where deliveries may go. The guard sits where the connection is made: resolve once, judge every
answer, connect to one.

A check of the URL alone proves nothing (names change their answers, numbers have many spellings); `check_url` is only
the early, friendly form of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import httpcore2
import httpx2

from safelight.errors import FieldError, InvalidFields
from safelight.store.hosts import host_of

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port to addresses, all of them, as text. Raises OSError when the name does not resolve."""

SocketOption = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]

FIELD = "webhook_endpoint"
MAX_URL_LENGTH = 2048
MAX_ADDRESSES_TRIED = 4
"""Of one name: more answers than this would only spend the time of the exchange."""

SECONDS_PER_ADDRESS = 5.0
"""To connect to one of them."""

_NAT64 = IPv6Network("64:ff9b::/96")
_REMEDY = "use a public http(s) URL, or have the operator allow the network in the setting webhooks.allowed_networks"

_DENIED: tuple[tuple[str, str], ...] = (
    ("0.0.0.0/8", "this host"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "shared address space, which holds cloud metadata services"),
    ("127.0.0.0/8", "loopback"),
    ("168.63.129.16/32", "a cloud platform's internal address"),
    ("169.254.0.0/16", "link-local, which holds cloud metadata services"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "protocol assignments, which hold a cloud metadata service"),
    ("192.0.2.0/24", "documentation"),
    ("192.88.99.0/24", "6to4 relay"),
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "benchmarking"),
    ("198.51.100.0/24", "documentation"),
    ("203.0.113.0/24", "documentation"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
    ("::/128", "this host"),
    ("::1/128", "loopback"),
    ("::/96", "IPv4-compatible"),
    ("::ffff:0:0:0/96", "IPv4-translated"),
    ("64:ff9b::/96", "NAT64"),
    ("64:ff9b:1::/48", "local NAT64"),
    ("100::/64", "discard"),
    ("2001::/32", "Teredo"),
    ("2001::/23", "protocol assignments"),
    ("2001:db8::/32", "documentation"),
    ("2002::/16", "6to4"),
    ("3fff::/20", "documentation"),
    ("5f00::/16", "segment routing"),
    ("fc00::/7", "private"),
    ("fe80::/10", "link-local"),
    ("fec0::/10", "site-local"),
    ("ff00::/8", "multicast"),
)


class DeniedTarget(httpcore2.ConnectError):
    """The policy forbids this address; no connection was opened."""


class TargetPolicy:
    """Which addresses may be called: public ones, and those in `allowed_networks` by the operator's word."""

    def __init__(self, allowed_networks: Sequence[Network] = ()) -> None:
        self._allowed = tuple(allowed_networks)
        self._denied = tuple((ip_network(text), kind) for text, kind in _DENIED)

    def reason_to_deny(self, address: Address) -> str | None:
        """Why `address` must not be called, as the end of a sentence that starts with the host; None when it may be.

        The network is named, the address is not: callers read this too, and should not learn what names resolve to.
        """
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if any(address in network for network in self._allowed):
            return self._reason_of_embedded(address)
        for network, kind in self._denied:
            if address in network:
                return f"is in {network} ({kind})"
        if isinstance(address, IPv6Address) and _is_isatap(address):
            return "is an IPv4 address in an IPv6 one (ISATAP)"
        if not address.is_global or address.is_reserved or address.is_multicast:
            return "is not a public address"
        return None

    def check_url(self, url: str) -> None:
        """Refuse early what can never be delivered to. No name is resolved. Raises InvalidFields(webhook_endpoint)."""
        try:
            target = parse_target(url)
        except ValueError as error:
            raise InvalidFields([FieldError(FIELD, str(error))]) from error
        addresses = _literal_addresses(target.host)
        reasons = [self.reason_to_deny(address) for address in addresses]
        if addresses and all(reasons):
            raise InvalidFields([FieldError(FIELD, f"the host {target.host} {reasons[0]}; {_REMEDY}")])

    def _reason_of_embedded(self, address: Address) -> str | None:
        """An allowed NAT64 prefix is a way to IPv4, not a permission for all of it."""
        if isinstance(address, IPv6Address) and address in _NAT64:
            return self.reason_to_deny(IPv4Address(int(address) & 0xFFFFFFFF))
        return None


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """The network of an HTTP client, with the policy between name and connection.

    TLS still checks the certificate against the URL's host: only the address of the TCP connection comes from here.
    """

    def __init__(
        self,
        policy: TargetPolicy,
        *,
        resolve: Resolver | None = None,
        network: httpcore2.AsyncNetworkBackend | None = None,
    ) -> None:
        self._policy = policy
        self._resolve = resolve or resolve_by_system
        self._network = network or httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature is httpcore2's
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first address of `host` that answers. Raises DeniedTarget if the policy
        forbids any of them."""
        addresses = await self._permitted(host, port)
        options = list(socket_options or ())
        seconds = min(SECONDS_PER_ADDRESS, timeout or SECONDS_PER_ADDRESS)
        failure: Exception = httpcore2.ConnectError("the host has no address")
        for address in addresses[:MAX_ADDRESSES_TRIED]:
            try:
                return await self._network.connect_tcp(str(address), port, seconds, local_address, options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature is httpcore2's
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        raise DeniedTarget("sockets of this machine are never called")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _permitted(self, host: str, port: int) -> list[Address]:
        """Every address of `host`, or DeniedTarget when one of them is forbidden: half-public names are a trick."""
        try:
            addresses = [ip_address(text) for text in await self._resolve(host, port)]
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(f"the host name {host} does not resolve") from error
        for address in addresses:
            reason = self._policy.reason_to_deny(address)
            if reason is not None:
                raise DeniedTarget(f"the address of {host} {reason}; {_REMEDY}")
        return addresses


def parse_target(url: str) -> httpx2.URL:
    """`url` as the deliverer will read it. Raises ValueError, with the rule in its message, for what is no
    plain http(s) URL."""
    if len(url) > MAX_URL_LENGTH:
        raise ValueError(f"must be at most {MAX_URL_LENGTH} characters long")
    try:
        target = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ValueError(f"is not a URL ({error}); it must look like https://example.com/path") from error
    if target.scheme not in ("http", "https"):
        raise ValueError("must start with https:// or http://")
    if target.userinfo:
        raise ValueError("must not hold a user name or password before the host; leave out everything up to the @")
    if not target.host or not _is_plain(target.raw_host):
        raise ValueError("must name a host, as in https://example.com/path")
    if target.port is not None and not 0 < target.port < 65536:
        raise ValueError("must name a port from 1 to 65535, or none")
    return target


async def resolve_by_system(host: str, port: int) -> Sequence[str]:
    """Every address that the system's resolver has for `host`.

    On a thread of its own: a name server that hangs would otherwise fill the event loop's few threads, which also read
    images, and hold up the end of the program.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def settle(addresses: list[str], error: Exception | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(addresses)

    def look_up() -> None:
        addresses: list[str] = []
        failure: Exception | None = None
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = [str(sockaddr[0]) for _, _, _, _, sockaddr in found]
        except (OSError, UnicodeError) as error:
            failure = error
        # The loop may have been closed while the name server hung; then nobody waits any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, addresses, failure)

    threading.Thread(target=look_up, name="webhook-resolver", daemon=True).start()
    return await answer


def is_literal(url: str) -> bool:
    """Whether the host of `url` is an address in some spelling, or no host at all: no name server can change that."""
    host = host_of(url)
    return not host or bool(_literal_addresses(host))


def _literal_addresses(host: str) -> list[Address]:
    """The addresses that `host` spells out, without asking any name server; empty for names."""
    bare = host.removesuffix(".")
    if bare == "localhost" or bare.endswith(".localhost"):
        return [IPv4Address("127.0.0.1"), IPv6Address("::1")]
    try:
        return [ip_address(bare)]
    except ValueError:
        pass
    try:
        # The C library reads 127.1, 0x7f.0.0.1, 017700000001 and 2130706433 as addresses, and so will getaddrinfo.
        return [IPv4Address(socket.inet_aton(bare))]
    except (OSError, ValueError):
        return []


def _is_plain(raw_host: bytes) -> bool:
    """Letters, digits and the punctuation of names and addresses: no escapes, zones, spaces or quotes."""
    return all(chr(byte).isalnum() or byte in b".-_:" for byte in raw_host)


def _is_isatap(address: IPv6Address) -> bool:
    return (int(address) >> 32) & 0xFFFFFFFF in (0x00005EFE, 0x02005EFE)
