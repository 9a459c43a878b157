"""One claimed run under way in this process."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace

from safelight.deployments import Deployment
from safelight.runs import Claim, ImageRecord, Outcome, Progress, Provenance, RunError, RunStatus


@dataclass(slots=True)
class Held:
    """What the worker knows of a run since it claimed it. `unnamed` are pictures that the run's end will name."""

    claim: Claim
    since: float = field(default_factory=time.monotonic)
    deployment: Deployment | None = None
    steps_done: int = 0
    steps_total: int = 0
    ends_at: float | None = None
    """On the clock of `since`, as far as the engine foresaw it at its last step."""
    warnings: tuple[str, ...] = ()
    unnamed: tuple[ImageRecord, ...] = ()
    is_handed_in: bool = False
    """The engine counts its images from then on."""
    is_unreported: bool = False
    device_ms: float = 0.0
    beside: list[asyncio.Task[None]] = field(default_factory=list)
    """What goes on as long as the run is drawn, and no longer."""
    saving: asyncio.Task[None] | None = None
    waiting: asyncio.Task[None] | None = None
    provenance: Provenance | None = None
    has_preview: bool = False
    task: asyncio.Task[None] | None = None
    """What carries the run out."""

    def stop_waiting(self) -> None:
        """The run was cancelled or lost: it need not have its model any more."""
        if self.waiting is not None:
            self.waiting.cancel()

    def note_backend(self, backend: str) -> None:
        """What runs the networks at the run's size goes into its provenance, where there is one."""
        if self.provenance is not None:
            self.provenance = replace(self.provenance, backend=backend)

    def foresee(self, eta_seconds: float | None) -> None:
        """So long from now; what is reported later is less by what has passed since."""
        self.ends_at = None if eta_seconds is None else time.monotonic() + eta_seconds

    def seconds_to_deadline(self) -> float | None:
        """Until its pictures are wanted; None where nobody said so, and where an earlier claim has begun the run."""
        run = self.claim.run
        if run.deadline_at is None or run.started_at is None or self.claim.fence > 1:
            return None
        return run.deadline_at - run.started_at - (time.monotonic() - self.since)

    def outcome(self, status: RunStatus, run_time_ms: float = 0.0, error: RunError | None = None) -> Outcome:
        """How the run ends, with all that is known of it."""
        return Outcome(
            status=status,
            run_time_ms=run_time_ms,
            error=error,
            warnings=self.warnings,
            images=self.unnamed,
            progress=self.progress(),
            provenance=self.provenance,
        )

    def progress(self) -> Progress:
        """How far it has come; counts as reported."""
        self.is_unreported = False
        return Progress(
            run_id=self.claim.run.id,
            fence=self.claim.fence,
            steps_done=self.steps_done,
            steps_total=self.steps_total,
            eta_seconds=None if self.ends_at is None else max(0.0, self.ends_at - time.monotonic()),
        )
