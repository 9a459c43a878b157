"""What a server answers, as objects: results, run records, events. Parsing only, no I/O."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2

from safelight.client.errors import UnexpectedAnswer
from safelight.errors import Conflict, ModelUnavailable, RunFailed, SafelightError
from safelight.runs import (
    LoraUse,
    OutputFormat,
    RunError,
    RunEvent,
    RunEventKind,
    RunParams,
    RunStatus,
    SamplerName,
    Spacing,
)

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

_UNSTORED = frozenset({RunEventKind.PROGRESS, RunEventKind.PREVIEW})
_WARNING_TEXT = re.compile(r'\d{3} \S+ "((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, kw_only=True)
class Result:
    """The pictures of a run that succeeded. `image_bytes` are the files as the server made them, in order."""

    run_id: str
    run_time_ms: float
    image_bytes: tuple[bytes, ...] = field(repr=False)
    seeds: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()

    @cached_property
    def images(self) -> tuple[Image, ...]:
        """The pictures as Pillow images, decoded when first looked at."""
        from PIL import Image  # noqa: PLC0415 - whoever only stores files needs no Pillow

        return tuple(Image.open(BytesIO(each)) for each in self.image_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunImage:
    """One finished picture of a run, where to get it and what it must hash to."""

    index: int
    seed: int
    output_format: OutputFormat
    url: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run as the server sees it at this moment."""

    id: str
    deployment: str
    version: int
    status: RunStatus
    params: RunParams
    seeds: tuple[int, ...]
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    run_time_ms: float | None
    steps_done: int
    steps_total: int
    eta_seconds: float | None
    queue_position: int | None
    error: RunError | None
    warnings: tuple[str, ...]
    images: tuple[RunImage, ...]
    webhook_endpoint: str | None


def read_result(response: httpx2.Response) -> Result:
    """The envelope of a predict call that waited."""

    def read(members: Mapping[str, Any]) -> Result:
        seeds = response.headers.get("x-safelight-seed", "")
        return Result(
            run_id=members["run_id"],
            run_time_ms=float(members["run_time_ms"]),
            image_bytes=read_images(members),
            seeds=tuple(int(seed) for seed in seeds.split(",") if seed.strip()),
            warnings=tuple(_warning_text(line) for line in response.headers.get_list("warning")),
        )

    return _read_json(response, read)


def read_images(members: Mapping[str, Any]) -> tuple[bytes, ...]:
    """The files in the `result` of an envelope."""
    return tuple(b64decode(text, validate=True) for text in members["result"])


def read_run_id(response: httpx2.Response) -> str:
    """The id in the answer to a submission."""
    return _read_json(response, lambda members: str(members["run_id"]))


def read_run(response: httpx2.Response) -> RunRecord:
    return _read_json(response, _run)


def read_page(response: httpx2.Response) -> tuple[list[RunRecord], str | None]:
    """The runs of one page, and the cursor of the next."""
    return _read_json(response, lambda members: ([_run(run) for run in members["runs"]], members["next_cursor"]))


def read_event(sent: httpx2.ServerSentEvent) -> RunEvent | None:
    """A run event; None for kinds that this version does not know."""
    try:
        kind = RunEventKind(sent.event)
    except ValueError:
        return None
    try:
        members = json.loads(sent.data)
        return RunEvent(
            run_id=members["run_id"],
            kind=kind,
            at=datetime.fromisoformat(members["at"]).timestamp(),
            # The id of a stored fact stays in force for what comes after it and has none of its own.
            sequence=int(sent.id) if sent.id and kind not in _UNSTORED else None,
            image_index=members.get("image_index"),
            steps_done=members.get("steps_done"),
            steps_total=members.get("steps_total"),
            eta_seconds=members.get("eta_seconds"),
            error=_run_error(members.get("error")),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnexpectedAnswer(f"an event of the stream cannot be read: {error!r}") from error


def result_of(record: RunRecord, image_bytes: Sequence[bytes]) -> Result:
    """The result of a run that was asked for by its id."""
    return Result(
        run_id=record.id,
        run_time_ms=record.run_time_ms or 0.0,
        image_bytes=tuple(image_bytes),
        seeds=record.seeds,
        warnings=record.warnings,
    )


def error_of(record: RunRecord) -> SafelightError | None:
    """Why an ended run has no result, as the same error that a waiting call raises; None when it has one."""
    if record.status is RunStatus.SUCCEEDED:
        return None
    if record.status is RunStatus.CANCELLED:
        return Conflict("the run was cancelled before it had its images", code="run_cancelled", run_id=record.id)
    if record.error is None:
        return RunFailed("the run failed", run_id=record.id)
    if record.error.code == ModelUnavailable.code:
        return ModelUnavailable(record.error.message, run_id=record.id)
    return RunFailed(record.error.message, code=record.error.code, run_id=record.id)


def _read_json(response: httpx2.Response, read: Callable[[Mapping[str, Any]], T]) -> T:
    try:
        return read(json.loads(response.content))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        where = f"{response.request.method} {response.request.url}"
        message = f"the answer to {where} cannot be read ({error!r}); is this a Safelight server of this version?"
        raise UnexpectedAnswer(message) from error


def _run(members: Mapping[str, Any]) -> RunRecord:
    progress = members["progress"]
    return RunRecord(
        id=members["id"],
        deployment=members["deployment"],
        version=members["version"],
        status=RunStatus(members["status"]),
        params=_params(members["params"]),
        seeds=tuple(members["seeds"]),
        created_at=datetime.fromisoformat(members["created_at"]),
        started_at=_time(members["started_at"]),
        ended_at=_time(members["ended_at"]),
        run_time_ms=members["run_time_ms"],
        steps_done=progress["steps_done"],
        steps_total=progress["steps_total"],
        eta_seconds=members["eta_seconds"],
        queue_position=members["queue_position"],
        error=_run_error(members["error"]),
        warnings=tuple(members["warnings"]),
        images=tuple(_image(image) for image in members["images"]),
        webhook_endpoint=members["webhook_endpoint"],
    )


def _params(members: Mapping[str, Any]) -> RunParams:
    known = {each.name: members[each.name] for each in fields(RunParams) if each.name in members}
    known["sampler"] = SamplerName(known["sampler"])
    # A server of before has no spacings.
    known["spacing"] = Spacing(known.get("spacing", Spacing.AUTOMATIC))
    known["output_format"] = OutputFormat(known["output_format"])
    known["loras"] = tuple(LoraUse(each["name"], each["scale"]) for each in known.get("loras", ()))
    return RunParams(**known)


def _image(members: Mapping[str, Any]) -> RunImage:
    return RunImage(
        index=members["index"],
        seed=members["seed"],
        output_format=OutputFormat(members["format"]),
        url=members["url"],
        num_bytes=members["bytes"],
        sha256=members["sha256"],
    )


def _run_error(members: Mapping[str, Any] | None) -> RunError | None:
    return None if members is None else RunError(members["code"], members["message"])


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _warning_text(line: str) -> str:
    found = _WARNING_TEXT.search(line)
    return re.sub(r"\\(.)", r"\1", found[1]) if found else line
