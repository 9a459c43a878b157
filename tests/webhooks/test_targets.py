from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address, ip_network

import httpcore2
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safelight.errors import InvalidFields
from safelight.store.hosts import host_of
from safelight.webhooks.exchange import Poster
from safelight.webhooks.targets import (
    DeniedTarget,
    GuardedBackend,
    TargetPolicy,
    is_literal,
    resolve_by_system,
)

from .addresses import DENIED, PUBLIC, UNUSABLE
from .receiver import receiving
from .sockets import watching_sockets


class RecordingNetwork(httpcore2.AsyncNetworkBackend):
    """Stands where sockets would be opened: writes down every address, connects to none."""

    def __init__(self, unreachable: Iterable[str] = ()) -> None:
        self.connected: list[str] = []
        self._unreachable = set(unreachable)

    async def connect_tcp(self, host: str, port: int, *_: object, **__: object) -> httpcore2.AsyncNetworkStream:
        self.connected.append(host)
        if host in self._unreachable:
            raise httpcore2.ConnectError("unreachable")
        return httpcore2.AsyncMockStream([b"HTTP/1.1 204 No Content\r\n\r\n"])


def resolving_to(*answers: str):
    async def resolve(host: str, port: int) -> Sequence[str]:
        return answers

    return resolve


async def post(
    url: str, network: httpcore2.AsyncNetworkBackend | None, policy: TargetPolicy | None = None, resolve=None
):
    """`network` None: the product's own, with real sockets."""
    poster = Poster(
        GuardedBackend(policy or TargetPolicy(), resolve=resolve, network=network),
        timeout_seconds=5,
        now=lambda: 0.0,
        # Without the system's certificates, which take their time to load.
        ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    )
    try:
        return await poster.post(url, {}, b"{}")
    finally:
        await poster.close()


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len(set(DENIED)) + len(set(UNUSABLE)) >= 120


@pytest.mark.parametrize("host", DENIED)
async def test_no_connection_is_opened_to_a_denied_address_in_any_spelling(host: str) -> None:
    with watching_sockets() as connected:
        # The system's own resolver: it is what turns 0x7f.1 into 127.0.0.1. Names are answered from the hosts file.
        answer = await post(f"http://{host}:8080/latest/", None)
    assert connected == []
    assert answer.status_code is None
    assert answer.error


@pytest.mark.parametrize("host", DENIED)
def test_a_denied_address_is_refused_before_anything_is_queued(host: str) -> None:
    with pytest.raises(InvalidFields) as caught:
        TargetPolicy().check_url(f"https://{host}/hook")
    (wrong,) = caught.value.fields
    assert wrong.field == "webhook_endpoint"
    assert "webhooks.allowed_networks" in wrong.message or "is not a URL" in wrong.message


@pytest.mark.parametrize("url", UNUSABLE)
async def test_what_is_no_plain_http_url_is_refused_early_and_never_called(url: str) -> None:
    with pytest.raises(InvalidFields):
        TargetPolicy().check_url(url)
    with watching_sockets() as connected:
        answer = await post(url, None, resolve=resolving_to("127.0.0.1"))
    assert connected == []
    assert answer.is_denied


@pytest.mark.parametrize("host", PUBLIC)
async def test_public_addresses_are_called(host: str) -> None:
    TargetPolicy().check_url(f"http://{host}/")
    network = RecordingNetwork()
    answer = await post(f"http://{host}/", network)
    assert answer.is_success
    assert len(network.connected) == 1


@pytest.mark.parametrize(
    "url", ["https://example.com", "http://a-b.example.com:8443/x?y=z", "https://xn--mller-kva.de/"]
)
def test_names_pass_the_early_check_without_being_resolved(url: str) -> None:
    TargetPolicy().check_url(url)


@pytest.mark.parametrize("host", DENIED)
async def test_a_name_that_resolves_to_a_denied_address_is_not_called(host: str) -> None:
    try:
        answers = await resolve_by_system(host.strip("[]"), 80)
    except OSError:
        pytest.skip("this spelling resolves to nothing here")
    with watching_sockets() as connected:
        answer = await post("http://innocent.example/", None, resolve=resolving_to(*answers))
    assert connected == []
    assert answer.is_denied


async def test_one_denied_answer_among_public_ones_denies_the_name() -> None:
    for answers in itertools.permutations(["8.8.8.8", "10.0.0.1", "1.1.1.1"]):
        with watching_sockets() as connected:
            answer = await post("http://half.example/", None, resolve=resolving_to(*answers))
        assert connected == []
        assert answer.is_denied
        assert "10.0.0.0/8" in (answer.error or "")
        assert "10.0.0.1" not in (answer.error or "")


async def test_a_connection_that_is_made_is_seen_at_the_socket() -> None:
    loopback = TargetPolicy([ip_network("127.0.0.0/8")])
    async with receiving() as receiver:
        with watching_sockets() as connected:
            assert (await post(receiver.url, None, loopback)).is_success
        assert (await post(receiver.url, None, loopback)).is_success
    assert connected == ["127.0.0.1"]


NUM_FLIPS = 1002


async def test_a_resolver_that_flips_never_gets_a_connection_to_the_denied_address(
    record_property: Callable[[str, object], None],
) -> None:
    # The first is allowed, so that connections are really made, without a network; the others are not.
    answers = itertools.cycle([["127.0.0.1"], ["127.0.0.2"], ["169.254.169.254"]])
    num_lookups = 0

    async def flip(host: str, port: int) -> Sequence[str]:
        nonlocal num_lookups
        num_lookups += 1
        return next(answers)

    guarded = GuardedBackend(TargetPolicy([ip_network("127.0.0.1/32")]), resolve=flip)
    num_denied = 0
    async with receiving() as receiver:
        with watching_sockets() as connected:
            for _ in range(NUM_FLIPS):
                try:
                    await (await guarded.connect_tcp("flip.example", receiver.port)).aclose()
                except DeniedTarget:
                    num_denied += 1
    record_property("lookups", num_lookups)
    assert num_lookups == NUM_FLIPS  # once per connection: what was checked is what is connected to
    assert set(connected) == {"127.0.0.1"}
    assert len(connected) + num_denied == NUM_FLIPS
    assert num_denied == 2 * NUM_FLIPS // 3


async def test_the_next_address_is_tried_when_the_first_does_not_answer() -> None:
    network = RecordingNetwork(unreachable=["2606:4700:4700::1111"])
    answer = await post("http://dual.example/", network, resolve=resolving_to("2606:4700:4700::1111", "1.1.1.1"))
    assert answer.is_success
    assert network.connected == ["2606:4700:4700::1111", "1.1.1.1"]


async def test_a_thousand_answers_do_not_make_a_thousand_connections() -> None:
    answers = [f"8.8.{index // 250}.{index % 250 + 1}" for index in range(1000)]
    network = RecordingNetwork(unreachable=answers)
    answer = await post("http://many.example/", network, resolve=resolving_to(*answers))
    assert not answer.is_success
    assert len(network.connected) <= 4


async def test_a_name_without_an_address_is_an_error_sentence() -> None:
    async def fail(host: str, port: int) -> Sequence[str]:
        raise OSError("no such name")

    answer = await post("http://gone.example/", RecordingNetwork(), resolve=fail)
    assert answer.error == "the host name gone.example does not resolve"
    assert not answer.is_denied


async def test_tls_and_host_header_keep_the_name_of_the_url() -> None:
    seen: dict[str, object] = {}

    class Stream(httpcore2.AsyncMockStream):
        async def start_tls(self, ssl_context, server_hostname=None, **_):  # type: ignore[no-untyped-def]
            seen["tls name"] = server_hostname
            return self

        async def write(self, buffer: bytes, **_: object) -> None:
            seen["sent"] = bytes(seen.get("sent", b"")) + buffer  # type: ignore[arg-type]

    class Network(RecordingNetwork):
        async def connect_tcp(self, host: str, port: int, *_: object, **__: object) -> httpcore2.AsyncNetworkStream:
            self.connected.append(f"{host}:{port}")
            return Stream([b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"])

    network = Network()
    answer = await post("https://shop.example:8443/hook", network, resolve=resolving_to("1.1.1.1"))
    assert answer.is_success
    assert network.connected == ["1.1.1.1:8443"]
    assert seen["tls name"] == "shop.example"
    assert b"host: shop.example:8443\r\n" in bytes(seen["sent"]).lower()  # type: ignore[arg-type]


class TestAllowedNetworks:
    async def test_an_allowed_network_is_called_in_every_spelling(self) -> None:
        policy = TargetPolicy([ip_network("127.0.0.0/8")])
        for host in ("127.0.0.1", "0x7f.1", "2130706433", "[::ffff:127.0.0.1]"):
            network = RecordingNetwork()
            policy.check_url(f"http://{host}/")
            assert (await post(f"http://{host}/", network, policy)).is_success
            assert network.connected

    async def test_a_neighbour_of_an_allowed_network_stays_denied(self) -> None:
        policy = TargetPolicy([ip_network("10.1.0.0/16")])
        assert policy.reason_to_deny(ip_address("10.1.2.3")) is None
        assert policy.reason_to_deny(ip_address("10.2.0.1"))
        assert policy.reason_to_deny(ip_address("127.0.0.1"))

    async def test_an_allowed_nat64_prefix_leads_to_public_addresses_only(self) -> None:
        policy = TargetPolicy([ip_network("64:ff9b::/96")])
        assert policy.reason_to_deny(ip_address("64:ff9b::8.8.8.8")) is None
        assert policy.reason_to_deny(ip_address("64:ff9b::10.0.0.1"))

    def test_localhost_passes_the_early_check_when_loopback_is_allowed(self) -> None:
        TargetPolicy([ip_network("127.0.0.0/8")]).check_url("http://localhost:9000/")


@settings(deadline=None)  # a busy machine is no finding
@given(st.integers(0, 2**32 - 1))
def test_a_mapped_address_is_judged_like_the_address_itself(number: int) -> None:
    policy = TargetPolicy()
    plain, mapped = ip_address(number), ip_address((0xFFFF << 32) | number)
    assert policy.reason_to_deny(plain) == policy.reason_to_deny(mapped)


@settings(deadline=None)  # a busy machine is no finding
@given(st.ip_addresses())
def test_what_the_table_lets_through_is_global(address) -> None:  # type: ignore[no-untyped-def]
    if TargetPolicy().reason_to_deny(address) is None:
        judged = getattr(address, "ipv4_mapped", None) or address
        assert judged.is_global
        assert not (judged.is_private or judged.is_loopback or judged.is_link_local or judged.is_multicast)


async def test_unix_sockets_are_never_opened() -> None:
    with pytest.raises(DeniedTarget):
        await GuardedBackend(TargetPolicy()).connect_unix_socket("/var/run/docker.sock")


async def test_proxy_variables_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:3128")
    network = RecordingNetwork()
    assert (await post("http://plain.example/", network, resolve=resolving_to("8.8.8.8"))).is_success
    assert network.connected == ["8.8.8.8"]


async def test_a_hanging_lookup_neither_blocks_nor_outlives_its_time_limit() -> None:
    async def hang(host: str, port: int) -> Sequence[str]:
        await asyncio.sleep(60)
        return []

    poster = Poster(
        GuardedBackend(TargetPolicy(), resolve=hang, network=RecordingNetwork()),
        timeout_seconds=0.1,
        now=lambda: 0.0,
    )
    answer = await asyncio.wait_for(poster.post("http://slow.example/", {}, b""), 2)
    assert "0.1 s" in (answer.error or "")


def test_hosts_are_told_apart_by_name_only() -> None:
    assert host_of("https://EXAMPLE.com.:444/a") == host_of("http://example.com/b") == "example.com"
    assert host_of("http://[::1") == ""


@pytest.mark.parametrize(("url", "expected"), [("http://10.0.0.1/", True), ("http://0x7f.1/", True), ("http://", True)])
def test_literals_are_known_as_such(url: str, expected: bool) -> None:
    assert is_literal(url) is expected
    assert not is_literal("http://example.com/")


def test_the_error_of_the_guard_is_a_connection_error_to_any_client_above() -> None:
    assert issubclass(DeniedTarget, httpcore2.ConnectError)
    assert httpx2.URL("http://x").host == "x"
