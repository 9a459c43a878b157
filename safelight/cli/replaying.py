"""`runs replay`: draw a run again from its record, and compare the pictures."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from safelight.cli.opening import with_store
from safelight.cli.options import ConfigOption, DataOption, JsonOption, existing_settings_of
from safelight.cli.output import explain, fail, say_json, say_table
from safelight.config import Settings
from safelight.envelope import end_message
from safelight.errors import Conflict, RunFailed, WaitTimeout
from safelight.runs import NewRun, OutputFormat, Run, RunInput, RunStatus

if TYPE_CHECKING:
    from safelight.store import Store

POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A picture and the same one drawn again: digests of their pixels, and the most they differ, in steps of 1/255."""

    index: int
    seed: int
    sha256: str
    sha256_again: str
    max_difference: int


def replay(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")],
    tolerance: Annotated[int, typer.Option(min=0, max=255, help="Steps of 1/255 that a channel may differ by.")] = 0,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for the new run.")] = 600.0,
    data: DataOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw a run again and compare its pictures: 0 when they are the same. A server must be running on the folder."""
    settings = existing_settings_of(config, data)

    async def draw_and_compare(store: Store) -> tuple[Run, Run, list[Comparison]]:
        first = await store.runs.get(run_id)
        again = await _draw_again(store, first, settings, timeout_seconds=timeout)
        return first, again, await _compare(store, first, again)

    first, again, compared = with_store(settings, draw_and_compare)
    if as_json:
        say_json({"run": first.id, "replay": again.id, "pictures": compared, "changed": list(_changes(first, again))})
    else:
        rows = [(each.index, each.seed, each.sha256[:16], each.max_difference) for each in compared]
        say_table(("IMAGE", "SEED", "PIXELS", "DIFFERENCE"), rows, empty="no pictures")
        for change in _changes(first, again):
            explain(change)
    most = max(each.max_difference for each in compared)
    if most > tolerance:
        raise fail(f"run {again.id} differs from {first.id} by up to {most}/255{_excuse(first)}")


async def _draw_again(store: Store, first: Run, settings: Settings, *, timeout_seconds: float) -> Run:
    """A new run of the same version of the deployment. Raises Conflict, RunFailed, WaitTimeout."""
    if first.status is not RunStatus.SUCCEEDED or not first.images:
        why = "its pictures have expired" if first.images_expired_at else f"it is {first.status}"
        raise Conflict(f"run {first.id} has nothing to compare with: {why}")
    new_id = str(uuid.uuid4())
    new = NewRun(
        id=new_id,
        project=first.project,
        key_id=None,
        deployment=first.deployment,
        deployment_version=first.deployment_version,
        params=first.params,
        inputs=await _copy_inputs(store, first.id, new_id),
    )
    await store.runs.create(new, max_queued=settings.server.max_queued_runs)
    explain(f"run {new.id} draws it again")
    deadline = time.monotonic() + timeout_seconds
    with store.notifications.listen(f"end:{new.id}") as listener:
        while not (again := await store.runs.get(new.id)).status.has_ended:
            left = deadline - time.monotonic()
            if left <= 0:
                raise WaitTimeout(f"run {new.id} is still {again.status}; is a server running on this data folder?")
            await listener.wait(min(left, POLL_SECONDS))
    if again.status is not RunStatus.SUCCEEDED:
        raise RunFailed(f"run {new.id} has {again.status}: {end_message(again)}")
    return again


async def _copy_inputs(store: Store, run_id: str, new_id: str) -> tuple[RunInput, ...]:
    """The pictures that a run begins from, as another's own: either may be removed."""
    copies = []
    for index, each in enumerate(await store.runs.inputs(run_id)):
        kind = OutputFormat(each.path.rpartition(".")[2])
        copy = await store.images.write(new_id, index, 0, kind, await store.images.read(each.path))
        copies.append(replace(each, path=copy.path))
    return tuple(copies)


async def _compare(store: Store, first: Run, again: Run) -> list[Comparison]:
    from safelight.pictures import largest_difference, read_pixels

    compared = []
    for old, new in zip(first.images, again.images, strict=True):
        before = read_pixels(await store.images.read(old.path))
        after = read_pixels(await store.images.read(new.path))
        compared.append(
            Comparison(
                index=old.index,
                seed=old.seed,
                sha256=hashlib.sha256(before.tobytes()).hexdigest(),
                sha256_again=hashlib.sha256(after.tobytes()).hexdigest(),
                max_difference=largest_difference(before, after),
            )
        )
    return compared


def _changes(first: Run, again: Run) -> Iterator[str]:
    """What the two were drawn with, where that is not the same."""
    if first.provenance is None or again.provenance is None:
        return
    now = asdict(again.provenance)
    for name, before in asdict(first.provenance).items():
        if before not in (now[name], ""):
            yield f"{name} was {before}, is {now[name]}"


def _excuse(first: Run) -> str:
    if first.params.deterministic:
        return ""
    return "; it was not drawn with `deterministic`, so allow for its neighbours with --tolerance 1 or more"
