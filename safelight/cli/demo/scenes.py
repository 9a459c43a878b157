"""The two calls of the demo: one that waits for its pictures, one whose pictures come by webhook."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from safelight.cli.demo.receiver import Receiver
from safelight.cli.demo.request import check_pictures, pictures_of, post
from safelight.cli.output import explain
from safelight.cli.pictures_out import PictureFolder
from safelight.cli.progress import StepBar
from safelight.client import Client
from safelight.deployments import DREAMBOOTH_ALIAS
from safelight.errors import RunFailed

_DELIVERY_SECONDS = 60.0
_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One call and what came of it."""

    what: str
    run_id: str
    run_time_ms: float
    seconds: float
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where the calls go, what they ask, and where their pictures are put."""

    address: str
    key: str
    body: dict[str, Any]
    out: Path

    @property
    def url(self) -> str:
        return f"{self.address}/{DREAMBOOTH_ALIAS}/predict"

    def keep(self, pictures: tuple[bytes, ...]) -> tuple[Path, ...]:
        """Check the pictures and write them. Raises RunFailed."""
        from safelight.pictures import read_texts

        check_pictures(pictures, self.body)
        folder = PictureFolder(str(self.out), prompt=self.body["prompt"])
        return tuple(folder.write(each, seed=int(read_texts(each)["seed"])) for each in pictures)


def plain_call(stage: Stage) -> Scene:
    """Send the request and wait for the answer, showing the newest run's progress meanwhile."""
    explain(f"POST {stage.url}")
    begun = time.monotonic()
    with ThreadPoolExecutor(1) as pool, Client(stage.address, stage.key) as client, StepBar() as bar:
        answering = pool.submit(post, stage.url, stage.key, stage.body)
        while not answering.done():
            time.sleep(_POLL_SECONDS)
            for run in islice(client.runs(page_size=1), 1):
                bar.show(run.steps_done, run.steps_total, run.eta_seconds)
    answer = answering.result()
    return Scene(
        what="plain",
        run_id=answer["run_id"],
        run_time_ms=answer["run_time_ms"],
        seconds=time.monotonic() - begun,
        files=stage.keep(pictures_of(answer)),
    )


def webhook_call(stage: Stage, receiver: Receiver) -> Scene:
    """Send the request with a webhook and wait for the delivery."""
    explain(f"the same with webhook_endpoint {receiver.url}")
    begun = time.monotonic()
    run_id = post(stage.url, stage.key, stage.body | {"webhook_endpoint": receiver.url})["run_id"]
    with Client(stage.address, stage.key) as client, StepBar() as bar:
        bar.follow(client.events(run_id))
    message = receiver.take(run_id, timeout_seconds=_DELIVERY_SECONDS)
    if message.result is None:
        raise RunFailed(message.message, code=message.code, run_id=run_id)
    explain(f"the webhook came, and its signature is right (event {message.event_id})")
    return Scene(
        what="webhook, verified",
        run_id=run_id,
        run_time_ms=message.result.run_time_ms,
        seconds=time.monotonic() - begun,
        files=stage.keep(message.result.image_bytes),
    )
