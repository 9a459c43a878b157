"""The deliverer: takes due deliveries from the store, signs and posts them, records whatever happened."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Callable, Sequence
from functools import partial

import httpcore2

from safelight.config import WebhookSettings
from safelight.envelope import failure_body, success_body
from safelight.errors import NotFound
from safelight.runs import Delivery, DeliveryAttempt, Run, RunStatus
from safelight.store import Store
from safelight.version import __version__
from safelight.webhooks.exchange import Answer, Poster
from safelight.webhooks.lanes import Lanes
from safelight.webhooks.signing import sign
from safelight.webhooks.targets import GuardedBackend, Resolver, TargetPolicy, host_of, is_literal

log = logging.getLogger("safelight.webhooks")

MAX_RETRY_AFTER_SECONDS = 86400.0
"""An endpoint may ask for a longer wait than the schedule's, up to this; never for a shorter one."""

JITTER = 0.2
"""A wait grows by up to this share, so that endpoints that come back are not called by everyone in one moment."""

_CLAIM_LIMIT = 100
_STATUS_CODES = {RunStatus.SUCCEEDED: 200, RunStatus.FAILED: 500, RunStatus.CANCELLED: 409}


class Deliverer:
    """Sends what `store.deliveries` holds. Several may work on one store: a lease keeps them off each other's deliveries."""

    def __init__(
        self,
        store: Store,
        settings: WebhookSettings,
        *,
        policy: TargetPolicy,
        network: httpcore2.AsyncNetworkBackend | None = None,
        resolve: Resolver | None = None,
        secrets: Callable[[str], Sequence[str]] | None = None,
        max_concurrent: int = 32,
        poll_seconds: float = 1.0,
        ssl_context: ssl.SSLContext | None = None,
        now: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
        count_attempt: Callable[[int | None], None] = lambda status_code: None,
    ) -> None:
        """`network` and `resolve` are what `policy` guards; `secrets` gives a project's signing secrets, newest first."""
        self._store = store
        self._settings = settings
        self._secrets = secrets or (lambda project: (store.webhook_secret(project),))
        self._poll_seconds = poll_seconds
        self._now = now
        self._jitter = jitter
        self._count_attempt = count_attempt
        guarded = GuardedBackend(policy, resolve=resolve, network=network)
        self._poster = Poster(guarded, timeout_seconds=settings.timeout_seconds, now=now, ssl_context=ssl_context)
        self._lanes = Lanes(max_per_host=settings.max_concurrent_per_host, max_total=max_concurrent)
        self._running: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()

    async def run(self) -> None:
        """Deliver until `close` is called or this is cancelled, then stop cleanly. Errors of the store are outlived."""
        closing = asyncio.create_task(self._closing.wait())
        try:
            with self._store.notifications.listen("deliveries") as hints:
                while not self._closing.is_set():
                    pause_seconds = await self._claim()
                    hint = asyncio.create_task(hints.wait(pause_seconds))
                    try:
                        await asyncio.wait({closing, hint}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        hint.cancel()
        finally:
            closing.cancel()
            await self.close()

    async def close(self, *, grace_seconds: float = 5.0) -> None:
        """Start nothing more and give what is on its way `grace_seconds`. What is cut off then is sent again later."""
        self._closing.set()
        if self._running:
            await asyncio.wait(self._running, timeout=grace_seconds)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._poster.close()

    async def _claim(self) -> float:
        """Claim everything that is due and start what fits. Returns how long nothing else will be due, in seconds."""
        # Long enough to wait for a place in the lane three times over and still be sent under the same lease.
        lease_seconds = 4 * self._settings.timeout_seconds
        try:
            while not self._closing.is_set():
                next_seconds = await self._store.deliveries.seconds_to_next()
                if next_seconds is None or next_seconds > 0:
                    return self._poll_seconds if next_seconds is None else min(next_seconds, self._poll_seconds)
                deadline = time.monotonic() + lease_seconds - 1.25 * self._settings.timeout_seconds
                claimed = await self._store.deliveries.claim_due(limit=_CLAIM_LIMIT, lease_seconds=lease_seconds)
                for delivery in claimed:
                    self._lanes.add(host_of(delivery.url), delivery, deadline)
                self._start_what_fits()
                if not claimed:
                    break
        except Exception:
            log.exception("due deliveries could not be claimed; trying again in %g s", self._poll_seconds)
        return self._poll_seconds

    def _start_what_fits(self) -> None:
        while not self._closing.is_set() and (following := self._lanes.start_next(time.monotonic())) is not None:
            host, delivery = following
            task = asyncio.create_task(self._deliver(delivery))
            self._running.add(task)
            task.add_done_callback(partial(self._finish, host))

    def _finish(self, host: str, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._lanes.finish(host)
        self._start_what_fits()

    async def _deliver(self, delivery: Delivery) -> None:
        """One try, recorded. If recording fails the lease ends, and the delivery is tried again: at least once."""
        at, started = self._now(), time.monotonic()
        try:
            answer, give_up = await self._try(delivery)
            self._count_attempt(answer.status_code)
            attempt = DeliveryAttempt(
                number=delivery.num_attempts + 1,
                at=at,
                duration_ms=(time.monotonic() - started) * 1000,
                status_code=answer.status_code,
                error=answer.error,
                response_excerpt=answer.excerpt,
            )
            retry_after = answer.retry_after_seconds
            waits = [seconds * (1 + JITTER * self._jitter()) for seconds in self._settings.retry_seconds]
            recorded = await self._store.deliveries.record(
                delivery.id,
                attempt,
                retry_seconds=waits,
                delivered=answer.is_success,
                give_up=give_up,
                retry_after_seconds=None if retry_after is None else min(retry_after, MAX_RETRY_AFTER_SECONDS),
            )
        except NotFound:
            log.info("a run was deleted while its delivery was on its way", extra=_marks(delivery))
            return
        except Exception:
            log.exception("a try to deliver was not recorded; it will be made again", extra=_marks(delivery))
            return
        level = logging.INFO if answer.is_success else logging.WARNING
        marks = _marks(delivery) | {"attempt": attempt.number, "answer": answer.status_code or answer.error}
        log.log(level, "delivery %s", recorded.status.value, extra=marks)

    async def _try(self, delivery: Delivery) -> tuple[Answer, bool]:
        """Build, sign and post. Also answers whether no later try could go better."""
        try:
            body = await self._body(await self._store.runs.get(delivery.run_id))
            headers = await asyncio.to_thread(self._headers, delivery, body)
            answer = await self._poster.post(delivery.url, headers, body)
        except NotFound as error:
            # An image that is missing while its run is there may come back with its disk; a deleted run will not.
            is_deleted = error.code == "run_not_found"
            return Answer(error="the run was deleted" if is_deleted else error.message), is_deleted
        except Exception as error:
            # Recorded like any failed try: left alone it would come back with every lease, for ever.
            log.exception("a delivery went wrong inside", extra=_marks(delivery))
            return Answer(error=f"it went wrong inside the server ({type(error).__name__}); its log says more"), False
        # A denied name may be given a public address yet; a denied number stays what it is.
        return answer, answer.status_code == 410 or (answer.is_denied and is_literal(delivery.url))

    async def _body(self, run: Run) -> bytes:
        """The same bytes on every try: they hang on nothing but the ended run and its files."""
        status_code = _STATUS_CODES[run.status]
        if run.status is not RunStatus.SUCCEEDED:
            return failure_body(run, status_code=status_code)
        records = sorted(run.images, key=lambda image: image.index)
        images = [await self._store.images.read(image.path) for image in records]
        return await asyncio.to_thread(success_body, run, images, status_code=status_code)

    def _headers(self, delivery: Delivery, body: bytes) -> dict[str, str]:
        timestamp = int(self._now())
        return {
            "content-type": "application/json",
            "user-agent": f"Safelight/{__version__}",
            "webhook-id": delivery.event_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(self._secrets(delivery.project), delivery.event_id, timestamp, body),
        }


def _marks(delivery: Delivery) -> dict[str, object]:
    return {"run_id": delivery.run_id, "delivery_id": delivery.id, "host": host_of(delivery.url)}
