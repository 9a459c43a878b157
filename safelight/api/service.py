"""All that a dialect may do: submit, wait, get, list, cancel, delete, follow. Knows the store; knows no
HTTP and no engine."""

from __future__ import annotations

import logging
import math
import re
import secrets
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace

from safelight.api.params import (
    FRESH_SEEDS,
    NewParams,
    checked_id,
    complete,
    find_unaffordable,
    find_unfit,
    find_wrong,
    shorten,
)
from safelight.api.resolving import Resolver
from safelight.api.starting import Pictures, keep_pictures, take_pictures
from safelight.api.webhooks import Webhooks
from safelight.config import ServerSettings
from safelight.deployments import Deployment, DeploymentStatus
from safelight.envelope import error_of
from safelight.errors import (
    DeadlineUnreachable,
    FieldError,
    InvalidFields,
    InvalidRequest,
    NotFound,
    Overloaded,
    RateLimited,
    Stopping,
    TryLater,
    WaitTimeout,
)
from safelight.keys import DAY_SECONDS, Key, Standing, Usage
from safelight.runs import ImageRecord, InputName, NewRun, Run, RunEvent, RunEventKind, RunStatus
from safelight.store import Backlog, Store
from safelight.store.keys import Keys
from safelight.store.measures import Measures
from safelight.tracing import OFF, Tracing

log = logging.getLogger("safelight.runs")

POLL_SECONDS = 1.0
"""A hint wakes whoever waits; this is how soon they look when the hint was lost."""

FIRST_LOOK_SECONDS = 0.05

PROGRESS_SECONDS = 0.5
"""How often a watcher looks without a hint, and about how often progress is written and told."""

_MAX_POLLS_PER_SECOND = 100
_RETRY_SECONDS = 5.0
_NAME = re.compile(r"[a-z0-9-]{1,63}")
_END_KINDS = frozenset({RunEventKind.SUCCEEDED, RunEventKind.FAILED, RunEventKind.CANCELLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which runs to list. None: any."""

    status: RunStatus | None = None
    deployment: str | None = None
    created_after: float | None = None
    created_before: float | None = None


@dataclass(frozen=True, slots=True)
class QueuePlace:
    """Where a run stands: how many are before it, and when it may have ended. None: not queued; not known."""

    position: int | None = None
    eta_seconds: float | None = None


class Service:
    """The runs of callers. Each method looks only at runs of the caller's own project."""

    def __init__(
        self,
        store: Store,
        settings: ServerSettings,
        *,
        check_webhook: Callable[[str], None],
        draw_seed: Callable[[], int] = lambda: secrets.randbelow(FRESH_SEEDS),
        monotonic: Callable[[], float] = time.monotonic,
        tracing: Tracing = OFF,
    ) -> None:
        self._store = store
        self._settings = settings
        self._check_webhook = check_webhook
        self.webhooks = Webhooks(store, check_url=check_webhook)
        self._draw_seed = draw_seed
        self._monotonic = monotonic
        self._tracing = tracing
        self._resolver = Resolver(store.deployments, store.notifications, monotonic=monotonic)
        self._waiting: Counter[str] = Counter()
        self._is_refusing = False
        self._is_stopping = False

    @property
    def keys(self) -> Keys:
        return self._store.keys

    async def standings(self, key: Key) -> Sequence[Standing]:
        """How `key` stands with its quotas."""
        return await self._store.ledger.standings(key.id)

    async def usage(self, key: Key, *, num_days: int) -> Sequence[Usage]:
        """What the keys of the project of `key` have used in the last days."""
        return await self._store.ledger.usage(since=time.time() - num_days * DAY_SECONDS, project=key.project)

    async def measure(self, *, since: float | None) -> Measures:
        """The figures of the whole server: now, and the runs that ended after `since`."""
        return await self._store.measures.read(since=since)

    def refuse_new_runs(self) -> None:
        """From now on `submit` raises Stopping; callers who wait go on waiting."""
        self._is_refusing = True

    def stop_waiting(self) -> None:
        """From now on nobody waits: waiting callers get Stopping at once, followers the end of their stream."""
        self._is_refusing = self._is_stopping = True
        for run_id in self._waiting:
            self._store.notifications.publish(f"end:{run_id}")

    async def resolve(self, name: str) -> Deployment:
        """The deployment that answers under `name`, as it was within the last seconds. Raises NotFound."""
        if not _NAME.fullmatch(name):
            raise NotFound(f"there is no deployment {shorten(name)}", code="deployment_not_found")
        return await self._resolver.resolve(name)

    async def list_deployments(self) -> Sequence[Deployment]:
        """Every deployment in its newest version, by name."""
        return sorted(await self._store.deployments.list(), key=lambda deployment: deployment.name)

    async def submit(
        self,
        key: Key,
        deployment: Deployment,
        asked: NewParams,
        *,
        idempotency_key: str | None = None,
        digest: str | None = None,
    ) -> Run:
        """Check `asked` and store its run, or find the one that this idempotency key made before.

        Raises InvalidFields with every wrong field, IdempotencyMismatch, Overloaded, DeadlineUnreachable, Stopping.
        """
        if self._is_refusing:
            raise Stopping("the server is stopping; try again in a moment", retry_after_seconds=_RETRY_SECONDS)
        if idempotency_key is not None:
            # Not judged again: what it is judged by may have changed since the run was accepted.
            made = await self._store.runs.made_by(key.project, idempotency_key, digest)
            if made is not None:
                _log_submit(made, asked, is_new=False)
                return made
        pictures, unfit = await take_pictures(self._store, key.project, asked)
        start = pictures.get(InputName.INIT_IMAGE)
        params = complete(asked, deployment, fresh_seed=self._draw_seed(), picture=start.shape if start else None)
        wrong = (*find_wrong(asked, params, deployment), *unfit, *self._wrong_webhook(asked.webhook_endpoint))
        wrong = wrong or find_unfit(params, deployment) or find_unaffordable(params, key.allowance)
        if wrong:
            raise InvalidFields(wrong)
        new = NewRun(
            id=str(uuid.uuid4()),
            project=key.project,
            key_id=key.id,
            deployment=deployment.name,
            deployment_version=deployment.version,
            params=params,
            deadline_ms=asked.deadline_ms,
            webhook_endpoint=asked.webhook_endpoint,
            idempotency_key=idempotency_key,
            body_digest=digest,
            traceparent=self._tracing.traceparent(),
        )
        run, is_new = await self._create(new, pictures)
        _log_submit(run, asked, is_new=is_new)
        return run

    async def _create(self, new: NewRun, pictures: Pictures) -> tuple[Run, bool]:
        """Pictures are kept before the run is: what is accepted has all that it needs."""
        kept = await keep_pictures(self._store, new.id, pictures)
        paths = [each.path for each in kept]
        try:
            run, is_new = await self._store.runs.create(
                replace(new, inputs=kept), max_queued=self._settings.max_queued_runs
            )
        except (InvalidRequest, Overloaded, RateLimited, DeadlineUnreachable):
            # After any other failure the run may be there: what belongs to none is swept later.
            await self._store.images.remove(paths)
            raise
        if not is_new:
            await self._store.images.remove(paths)
        return run, is_new

    async def wait(self, run: Run) -> Run:
        """`run`, as it was just stored or found, once it has succeeded.

        Raises RunFailed, ModelUnavailable or Conflict by how it ended; WaitTimeout and Stopping while it goes on.
        """
        deadline = self._monotonic() + self._settings.sync_timeout_seconds
        # The worker's claim goes first: a hint tells of it at once, and of an end before this listened, this look.
        patience = FIRST_LOOK_SECONDS
        self._waiting[run.id] += 1
        try:
            with self._store.notifications.listen(f"end:{run.id}") as listener:
                while not run.status.has_ended:
                    await listener.wait(min(patience, self._patience(run.id, deadline)))
                    run, patience = await self._look_again(run), math.inf
        finally:
            self._waiting -= Counter([run.id])
        if run.status is RunStatus.SUCCEEDED:
            return run
        raise error_of(run)

    async def _look_again(self, run: Run) -> Run:
        try:
            return await self._store.runs.look_again(run.id)
        except TryLater:
            # Whoever waits learns of the end when the store is back, and of a longer absence at the deadline.
            return run

    async def get(self, key: Key, run_id: str) -> Run:
        """Raises NotFound, also for a run of another project."""
        return await self._store.runs.get(checked_id(run_id, "run"), project=key.project)

    async def place(self, run: Run) -> QueuePlace:
        """Where `run` stands in the queue and when it may be done, as far as recent runs tell."""
        return (await self.places([run]))[0]

    async def places(self, runs: Sequence[Run]) -> Sequence[QueuePlace]:
        """Where each of `runs` stands."""
        is_any_queued = any(run.status is RunStatus.QUEUED for run in runs)
        backlog = await self._store.runs.backlog() if is_any_queued else None
        return [await self._place(run, backlog) for run in runs]

    async def _place(self, run: Run, backlog: Backlog | None) -> QueuePlace:
        if run.status is RunStatus.RUNNING:
            return QueuePlace(None, run.eta_seconds)
        if run.status is not RunStatus.QUEUED or backlog is None:
            return QueuePlace()
        position = await self._store.runs.queue_position(run.id)
        if position is None or backlog.queue_eta_seconds is None or not backlog.num_queued:
            return QueuePlace(position)
        return QueuePlace(position, backlog.queue_eta_seconds * min(1.0, (position + 1) / backlog.num_queued))

    async def list(
        self, key: Key, which: RunFilter, *, limit: int, cursor: str | None = None
    ) -> tuple[Sequence[Run], str | None]:
        """A page of runs, newest first, and the cursor of the next. Raises InvalidFields for a garbled cursor."""
        return await self._store.runs.list(
            project=key.project,
            deployment=which.deployment,
            status=which.status,
            created_after=which.created_after,
            created_before=which.created_before,
            limit=limit,
            cursor=cursor,
        )

    async def cancel(self, key: Key, run_id: str) -> Run:
        """Ask for an end: a queued run has ended on return, a running one within a denoising step."""
        return await self._store.runs.cancel(checked_id(run_id, "run"), project=key.project)

    async def delete(self, key: Key, run_id: str) -> None:
        """Remove a run and its images. Raises Conflict while it is running."""
        await self._store.runs.delete(checked_id(run_id, "run"), project=key.project)

    async def read_images(self, run: Run) -> tuple[bytes, ...]:
        """The files of all images of `run`, in order. Raises NotFound when they have expired."""
        if run.images_expired_at is not None:
            raise NotFound("the images of this run have expired; draw it again", code="image_not_found", run_id=run.id)
        return tuple([await self._store.images.read(image.path) for image in run.images])

    async def read_image(self, image: ImageRecord) -> bytes:
        """One file. Raises NotFound when it was removed."""
        return await self._store.images.read(image.path)

    async def follow(self, run: Run, *, after: int = 0) -> AsyncGenerator[RunEvent | None]:
        """The facts about `run` past sequence `after`, then each new one until its end; progress in between.

        None stands for a look that found nothing new.
        """
        seen, shown, shown_at = after, (run.steps_done, run.steps_total), -PROGRESS_SECONDS
        preview: int | None = None
        with self._store.notifications.listen(f"run:{run.id}") as listener:
            while True:
                try:
                    # The row is read before its events: an end that the row shows is then among them.
                    run = await self._store.runs.get(run.id)
                    news = await self._store.events.after(run.id, seen)
                except NotFound:
                    # It was deleted, and with it all that could be told.
                    return
                except TryLater:
                    # The database is away: what was seen last goes on holding.
                    news = []
                for event in news:
                    yield event
                    seen = event.sequence or seen
                    if event.kind in _END_KINDS:
                        return
                if run.status.has_ended or self._is_stopping:
                    return
                now = self._monotonic()
                self._store.notifications.publish(f"watch:{run.id}")
                if (version := await self._store.previews.version(run.id)) not in (None, preview):
                    preview = version
                    yield _progress_of(run, RunEventKind.PREVIEW)
                # A wait may end a little early, and what it then held back would come a whole wait later.
                if (run.steps_done, run.steps_total) != shown and now - shown_at >= 0.9 * PROGRESS_SECONDS:
                    shown, shown_at = (run.steps_done, run.steps_total), now
                    yield _progress_of(run)
                else:
                    yield None
                await listener.wait(PROGRESS_SECONDS)

    async def preview(self, run: Run) -> bytes:
        """The last preview of a run that is drawn, PNG. Whoever asks watches: more come. Raises NotFound."""
        if not run.status.has_ended:
            self._store.notifications.publish(f"watch:{run.id}")
            if (preview := await self._store.previews.read(run.id)) is not None:
                return preview
        reason = "this run has ended" if run.status.has_ended else "there is no preview yet; ask again in a second"
        raise NotFound(reason, code="preview_not_found", run_id=run.id)

    async def has_news(self, run: Run, *, after: int) -> bool:
        """Whether `follow` would have anything to tell."""
        return not run.status.has_ended or bool(await self._store.events.after(run.id, after))

    async def check_ready(self) -> None:
        """Raises TryLater when work is refused, or waits and nobody has been heard of who would do it.

        A worker that has loaded no model yet is not in the store; an idle server is taken at its word.
        """
        if self._is_refusing:
            raise Stopping("the server is stopping", retry_after_seconds=_RETRY_SECONDS)
        backlog = await self._store.runs.backlog()
        if backlog.num_queued and not backlog.num_running:
            deployments = await self._store.deployments.list()
            if all(deployment.status is DeploymentStatus.COLD for deployment in deployments):
                raise TryLater("runs are waiting and no worker has taken one", code="not_ready")

    def _wrong_webhook(self, url: str | None) -> tuple[FieldError, ...]:
        if url is None:
            return ()
        try:
            self._check_webhook(url)
        except InvalidFields as error:
            return error.fields
        return ()

    def _patience(self, run_id: str, deadline: float) -> float:
        """How long to wait for a hint. Many who wait look less often each, so that looking stays cheap."""
        if self._is_stopping:
            message = f"the server is stopping; the run goes on, ask for it at /runs/{run_id}"
            raise Stopping(message, retry_after_seconds=_RETRY_SECONDS, run_id=run_id)
        left = deadline - self._monotonic()
        if left <= 0:
            waited = f"{self._settings.sync_timeout_seconds:g} s"
            raise WaitTimeout(
                f"the run takes longer than {waited} and goes on; ask for it at /runs/{run_id}", run_id=run_id
            )
        return min(left, max(POLL_SECONDS, self._waiting.total() / _MAX_POLLS_PER_SECOND))


def _progress_of(run: Run, kind: RunEventKind = RunEventKind.PROGRESS) -> RunEvent:
    return RunEvent(
        run_id=run.id,
        kind=kind,
        at=time.time(),
        steps_done=run.steps_done,
        steps_total=run.steps_total,
        eta_seconds=run.eta_seconds,
    )


def _log_submit(run: Run, asked: NewParams, *, is_new: bool) -> None:
    unknown = ", ".join(shorten(key) for key in asked.unknown_keys[:20])
    extra = {"run_id": run.id, "deployment": run.deployment, "key_id": run.key_id} | (
        {"ignored": unknown} if unknown else {}
    )
    log.info("run submitted" if is_new else "run found by its idempotency key", extra=extra)
