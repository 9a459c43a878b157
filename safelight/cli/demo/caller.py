"""The example request and what comes of it, sent the way curl would: no client library, plain HTTP."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from base64 import b64decode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from safelight.errors import RunFailed

EXAMPLE_BODY: dict[str, Any] = {
    "prompt": "a photo of an astronaut riding a horse on mars.",
    "height": 768,
    "width": 512,
    "num_inference_steps": 60,
    "guidance_scale": 8,
    "num_images_per_prompt": 2,
    "negative_prompt": "no sky",
}

_TIMEOUT_SECONDS = 3600.0
_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Steps:
    """How far the newest run is."""

    steps_done: int
    steps_total: int
    eta_seconds: float | None


class Caller:
    """Speaks to one server with one key."""

    def __init__(self, address: str, key: str) -> None:
        self._address = address
        self._key = key

    def predict(self, name: str, body: dict[str, Any], *, watch: Callable[[Steps], None]) -> dict[str, Any]:
        """The answer's JSON. `watch` is told of the progress meanwhile. Raises RunFailed with the server's sentence."""
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(self._ask, f"/{name}/predict", body)
            while not answer.done():
                time.sleep(_POLL_SECONDS)
                self._look(watch)
            return answer.result()

    def wait(self, run_id: str, *, watch: Callable[[Steps], None]) -> None:
        """Until the run has ended. Raises RunFailed when it ended without its pictures."""
        while (run := self._ask(f"/runs/{run_id}"))["status"] in ("queued", "running"):
            _tell(run, watch)
            time.sleep(_POLL_SECONDS)
        if run["status"] != "succeeded":
            raise RunFailed((run["error"] or {}).get("message", f"the run was {run['status']}"), run_id=run_id)

    def _look(self, watch: Callable[[Steps], None]) -> None:
        """Tell `watch` how far the newest run is, where it is being drawn."""
        runs = self._ask("/runs?limit=1")["runs"]
        if runs:
            _tell(runs[0], watch)

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        request = urllib.request.Request(  # noqa: S310 - our own server on loopback
            self._address + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": self._key, "Content-Type": "application/json"},
        )
        # No proxy of the environment: it could not reach our loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            raise RunFailed(f"{path} was answered {error.code}: {_sentence(error.read())}") from error
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            raise RunFailed(f"{path} was not answered: {error}") from error


def pictures_of(answer: dict[str, Any], body: dict[str, Any]) -> list[bytes]:
    """The PNG files of an answer. Raises RunFailed when they are not what was asked."""
    pictures = [b64decode(text, validate=True) for text in answer["result"]]
    if len(pictures) != body["num_images_per_prompt"]:
        raise RunFailed(f"{answer.get('message')} ({len(pictures)} pictures)", run_id=answer["run_id"])
    for picture in pictures:
        found = int.from_bytes(picture[16:20], "big"), int.from_bytes(picture[20:24], "big")
        if picture[:8] != b"\x89PNG\r\n\x1a\n" or found != (body["width"], body["height"]):
            raise RunFailed(f"a picture is not a PNG of {body['width']}x{body['height']}", run_id=answer["run_id"])
    return pictures


def _tell(run: dict[str, Any], watch: Callable[[Steps], None]) -> None:
    if run["status"] == "running":
        progress = run["progress"]
        watch(Steps(progress["steps_done"], progress["steps_total"], progress["eta_seconds"]))


def _sentence(body: bytes) -> str:
    try:
        problem = json.loads(body)
        return str(problem.get("message") or problem.get("detail"))
    except ValueError:
        return body[:200].decode(errors="replace")
