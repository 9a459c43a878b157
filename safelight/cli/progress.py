"""The bar that `generate` and `predict` draw on stderr."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from safelight.cli.output import console
from safelight.runs import RunEvent, RunEventKind

_WAITING = {RunEventKind.QUEUED: "waiting", RunEventKind.STARTED: "starting", RunEventKind.REQUEUED: "waiting again"}


class StepBar:
    """Steps done, steps to do, and the time that is left. Draws nothing where there is no terminal, except notes."""

    def __init__(self) -> None:
        self._console = console(is_for_answers=False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[eta]}"),
        )
        self._progress = Progress(
            *columns, console=self._console, transient=True, disable=not self._console.is_terminal
        )
        self._bar = self._progress.add_task("waiting", total=None, eta="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, steps_done: int, steps_total: int, eta_seconds: float | None) -> None:
        """How far the run is."""
        eta = "" if eta_seconds is None else f"{eta_seconds:.0f} s left"
        self._progress.update(self._bar, description="drawing", completed=steps_done, total=steps_total, eta=eta)

    def follow(self, events: Iterable[RunEvent]) -> None:
        """Show what happens to a run until it has ended."""
        for event in events:
            if event.steps_total:
                self.show(event.steps_done or 0, event.steps_total, event.eta_seconds)
            elif event.kind in _WAITING:
                self.wait(_WAITING[event.kind])

    def wait(self, what: str) -> None:
        """Nothing is drawn yet: say why."""
        self._progress.update(self._bar, description=what)

    def note(self, *lines: str) -> None:
        """Lines that stay above the bar."""
        for line in lines:
            self._console.print(line, markup=False)
