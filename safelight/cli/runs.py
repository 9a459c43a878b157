"""`runs list|show|cancel|images|replay|rm`: the runs in a data folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safelight.cli.opening import with_store
from safelight.cli.options import ConfigOption, DataOption, JsonOption, existing_settings_of
from safelight.cli.output import explain, printable, say, say_json, say_table, size, when
from safelight.cli.replaying import replay
from safelight.errors import Conflict
from safelight.runs import Run, RunStatus

HELP = "List, show, cancel, draw again and remove runs; get their pictures."

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")]

if TYPE_CHECKING:
    from safelight.store import Store


def list_runs(
    status: Annotated[RunStatus | None, typer.Option(help="Only runs in this state.")] = None,
    deployment: Annotated[str | None, typer.Option(help="Only runs of this deployment.")] = None,
    project: Annotated[str | None, typer.Option(help="Only runs of this project.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 20,
    cursor: Annotated[str | None, typer.Option(help="Go on after an earlier page.")] = None,
    data: DataOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List runs, newest first."""
    found, following = with_store(
        existing_settings_of(config, data),
        lambda store: store.runs.list(
            project=project, deployment=deployment, status=status, limit=limit, cursor=cursor
        ),
    )
    if as_json:
        say_json({"runs": found, "next_cursor": following})
        return
    rows = (
        (
            run.id,
            run.status,
            run.deployment,
            f"{run.params.width}x{run.params.height}",
            _steps(run),
            _seconds(run),
            when(run.created_at),
            _shortened(run.params.prompt),
        )
        for run in found
    )
    say_table(("RUN", "STATUS", "DEPLOYMENT", "SIZE", "STEPS", "TIME", "CREATED", "PROMPT"), rows, empty="no runs")
    if following:
        explain(f"more: --cursor {following}")


def show(
    run_id: RunArgument, data: DataOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Show everything about one run."""

    async def look(store: Store) -> tuple[Run, int | None]:
        return await store.runs.get(run_id), await store.runs.queue_position(run_id)

    run, position = with_store(existing_settings_of(config, data), look)
    if as_json:
        say_json(asdict(run) | {"queue_position": position})
        return
    for name, value in _facts(run, position):
        say(f"{name + ':':<14}{printable(value)}")


def cancel(run_id: RunArgument, data: DataOption = None, config: ConfigOption = None) -> None:
    """Cancel a run: a waiting one at once, a running one within a step."""
    run = with_store(existing_settings_of(config, data), lambda store: store.runs.cancel(run_id))
    if run.status is RunStatus.CANCELLED:
        say(f"run {run.id} is cancelled")
    elif run.status.has_ended:
        raise Conflict(f"run {run.id} has {run.status} already; there is nothing to cancel")
    else:
        say(f"run {run.id} stops after its present step")


def images(
    run_id: RunArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to write them into.")] = Path(),
    data: DataOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the pictures of a run into a folder; files that are there already stay as they are."""

    async def write(store: Store) -> list[Path]:
        run = await store.runs.get(run_id)
        if not run.images:
            raise Conflict(f"run {run.id} is {run.status} and has no pictures")
        out.mkdir(parents=True, exist_ok=True)
        written = []
        for image in run.images:
            path = out / f"{run.id}-{image.index}.{image.output_format}"
            picture = await store.images.read(image.path)
            if not path.exists():
                beside = path.with_name(f".{path.name}.part")
                beside.write_bytes(picture)
                beside.replace(path)
            written.append(path)
        return written

    written = with_store(existing_settings_of(config, data), write)
    if as_json:
        say_json(written)
        return
    for path in written:
        say(str(path))


def remove(run_id: RunArgument, data: DataOption = None, config: ConfigOption = None) -> None:
    """Remove a run and its pictures for good. A running one must be cancelled first."""
    with_store(existing_settings_of(config, data), lambda store: store.runs.delete(run_id))
    say(f"run {run_id} is removed")


COMMANDS = {"list": list_runs, "show": show, "cancel": cancel, "images": images, "replay": replay, "rm": remove}


def _facts(run: Run, position: int | None) -> list[tuple[str, object]]:
    params = run.params
    facts: list[tuple[str, object]] = [
        ("run", run.id),
        ("status", run.status if run.error is None else f"{run.status} ({run.error.code}): {run.error.message}"),
        ("deployment", f"{run.deployment}, version {run.deployment_version}"),
        ("project", run.project),
        ("prompt", params.prompt),
        ("negative", params.negative_prompt),
        ("size", f"{params.width}x{params.height}"),
        ("drawing", f"{params.num_inference_steps} steps, guidance {params.guidance_scale}, {params.sampler}"),
        ("seeds", ", ".join(map(str, params.seeds))),
        ("steps", _steps(run)),
        ("created", when(run.created_at)),
        ("started", when(run.started_at)),
        ("ended", when(run.ended_at)),
        ("worked", _seconds(run)),
        ("attempts", run.num_attempts),
    ]
    if position is not None:
        facts.append(("in the queue", f"{position} before it"))
    facts += [("webhook", run.webhook_endpoint)] if run.webhook_endpoint else []
    if run.provenance is not None:
        facts.append(("drawn with", ", ".join(f"{name} {value}" for name, value in asdict(run.provenance).items())))
    facts += [("warning", warning) for warning in run.warnings]
    facts += [(f"image {image.index}", f"{image.path}, {size(image.num_bytes)}") for image in run.images]
    return facts


def _steps(run: Run) -> str:
    return f"{run.steps_done}/{run.steps_total}" if run.steps_total else ""


def _seconds(run: Run) -> str:
    return "" if run.run_time_ms is None else f"{run.run_time_ms / 1000:.1f} s"


def _shortened(text: str, num_chars: int = 40) -> str:
    return text if len(text) <= num_chars else text[: num_chars - 1] + "…"
