"""The deliverer: takes due deliveries from the store, signs and posts them, records whatever happened."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpcore2

from safelight.config import WebhookSettings
from safelight.envelope import webhook_body, with_pictures
from safelight.errors import NotFound, SafelightError, TryLater
from safelight.runs import Delivery, DeliveryAttempt, DeliveryStatus, Run, RunStatus
from safelight.store import Hosts, Store
from safelight.tracing import OFF, Tracing
from safelight.version import __version__
from safelight.webhooks.exchange import Answer, Poster
from safelight.webhooks.lanes import Lanes
from safelight.webhooks.signing import sign
from safelight.webhooks.targets import GuardedBackend, Resolver, TargetPolicy, is_literal

log = logging.getLogger("safelight.webhooks")

MAX_RETRY_AFTER_SECONDS = 86400.0
"""An endpoint may ask for a longer wait than the schedule's, up to this; never for a shorter one."""

JITTER = 0.2
"""A wait grows by up to this share, so that endpoints that come back are not called by everyone in one moment."""

SOON_SHARE = 0.2
"""Of the time limit of a try: a host that took longer than this has not proven itself."""

_CLAIM_LIMIT = 100
_MAX_CONCURRENT = 32
_MAX_WAITING = 2000
_MAX_UNPROVEN_WAITING = 1000
"""With so many waiting for hosts that may all be dead, only what is for proven ones is claimed."""

_MAX_PAUSE_SECONDS = 10.0
_DAY_SECONDS = 86400.0


@dataclass(frozen=True, slots=True)
class _Tried:
    """What came of a try; `give_up`: no later one could go better; not `was_sent`: it says nothing
    about the endpoint."""

    answer: Answer
    give_up: bool
    was_sent: bool = True


class Deliverer:
    """Sends what `store.deliveries` holds. Several may work on one store: a lease keeps them off each
    other's deliveries."""

    def __init__(
        self,
        store: Store,
        settings: WebhookSettings,
        *,
        policy: TargetPolicy,
        network: httpcore2.AsyncNetworkBackend | None = None,
        resolve: Resolver | None = None,
        secrets: Callable[[Delivery], Awaitable[Sequence[str]]] | None = None,
        poll_seconds: float = 1.0,
        ssl_context: ssl.SSLContext | None = None,
        now: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
        count_attempt: Callable[[int | None], None] = lambda status_code: None,
        tracing: Tracing = OFF,
    ) -> None:
        """`network` and `resolve` are what `policy` guards; `secrets` gives what a delivery is signed
        with, newest first."""
        self._store = store
        self._settings = settings
        self._secrets = secrets or store.signing_secrets
        self._poll_seconds = poll_seconds
        self._now = now
        self._jitter = jitter
        self._count_attempt = count_attempt
        self._tracing = tracing
        guarded = GuardedBackend(policy, resolve=resolve, network=network)
        self._poster = Poster(guarded, timeout_seconds=settings.timeout_seconds, now=now, ssl_context=ssl_context)
        self._lanes = Lanes(max_per_host=settings.max_concurrent_per_host, max_total=_MAX_CONCURRENT)
        self._running: dict[asyncio.Task[bool], Delivery] = {}
        self._late: set[asyncio.Task[bool]] = set()
        self._num_troubles = 0
        self._left_out: frozenset[str] = frozenset()
        self._has_room = asyncio.Event()
        self._closing = asyncio.Event()

    async def run(self) -> None:
        """Deliver until `close` is called or this is cancelled, then stop cleanly. Errors of the store are outlived."""
        closing = asyncio.create_task(self._closing.wait())
        try:
            with self._store.notifications.listen("deliveries") as hints:
                while not self._closing.is_set():
                    self._has_room.clear()
                    pause_seconds = await self._claim()
                    # A hint says that something is due, not that the store is well again.
                    wakers = [] if self._num_troubles else [hints.wait(pause_seconds), self._has_room.wait()]
                    await _first_of(closing, wakers, timeout_seconds=pause_seconds)
        finally:
            closing.cancel()
            await self.close()

    async def close(self, *, grace_seconds: float = 5.0) -> None:
        """Start nothing more and give what is on its way `grace_seconds`. What was not sent is due again at once."""
        self._closing.set()
        if self._running:
            await asyncio.wait(self._running, timeout=grace_seconds)
        cut_off = list(self._running.values())
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._release([*cut_off, *self._lanes.clear()])
        await self._poster.close()

    async def _release(self, unsent: Sequence[Delivery]) -> None:
        try:
            await self._store.deliveries.release(unsent)
        except Exception as error:
            log.warning("deliveries wait for the end of their lease", extra={"num": len(unsent), "reason": str(error)})

    async def _claim(self) -> float:
        """Claim what is due and has room, and start what fits. Returns how long nothing else will be
        due, in seconds."""
        try:
            pause_seconds = await self._claim_due()
        except Exception as error:
            return self._outlive(error)
        if self._num_troubles:
            log.info("deliveries are claimed again", extra={"failures": self._num_troubles})
            self._num_troubles = 0
        return pause_seconds

    async def _claim_due(self) -> float:
        # Long enough to wait for a place in the lane three times over and still be sent under the same lease.
        lease_seconds = 4 * self._settings.timeout_seconds
        while not self._closing.is_set() and self._lanes.num_waiting < _MAX_WAITING:
            full = self._left_out = self._lanes.full_hosts()
            is_crowded = self._lanes.num_unproven_waiting >= _MAX_UNPROVEN_WAITING
            hosts = Hosts(without=full, only=self._lanes.proven_hosts() if is_crowded else None)
            next_seconds = await self._store.deliveries.seconds_to_next(hosts)
            if next_seconds is None or next_seconds > 0:
                return self._poll_seconds if next_seconds is None else min(next_seconds, self._poll_seconds)
            deadline = time.monotonic() + lease_seconds - 1.25 * self._settings.timeout_seconds
            claimed = await self._store.deliveries.claim_due(hosts, limit=_CLAIM_LIMIT, lease_seconds=lease_seconds)
            for delivery in claimed:
                self._lanes.add(delivery.host, delivery, deadline)
            self._start_what_fits()
            if not claimed:
                break
        return self._poll_seconds

    def _outlive(self, error: Exception) -> float:
        """Say once in full what is wrong with the store, then in a line, less and less often."""
        self._num_troubles += 1
        pause_seconds: float = min(_MAX_PAUSE_SECONDS, self._poll_seconds * 2 ** min(self._num_troubles - 1, 16))
        is_news = self._num_troubles == 1 and not isinstance(error, SafelightError)
        log.error(
            "due deliveries could not be claimed; trying again in %g s",
            pause_seconds,
            exc_info=error if is_news else None,
            extra={"failures": self._num_troubles, "reason": f"{type(error).__name__}: {error}"[:200]},
        )
        return pause_seconds

    def _start_what_fits(self) -> None:
        while not self._closing.is_set() and (following := self._lanes.start_next(time.monotonic())) is not None:
            host, delivery = following
            task = asyncio.create_task(self._deliver(delivery))
            self._running[task] = delivery
            loop, soon_seconds = asyncio.get_running_loop(), SOON_SHARE * self._settings.timeout_seconds
            timer = loop.call_later(soon_seconds, self._doubt, host, task)
            task.add_done_callback(partial(self._finish, host, timer))

    def _doubt(self, host: str, task: asyncio.Task[bool]) -> None:
        if self._lanes.doubt(host):
            self._late.add(task)
            self._start_what_fits()

    def _finish(self, host: str, timer: asyncio.TimerHandle, task: asyncio.Task[bool]) -> None:
        timer.cancel()
        del self._running[task]
        gave_back = task in self._late
        self._late.discard(task)
        self._lanes.finish(host, is_proven=not task.cancelled() and task.result(), gave_back=gave_back)
        self._start_what_fits()
        if host in self._left_out and self._lanes.has_room(host):
            self._has_room.set()

    async def _deliver(self, delivery: Delivery) -> bool:
        """One try, recorded; whether it was taken, soon. If recording fails the lease ends, and it is tried again."""
        at, started = self._now(), time.monotonic()
        try:
            # It may have been ended while it waited in its lane: its run deleted, its endpoint removed or disabled.
            current = await self._store.deliveries.get(delivery.id)
            if current.status is not DeliveryStatus.PENDING:
                log.info("a delivery was ended before it was sent", extra=_marks(delivery))
                return False
            if current.url != delivery.url:
                # Claimed again, it waits in the lane of its new host.
                await self._store.deliveries.release([delivery])
                return False
            tried = await self._try(delivery)
            self._count_attempt(tried.answer.status_code)
            seconds = time.monotonic() - started
            recorded = await self._record(delivery, tried, at, seconds * 1000)
        except NotFound:
            log.info("a delivery was forgotten while it was on its way", extra=_marks(delivery))
            return False
        except Exception as error:
            # A store that is away says so for each delivery under way; only what nobody expected needs a traceback.
            log.error(
                "a try to deliver was not recorded; it will be made again",
                exc_info=None if isinstance(error, TryLater) else error,
                extra=_marks(delivery) | {"reason": f"{type(error).__name__}: {error}"[:200]},
            )
            return False
        marks = _marks(delivery) | {"attempt": recorded.num_attempts}
        marks |= {"answer": tried.answer.status_code or tried.answer.error}
        if recorded.reason:
            marks["reason"] = recorded.reason
        level = logging.INFO if tried.answer.is_success else logging.WARNING
        log.log(level, "delivery %s", recorded.status.value, extra=marks)
        return tried.answer.is_success and seconds < SOON_SHARE * self._settings.timeout_seconds

    async def _record(self, delivery: Delivery, tried: _Tried, at: float, duration_ms: float) -> Delivery:
        answer = tried.answer
        attempt = DeliveryAttempt(
            number=delivery.num_attempts + 1,
            at=at,
            duration_ms=duration_ms,
            status_code=answer.status_code,
            error=answer.error,
            response_excerpt=answer.excerpt,
        )
        retry_after = answer.retry_after_seconds
        return await self._store.deliveries.record(
            delivery,
            attempt,
            retry_seconds=[seconds * (1 + JITTER * self._jitter()) for seconds in self._settings.retry_seconds],
            delivered=answer.is_success,
            give_up=tried.give_up,
            retry_after_seconds=None if retry_after is None else min(retry_after, MAX_RETRY_AFTER_SECONDS),
            disable_after_seconds=self._settings.disable_after_days * _DAY_SECONDS if tried.was_sent else None,
        )

    async def _try(self, delivery: Delivery) -> _Tried:
        """Build, sign and post."""
        try:
            run = await self._store.runs.get(delivery.run_id)
            if run.status is RunStatus.SUCCEEDED and run.images_expired_at is not None:
                return _Tried(Answer(error="the images of the run have expired"), give_up=True, was_sent=False)
            answer = await self._send(delivery, run)
        except NotFound as error:
            # An image that is missing while its run is there may come back with its disk; the others will not.
            return _Tried(Answer(error=error.message), give_up=error.code != "image_not_found", was_sent=False)
        except TryLater:
            # The store's trouble, not a try: it is made again when the lease ends.
            raise
        except Exception as error:
            # Recorded like any failed try: left alone it would come back with every lease, for ever.
            log.exception("a delivery went wrong inside", extra=_marks(delivery))
            message = f"it went wrong inside the server ({type(error).__name__}); its log says more"
            return _Tried(Answer(error=message), give_up=False, was_sent=False)
        # A denied name may be given a public address yet; a denied number stays what it is.
        return _Tried(answer, give_up=answer.status_code == 410 or (answer.is_denied and is_literal(delivery.url)))

    async def _send(self, delivery: Delivery, run: Run) -> Answer:
        traced = {"safelight.run_id": run.id, "safelight.delivery_id": delivery.id, "server.address": delivery.host}
        with self._tracing.span("deliver", parent=run.traceparent, kind="producer", attributes=traced) as span:
            body = await self._body(delivery, run)
            secrets = await self._secrets(delivery)
            headers = await asyncio.to_thread(self._headers, delivery, body, secrets)
            answer = await self._poster.post(delivery.url, headers, body)
            span.set({"safelight.attempt": delivery.num_attempts + 1})
            if answer.status_code is not None:
                span.set({"http.response.status_code": answer.status_code})
            if not answer.is_success:
                span.fail("not taken")
            return answer

    async def _body(self, delivery: Delivery, run: Run) -> bytes:
        """The same bytes on every try: what was written down when the run ended, and its files."""
        told = webhook_body(run) if delivery.told is None else delivery.told.encode()
        if run.status is not RunStatus.SUCCEEDED:
            return told
        records = sorted(run.images, key=lambda image: image.index)
        images = [await self._store.images.read(image.path) for image in records]
        return await asyncio.to_thread(with_pictures, told, images)

    def _headers(self, delivery: Delivery, body: bytes, secrets: Sequence[str]) -> dict[str, str]:
        timestamp = int(self._now())
        return {
            "content-type": "application/json",
            "user-agent": f"Safelight/{__version__}",
            "webhook-id": delivery.event_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(secrets, delivery.event_id, timestamp, body),
        }


async def _first_of(
    closing: asyncio.Task[bool], others: Sequence[Coroutine[Any, Any, object]], *, timeout_seconds: float
) -> None:
    """Wait for the first of these, and leave none of `others` behind."""
    tasks = [asyncio.create_task(other) for other in others]
    try:
        await asyncio.wait({closing, *tasks}, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _marks(delivery: Delivery) -> dict[str, object]:
    return {"run_id": delivery.run_id, "delivery_id": delivery.id, "host": delivery.host}
